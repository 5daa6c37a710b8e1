//! `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! Invariant: no client can hold the agent up. Scrapes run on blocking threads, one after the other; connections are
//! limited in number and idle time.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};

use super::{AgentMetrics, Heartbeat, Readiness};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a client may take to send a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may last: a scraper opens a new one.
const LIFETIME: Duration = Duration::from_secs(300);

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot serve metrics on {address}: {error}; choose another address with --metrics-address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
}

/// The server, listening.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: AgentMetrics,
    readiness: Readiness,
    heartbeat: Heartbeat,
    /// One scrape at a time.
    scrape: Mutex<()>,
}

impl Server {
    /// Listens on an address; must be called within a runtime.
    ///
    /// # Errors
    /// If it is taken or not ours.
    pub fn bind(
        address: SocketAddr,
        metrics: AgentMetrics,
        readiness: Readiness,
        heartbeat: Heartbeat,
    ) -> Result<Self, ServerError> {
        let listener = match listen(address) {
            // A machine without IPv6: what would have taken both families takes the one there is.
            Err(error) if lacks_family(&error) && address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {
                listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
            }
            other => other,
        };
        let listener = listener.map_err(|error| ServerError::Bind { address, error })?;
        let shared = Shared { metrics, readiness, heartbeat, scrape: Mutex::new(()) };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Where it listens: the port that was chosen for port 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the task is dropped.
    pub async fn run(self) {
        let Self { listener, shared } = self;
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Before accepting: what has no room waits in the kernel.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the metrics could not be accepted");
                    // Out of file descriptors, most likely: trying again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let service = service_fn(|request| answer(Arc::clone(&shared), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), service);
                if let Ok(Err(error)) = tokio::time::timeout(LIFETIME, connection).await {
                    tracing::debug!(%error, "a connection to the metrics ended early");
                }
                drop(permit);
            });
        }
    }
}

/// Listens. An IPv6 address that stands for all takes IPv4 too, whatever `net.ipv6.bindv6only` says: probes come to
/// 127.0.0.1.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Whether the system says that it has no IPv6: `EAFNOSUPPORT` where it is not built in, `EADDRNOTAVAIL` where it is
/// switched off.
fn lacks_family(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()));
    }
    Ok(match request.uri().path() {
        "/metrics" => scrape(&shared).await,
        "/healthz" => health(&shared.heartbeat),
        "/readyz" => ready(&shared.readiness),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
    })
}

async fn scrape(shared: &Shared) -> Response<Full<Bytes>> {
    let _one = shared.scrape.lock().await;
    let metrics = shared.metrics.clone();
    match tokio::task::spawn_blocking(move || metrics.render()).await {
        Ok(Ok(body)) => {
            let mut response = text(StatusCode::OK, body);
            let form = hyper::header::HeaderValue::from_static(prometheus::TEXT_FORMAT);
            response.headers_mut().insert(CONTENT_TYPE, form);
            response
        }
        Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn health(heartbeat: &Heartbeat) -> Response<Full<Bytes>> {
    match heartbeat.silent(Instant::now()) {
        None => text(StatusCode::OK, "ok\n".to_owned()),
        Some(silence) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the agent's loop has not turned for {} s: it hangs\n", silence.as_secs()),
        ),
    }
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    let missing = readiness.missing();
    if missing.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    let lines: Vec<String> =
        missing.iter().map(|(condition, reason)| format!("{condition}: {reason}")).collect();
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", lines.join("\n")))
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let form = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, form);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn get(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_is_being_alive_and_readiness_lists_what_is_missing() {
        let readiness = Readiness::new(&["source"]);
        let metrics = AgentMetrics::new("/proc/no-maps-here".into()).unwrap();
        let server = Server::bind(
            "127.0.0.1:0".parse().unwrap(),
            metrics.clone(),
            readiness.clone(),
            Heartbeat::default(),
        )
        .unwrap();
        let address = server.local_addr().unwrap();
        let taken =
            Server::bind(address, metrics, readiness.clone(), Heartbeat::default()).unwrap_err().to_string();
        assert!(taken.contains(&address.to_string()) && taken.contains("--metrics-address"), "{taken}");
        let task = tokio::spawn(server.run());

        assert!(get(address, "GET", "/healthz").await.starts_with("HTTP/1.1 200 "));
        let answer = get(address, "GET", "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\nsource: not done yet\n"),
            "{answer}"
        );
        readiness.ready("source");
        assert!(get(address, "GET", "/readyz").await.starts_with("HTTP/1.1 200 "));
        readiness.not_ready("source", "the folder is gone");
        assert!(get(address, "GET", "/readyz").await.ends_with("source: the folder is gone\n"));

        let answer = get(address, "GET", "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("version=0.0.4"), "{answer}");
        assert!(answer.contains("\nportcullis_build_info{"), "{answer}");
        assert!(get(address, "POST", "/metrics").await.starts_with("HTTP/1.1 405 "));
        assert!(get(address, "GET", "/").await.starts_with("HTTP/1.1 404 "));
        task.abort();
    }
}
