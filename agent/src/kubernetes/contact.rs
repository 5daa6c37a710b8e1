//! When the API server last said something about each kind, and that it answers again.
//!
//! A quiet watch delivers no events, only bookmarks that the watcher keeps to itself, so the age of what we know is
//! taken where the bytes arrive; and there it is seen first that the server is back, which whoever waits is told.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use kube::client::Body;
use tokio::sync::watch;
use tower::{BoxError, Layer, Service};

/// When each resource (`pods`) was last heard of. Clones share it.
#[derive(Clone, Debug)]
pub struct Contacts {
    start: Instant,
    /// The same moment as a time of day, so that a moment is always the same time.
    started: SystemTime,
    cells: Arc<BTreeMap<&'static str, Cell>>,
    /// How often any resource was answered that had failed before.
    returns: watch::Sender<u64>,
}

/// Moments are microseconds since the start; 0: never.
#[derive(Debug, Default)]
struct Cell {
    heard: AtomicU64,
    /// Until when the server asked to be left alone.
    quiet: AtomicU64,
    /// Whether the last request failed.
    failing: AtomicBool,
    /// How often it was answered after a failure.
    returns: AtomicU64,
}

impl Contacts {
    /// For these resources, by their plural names.
    pub fn new(resources: impl IntoIterator<Item = &'static str>) -> Self {
        let cells = resources.into_iter().map(|name| (name, Cell::default())).collect();
        let returns = watch::channel(0).0;
        Self { start: Instant::now(), started: SystemTime::now(), cells: Arc::new(cells), returns }
    }

    /// When the server last sent something about a resource.
    pub fn last(&self, resource: &str) -> Option<Instant> {
        let heard = self.cells.get(resource)?.heard.load(Relaxed);
        (heard > 0).then(|| self.start + Duration::from_micros(heard))
    }

    /// The same as a time of day.
    pub fn last_time(&self, resource: &str) -> Option<SystemTime> {
        self.last(resource).map(|last| self.started + last.duration_since(self.start))
    }

    /// How long ago that was; if there was nothing yet, how long it is waited for.
    pub fn age(&self, resource: &str) -> Duration {
        self.last(resource).unwrap_or(self.start).elapsed()
    }

    /// How much longer the server asked to be left alone about a resource.
    pub fn quiet(&self, resource: &str) -> Duration {
        let until = self.cells.get(resource).map_or(0, |cell| cell.quiet.load(Relaxed));
        Duration::from_micros(until.saturating_sub(self.now()))
    }

    /// A request about a resource failed, or its watch broke off.
    pub fn lose(&self, resource: &str) {
        if let Some(cell) = self.cells.get(resource) {
            cell.failing.store(true, Relaxed);
        }
    }

    /// That the server does not have a resource is something to know about it, too, once it is certain.
    pub fn confirm_missing(&self, resource: &str) {
        if let Some(cell) = self.cells.get(resource) {
            self.hear(cell);
            self.come_back(cell);
        }
    }

    /// Changes each time that a resource is answered which had failed before: a reason not to wait any longer. Steady
    /// answers are no such reason, so that one resource that fails for ever is not asked for all the time.
    pub fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
    }

    /// How many of the returns were this resource's own.
    pub fn returns_of(&self, resource: &str) -> u64 {
        self.cells.get(resource).map_or(0, |cell| cell.returns.load(Relaxed))
    }

    /// The layer of a client's stack that takes notice.
    pub fn layer(&self) -> ContactLayer {
        ContactLayer(self.clone())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn hear(&self, cell: &Cell) {
        cell.heard.store(self.now(), Relaxed);
    }

    fn come_back(&self, cell: &Cell) {
        if cell.failing.swap(false, Relaxed) {
            self.returns.send_modify(|returns| {
                *returns += 1;
                cell.returns.fetch_add(1, Relaxed);
            });
        }
    }

    /// Which resource a path is about: `/api/v1/pods`, `/api/v1/namespaces/a/configmaps`.
    fn resource(&self, path: &str) -> Option<&'static str> {
        let last = path.rsplit('/').next()?;
        self.cells.get_key_value(last).map(|(name, _)| *name)
    }

    fn answer<B>(&self, resource: &'static str, response: &Response<B>) {
        let Some(cell) = self.cells.get(resource) else { return };
        match response.status() {
            // Not 404: a proxy without a server behind it says that about everything.
            status if status.is_success() => {
                self.hear(cell);
                self.come_back(cell);
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let header = response.headers().get(http::header::RETRY_AFTER);
                let seconds = header.and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
                if let Some(seconds) = seconds {
                    cell.quiet.store(self.now().saturating_add(seconds.saturating_mul(1_000_000)), Relaxed);
                }
            }
            _ => {}
        }
    }
}

