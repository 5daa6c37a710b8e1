//! A scripted API server: it lists in pages, watches and sends bookmarks like a real one, and fails in every way that a
//! real one may. It exists for faults only; what a real server can show, the tests with a real one show.

mod answer;
pub mod cluster;
mod fault;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::watch;

pub use fault::{FAULTS, Fault};
pub use store::{Event, KINDS, Store};

/// Numbers that a seed decides.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// What the server shares with its requests.
#[derive(Debug)]
pub struct Shared {
    /// Objects and their history.
    pub store: Store,
    /// How many of a hundred requests fail.
    pub rate: u64,
    /// Decides what fails how.
    pub chance: Chance,
    /// No request is answered.
    pub away: bool,
    /// Every request is answered with 404, as by a proxy with nothing behind it.
    pub lost: bool,
    /// Kinds that are not there are in the lists of resources all the same.
    pub listed_all_the_same: bool,
    /// Requests about these kinds, by plural, are not answered.
    pub mute: BTreeSet<&'static str>,
    /// Every request is refused with 429 and this `Retry-After`.
    pub quiet: Option<u64>,
    /// Kinds that have been watched, so were listed before.
    pub watched: BTreeSet<&'static str>,
    /// Which faults happened, how often: not only drawn, but met by a request that it can do something to.
    pub happened: BTreeMap<Fault, usize>,
}

impl Shared {
    /// A request met a fault.
    fn meet(&mut self, fault: Fault) {
        *self.happened.entry(fault).or_default() += 1;
    }

    /// What a fault does to events that are about to be sent.
    fn disturb(&mut self, fault: Option<Fault>, events: &mut Vec<Event>) {
        let Some(fault) = fault.filter(|_| !events.is_empty()) else { return };
        let met = match fault {
            Fault::Shuffled => fault::shuffle(events, &mut self.chance),
            Fault::LateDelete => fault::delay_deletes(events),
            Fault::Cut | Fault::Short | Fault::Slow => true,
            _ => false,
        };
        if met {
            self.meet(fault);
        }
    }
}

/// A server that runs. It ends with its runtime.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    changed: watch::Sender<u64>,
}

impl Server {
    /// Starts on a free port of the loopback, in the current runtime.
    pub fn start(seed: u64) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), seed)
    }

    /// Starts on this socket, which may be of another network namespace, in the current runtime.
    pub fn on(listener: TcpListener, seed: u64) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let shared = Shared {
            store: Store::default(),
            rate: 0,
            chance: Chance::new(seed),
            away: false,
            lost: false,
            listed_all_the_same: false,
            mute: BTreeSet::new(),
            quiet: None,
            watched: BTreeSet::new(),
            happened: BTreeMap::new(),
        };
        let server = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Mutex::new(shared)),
            changed: watch::channel(0).0,
        };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| {
                        let server = server.clone();
                        async move { Ok::<_, Infallible>(answer::answer(&server, &request)) }
                    });
                    // A client that goes away is no failure.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        server
    }

    /// How a client reaches it.
    pub fn config(&self) -> kube::Config {
        kube::Config::new(format!("http://{}", self.address).parse().unwrap())
    }

    /// The same as a kubeconfig.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"http://{}\"}}}}]\n\
             users: [{{name: test, user: {{}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.address
        )
    }

    /// Its inner state.
    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes or changes an object.
    pub fn put(&self, plural: &str, object: Value) {
        let version = self.lock().store.put(plural, object);
        self.changed.send_replace(version);
    }

    /// Removes an object, if it is there.
    pub fn remove(&self, plural: &str, key: &str) {
        let version = self.lock().store.remove(plural, key);
        self.changed.send_replace(version);
    }

    /// Changes something that is no object: watches look at it.
    pub fn set(&self, change: impl FnOnce(&mut Shared)) {
        let version = {
            let mut shared = self.lock();
            change(&mut shared);
            shared.store.version
        };
        self.changed.send_replace(version);
    }
}
