//! What is in the folder: which files count, in which version, and what must be watched to learn of a change.
//!
//! Nothing is read here, so a survey is cheap enough to be repeated after reading: if both agree, what was read is one
//! state of the folder and not a mixture of two.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// The folder at a moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// The files that count, by path below the folder as the user named it.
    pub files: BTreeMap<PathBuf, Seen>,
    /// Folders whose content is not known, and why.
    pub unreadable: BTreeMap<PathBuf, String>,
    /// What to watch.
    pub watch: WatchSet,
}

/// What can be said of a file without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is there, in this version.
    Version(Version),
    /// It cannot be read, and why.
    Unreadable(String),
}

/// Changes whenever the content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Which events mean that the folder may have changed. Every path is free of symbolic links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WatchSet {
    /// Folders of which every entry counts.
    pub folders: BTreeSet<PathBuf>,
    /// Single entries elsewhere: links on the way to the folder or to a file, what they point to, and what is missing.
    pub entries: BTreeSet<PathBuf>,
}

impl WatchSet {
    /// The folders to put a watch on.
    pub fn watched(&self) -> BTreeSet<PathBuf> {
        let parents = self.entries.iter().filter_map(|entry| entry.parent());
        self.folders.iter().map(PathBuf::as_path).chain(parents).map(Path::to_owned).collect()
    }

    /// Whether something that happened to a path may concern us.
    pub fn concerns(&self, path: &Path) -> bool {
        let is_entry = || {
            let in_folder = path.parent().is_some_and(|parent| self.folders.contains(parent));
            in_folder && !path.file_name().is_some_and(is_hidden)
        };
        self.folders.contains(path) || self.entries.contains(path) || is_entry()
    }
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a later change is sure to make another version. Right after a change it is not: the clock of the file
    /// system has steps of milliseconds.
    pub fn is_settled(&self, read_at: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(changed.saturating_add(2)) < read_at
    }
}

/// Looks at a folder. `root` is absolute.
pub(super) fn survey(root: &Path) -> Survey {
    let mut walk = Walk { survey: Survey::default(), visited: HashSet::new() };
    match resolve(root, &mut walk.survey.watch.entries) {
        Ok(real) => walk.folder(root, &real),
        Err(error) => drop(walk.survey.unreadable.insert(root.to_owned(), error.to_string())),
    }
    walk.survey
}

struct Walk {
    survey: Survey,
    /// Folders by device and inode: one that can be reached in two ways, or contains itself, is read once.
    visited: HashSet<(u64, u64)>,
}

impl Walk {
    fn folder(&mut self, path: &Path, real: &Path) {
        let listing = fs::metadata(real).and_then(|metadata| {
            let first = self.visited.insert((metadata.dev(), metadata.ino()));
            if !first {
                return Ok(Vec::new());
            }
            self.survey.watch.folders.insert(real.to_owned());
            fs::read_dir(real)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
        });
        match listing {
            Ok(mut names) => {
                names.sort();
                for name in names.iter().filter(|name| !is_hidden(name)) {
                    self.entry(&path.join(name), &real.join(name));
                }
            }
            Err(error) => drop(self.survey.unreadable.insert(path.to_owned(), error.to_string())),
        }
    }

    fn entry(&mut self, path: &Path, real: &Path) {
        let Ok(link) = fs::symlink_metadata(real) else { return }; // gone since it was listed
        let resolved = if link.is_symlink() {
            let mut entries = BTreeSet::new();
            let resolved = resolve(real, &mut entries).and_then(|real| Ok((fs::metadata(&real)?, real)));
            let is_folder = resolved.as_ref().is_ok_and(|(metadata, _)| metadata.is_dir());
            if is_manifest(path) || is_folder {
                self.survey.watch.entries.append(&mut entries);
                if let (false, Ok((_, real))) = (is_folder, &resolved) {
                    self.survey.watch.entries.insert(real.clone());
                }
            }
            resolved
        } else {
            Ok((link, real.to_owned()))
        };
        let seen = match resolved {
            Ok((metadata, real)) if metadata.is_dir() => return self.folder(path, &real),
            Ok((metadata, _)) if metadata.is_file() => Seen::Version(Version::of(&metadata)),
            // Opening a pipe would wait for its writer.
            Ok(_) => Seen::Unreadable("not a regular file".to_owned()),
            Err(error) => Seen::Unreadable(format!("a link that leads nowhere: {error}")),
        };
        if is_manifest(path) {
            self.survey.files.insert(path.to_owned(), seen);
        }
    }
}

