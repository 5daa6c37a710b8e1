//! Where objects come from: the language that every source speaks to the owner of the world.
//!
//! A source lists what there is and then reports changes, in batches over a channel. The invariants that it keeps:
//! a batch is one change of the source and is applied as a whole; `Synced` is sent once, after everything that was
//! listed; and what a source cannot read it reports as a problem, while the last state that it could read stays.

pub mod kubernetes;
pub mod manifests;
mod narrow;
mod typed;

use std::time::{Instant, SystemTime};

use crate::model::{Object, ObjectKey};
use kubernetes::KubernetesSource;
use manifests::ManifestsSource;

/// A source that runs. It ends when it is dropped.
#[derive(Debug)]
pub enum Source {
    /// A folder, by its name.
    Manifests(String, ManifestsSource),
    /// An API server.
    Kubernetes(KubernetesSource),
}

impl Source {
    /// What people know it by.
    pub fn name(&self) -> String {
        match self {
            Self::Manifests(folder, _) => format!("manifests {folder}"),
            Self::Kubernetes(source) => format!("API server {}", source.server()),
        }
    }

    /// While nothing is heard of it that should be: since when.
    pub fn silent_since(&self) -> Option<SystemTime> {
        match self {
            Self::Manifests(..) => None,
            Self::Kubernetes(source) => source.watch().silent_since(),
        }
    }
}

/// One change of a source. The consumer applies every event of it before anybody sees the result.
#[derive(Clone, Debug)]
pub struct Batch {
    /// When the source learned of the change: where the programming latency starts.
    pub since: Instant,
    /// The events, in order.
    pub events: Vec<SourceEvent>,
}

/// What a source says.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// An object is there, or has changed.
    Apply(Object),
    /// An object is gone.
    Delete {
        /// Which one.
        key: ObjectKey,
        /// Of pods: tells apart those that had the same name one after the other.
        uid: Option<String>,
    },
    /// Every kind has been listed once: from here on the world is complete. Sent once.
    Synced,
    /// Everything that is wrong with the source at present. Replaces the list that was sent before.
    Problems(Vec<SourceProblem>),
}

/// Something that a source cannot read. What it read there before, if anything, stays in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceProblem {
    /// A file, or a kind of the API.
    pub place: String,
    /// What is wrong, what follows and what to do.
    pub message: String,
}

impl std::fmt::Display for SourceProblem {
    /// Place and message; a message that names the place itself stands alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, message } = self;
        if message.starts_with(place.as_str()) {
            f.write_str(message)
        } else {
            write!(f, "{place}: {message}")
        }
    }
}
