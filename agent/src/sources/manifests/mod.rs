//! A folder of manifests as a source: for demos, tests, air-gapped nodes and checks of a policy repository.
//!
//! The invariants: a batch is the difference between two states of the whole folder, so a rename or a move between
//! files is no delete; a file that cannot be understood keeps its last good state while the others go on; and `Synced`
//! waits until every file has been understood once. The folder is watched, never polled; the work is done in a thread
//! of its own because it is all blocking file access.

mod decode;
mod document;
mod endpoints;
mod folder;
mod once;
mod status;
mod survey;
mod watch;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch as tokio_watch};

use self::folder::{Folder, Objects};
use self::survey::Survey;
use self::watch::{Signal, Wake, Watcher};
use super::{Batch, SourceEvent, SourceProblem};

pub use self::once::{Reading, is_workload, read};
pub use self::status::{FileStatus, ManifestStatus};

/// How often the folder is read again until it is the same before and after. A folder that changes all the time is
/// taken as it is; the events that are under way bring the rest.
const ATTEMPTS: usize = 5;
/// After which time what could not be read or watched is tried again: the cause may pass without an event.
const RETRY: Duration = Duration::from_secs(5);
/// Stack of a thread that parses: each level of a document takes some, and documents may be nested 100 deep. Only what is
/// used of it is memory.
const STACK: usize = 64 << 20;

/// Why a folder of manifests cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// The path cannot be made absolute.
    #[error("the manifests folder {path} cannot be located: {source}; give an absolute path")]
    Path {
        /// As it was given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The kernel refuses to watch files.
    #[error(
        "the manifests folder {path} cannot be watched: {source}; fs.inotify.max_user_instances may be too low"
    )]
    Watch {
        /// The folder.
        path: PathBuf,
        /// The reason.
        source: notify::Error,
    },
    /// The source's thread does not start.
    #[error("no thread for the manifests folder {path}: {source}")]
    Thread {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A running source. It ends when this is dropped, or the receiver of its batches.
#[derive(Debug)]
pub struct ManifestsSource {
    status: tokio_watch::Receiver<ManifestStatus>,
    signals: std_mpsc::Sender<Signal>,
}

impl ManifestsSource {
    /// Reads a folder and sends what it says, now and after each change. A folder that is not there yet is waited for.
    pub fn start(directory: &Path, batches: mpsc::Sender<Batch>) -> Result<Self, ManifestsError> {
        let path = directory.to_owned();
        let directory = std::path::absolute(directory)
            .map_err(|source| ManifestsError::Path { path: path.clone(), source })?;
        let (signals, receiver) = std_mpsc::channel();
        let watcher = Watcher::new(signals.clone(), receiver)
            .map_err(|source| ManifestsError::Watch { path: path.clone(), source })?;
        let initial = ManifestStatus { directory: directory.clone(), ..ManifestStatus::default() };
        let (publish, status) = tokio_watch::channel(initial);
        let worker = Worker {
            directory,
            watcher,
            batches,
            publish,
            folder: Folder::default(),
            in_force: Objects::new(),
            problems: Vec::new(),
            last_success: None,
            synced: false,
        };
        std::thread::Builder::new()
            .name("manifests".to_owned())
            .stack_size(STACK)
            .spawn(move || worker.run())
            .map_err(|source| ManifestsError::Thread { path, source })?;
        Ok(Self { status, signals })
    }

    /// The state of the folder, kept up to date. It is never behind the batches.
    pub fn status(&self) -> tokio_watch::Receiver<ManifestStatus> {
        self.status.clone()
    }
}

impl Drop for ManifestsSource {
    fn drop(&mut self) {
        // Fails when the thread has ended already.
        let _ = self.signals.send(Signal::Stop);
    }
}

struct Worker {
    directory: PathBuf,
    watcher: Watcher,
    batches: mpsc::Sender<Batch>,
    publish: tokio_watch::Sender<ManifestStatus>,
    folder: Folder,
    /// What the consumer has been told.
    in_force: Objects,
    problems: Vec<SourceProblem>,
    last_success: Option<SystemTime>,
    synced: bool,
}

impl Worker {
    fn run(mut self) {
        let mut wake = Wake { since: Instant::now(), all: true };
        loop {
            let watch_errors = self.scan(wake.all);
            let must_retry = self.folder.must_retry() || !watch_errors.is_empty();
            if self.deliver(wake.since, &watch_errors).is_err() {
                return;
            }
            match self.watcher.wait(must_retry.then_some(RETRY)) {
                Some(next) => wake = next,
                None => return,
            }
        }
    }

    /// Brings `folder` up to date. Returns what cannot be watched.
    fn scan(&mut self, all: bool) -> Vec<String> {
        let mut attempt = 0;
        loop {
            let (before, errors) = self.survey_and_watch();
            let mut folder = self.folder.clone();
            folder.update(&before, all);
            attempt += 1;
            if attempt == ATTEMPTS || survey::survey(&self.directory) == before {
                self.folder = folder;
                return errors;
            }
        }
    }

    /// A survey after which every change makes an event, and what cannot be watched.
    fn survey_and_watch(&mut self) -> (Survey, Vec<String>) {
        loop {
            let survey = survey::survey(&self.directory);
            let (new, errors) = self.watcher.watch(&survey.watch);
            // What changed between the survey and a new watch made no event.
            if !new {
                return (survey, errors);
            }
        }
    }

    /// Tells the consumer and the status. Fails when the consumer is gone.
    fn deliver(
        &mut self,
        since: Instant,
        watch_errors: &[String],
    ) -> Result<(), mpsc::error::SendError<Batch>> {
        let resolved = self.folder.resolve();
        let mut events = folder::difference(&self.in_force, &resolved.objects);
        let changes = events.len();
        if !self.synced && self.folder.is_complete() {
            self.synced = true;
            events.push(SourceEvent::Synced);
        }

        let unreadable = self.folder.unreadable().iter().map(|(path, why)| {
            format!("{} cannot be listed: {why}; what it said last stays in force", path.display())
        });
        let folder_errors: Vec<_> = unreadable.chain(watch_errors.iter().cloned()).collect();
        let files = self.folder.status(&resolved, self.synced);
        let problem = |(place, message): (&Path, &str)| SourceProblem {
            place: place.display().to_string(),
            message: message.to_owned(),
        };
        let of_files = files.iter().flat_map(|(path, file)| {
            file.error.iter().flat_map(|error| error.lines()).map(|error| (path.as_path(), error))
        });
        let of_folder = folder_errors.iter().map(|error| (self.directory.as_path(), error.as_str()));
        let problems: Vec<_> = of_folder.chain(of_files).map(problem).collect();
        if problems.is_empty() {
            self.last_success = Some(SystemTime::now());
        }
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(place = problem.place, "{}", problem.message);
        }
        if problems != self.problems {
            self.problems.clone_from(&problems);
            events.push(SourceEvent::Problems(problems));
        }

        // Before the batch: who has received it finds its status.
        self.publish.send_replace(ManifestStatus {
            directory: self.directory.clone(),
            files,
            error: (!folder_errors.is_empty()).then(|| folder_errors.join("\n")),
            synced: self.synced,
            last_success: self.last_success,
        });
        self.in_force = resolved.objects;
        if events.is_empty() {
            return Ok(());
        }
        tracing::info!(changes, problems = self.problems.len(), synced = self.synced, "read the manifests");
        self.batches.blocking_send(Batch { since, events })
    }
}

#[cfg(test)]
mod tests;
