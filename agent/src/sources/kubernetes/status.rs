//! What the metrics show of the Kubernetes source.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// The state of the source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubernetesStatus {
    /// Whether every kind has been listed once.
    pub synced: bool,
    /// Each kind, by its name (`Pod`).
    pub kinds: BTreeMap<&'static str, KindStatus>,
    /// While the server is silent: when it was last heard of any of the kinds that it should send.
    pub silent_since: Option<SystemTime>,
}

/// The state of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindStatus {
    /// Its name in paths, `pods`.
    pub plural: &'static str,
    /// Whether it has been listed.
    pub listed: bool,
    /// Whether the server has it.
    pub missing: bool,
    /// How many objects are in force.
    pub objects: usize,
    /// How many of its objects are not understood, wholly or in part.
    pub unclear: usize,
    /// How often it was listed from the beginning.
    pub lists: u64,
    /// How often something failed.
    pub errors: u64,
}

/// How long ago the server was last heard of each kind, at the moment of asking.
pub type Ages = BTreeMap<&'static str, Duration>;
