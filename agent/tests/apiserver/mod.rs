//! A scripted API server: it lists in pages, watches and sends bookmarks like a real one, and fails in every way that a
//! real one may. It exists for faults only; what a real server can show, the tests with a real one show.

mod answer;
mod store;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::watch;

pub use store::Store;

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 429 with `Retry-After`.
    TooMany,
    /// 500.
    Broken,
    /// 503 in plain text, as from a proxy.
    Away,
    /// The connection ends without an answer.
    Reset,
    /// The body ends in the middle of an object, with a broken connection.
    Cut,
    /// The body ends in the middle of an object as if it were complete.
    Short,
    /// The body comes a few bytes at a time.
    Slow,
    /// The body is no JSON.
    Garbage,
    /// 410 for the next page of a list, and for a watch.
    Gone,
    /// A watch: an ERROR event with code 410.
    GoneEvent,
    /// A watch: an ERROR event with code 500.
    ErrorEvent,
    /// A watch: it ends at once.
    Empty,
    /// A watch: events that were sent before are sent again.
    Again,
}

/// All of them.
pub const FAULTS: [Fault; 13] = [
    Fault::TooMany,
    Fault::Broken,
    Fault::Away,
    Fault::Reset,
    Fault::Cut,
    Fault::Short,
    Fault::Slow,
    Fault::Garbage,
    Fault::Gone,
    Fault::GoneEvent,
    Fault::ErrorEvent,
    Fault::Empty,
    Fault::Again,
];

/// Numbers that a seed decides.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
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
    pub store: Store,
    /// How many of a hundred requests fail.
    pub rate: u64,
    pub chance: Chance,
    /// No request is answered.
    pub away: bool,
    /// Every request is refused with 429 and this `Retry-After`.
    pub quiet: Option<u64>,
    /// Which faults happened, how often.
    pub happened: std::collections::BTreeMap<String, usize>,
}

/// A server that runs. It ends with its runtime.
#[derive(Clone, Debug)]
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    changed: watch::Sender<u64>,
}

impl Server {
    /// Starts on a free port of the loopback, in the current runtime.
    pub async fn start(seed: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Shared {
            store: Store::new(),
            rate: 0,
            chance: Chance::new(seed),
            away: false,
            quiet: None,
            happened: std::collections::BTreeMap::new(),
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
