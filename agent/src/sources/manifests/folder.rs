//! The state of the folder: what is in force from each file, and how it differs from what was in force before.
//!
//! A file that cannot be understood keeps its last good state. The result depends on the files alone and not on the
//! order in which they changed, so that two files that define the same object never take turns.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::decode::{self, Decoded};
use super::endpoints;
use super::status::FileStatus;
use super::survey::{Seen, Survey, Version};
use crate::model::{Object, ObjectKey};
use crate::sources::SourceEvent;

/// A larger file is refused: it would be held in memory several times over.
const MAX_SIZE: u64 = 512 << 20;

/// Objects by key, as they are in force.
pub(super) type Objects = BTreeMap<ObjectKey, Arc<Object>>;

/// The files and what is known of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Folder {
    files: BTreeMap<PathBuf, File>,
    /// Folders that cannot be listed, and why. What was below them stays.
    unreadable: BTreeMap<PathBuf, String>,
}

#[derive(Clone, Debug, Default)]
struct File {
    /// The version that `digest` is of, if a later change is sure to make another one.
    version: Option<Version>,
    /// Of the content that was read last.
    digest: Option<[u8; 32]>,
    /// What the file said when it could last be understood.
    good: Option<Good>,
    /// Why that is not what it says now.
    errors: Vec<String>,
}

#[derive(Clone, Debug)]
struct Good {
    objects: Vec<Arc<Object>>,
    ignored: Vec<String>,
}

/// What follows from the files.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// What is in force.
    pub objects: Objects,
    /// How many of them are from which file.
    counts: BTreeMap<PathBuf, usize>,
    /// Objects that are not used because an earlier file defines them too.
    conflicts: BTreeMap<PathBuf, Vec<String>>,
}

impl Folder {
    /// Brings the state up to a survey, reading what has changed, or everything if `all`.
    pub fn update(&mut self, survey: &Survey, all: bool) {
        let Self { files, unreadable } = self;
        unreadable.clone_from(&survey.unreadable);
        let mut gone = HashMap::new();
        files.retain(|path, file| {
            if survey.files.contains_key(path) {
                return true;
            }
            if let Some((folder, why)) = unreadable.iter().find(|(folder, _)| path.starts_with(folder)) {
                file.fail(vec![format!("the folder {} cannot be listed: {why}", folder.display())]);
                file.version = None;
                file.digest = None;
                return true;
            }
            if let Some(digest) = file.digest {
                gone.insert(digest, std::mem::take(file));
            }
            false
        });
        for (path, seen) in &survey.files {
            let file = files.entry(path.clone()).or_default();
            match seen {
                Seen::Version(version) if !all && file.version == Some(*version) => {}
                Seen::Version(version) => {
                    let read_at = SystemTime::now();
                    file.read(path, &mut gone);
                    let known = file.digest.is_some() && version.is_settled(read_at);
                    file.version = known.then_some(*version);
                }
                Seen::Unreadable(why) => {
                    (file.version, file.digest) = (None, None);
                    file.fail(vec![format!("{why}; make it readable or remove it")]);
                }
            }
        }
    }

    /// What is in force. Of two definitions of an object the one in the first file by path is. Services of which no
    /// endpoints are listed get those that they select.
    pub fn resolve(&self) -> Resolved {
        let mut resolved = Resolved::default();
        let mut owners: BTreeMap<&ObjectKey, &Path> = BTreeMap::new();
        let keyed: Vec<(&Path, Vec<_>)> = self
            .files
            .iter()
            .map(|(path, file)| {
                (path.as_path(), file.objects().map(|object| (object.key(), object)).collect())
            })
            .collect();
        let mut uids: HashMap<&str, (&Path, &ObjectKey)> = HashMap::new();
        for (path, objects) in &keyed {
            let mut count = 0;
            for (key, object) in objects {
                let taken = owners.get(key).map(|owner| (*owner, String::new()));
                let taken = taken.or_else(|| {
                    let Object::Pod(pod) = object.as_ref() else { return None };
                    let (owner, other) = uids.get(pod.uid.as_str())?;
                    Some((*owner, format!(" as {other} with the same uid")))
                });
                if let Some((owner, how)) = taken {
                    let message = format!(
                        "{key} is also defined in {}{how}; that definition is used, remove one of the two",
                        owner.display()
                    );
                    resolved.conflicts.entry((*path).to_owned()).or_default().push(message);
                    continue;
                }
                owners.insert(key, path);
                if let Object::Pod(pod) = object.as_ref() {
                    uids.insert(&pod.uid, (path, key));
                }
                resolved.objects.insert(key.clone(), Arc::clone(object));
                count += 1;
            }
            resolved.counts.insert((*path).to_owned(), count);
        }
        for slice in endpoints::slices(&resolved.objects) {
            let object = Object::EndpointSlice(slice);
            resolved.objects.insert(object.key(), Arc::new(object));
        }
        resolved
    }

