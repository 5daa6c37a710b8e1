//! Where things are pinned, and whether what is pinned there is ours.

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use portcullis_common::Direction;
use portcullis_common::abi::{ABI, names};

use super::error::DatapathError;
use super::sizes::Shape;
use super::sys;

/// The folder of one agent in bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The folder at `root`; nothing is touched.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder above the ABI versions.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this ABI.
    pub fn folder(&self) -> PathBuf {
        self.root.join(format!("v{ABI}"))
    }

    /// A map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The folder of the links.
    pub fn links(&self) -> PathBuf {
        self.folder().join("links")
    }

    /// The link of an interface in the pod's direction.
    pub fn link(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.links().join(format!("{ifindex}-{direction}"))
    }

    /// The folder of the endpoints' flow tables.
    pub fn flows(&self) -> PathBuf {
        self.folder().join("flows")
    }

    /// The flow table of a slot; `version` 4 or 6.
    pub fn flow(&self, slot: u32, version: u8) -> PathBuf {
        self.flows().join(format!("{slot}-{version}"))
    }

    /// Makes the folders.
    ///
    /// # Errors
    /// If the place is not on bpffs or a folder cannot be made.
    pub fn create(&self) -> Result<(), DatapathError> {
        let above = self.root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        match sys::is_bpffs(above) {
            Ok(true) => {}
            Ok(false) => return Err(DatapathError::NotBpffs(self.root.clone())),
            Err(error) => return Err(DatapathError::File { what: "look at", path: above.to_owned(), error }),
        }
        for path in [self.links(), self.flows()] {
            fs::create_dir_all(&path).map_err(|error| DatapathError::File { what: "create", path, error })?;
        }
        Ok(())
    }

    /// Takes the lock of the folder, which an agent holds while it runs, for as long as the returned file lives.
    ///
    /// # Errors
    /// If another process has it, or the folder cannot be opened.
    pub fn lock(&self) -> Result<fs::File, DatapathError> {
        match sys::lock_patiently(&self.root) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(DatapathError::Locked(self.root.clone())),
            Err(error) => Err(DatapathError::File { what: "lock", path: self.root.clone(), error }),
        }
    }

    /// Compares every pinned map with what this agent needs. aya adopts a pin without looking, and typed access to
    /// another layout would read and write beyond the kernel's buffers.
    ///
    /// # Errors
    /// The first map that differs.
    pub fn check(&self, wanted: &dyn Fn(&str) -> Option<Shape>) -> Result<(), DatapathError> {
        for name in names::ALL {
            let path = self.map(name);
            if !path.exists() {
                continue;
            }
            let info =
                MapInfo::from_pin(&path).map_err(|error| DatapathError::map("inspect", *name, error))?;
            let Some(wanted) = wanted(name) else { continue };
            let found = Shape::of(&info);
            if found != wanted {
                return Err(DatapathError::ForeignMap {
                    path,
                    found: found.to_string(),
                    wanted: wanted.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Names in a folder; empty if it is not there.
    pub fn list(folder: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    /// Removes a pin; one that is not there is no error.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(path: &Path) -> Result<(), DatapathError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DatapathError::File { what: "remove", path: path.to_owned(), error })
            }
            _ => Ok(()),
        }
    }
}
