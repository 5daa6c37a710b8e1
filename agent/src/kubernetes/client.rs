//! Configuration and client.
//!
//! The stack is our own instead of kube's default one, for three reasons: a dead connection is noticed within seconds
//! and not within minutes (TCP keep-alive), nothing is repeated behind the caller's back (an outage must be seen, and
//! how long to wait is one decision), and each answer is noted in [`Contacts`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::contact::Contacts;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may pause. More than a watch lasts, which the server ends after at most 290 s.
const READ: Duration = Duration::from_secs(295);
/// After how much silence a connection is probed, and how long the other side may leave data unacknowledged.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Between two probes; three without an answer end the connection.
const PROBE: Duration = Duration::from_secs(5);

/// Why there is no connection to an API server. Each text has its cause in it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of the flag cannot be used.
    #[error("the kubeconfig {path} cannot be used: {reason}; correct it or name another with --kubeconfig")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: Box<KubeconfigError>,
    },
    /// The files of the environment cannot be used.
    #[error(
        "the kubeconfig of the variable KUBECONFIG cannot be used: {0}; correct it, or say --kubeconfig FILE"
    )]
    Environment(Box<KubeconfigError>),
    /// This is a pod, but what a pod has to reach the API server is not there.
    #[error(
        "the API server cannot be reached from this pod: {0}; the pod needs its service account's token \
         (automountServiceAccountToken), or say --kubeconfig FILE"
    )]
    InCluster(kube::config::InClusterError),
    /// Nothing says where objects come from.
    #[error(
        "nothing says where to read objects from: this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set); \
         say --manifests DIR for a folder, or --kubeconfig FILE (or KUBECONFIG) for an API server"
    )]
    Nothing,
    /// The configuration is not consistent.
    #[error("the connection to the API server at {server} cannot be set up: {reason}")]
    Client {
        /// Its address.
        server: String,
        /// Why.
        reason: Box<kube::Error>,
    },
}

/// Where the API server is and how to be let in: the file, else `KUBECONFIG`, else what a pod has.
pub async fn config(kubeconfig: Option<&Path>) -> Result<Config, ConfigError> {
    if let Some(path) = kubeconfig {
        let failed =
            |reason: KubeconfigError| ConfigError::File { path: path.to_owned(), reason: Box::new(reason) };
        let file = Kubeconfig::read_from(path).map_err(failed)?;
        return Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed);
    }
    let failed = |reason: KubeconfigError| ConfigError::Environment(Box::new(reason));
    if let Some(file) = Kubeconfig::from_env().map_err(failed)? {
        return Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed);
    }
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return Err(ConfigError::Nothing);
    }
    Config::incluster().map_err(ConfigError::InCluster)
}

/// A client. It works on the tokio runtime in which it is made. Every answer is noted in `contacts`.
pub fn client(config: &Config, contacts: &Contacts) -> Result<Client, ConfigError> {
    build(config, contacts).map_err(|reason| ConfigError::Client {
        server: config.cluster_url.to_string(),
        reason: Box::new(reason),
    })
}

fn build(config: &Config, contacts: &Contacts) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(KEEPALIVE * 2));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(READ));
    let http = hyper_util::client::legacy::Builder::new(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(contacts.layer())
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
