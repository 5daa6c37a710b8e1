//! A real API server with its etcd, on loopback ports, for as long as the value lives. There are no controllers: objects
//! are checked and kept, and nothing becomes of them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::binaries;
use crate::cluster::control_plane::{free_port, signing_key};
use crate::command::{run, run_with_input};
use crate::{TempDir, eventually_within};

/// How long it may take until the server is ready, on a busy machine.
const START: Duration = Duration::from_secs(120);
/// The token of a user who may do everything.
const TOKEN: &str = "administrator";

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    // Dropped in this order: the server, then what it stores in, then the folder of both.
    server: Process,
    _etcd: Process,
    folder: TempDir,
    port: u16,
}

impl ApiServer {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// If a program is missing, or the server does not get ready; its last words are in the error.
    pub fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (signs, checks) = signing_key()?;
        folder.write("service-accounts.key", &signs)?;
        folder.write("service-accounts.pub", &checks)?;
        folder.write("tokens", &format!("{TOKEN},administrator,1,\"system:masters\"\n"))?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (clients, peers, port) = (url(free_port()?), url(free_port()?), free_port()?);
        let etcd = Process::start(
            Command::new(binaries::find("etcd")?).args(["--data-dir", &path("etcd")]).args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
                "--listen-peer-urls",
                &peers,
                "--unsafe-no-fsync",
            ]),
            &folder.path().join("etcd.log"),
        )?;
        let server = Process::start(
            Command::new(binaries::find("kube-apiserver")?).args([
                format!("--etcd-servers={clients}"),
                format!("--service-account-key-file={}", path("service-accounts.pub")),
                format!("--service-account-signing-key-file={}", path("service-accounts.key")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--token-auth-file={}", path("tokens")),
                "--authorization-mode=RBAC".to_owned(),
                // Nobody makes service accounts here that pods could have.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", path("certificates")),
                "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112".to_owned(),
            ]),
            &folder.path().join("kube-apiserver.log"),
        )?;
        let mut this = Self { server, _etcd: etcd, folder, port };
        this.wait()?;
        Ok(this)
    }

    fn wait(&mut self) -> Result<()> {
        let kubectl = binaries::find("kubectl")?;
        let mut ended = None;
        let ready = eventually_within(START, "the API server is ready", || {
            ended = self.server.0.try_wait().ok().flatten();
            ended.is_some()
                || self
                    .kubectl(&kubectl)
                    .args(["get", "--raw", "/readyz"])
                    .output()
                    .is_ok_and(|o| o.status.success())
        });
        if let Some(status) = ended {
            bail!("the API server ended with {status}:\n{}", self.log());
        }
        ready.with_context(|| self.log())
    }

    /// The end of the server's log.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn kubectl(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // No file of the person who runs the tests: not their cluster, not their cache.
        command.env("KUBECONFIG", "/dev/null").env("HOME", self.folder.path());
        command.arg(format!("--server=https://127.0.0.1:{}", self.port));
        command.args(["--insecure-skip-tls-verify", &format!("--token={TOKEN}")]);
        command
    }

    /// Runs `kubectl` and returns what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        run(self.kubectl(&binaries::find("kubectl")?).args(args))
    }

    /// Whether the account of the agent may do something; a subresource is `kind/status`, a name `kind/name`.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub fn may(&self, verb: &str, resource: &str, namespace: &str) -> Result<bool> {
        let mut command = self.kubectl(&binaries::find("kubectl")?);
        command.args(["auth", "can-i", verb, "--namespace", namespace, "--quiet"]);
        command.arg("--as=system:serviceaccount:portcullis-system:portcullis");
        match resource.strip_suffix("/status") {
            Some(resource) => command.args([resource, "--subresource=status"]),
            None => command.arg(resource),
        };
        let output = command.output().context("starting kubectl")?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) if !String::from_utf8_lossy(&output.stderr).contains("rror") => Ok(false),
            _ => bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut command = self.kubectl(&binaries::find("kubectl")?);
        run_with_input(command.args(["apply", "--filename", "-"]), manifests)
    }
}

/// A program that ends with its value.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing that it keeps is wanted; one that has ended already is no error.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
