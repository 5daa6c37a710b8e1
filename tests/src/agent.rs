//! The agent as a process inside a node's namespace, with pins, names file and log of its own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::run;
use crate::netns::Namespace;
use crate::owner;
use crate::poll::{PATIENCE, eventually};
use crate::temp::TempDir;

/// Where the agent serves metrics and health, inside its namespace.
const HTTP: &str = "127.0.0.1:9478";

/// The agent's binary: `PORTCULLIS_BIN` if set, else the one beside the running test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PORTCULLIS_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("finding the path of this test")?;
    // Tests are in <target>/<profile>/deps, other programs beside that folder.
    let mut folders = test.ancestors().skip(1).take(2).map(|folder| folder.join("portcullis"));
    folders.find(|path| path.is_file()).with_context(|| {
        format!("no agent was built beside {}: run the tests with `cargo xtask test`", test.display())
    })
}

/// Says how the agent shall run.
#[derive(Debug)]
pub struct AgentBuilder<'a> {
    ns: &'a Namespace,
    binary: Option<PathBuf>,
    node_name: String,
    manifests: Option<PathBuf>,
    args: Vec<OsString>,
}

impl<'a> AgentBuilder<'a> {
    /// The folder of manifests.
    #[must_use]
    pub fn manifests(mut self, folder: impl Into<PathBuf>) -> Self {
        self.manifests = Some(folder.into());
        self
    }

    /// The node's name; `node` if not given.
    #[must_use]
    pub fn node_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.node_name);
        self
    }

    /// Another binary than the one of [`binary`].
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Further arguments of `portcullis agent`.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Starts the agent and waits until it is ready.
    pub fn start(self) -> Result<Agent<'a>> {
        let mut agent = self.spawn()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent and does not wait.
    pub fn spawn(self) -> Result<Agent<'a>> {
        let Self { ns, binary: path, node_name, manifests, args } = self;
        let name = owner::fresh_name();
        let folder = TempDir::new()?;
        let mut agent = Agent {
            ns,
            binary: path.map_or_else(binary, Ok)?,
            bpffs: Path::new("/sys/fs/bpf").join(format!("portcullis-{name}")),
            log: folder.path().join("agent.log"),
            run_dir: folder.path().join("run"),
            _folder: folder,
            mark: name,
            args: Vec::new(),
            child: None,
        };
        fs::create_dir_all(&agent.run_dir)
            .with_context(|| format!("making the folder {}", agent.run_dir.display()))?;
        agent.args = ["agent", "--node-name", &node_name].map(OsString::from).to_vec();
        if let Some(manifests) = manifests {
            agent.args.extend(["--manifests".into(), manifests.into()]);
        }
        agent.args.extend(args);
        agent.spawn()?;
        Ok(agent)
    }
}

/// An agent with its pins. Dropped, it is killed, `portcullis cleanup` removes what it left in the kernel, and after
/// a failure its log is shown.
#[derive(Debug)]
pub struct Agent<'a> {
    ns: &'a Namespace,
    binary: PathBuf,
    bpffs: PathBuf,
    run_dir: PathBuf,
    /// Holds the log and the names file.
    _folder: TempDir,
    log: PathBuf,
    mark: String,
    args: Vec<OsString>,
    child: Option<Child>,
}

impl<'a> Agent<'a> {
    /// An agent for the node with this namespace.
    pub fn on(ns: &'a Namespace) -> AgentBuilder<'a> {
        AgentBuilder { ns, binary: None, node_name: "node".to_owned(), manifests: None, args: Vec::new() }
    }

    /// The folder of its pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The folder of its names file.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Everything that it has logged so far.
    pub fn logs(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The number of its process while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it with SIGKILL; pins stay.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("killing the agent")?;
            child.wait().context("waiting for the killed agent")?;
        }
        Ok(())
    }

