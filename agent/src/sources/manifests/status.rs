//! What `portcullis status` and the metrics show of a folder of manifests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The state of a folder of manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestStatus {
    /// The folder.
    pub directory: PathBuf,
    /// The files that count.
    pub files: BTreeMap<PathBuf, FileStatus>,
    /// Why the folder or a part of it is not known, or not watched.
    pub error: Option<String>,
    /// Whether every file could be read at least once since the start: nothing is enforced before.
    pub synced: bool,
    /// When the folder was last read without a single error.
    pub last_success: Option<SystemTime>,
}

/// The state of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// How many objects are in force from it.
    pub objects: usize,
    /// What is wrong with it, what follows and what to do; one mistake a line.
    pub error: Option<String>,
    /// Whether what is in force from it is older than what it says now.
    pub stale: bool,
    /// Objects in it of kinds that decide nothing here.
    pub ignored: Vec<String>,
}
