//! etcd, the API server, the controller manager and the scheduler, in the hub; and the way to them from the machine.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use super::binaries;
use super::daemon::{Daemons, words};
use super::kubeconfig::{self, API_PORT};
use super::names::{CONTROL_PLANE, Name, SERVICE_RANGES};
use super::network::HUB;
use super::place::Place;

/// The daemons' names.
pub const ETCD: &str = "etcd";
/// The API server.
pub const API_SERVER: &str = "kube-apiserver";
/// The controller manager.
pub const CONTROLLERS: &str = "kube-controller-manager";
/// The scheduler.
pub const SCHEDULER: &str = "kube-scheduler";
/// Passes connections on from the machine to the hub: the half on the machine's loopback address.
pub const FORWARD_IN: &str = "forward-in";
/// The half in the hub.
pub const FORWARD_OUT: &str = "forward-out";

/// The control plane of a cluster.
#[derive(Debug)]
pub struct ControlPlane {
    state: PathBuf,
    daemons: Daemons,
    hub: Place,
}

impl ControlPlane {
    /// That of a cluster, whether it runs or not.
    pub fn of(name: &Name) -> Self {
        Self { state: name.folder(), daemons: Daemons::of(name), hub: Place::of(name, HUB) }
    }

    /// Makes the place, the keys and the folders. etcd keeps its data in memory: nothing outlives the cluster anyway,
    /// and a busy disk does not slow it down.
    pub fn create(&self) -> Result<()> {
        let etcd = self.state.join("etcd");
        fs::create_dir(&etcd).with_context(|| format!("making {}", etcd.display()))?;
        self.hub.create(&format!("mount -t tmpfs -o mode=0700 etcd '{}'", etcd.display()), &self.state)?;
        let (private, public) = signing_key()?;
        kubeconfig::write_secret(&self.service_account_key("key"), &private)?;
        kubeconfig::write_secret(&self.service_account_key("pub"), &public)
    }

    fn service_account_key(&self, half: &str) -> PathBuf {
        self.state.join(format!("service-accounts.{half}"))
    }

    /// Starts etcd.
    pub fn start_etcd(&self) -> Result<()> {
        let etcd = binaries::find(ETCD)?;
        let data = self.state.join("etcd/data");
        let mut command = words(etcd, ["--data-dir"]);
        command.push(data.into());
        command.extend(
            [
                "--listen-client-urls",
                "http://127.0.0.1:2379",
                "--advertise-client-urls",
                "http://127.0.0.1:2379",
            ]
            .map(Into::into),
        );
        command.extend(["--listen-peer-urls", "http://127.0.0.1:2380"].map(Into::into));
        self.hub.start(ETCD, command)?;
        Ok(())
    }

    /// Starts the API server.
    pub fn start_api_server(&self) -> Result<()> {
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let args = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            file("service-account-key-file", &self.service_account_key("pub")),
            file("service-account-signing-key-file", &self.service_account_key("key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            file("token-auth-file", &kubeconfig::tokens(&self.state)),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--secure-port={API_PORT}"),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={}", CONTROL_PLANE.0),
            // It makes a certificate for itself here, or takes the one that it made before.
            file("cert-dir", &self.state.join("certificates")),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        self.hub.start(API_SERVER, words(binaries::find(API_SERVER)?, args))?;
        Ok(())
    }

    /// Starts what works on the objects. To be called when the API server answers.
    pub fn start_controllers(&self) -> Result<()> {
        let config = |client| format!("--kubeconfig={}", kubeconfig::path(&self.state, client).display());
        let args = [
            config(CONTROLLERS),
            format!("--service-account-private-key-file={}", self.service_account_key("key").display()),
            format!("--root-ca-file={}", self.state.join("certificates/apiserver.crt").display()),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--use-service-account-credentials".to_owned(),
            "--leader-elect=false".to_owned(),
            // Where the API server was away for long, or the machine is slow, no node is given up, and its pods stay behind
            // their services.
            "--node-monitor-grace-period=1h".to_owned(),
        ];
        self.hub.start(CONTROLLERS, words(binaries::find(CONTROLLERS)?, args))?;
        let args = [config(SCHEDULER), "--leader-elect=false".to_owned()];
        self.hub.start(SCHEDULER, words(binaries::find(SCHEDULER)?, args))?;
        Ok(())
    }

    /// Lets the machine reach the API server on this port of its loopback address, by a socket in the state folder.
    pub fn start_forward(&self, port: u16) -> Result<()> {
        let socket = self.state.join("api.sock");
        let socket = socket.display();
        let inside = [format!("UNIX-LISTEN:{socket},fork,mode=600"), format!("TCP4:127.0.0.1:{API_PORT}")];
        self.hub.start(FORWARD_OUT, words("socat", inside))?;
        let at = format!("TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork");
        self.daemons.start(FORWARD_IN, &words("socat", [at, format!("UNIX-CONNECT:{socket}")]))?;
        Ok(())
    }
}

/// A port of the loopback address that nobody listens on now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// What is before a point of the curve P-256 where X.509 writes it as a public key.
const PUBLIC_KEY: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A key that signs service accounts' tokens, and the public key that they are checked with.
pub(crate) fn signing_key() -> Result<(String, String)> {
    let (random, curve) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
    let private = EcdsaKeyPair::generate_pkcs8(curve, &random);
    let private = private.map_err(|_| anyhow::anyhow!("the system gives no random numbers for a key"))?;
    let pair = EcdsaKeyPair::from_pkcs8(curve, private.as_ref(), &random);
    let pair = pair.map_err(|error| anyhow::anyhow!("reading the key that was just made: {error}"))?;
    let public = [PUBLIC_KEY, pair.public_key().as_ref()].concat();
    let text = |kind: &str, content: &[u8]| pem::encode(&pem::Pem::new(kind, content));
    Ok((text("PRIVATE KEY", private.as_ref()), text("PUBLIC KEY", &public)))
}
