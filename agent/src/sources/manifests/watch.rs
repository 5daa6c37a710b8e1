//! When to look again: file system events, gathered until a change is likely to be complete.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::survey::{WatchSet, is_manifest};

/// After the last event.
const QUIET: Duration = Duration::from_millis(20);
/// After the last event while a file is open that has been written to.
const QUIET_WHILE_WRITING: Duration = Duration::from_millis(500);
/// After the first event at the latest, so that a stream of events holds nothing up.
const LATEST: Duration = Duration::from_millis(250);
const LATEST_WHILE_WRITING: Duration = Duration::from_secs(2);

/// What wakes the source.
#[derive(Debug)]
pub(super) enum Signal {
    /// The file system's events, or their absence.
    File(notify::Result<Event>),
    /// Nobody wants to know any more.
    Stop,
}

/// Why to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wake {
    /// When the change was noticed.
    pub since: Instant,
    /// Whether events may have been lost.
    pub all: bool,
}

/// Watches what a survey says. No watch is recursive: folders that come later are found by the next survey, which runs
/// again after a watch was added and so misses nothing.
#[derive(Debug)]
pub(super) struct Watcher {
    inner: RecommendedWatcher,
    signals: Receiver<Signal>,
    set: WatchSet,
    watched: BTreeSet<PathBuf>,
}

impl Watcher {
    /// A watcher that watches nothing yet. `sender` and `signals` are the two ends of a channel.
    pub fn new(sender: Sender<Signal>, signals: Receiver<Signal>) -> notify::Result<Self> {
        // A send fails only when the source has ended.
        let handler = move |event| drop(sender.send(Signal::File(event)));
        let inner = notify::recommended_watcher(handler)?;
        Ok(Self { inner, signals, set: WatchSet::default(), watched: BTreeSet::new() })
    }

    /// Watches this and nothing else. Returns whether something is watched that was not, and what cannot be.
    pub fn watch(&mut self, set: &WatchSet) -> (bool, Vec<String>) {
        let wanted = set.watched();
        for path in self.watched.difference(&wanted) {
            // Fails where the folder is gone, and its watch with it.
            let _ = self.inner.unwatch(path);
        }
        let mut errors = Vec::new();
        let mut watched = BTreeSet::new();
        for path in wanted {
            // Each time: a folder may have been replaced by another of the same name.
            match self.inner.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => drop(watched.insert(path)),
                Err(error) => errors.push(explain(&path, &error)),
            }
        }
        let new = !watched.is_subset(&self.watched);
        self.watched = watched;
        self.set = set.clone();
        (new, errors)
    }

    /// Waits for a change, or until `limit` if there is one. `None`: the source shall end.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Wake> {
        let give_up = limit.map(|limit| Instant::now() + limit);
        let mut gathered = Gathered::default();
        loop {
            let deadline = gathered.deadline().or(give_up);
            let signal = match deadline {
                None => self.signals.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    self.signals.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
            };
            match signal {
                Ok(Signal::File(event)) => gathered.add(event, &self.set),
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    return Some(gathered.wake().unwrap_or(Wake { since: Instant::now(), all: false }));
                }
            }
        }
    }
}

fn explain(path: &Path, error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => format!(
            "changes in {} go unnoticed: the limit of watches is reached; raise fs.inotify.max_user_watches",
            path.display()
        ),
        _ => format!("changes in {} go unnoticed: {error}", path.display()),
    }
}

/// The events of one change.
#[derive(Debug, Default)]
struct Gathered {
    times: Option<(Instant, Instant)>,
    writing: BTreeSet<PathBuf>,
    all: bool,
}