    /// Asks it with SIGTERM to end, and waits for that.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the agent does not run")?;
        let pid = libc::pid_t::try_from(child.id()).context("the agent's process id")?;
        // SAFETY: a system call without pointers; the process is our child and was not waited for, so the number
        // is still its.
        if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
            return Err(std::io::Error::last_os_error()).context("sending SIGTERM to the agent");
        }
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().context("waiting for the agent")? {
                return Ok(status);
            }
            if start.elapsed() > PATIENCE {
                self.child = Some(child);
                bail!("the agent did not end {PATIENCE:?} after SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again with the same arguments, pins and names file, and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent still runs: kill or terminate it first");
        self.spawn()?;
        self.wait_ready()
    }

    /// As [`Self::restart`], with these arguments beside its own, for this start only.
    pub fn restart_with<A: Into<OsString>>(&mut self, args: impl IntoIterator<Item = A>) -> Result<()> {
        self.spawn_with(args)?;
        self.wait_ready()
    }

    /// As [`Self::restart_with`], and does not wait until it is ready.
    pub fn restart_unready<A: Into<OsString>>(&mut self, args: impl IntoIterator<Item = A>) -> Result<()> {
        self.spawn_with(args)
    }

    /// Starts it again, and does not wait until it is ready.
    pub fn spawn_again(&mut self) -> Result<()> {
        self.spawn_with(std::iter::empty::<OsString>())
    }

    fn spawn_with<A: Into<OsString>>(&mut self, args: impl IntoIterator<Item = A>) -> Result<()> {
        ensure!(self.child.is_none(), "the agent still runs: kill or terminate it first");
        let own = self.args.len();
        self.args.extend(args.into_iter().map(Into::into));
        let spawned = self.spawn();
        self.args.truncate(own);
        spawned
    }

    /// Runs another command of the binary (`["dump", "flows"]`) against the same pins and names.
    pub fn cli<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        run(self.command(args).env(owner::MARK, &self.mark))
    }

    /// Starts a command of the binary that goes on, such as `monitor`, with pipes for what it says.
    pub fn start_command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Child> {
        let mut command = self.command(args);
        command.env(owner::MARK, &self.mark);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("starting {}", self.binary.display()))
    }

    /// `GET` of a path (`/metrics`) from the agent's HTTP port: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.ns.run(|| get(path))
    }

    /// Packets dropped for a reason, by the metrics.
    pub fn dropped(&self, reason: &str) -> Result<u64> {
        let (_, text) = self.get("/metrics")?;
        let label = format!("reason=\"{reason}\"");
        let of = |line: &&str| line.starts_with("portcullis_drops_total{") && line.contains(&label);
        Ok(text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Waits until `/readyz` says so; fails at once if the process ends.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ns = self.ns;
        let mut ended = None;
        let child = self.child.as_mut().context("the agent does not run")?;
        let mut last = String::from("no answer");
        let ready = eventually("the agent's /readyz", || {
            if let Ok(Some(status)) = child.try_wait() {
                ended = Some(status);
                return true;
            }
            match ns.run(|| get("/readyz")) {
                Ok((200, _)) => true,
                Ok((status, body)) => {
                    last = format!("{status} {}", body.trim());
                    false
                }
                Err(_) => false,
            }
        });
        if let Some(status) = ended {
            self.child = None;
            bail!("the agent ended with {status} before it was ready; its log:\n{}", self.logs());
        }
        ready.with_context(|| format!("last answer: {last}; its log:\n{}", self.logs()))
    }

    fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = self.command(&self.args);
        command.env(owner::MARK, &self.mark).stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.binary.display()))?);
        Ok(())
    }

    fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.ns.command(&self.binary, args);
        command.arg("--bpffs").arg(&self.bpffs).arg("--run-dir").arg(&self.run_dir);
        command
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the agent\n{}---", self.logs());
        }
        // What is left after these is found, and named, by the residue check.
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
        if let Err(error) = self.cli(["cleanup"]) {
            eprintln!("cleaning up after the agent: {error:#}");
        }
    }
}

/// A `GET` from the current namespace: status and body.
fn get(path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&HTTP.parse()?, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {HTTP}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).with_context(|| format!("not an HTTP answer to GET {path}: {answer:.80}"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?.get(..3)?;
    Some((status.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_answer_is_status_and_body() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nno\n";
        assert_eq!(parse(answer), Some((503, "no\n".to_owned())));
        assert_eq!(parse("HTTP/1.1 2"), None);
        assert_eq!(parse("nonsense\r\n\r\n"), None);
    }
}
