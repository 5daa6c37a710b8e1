//! A running source, and the world that it has told of.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::model::{ObjectKey, World};
use portcullis::sources::kubernetes::{KubernetesSource, Options, Pace};
use portcullis::sources::{SourceEvent, SourceProblem};
use portcullis_tests::faults::{Server, cluster};
use portcullis_tests::poll::PATIENCE;
use tokio::sync::mpsc;

/// Short enough for tests; none of them depends on how short.
pub const PACE: Pace = Pace {
    first_retry: Duration::from_millis(1),
    longest_retry: Duration::from_millis(8),
    look_again: Duration::from_millis(10),
    patience: Duration::from_millis(200),
    settle: Duration::from_millis(5),
    together: Duration::from_millis(500),
};

/// What a source has told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The world by what was told.
    pub world: World,
    /// How often `Synced` was.
    pub synced: usize,
    /// What is wrong at present.
    pub problems: Vec<SourceProblem>,
    /// Deletes, with the UID of pods.
    pub deleted: Vec<(ObjectKey, Option<String>)>,
    /// Batches with something of this in them, after the first list.
    pub batches: Vec<Vec<String>>,
}

/// A source, and what it has told.
pub struct Consumer {
    /// The source.
    pub source: KubernetesSource,
    told: Arc<Mutex<Told>>,
}

impl Consumer {
    /// Starts a source of this server.
    pub fn start(server: &Server, pace: Pace) -> Self {
        let (sender, mut batches) = mpsc::channel(4);
        let options = Options {
            config: server.config(),
            namespace: "portcullis-system".to_owned(),
            node_name: "n1".to_owned(),
            pace,
        };
        let source = KubernetesSource::start(options, sender).unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let writes = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some(batch) = batches.recv().await {
                let mut told = writes.lock().unwrap();
                let mut names = Vec::new();
                for event in batch.events {
                    match event {
                        SourceEvent::Apply(object) => {
                            names.push(format!("+{}", object.key().name));
                            told.world.apply(object);
                        }
                        SourceEvent::Delete { key, uid } => {
                            names.push(format!("-{}", key.name));
                            told.world.delete(&key, uid.as_deref());
                            told.deleted.push((key, uid));
                        }
                        SourceEvent::Synced => told.synced += 1,
                        SourceEvent::Problems(problems) => told.problems = problems,
                    }
                }
                if told.synced > 0 && !names.is_empty() {
                    told.batches.push(names);
                }
            }
        });
        Self { source, told }
    }

    /// What was told so far.
    pub fn now(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// Waits until what was told is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        let start = Instant::now();
        loop {
            let told = self.now();
            if wanted(&told) {
                return told;
            }
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; told: {told:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) -> Told {
        self.until("synced", |told| told.synced > 0).await
    }
}

/// A server with a small cluster.
pub fn small(seed: u64) -> Server {
    let server = Server::start(seed);
    cluster::fill(&server);
    server
}
