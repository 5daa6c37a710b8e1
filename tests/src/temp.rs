//! A folder for the files of one test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::owner;

/// A folder that is removed, with everything in it, when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes an empty folder with a name that tells its owner.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(owner::fresh_name());
        std::fs::create_dir(&path).with_context(|| format!("making the folder {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it, whole, so that a reader never sees half of it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        // Hidden: who watches the folder for `*.yaml` must not take the unfinished file for one.
        let unfinished = self.0.join(format!(".{name}.tmp"));
        let path = self.0.join(name);
        std::fs::write(&unfinished, text)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What is left is named by the residue check.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_its_files_go_with_it() {
        let folder = TempDir::new().unwrap();
        folder.write("a.yaml", "one").unwrap();
        folder.write("a.yaml", "two").unwrap();
        let path = folder.path().to_path_buf();
        assert_eq!(std::fs::read_to_string(path.join("a.yaml")).unwrap(), "two");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
        drop(folder);
        assert!(!path.exists());
    }
}