impl Gathered {
    fn add(&mut self, event: notify::Result<Event>, set: &WatchSet) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "watching the manifests failed; the folder is read anew");
                self.all = true;
                return self.touch();
            }
        };
        if event.need_rescan() {
            self.all = true;
            return self.touch();
        }
        if !event.paths.iter().any(|path| set.concerns(path)) {
            return;
        }
        let is_ours = |path: &PathBuf| is_manifest(path) || set.entries.contains(path);
        match event.kind {
            // Our own reading makes such events.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.writing.retain(|path| !event.paths.contains(path));
            }
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.writing.extend(event.paths.into_iter().filter(is_ours));
            }
            // Whoever makes an empty file is about to write to it. Links come complete.
            EventKind::Create(CreateKind::File) => {
                let empty =
                    |path: &PathBuf| path.symlink_metadata().is_ok_and(|m| m.is_file() && m.len() == 0);
                self.writing.extend(event.paths.into_iter().filter(is_ours).filter(empty));
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.writing.retain(|path| !event.paths.contains(path));
            }
            _ => {}
        }
        self.touch();
    }

    fn touch(&mut self) {
        let now = Instant::now();
        let first = self.times.map_or(now, |(first, _)| first);
        self.times = Some((first, now));
    }

    /// When the change counts as complete.
    fn deadline(&self) -> Option<Instant> {
        let (first, last) = self.times?;
        let (quiet, latest) = if self.writing.is_empty() {
            (QUIET, LATEST)
        } else {
            (QUIET_WHILE_WRITING, LATEST_WHILE_WRITING)
        };
        Some((last + quiet).min(first + latest))
    }

    fn wake(&self) -> Option<Wake> {
        self.times.map(|(since, _)| Wake { since, all: self.all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, Flag, RemoveKind, RenameMode};

    fn set() -> WatchSet {
        WatchSet { folders: [PathBuf::from("/m")].into(), entries: [PathBuf::from("/m/..data")].into() }
    }

    fn gathered(events: &[(EventKind, &str)]) -> Gathered {
        let mut gathered = Gathered::default();
        for (kind, path) in events {
            gathered.add(Ok(Event::new(*kind).add_path(path.into())), &set());
        }
        gathered
    }

    const MODIFY: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

    #[test]
    fn a_change_is_complete_soon_after_its_last_event_but_not_while_a_file_is_being_written() {
        let rename_to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let removed = EventKind::Remove(RemoveKind::File);
        for (events, writing) in [
            (&[(rename_to, "/m/..data")][..], false),
            (&[(MODIFY, "/m/a.yaml")], true),
            (&[(MODIFY, "/m/a.yaml"), (CLOSE, "/m/a.yaml")], false),
            (&[(MODIFY, "/m/a.yaml"), (MODIFY, "/m/b.yaml"), (CLOSE, "/m/a.yaml")], true),
            (&[(MODIFY, "/m/a.yaml"), (removed, "/m/a.yaml")], false),
            (&[(MODIFY, "/m/sedXYZ")], false),
        ] {
            let gathered = gathered(events);
            let (first, last) = gathered.times.unwrap();
            let quiet = if writing { QUIET_WHILE_WRITING } else { QUIET };
            assert_eq!(gathered.deadline(), Some(last + quiet), "{events:?}");
            assert_eq!(gathered.wake(), Some(Wake { since: first, all: false }));
        }
    }

    #[test]
    fn a_stream_of_events_does_not_hold_up_a_change() {
        let now = Instant::now();
        let last = now + Duration::from_secs(1);
        let mut gathered = Gathered { times: Some((now, last)), ..Gathered::default() };
        assert_eq!(gathered.deadline(), Some(now + LATEST));
        gathered.writing.insert("/m/a.yaml".into());
        assert_eq!(gathered.deadline(), Some(last + QUIET_WHILE_WRITING));
    }

    #[test]
    fn events_that_mean_nothing_wake_nobody() {
        let open = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let read = EventKind::Access(AccessKind::Close(AccessMode::Read));
        let events =
            [(open, "/m/a.yaml"), (read, "/m/a.yaml"), (MODIFY, "/m/.a.yaml.swp"), (MODIFY, "/else/a.yaml")];
        assert_eq!(gathered(&events).wake(), None);
    }

    #[test]
    fn lost_events_are_made_up_for_by_reading_everything() {
        let rescan = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        for event in [Ok(rescan), Err(notify::Error::generic("broken"))] {
            let mut gathered = Gathered::default();
            gathered.add(event, &set());
            assert!(gathered.wake().unwrap().all);
        }
    }
}
