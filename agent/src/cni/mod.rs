//! libcni's result cache: whose sandbox got which addresses, before the API server knows.
//!
//! Invariant: a file that cannot be read or understood takes nothing away but itself, and the folder need not exist.
//! The folder is watched; where it cannot be (it is not there yet), it is read when somebody asks for a look.

mod entry;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;
use tracing::{debug, warn};

pub use entry::{CniEntry, EntryError};

/// A file of libcni has some two kilobytes, most of it the network's configuration.
const MAX_SIZE: u64 = 256 * 1024;
/// A node has some hundred pods, and several networks at most.
const MAX_FILES: usize = 16_384;
/// Without a watch somebody has to ask; this is for what nobody asks for, such as a file that goes.
const UNWATCHED: Duration = Duration::from_secs(10);

/// Why the cache cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("no thread for the CNI cache {path}: {source}")]
pub struct CacheError {
    path: PathBuf,
    source: std::io::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Look,
    Stop,
}

/// A cache that is followed until this is dropped.
#[derive(Debug)]
pub struct CniCache {
    entries: watch::Receiver<Arc<Vec<CniEntry>>>,
    signals: Sender<Signal>,
}

impl CniCache {
    /// Follows a folder, which need not exist.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(folder: &Path) -> Result<Self, CacheError> {
        let (signals, receiver) = channel();
        let (publish, entries) = watch::channel(Arc::default());
        let worker = Worker {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
            watcher: None,
            own: signals.clone(),
            said: false,
        };
        std::thread::Builder::new()
            .name("cni-cache".to_owned())
            .spawn(move || worker.run(&receiver, &publish))
            .map_err(|source| CacheError { path: folder.to_owned(), source })?;
        Ok(Self { entries, signals })
    }

    /// What the cache says, now and after each change.
    pub fn entries(&self) -> watch::Receiver<Arc<Vec<CniEntry>>> {
        self.entries.clone()
    }

    /// Asks for a look: an interface has appeared that nobody knows.
    pub fn look(&self) {
        // Fails when the thread has ended, with the process.
        let _ = self.signals.send(Signal::Look);
    }
}

impl Drop for CniCache {
    fn drop(&mut self) {
        let _ = self.signals.send(Signal::Stop);
    }
}

/// What tells a state of a file from another.
type Stamp = (SystemTime, u64);

struct Worker {
    folder: PathBuf,
    /// What each file said last, and in which state it was then.
    files: BTreeMap<OsString, (Stamp, Option<CniEntry>)>,
    watcher: Option<RecommendedWatcher>,
    own: Sender<Signal>,
    /// Whether it was said that the folder cannot be read.
    said: bool,
}

impl Worker {
    fn run(mut self, signals: &Receiver<Signal>, publish: &watch::Sender<Arc<Vec<CniEntry>>>) {
        loop {
            // Before the folder is read: what changes after that makes an event.
            self.watch();
            self.read();
            let entries: Vec<CniEntry> = self.files.values().filter_map(|(_, entry)| entry.clone()).collect();
            publish.send_if_modified(|before| {
                let changed = **before != entries;
                if changed {
                    *before = Arc::new(entries);
                }
                changed
            });
            let signal = if self.watcher.is_some() {
                signals.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                signals.recv_timeout(UNWATCHED)
            };
            if matches!(signal, Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            if signals.try_iter().any(|signal| signal == Signal::Stop) {
                return;
            }
        }
    }

    /// Sees to it that changes are noticed, if the folder is there.
    fn watch(&mut self) {
        if !self.folder.is_dir() {
            self.watcher = None;
            return;
        }
        if self.watcher.is_some() {
            return;
        }
        let signals = self.own.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            let reading = event.as_ref().is_ok_and(|event| event.kind.is_access() && !closes(event));
            if !reading {
                let _ = signals.send(Signal::Look);
            }
        };
        let made = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match made {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => debug!(%error, folder = %self.folder.display(), "the CNI cache is not watched"),
        }
    }

