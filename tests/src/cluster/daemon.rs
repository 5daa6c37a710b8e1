//! Long-lived processes of a cluster: started in its cgroup, with a log and a file that names the process, so that
//! another run of the program finds them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{mem, ptr};

use anyhow::{Context, Result, bail, ensure};

use super::cgroups;
use super::names::Name;

/// Joins the cgroup, writes down who it is, and becomes the program.
const SCRIPT: &str = r#"set -e
echo 0 > "$1"
echo $$ > "$2.new"
mv "$2.new" "$2"
shift 2
exec "$@""#;

/// How much of a log an error shows.
const TAIL: usize = 15;

/// How much of a line.
const WIDTH: usize = 300;

/// How long a process may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The processes of one cluster.
#[derive(Debug, Clone)]
pub struct Daemons {
    name: Name,
    folder: PathBuf,
}

impl Daemons {
    /// Those of a cluster, with logs and process ids below its state folder.
    pub fn of(name: &Name) -> Self {
        Self { name: name.clone(), folder: name.folder().join("daemons") }
    }

    /// Makes the folder.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("making {}", self.folder.display()))
    }

    /// Starts a program and returns its process id. Whoever started it may end; it goes on.
    pub fn start(&self, what: &str, command: &[OsString]) -> Result<u32> {
        ensure!(self.process(what).is_none(), "{what} runs already");
        let pid = self.pid_file(what);
        let _ = fs::remove_file(&pid);
        let log = File::options().create(true).append(true).open(self.log_file(what));
        let log = log.with_context(|| format!("opening the log of {what}"))?;
        let mut starter = Command::new("setsid");
        starter.args(["--fork", "sh", "-c", SCRIPT, what]);
        starter.arg(cgroups::daemons_file(&self.name)?).arg(&pid).args(command);
        starter.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A terminal's Ctrl-C may be blocked in this program, and is not to be in what pods are made by.
        // SAFETY: the closure makes one system call, which is allowed between fork and exec.
        unsafe { starter.pre_exec(unblock_signals) };
        let status = starter.status().with_context(|| format!("starting {what}"))?;
        ensure!(status.success(), "starting {what}: setsid ended with {status}");
        let waited = crate::poll::eventually(&format!("{what} to start"), || pid.exists());
        waited.map_err(|error| anyhow::anyhow!("{error}; {}", self.tail(what)))?;
        self.process(what).with_context(|| format!("{what} ended at once; {}", self.tail(what)))
    }

    /// The process of a daemon, if it runs.
    pub fn process(&self, what: &str) -> Option<u32> {
        let process = fs::read_to_string(self.pid_file(what)).ok()?.trim().parse().ok()?;
        // After a restart of the machine the number may be somebody else's.
        let cgroups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        (cgroups.contains(&self.name.prefixed()) && cgroups::is_running(process)).then_some(process)
    }

    /// Fails, with the end of its log, if a daemon does not run.
    pub fn check(&self, what: &str) -> Result<()> {
        if self.process(what).is_none() {
            bail!("{what} has ended; {}", self.tail(what));
        }
        Ok(())
    }

    /// Ends a daemon, by force if it takes too long; one that does not run is an error.
    pub fn stop(&self, what: &str) -> Result<()> {
        let process = self.process(what).with_context(|| format!("{what} does not run"))?;
        signal(process, libc::SIGTERM);
        if cgroups::wait_gone(process, what, PATIENCE).is_err() {
            self.kill(what)?;
        }
        let _ = fs::remove_file(self.pid_file(what));
        Ok(())
    }

    /// Ends a daemon without notice; one that does not run is an error.
    pub fn kill(&self, what: &str) -> Result<()> {
        let process = self.process(what).with_context(|| format!("{what} does not run"))?;
        signal(process, libc::SIGKILL);
        cgroups::wait_gone(process, what, PATIENCE)?;
        let _ = fs::remove_file(self.pid_file(what));
        Ok(())
    }

    /// The end of a daemon's log, for messages.
    pub fn tail(&self, what: &str) -> String {
        let path = self.log_file(what);
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<String> = log.lines().map(|line| line.chars().take(WIDTH).collect()).collect();
        let lines = lines[lines.len().saturating_sub(TAIL)..].join("\n    ");
        format!("the end of {}:\n    {lines}", path.display())
    }

    /// Where a daemon logs.
    pub fn log_file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}.log"))
    }

    fn pid_file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}.pid"))
    }
}

fn unblock_signals() -> std::io::Result<()> {
    // SAFETY: a set of signals is plain data, valid when zeroed, and written by `sigemptyset` before it is used.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` outlives both calls; none keeps the pointer.
    let result = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn signal(process: u32, signal: i32) {
    if let Ok(process) = i32::try_from(process) {
        // SAFETY: a system call without pointers; the process was seen in the cluster's own cgroup just before.
        unsafe { libc::kill(process, signal) };
    }
}

/// A program and its arguments as words.
pub fn words<A: AsRef<OsStr>>(program: impl AsRef<Path>, args: impl IntoIterator<Item = A>) -> Vec<OsString> {
    let mut words = vec![program.as_ref().as_os_str().to_owned()];
    words.extend(args.into_iter().map(|word| word.as_ref().to_owned()));
    words
}