/// Names that belong to editors and to the volumes of Kubernetes (`..data`) rather than to the user.
fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || name.as_encoded_bytes().starts_with(b"#")
}

/// Whether a file of this name counts.
pub(super) fn is_manifest(path: &Path) -> bool {
    matches!(path.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"))
}

/// Follows the links of a path, as the kernel does, and collects the entries that could change where it leads: every
/// link, and the first entry that is missing.
fn resolve(path: &Path, entries: &mut BTreeSet<PathBuf>) -> io::Result<PathBuf> {
    let mut real = PathBuf::from("/");
    let mut ahead = names_reversed(path);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let entry = real.join(&name);
        let metadata = fs::symlink_metadata(&entry);
        if !metadata.as_ref().is_ok_and(|metadata| !metadata.is_symlink()) {
            entries.insert(entry.clone());
        }
        if !metadata?.is_symlink() {
            real = entry;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = fs::read_link(&entry)?;
        if target.is_absolute() {
            real = PathBuf::from("/");
        }
        ahead.append(&mut names_reversed(&target));
    }
    Ok(real)
}

fn names_reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    names.map(|c| c.as_os_str().to_owned()).rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(survey: &Survey, root: &Path) -> Vec<String> {
        survey.files.keys().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn only_manifests_count_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::create_dir(root.join(".git")).unwrap();
        fs::create_dir(root.join("folder.yaml")).unwrap();
        let count = ["a.yaml", "b.yml", "c.json", "sub/deep/d.yaml"];
        let not = [
            ".a.yaml",
            ".git/x.yaml",
            "#b.yaml",
            "#b.yaml#",
            "a.yaml~",
            "a.yaml.swp",
            "4913",
            "x.txt",
            "yaml",
        ];
        for name in count.iter().chain(&not) {
            fs::write(root.join(name), "").unwrap();
        }
        symlink("nobody@host", root.join(".#a.yaml")).unwrap();
        let survey = survey(&root);
        assert_eq!(names(&survey, &root), count);
        assert_eq!(survey.unreadable, BTreeMap::new());
        let folders = ["", "sub", "sub/deep", "folder.yaml"].map(|name| root.join(name)).into();
        assert_eq!(survey.watch, WatchSet { folders, entries: BTreeSet::new() });
    }

    #[test]
    fn links_are_followed_and_watched_at_every_step() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let root = base.join("current");
        fs::create_dir_all(base.join("v1")).unwrap();
        fs::create_dir_all(base.join("else")).unwrap();
        symlink("v1", &root).unwrap();
        fs::write(base.join("else/target"), "").unwrap();
        symlink("../else/target", root.join("a.yaml")).unwrap();
        symlink("../else/missing", root.join("b.yaml")).unwrap();
        symlink(".", root.join("itself")).unwrap();
        symlink("loop.yaml", root.join("loop.yaml")).unwrap();
        symlink("../else/target", root.join("unrelated")).unwrap();
        let survey = survey(&root);
        assert_eq!(names(&survey, &root), ["a.yaml", "b.yaml", "loop.yaml"]);
        let readable = survey.files.values().map(|seen| matches!(seen, Seen::Version(_))).collect::<Vec<_>>();
        assert_eq!(readable, [true, false, false]);
        let entries =
            ["current", "else/missing", "else/target", "v1/a.yaml", "v1/b.yaml", "v1/itself", "v1/loop.yaml"];
        let expected = WatchSet {
            folders: [base.join("v1")].into(),
            entries: entries.map(|name| base.join(name)).into(),
        };
        assert_eq!(survey.watch, expected);
        assert_eq!(expected.watched(), ["", "else", "v1"].map(|name| base.join(name)).into());
        for (path, concerns) in [
            ("v1/x", true),
            ("v1", true),
            ("else/target", true),
            ("else/x", false),
            ("current", true),
            ("x", false),
        ] {
            assert_eq!(expected.concerns(&base.join(path)), concerns, "{path}");
        }
    }

    #[test]
    fn a_folder_that_is_missing_is_waited_for_where_it_would_appear() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let root = base.join("not/yet");
        let survey = survey(&root);
        assert_eq!(survey.unreadable.keys().collect::<Vec<_>>(), [&root]);
        assert_eq!(survey.watch.watched(), [base].into());
    }

    #[test]
    fn a_pipe_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.yaml");
        let status = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(status.success());
        let survey = survey(folder.path());
        assert_eq!(survey.files[&path], Seen::Unreadable("not a regular file".to_owned()));
    }
}