    /// Reads every file that is not as it was.
    fn read(&mut self) {
        let names = match list(&self.folder) {
            Ok(names) => names,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound && !self.said {
                    self.said = true;
                    warn!(%error, folder = %self.folder.display(), "the CNI cache cannot be read: new pods are \
                        known only when the API server tells their address");
                }
                // A folder that cannot be read says nothing, and what it said before may be over.
                self.files.clear();
                return;
            }
        };
        self.said = false;
        let mut before = std::mem::take(&mut self.files);
        for name in names {
            let path = self.folder.join(&name);
            let Some(stamp) = stamp(&path) else { continue };
            let known = before.remove(&name).filter(|(then, _)| *then == stamp);
            let file = known.unwrap_or_else(|| (stamp, entry_of(&path, stamp)));
            self.files.insert(name, file);
        }
    }
}

/// Whether an event tells that a file was written to its end.
fn closes(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

fn list(folder: &Path) -> std::io::Result<Vec<OsString>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.file_name());
    Ok(entries.take(MAX_FILES).collect())
}

/// Of a regular file that is not too large.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let fits = metadata.is_file() && metadata.len() <= MAX_SIZE;
    Some((metadata.modified().ok()?, metadata.len())).filter(|_| fits)
}

/// `None`: there is nothing to learn from it, or not yet.
fn entry_of(path: &Path, (written, _): Stamp) -> Option<CniEntry> {
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text));
    if let Err(error) = read {
        debug!(%error, path = %path.display(), "a file of the CNI cache cannot be read");
        return None;
    }
    CniEntry::parse(&text, written)
        .inspect_err(|error| debug!(%error, path = %path.display(), "a file of the CNI cache is passed over"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pod: &str) -> String {
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"{pod}","config":"e30=","ifName":"eth0","networkName":"pods",
            "cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","{pod}"],["K8S_POD_UID","u-{pod}"]],
            "result":{{"ips":[{{"address":"10.1.0.5/24"}}]}}}}"#
        )
    }

    /// Waits until the cache names these pods.
    async fn until(entries: &mut watch::Receiver<Arc<Vec<CniEntry>>>, pods: &[&str]) {
        let names = |entries: &Arc<Vec<CniEntry>>| {
            let mut names: Vec<String> = entries.iter().map(|entry| entry.pod.clone()).collect();
            names.sort();
            names == pods
        };
        let wait = entries.wait_for(names);
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time").unwrap();
    }

    #[tokio::test]
    async fn a_cache_is_followed_and_what_is_not_understood_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("pods-a-eth0"), text("a")).unwrap();
        fs::write(path("broken"), "{").unwrap();
        fs::create_dir(path("folder")).unwrap();
        let large = vec![b' '; usize::try_from(MAX_SIZE).unwrap() + 1];
        fs::write(path("large"), [large.as_slice(), text("large").as_bytes()].concat()).unwrap();
        let cache = CniCache::start(folder.path()).unwrap();
        let mut entries = cache.entries();
        until(&mut entries, &["a"]).await;
        // As libcni writes: in place, here in two steps.
        let whole = text("b");
        let (head, tail) = whole.split_at(40);
        let mut file = fs::File::create(path("pods-b-eth0")).unwrap();
        std::io::Write::write_all(&mut file, head.as_bytes()).unwrap();
        fs::write(path("pods-c-eth0"), text("c")).unwrap();
        until(&mut entries, &["a", "c"]).await;
        std::io::Write::write_all(&mut file, tail.as_bytes()).unwrap();
        drop(file);
        until(&mut entries, &["a", "b", "c"]).await;
        fs::remove_file(path("pods-a-eth0")).unwrap();
        until(&mut entries, &["b", "c"]).await;
    }

    #[tokio::test]
    async fn a_folder_that_comes_later_is_read_when_somebody_asks_and_watched_from_then_on() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("results");
        let cache = CniCache::start(&folder).unwrap();
        let mut entries = cache.entries();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("pods-a-eth0"), text("a")).unwrap();
        cache.look();
        until(&mut entries, &["a"]).await;
        fs::write(folder.join("pods-b-eth0"), text("b")).unwrap();
        until(&mut entries, &["a", "b"]).await;
        fs::remove_dir_all(&folder).unwrap();
        until(&mut entries, &[]).await;
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("pods-c-eth0"), text("c")).unwrap();
        cache.look();
        until(&mut entries, &["c"]).await;
    }
}
