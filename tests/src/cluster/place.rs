//! A place that processes of a cluster run in: network, mounts and host name of a node, or of the control plane.
//!
//! A process that only sleeps holds the place; entering it means entering that process's namespaces. All mounts of a
//! place are private to it: they are gone with its last process, and the machine never sees them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::{Daemons, words};
use super::names::Name;
use crate::netns::Namespace;
use crate::poll::eventually;

/// A place, by the name of its part: `hub`, `node0`.
#[derive(Debug)]
pub struct Place {
    part: String,
    daemons: Daemons,
    /// Its network.
    pub net: Namespace,
}

impl Place {
    /// The place of a part of a cluster, whether it is there or not.
    pub fn of(name: &Name, part: &str) -> Self {
        let net = Namespace::existing(&name.namespace(part), part);
        Self { part: part.to_owned(), daemons: Daemons::of(name), net }
    }

    /// Makes it, in the network namespace that is there; `setup` is a shell script that mounts.
    pub fn create(&self, setup: &str, state: &Path) -> Result<()> {
        let ready = state.join(format!("{}.ready", self.part));
        // Mounts of the machine come in and go out as there; mounts of the place are shared among its pods, as a pod
        // with mount propagation expects, and stay inside.
        let script = format!(
            "set -e; mount --make-rshared /; echo '{}' > /proc/sys/kernel/hostname; {setup}\n\
             touch '{}'; exec sleep infinity",
            self.part,
            ready.display()
        );
        let mut command = words("nsenter", [self.net_argument()]);
        command.extend(words("unshare", ["--mount", "--uts", "--propagation", "slave", "sh", "-c", &script]));
        self.daemons.start(&self.part, &command)?;
        let mut result = Ok(());
        eventually(&format!("{} to be set up", self.part), || {
            result = self.daemons.check(&self.part);
            ready.exists() || result.is_err()
        })?;
        result?;
        fs::remove_file(&ready).with_context(|| format!("removing {}", ready.display()))
    }

    fn net_argument(&self) -> OsString {
        let mut argument = OsString::from("--net=");
        argument.push(self.net.path());
        argument
    }

    /// The process that holds it.
    fn holder(&self) -> Result<u32> {
        self.daemons.process(&self.part).with_context(|| format!("{} is not there", self.part))
    }

    /// By which path this process reaches a file that the place sees at this absolute path.
    pub fn path(&self, inside: &Path) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder()?));
        Ok(root.join(inside.strip_prefix("/").unwrap_or(inside)))
    }

    /// The words before a command that shall run in the place.
    pub fn enter(&self) -> Result<Vec<OsString>> {
        let holder = self.holder()?;
        Ok(words("nsenter", ["--mount", "--uts", "--net", &format!("--target={holder}"), "--"]))
    }

    /// A command that will run in the place.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Command> {
        let words = self.enter()?;
        let mut command = Command::new("nsenter");
        command.args(&words[1..]).arg(program).args(args);
        Ok(command)
    }

    /// Starts a daemon in the place.
    pub fn start(&self, what: &str, command: Vec<OsString>) -> Result<u32> {
        let mut all = self.enter()?;
        all.extend(command);
        self.daemons.start(what, &all)
    }
}
