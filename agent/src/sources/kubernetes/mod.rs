//! The Kubernetes API as a source.
//!
//! Each kind is listed and watched by a task of its own; one worker makes batches of what they report. The invariants:
//! objects are trimmed as they are decoded, and what has been told is kept as a hash, never as an object; a new list
//! after a gap is one batch of what changed and what is gone; `Synced` waits for the first list of every kind; a server
//! that fails or is silent changes nothing; one object that cannot be understood stops nothing, and what is not
//! understood of a policy narrows it.
//!
//! All of it runs on a thread of its own, so that decoding a large list delays no programming.

mod discovery;
mod index;
mod item;
mod kinds;
mod outage;
mod status;
mod uid;
mod watch;
mod worker;

use std::time::SystemTime;

use kube::Config;
use tokio::sync::{mpsc, oneshot, watch as tokio_watch};

use self::kinds::KINDS;
use self::watch::Task;
use self::worker::Worker;
use super::Batch;
use crate::kubernetes::{ConfigError, Contacts, client};

pub use self::status::{Ages, KindStatus, KubernetesStatus};
pub use self::watch::Pace;

/// How many reports wait for the worker at most. Then the tasks read no further, and the server waits.
const REPORTS: usize = 1024;

/// Why the API cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The connection cannot be set up.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The source's thread or its runtime does not start.
    #[error("no thread for the API server's objects: {0}")]
    Thread(#[from] std::io::Error),
    /// The thread ended at once.
    #[error("the thread for the API server's objects ended before it began; its log says why")]
    Ended,
}

/// What is read, for whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the server is.
    pub config: Config,
    /// The namespace that Portcullis runs in.
    pub namespace: String,
    /// The name of this node.
    pub node_name: String,
    /// How long is waited for what.
    pub pace: Pace,
}

/// A running source. It ends when this is dropped, or the receiver of its batches.
#[derive(Debug)]
pub struct KubernetesSource {
    server: String,
    watch: KubernetesWatch,
    /// Its drop ends the thread.
    _stop: oneshot::Sender<()>,
}

/// What can be seen of a source while it runs. Clones see the same.
#[derive(Clone, Debug)]
pub struct KubernetesWatch {
    status: tokio_watch::Receiver<KubernetesStatus>,
    contacts: Contacts,
}

impl KubernetesSource {
    /// Lists and watches every kind, and sends what there is and what changes.
    pub fn start(options: Options, batches: mpsc::Sender<Batch>) -> Result<Self, KubernetesError> {
        let server = options.config.cluster_url.to_string();
        let contacts = Contacts::new(KINDS.iter().map(|entry| entry.about.plural));
        let (publish, status) = tokio_watch::channel(KubernetesStatus::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (said, started) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let watch = KubernetesWatch { status, contacts: contacts.clone() };
        std::thread::Builder::new().name("kubernetes".to_owned()).spawn(move || {
            runtime.block_on(async {
                // The starter waits for an answer.
                let _ = match follow(&options, &contacts, publish, batches) {
                    Ok(work) => {
                        let told = said.send(Ok(()));
                        tokio::select! {
                            () = work => {}
                            _ = stopped => {}
                        }
                        told
                    }
                    Err(error) => said.send(Err(error)),
                };
            });
        })?;
        started.recv().map_err(|_| KubernetesError::Ended)??;
        Ok(Self { server, watch, _stop: stop })
    }

    /// Where the server is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What can be seen of it.
    pub fn watch(&self) -> KubernetesWatch {
        self.watch.clone()
    }
}

/// Starts the tasks; the future does the rest.
fn follow(
    options: &Options,
    contacts: &Contacts,
    publish: tokio_watch::Sender<KubernetesStatus>,
    batches: mpsc::Sender<Batch>,
) -> Result<impl Future<Output = ()> + use<>, ConfigError> {
    let client = client(&options.config, contacts)?;
    let (sender, reports) = mpsc::channel(REPORTS);
    for (kind, entry) in KINDS.iter().enumerate() {
        (entry.follow)(Task {
            kind,
            client: client.clone(),
            namespace: options.namespace.clone(),
            contacts: contacts.clone(),
            reports: sender.clone(),
            pace: options.pace,
        });
    }
    let server = options.config.cluster_url.to_string();
    let worker =
        Worker::new(KINDS, server, options.node_name.clone(), options.pace, contacts.clone(), publish);
    Ok(worker.run(reports, batches))
}

impl KubernetesWatch {
    /// The state of now. It is never behind the batches.
    pub fn status(&self) -> KubernetesStatus {
        self.status.borrow().clone()
    }

    /// How long ago the server was last heard of each kind.
    pub fn ages(&self) -> Ages {
        let status = self.status.borrow();
        status.kinds.iter().map(|(kind, status)| (*kind, self.contacts.age(status.plural))).collect()
    }

    /// While the server is silent: since when.
    pub fn silent_since(&self) -> Option<SystemTime> {
        self.status.borrow().silent_since
    }
}
