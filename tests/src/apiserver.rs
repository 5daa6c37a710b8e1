//! A real kube-apiserver with its etcd on free ports of the loopback address, without nodes and controllers: for tests
//! of what reads and writes objects. A whole cluster is [`crate::cluster`].

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::binaries;
use crate::cluster::control_plane::signing_key;
use crate::command::{run, run_with_input};
use crate::owner;
use crate::poll::eventually_within;
use crate::temp::TempDir;

/// How long etcd and the API server may take to answer; together they take about five seconds.
const START: Duration = Duration::from_secs(90);

/// Users, and their tokens: of the group that may do everything, and one that a test gives rights.
const USERS: [(&str, &str); 2] = [("admin", "system:masters"), ("restricted", "testers")];

/// A server that runs. Dropped, it ends, with its etcd and all data.
#[derive(Debug)]
pub struct ApiServer {
    etcd: Daemon,
    server: Daemon,
    etcd_port: u16,
    port: u16,
    folder: TempDir,
}

impl ApiServer {
    /// Starts etcd and the API server, and waits until it is ready.
    pub fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        let ports = free_ports()?;
        let mut server = Self {
            etcd: Daemon::new("etcd", folder.path()),
            server: Daemon::new("kube-apiserver", folder.path()),
            etcd_port: ports[0],
            port: ports[2],
            folder,
        };
        let (private, public) = signing_key()?;
        server.folder.write("accounts.key", &private)?;
        server.folder.write("accounts.pub", &public)?;
        let tokens = USERS.map(|(user, group)| format!("{user}-token,{user},{user},\"{group}\"\n"));
        server.folder.write("tokens.csv", &tokens.concat())?;
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        let etcd = binaries::find("etcd")?;
        let mut command = Command::new(etcd);
        command.arg("--data-dir").arg(server.folder.path().join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        // Its data ends with the test.
        command.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]);
        server.etcd.start(command)?;
        server.start_server()?;
        Ok(server)
    }

    /// Starts the API server, after [`Self::stop_server`], on the same port and data.
    pub fn start_server(&mut self) -> Result<()> {
        self.start_server_at(self.port)
    }

    /// As [`Self::start_server`], but where only [`Self::kubectl`] and the other functions here find it.
    pub fn start_server_aside(&mut self) -> Result<()> {
        self.start_server_at(free_ports()?[0])
    }

    fn start_server_at(&mut self, port: u16) -> Result<()> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let mut command = Command::new(binaries::find("kube-apiserver")?);
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-cluster-ip-range=10.96.0.0/16,fd96::/112".to_owned(),
            // Pods need no account that a controller would have to make.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]);
        self.server.start(command)?;
        let kubeconfigs = USERS.map(|(user, _)| (user, self.kubeconfig_text(user, port)));
        for (user, text) in kubeconfigs {
            self.folder.write(&format!("{user}.kubeconfig"), &text)?;
        }
        let mut last = String::new();
        let ready = eventually_within(START, "the API server's /readyz", || {
            if self.server.has_ended() || self.etcd.has_ended() {
                return true;
            }
            match self.kubectl(["get", "--raw", "/readyz"]) {
                Ok(answer) => answer.trim() == "ok",
                Err(error) => {
                    last = format!("{error:#}");
                    false
                }
            }
        });
        for daemon in [&mut self.etcd, &mut self.server] {
            ensure!(!daemon.has_ended(), "{} ended; its log:\n{}", daemon.name, daemon.log());
        }
        ready.with_context(|| format!("last answer: {last}; its log:\n{}", self.server.log()))
    }

    /// Ends the API server; etcd and the data stay.
    pub fn stop_server(&mut self) -> Result<()> {
        self.server.stop()
    }

    /// Forgets every older state of the data, so that nobody can go on watching from there.
    pub fn compact(&self) -> Result<()> {
        let range = self.etcd("/v3/kv/range", r#"{"key": "AA=="}"#)?;
        let revision = range.split_once("\"revision\":\"").and_then(|(_, rest)| rest.split('"').next());
        let revision = revision.with_context(|| format!("no revision in etcd's answer {range}"))?;
        self.etcd("/v3/kv/compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#))?;
        Ok(())
    }

    /// A kubeconfig of a user: `admin` may do everything, `restricted` nothing unless a test says so.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.path().join(format!("{user}.kubeconfig"))
    }

    /// Runs kubectl as admin.
    pub fn kubectl<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        run(self.kubectl_command().args(args))
    }

    /// Makes the objects of a text of YAML or JSON, or changes them.
    pub fn apply(&self, objects: &str) -> Result<()> {
        run_with_input(self.kubectl_command().args(["apply", "--server-side", "-f", "-"]), objects).map(drop)
    }

    /// Sets the status of an object.
    pub fn set_status(&self, namespace: &str, object: &str, status: &str) -> Result<()> {
        let patch = format!("{{\"status\": {status}}}");
        let mut command = self.kubectl_command();
        command.args([
            "patch",
            "--namespace",
            namespace,
            object,
            "--subresource=status",
            "--type=merge",
            "-p",
        ]);
        run(command.arg(patch)).map(drop)
    }

    fn kubectl_command(&self) -> Command {
        let kubectl = binaries::find("kubectl").unwrap_or_else(|_| "kubectl".into());
        let mut command = Command::new(kubectl);
        // What it learns about the server is kept beside the data, not in the user's home.
        command.arg("--cache-dir").arg(self.folder.path().join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin"));
        command
    }

    fn kubeconfig_text(&self, user: &str, port: u16) -> String {
        let certificate = self.folder.path().join("certificates/apiserver.crt");
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"https://127.0.0.1:{}\", certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: {user}, user: {{token: {user}-token}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: {user}}}}}]\n",
            port,
            certificate.display()
        )
    }

    /// Asks etcd by its JSON gateway.
    fn etcd(&self, path: &str, body: &str) -> Result<String> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.etcd_port)).context("connecting to etcd")?;
        let length = body.len();
        write!(stream, "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.contains(" 200 OK"), "etcd refused {path} {body}: {answer}");
        Ok(answer)
    }
}

/// Ports that nobody listens on now; all different, because they are looked for together.
fn free_ports() -> Result<[u16; 3]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port");
    let listeners = [listen()?, listen()?, listen()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// A process that ends with the test, however that ends.
#[derive(Debug)]
struct Daemon {
    name: &'static str,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    fn new(name: &'static str, folder: &Path) -> Self {
        Self { name, log: folder.join(format!("{name}.log")), child: None }
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        command
            .env(owner::MARK, owner::fresh_name())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: the closure makes one system call, which is allowed between fork and exec.
        unsafe { command.pre_exec(end_with_parent) };
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.name))?);
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { bail!("{} does not run", self.name) };
        child.kill().with_context(|| format!("killing {}", self.name))?;
        child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// The end of its log.
    fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {}\n{}\n---", self.name, self.log());
        }
        // One that has ended already is no failure.
        let _ = self.stop();
    }
}

/// A test that is killed drops nothing.
fn end_with_parent() -> std::io::Result<()> {
    // SAFETY: a system call whose arguments are numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