/// See [`Contacts::layer`].
#[derive(Clone, Debug)]
pub struct ContactLayer(Contacts);

impl<S> Layer<S> for ContactLayer {
    type Service = ContactService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ContactService { inner, contacts: self.0.clone() }
    }
}

/// See [`Contacts::layer`].
#[derive(Clone, Debug)]
pub struct ContactService<S> {
    inner: S,
    contacts: Contacts,
}

impl<S, B> Service<Request<Body>> for ContactService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let contacts = self.contacts.clone();
        let resource = contacts.resource(request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await.map_err(Into::into)?;
            if let Some(resource) = resource {
                contacts.answer(resource, &response);
            }
            let heard = resource.filter(|_| response.status().is_success());
            Ok(response.map(|body| {
                let noted = body.map_frame(move |frame| {
                    if let Some(cell) = heard.and_then(|resource| contacts.cells.get(resource)) {
                        contacts.hear(cell);
                    }
                    frame
                });
                noted.map_err(Into::into).boxed_unsync()
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_the_resource_that_it_is_about() {
        let contacts = Contacts::new(["pods", "nodes"]);
        assert_eq!(contacts.resource("/api/v1/pods"), Some("pods"));
        assert_eq!(contacts.resource("/api/v1/namespaces/shop/pods"), Some("pods"));
        assert_eq!(contacts.resource("/version"), None);
        let answer = |status: u16| Response::builder().status(status).body(()).unwrap();
        contacts.answer("pods", &answer(500));
        contacts.answer("pods", &answer(403));
        assert_eq!(contacts.last("pods"), None);
        contacts.answer("pods", &answer(200));
        assert!(contacts.last("pods").is_some());
        contacts.answer("nodes", &answer(404));
        assert_eq!(contacts.last("nodes"), None);
        contacts.confirm_missing("nodes");
        assert!(contacts.last("nodes").is_some());
        assert_eq!(contacts.last("secrets"), None);
    }

    #[test]
    fn only_an_answer_after_a_failure_is_a_return() {
        let contacts = Contacts::new(["pods", "nodes"]);
        let returns = contacts.returns();
        let answer = |status: u16| Response::builder().status(status).body(()).unwrap();
        contacts.answer("pods", &answer(200));
        contacts.answer("pods", &answer(200));
        assert!(!returns.has_changed().unwrap());
        contacts.lose("pods");
        contacts.lose("nodes");
        contacts.answer("pods", &answer(503));
        contacts.answer("pods", &answer(404));
        assert!(!returns.has_changed().unwrap());
        contacts.answer("pods", &answer(200));
        contacts.answer("pods", &answer(200));
        assert_eq!(*returns.borrow(), 1);
        contacts.confirm_missing("nodes");
        assert_eq!((*returns.borrow(), contacts.returns_of("pods"), contacts.returns_of("nodes")), (2, 1, 1));
    }

    #[test]
    fn a_server_that_asks_to_be_left_alone_is() {
        let contacts = Contacts::new(["pods"]);
        let answer = Response::builder().status(429).header("Retry-After", "60").body(()).unwrap();
        contacts.answer("pods", &answer);
        assert!(contacts.quiet("pods") > Duration::from_secs(50), "{:?}", contacts.quiet("pods"));
        assert_eq!(contacts.quiet("nodes"), Duration::ZERO);
        assert_eq!(contacts.last("pods"), None);
    }
}