    /// Whether everything in the folder could be understood at least once.
    pub fn is_complete(&self) -> bool {
        self.unreadable.is_empty() && self.files.values().all(|file| file.good.is_some())
    }

    /// Whether something could not be read for a reason that may pass without an event.
    pub fn must_retry(&self) -> bool {
        !self.unreadable.is_empty() || self.files.values().any(|file| file.digest.is_none())
    }

    /// What cannot be listed.
    pub fn unreadable(&self) -> &BTreeMap<PathBuf, String> {
        &self.unreadable
    }

    /// The state of each file. `synced`: whether the folder has been complete before.
    pub fn status(&self, resolved: &Resolved, synced: bool) -> BTreeMap<PathBuf, FileStatus> {
        let consequence = |file: &File| match (&file.good, synced) {
            (Some(_), _) => "the last good state of this file stays in force",
            (None, true) => "nothing of this file is in force",
            (None, false) => {
                "nothing is enforced from this folder until the file has been understood once (what was enforced \
                 before the start stays)"
            }
        };
        let status = |(path, file): (&PathBuf, &File)| {
            let conflicts = resolved.conflicts.get(path).into_iter().flatten();
            let own = file.errors.iter().map(|error| format!("{error}; {}", consequence(file)));
            let errors: Vec<_> =
                own.chain(conflicts.cloned()).map(|error| format!("{}: {error}", path.display())).collect();
            let status = FileStatus {
                objects: resolved.counts.get(path).copied().unwrap_or(0),
                error: (!errors.is_empty()).then(|| errors.join("\n")),
                stale: !file.errors.is_empty() && file.good.is_some(),
                ignored: file.good.iter().flat_map(|good| good.ignored.clone()).collect(),
            };
            (path.clone(), status)
        };
        self.files.iter().map(status).collect()
    }
}

impl File {
    fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.good.iter().flat_map(|good| &good.objects)
    }

    fn fail(&mut self, errors: Vec<String>) {
        // One mistake is one line in the status.
        self.errors = errors.into_iter().map(|error| error.replace(['\n', '\r'], " ")).collect();
    }

    /// Reads the file. `gone` are the files that vanished at the same time, by content: one of them may be this one.
    fn read(&mut self, path: &Path, gone: &mut HashMap<[u8; 32], File>) {
        let bytes = match read_limited(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                (self.version, self.digest) = (None, None);
                return self.fail(vec![format!("cannot be read: {error}; make it readable or remove it")]);
            }
        };
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        if self.digest == Some(digest) {
            return;
        }
        // A file that is new under this name but not in content has been renamed, and takes its last good state along.
        if self.good.is_none()
            && self.digest.is_none()
            && let Some(renamed) = gone.remove(&digest)
        {
            *self = renamed;
            return;
        }
        self.digest = Some(digest);
        match self.understand(path, bytes) {
            Ok(Decoded { objects, ignored, .. }) => {
                self.good = Some(Good { objects: objects.into_iter().map(Arc::new).collect(), ignored });
                self.errors.clear();
            }
            Err(errors) => self.fail(errors),
        }
    }

    fn understand(&self, path: &Path, bytes: Vec<u8>) -> Result<Decoded, Vec<String>> {
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            vec![format!("not UTF-8 from byte {at} on; save it as UTF-8")]
        })?;
        if text.trim().is_empty() && self.objects().next().is_some() {
            // More likely in the middle of being written, or cut off by a full disk, than meant.
            return Err(vec!["is empty; remove the file if its objects shall go".to_owned()]);
        }
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        decode::decode(&text, is_json).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }
}

/// Reads a file, unless it is too large.
pub(super) fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > MAX_SIZE {
        let message = format!("{size} bytes are more than the limit of {MAX_SIZE}; split it");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    fs::read(path)
}

/// What must be done to get from one state to another.
pub(super) fn difference(old: &Objects, new: &Objects) -> Vec<SourceEvent> {
    let uid = |object: &Object| match object {
        Object::Pod(pod) => Some(pod.uid.clone()),
        _ => None,
    };
    let deletes = old.iter().filter_map(|(key, object)| {
        let uid = uid(object);
        let stays = new.get(key).is_some_and(|new| self::same_identity(object, new));
        (!stays).then(|| SourceEvent::Delete { key: key.clone(), uid })
    });
    let applies = new.iter().filter_map(|(key, object)| {
        let same = old.get(key).is_some_and(|old| Arc::ptr_eq(old, object) || old == object);
        (!same).then(|| SourceEvent::Apply(Object::clone(object)))
    });
    deletes.chain(applies).collect()
}

/// Whether an object replaces another of the same key: a pod with another UID is another pod.
fn same_identity(old: &Object, new: &Object) -> bool {
    match (old, new) {
        (Object::Pod(old), Object::Pod(new)) => old.uid == new.uid,
        _ => true,
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
