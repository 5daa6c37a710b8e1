//! A named network namespace that exists as long as its [`Namespace`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{run, run_with_input};
use crate::owner;

/// Where iproute2 keeps the names of namespaces.
const FOLDER: &str = "/run/netns";

/// A network namespace of its own, with the loopback interface up. Deleted when dropped.
#[derive(Debug)]
pub struct Namespace {
    /// Name below `/run/netns`; empty for one that has none.
    name: String,
    /// The file that keeps it alive.
    path: PathBuf,
    /// What people call it: `node`, `web`.
    label: String,
    /// Whether it is deleted with this object.
    owned: bool,
}

impl Namespace {
    /// Makes a namespace; `label` is for messages only.
    pub fn new(label: &str) -> Result<Self> {
        let name = owner::fresh_name();
        run(Command::new("ip").args(["netns", "add", &name]))
            .with_context(|| format!("making the network namespace for {label}"))?;
        let mut namespace = Self::existing(&name, label);
        namespace.owned = true;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A namespace that somebody else makes and deletes.
    pub fn existing(name: &str, label: &str) -> Self {
        let path = Path::new(FOLDER).join(name);
        Self { name: name.to_owned(), path, label: label.to_owned(), owned: false }
    }

    /// The namespace that a process is in, for as long as it runs. It has no name, so `ip -n` cannot be used on it.
    pub fn of_process(process: u32, label: &str) -> Self {
        let path = PathBuf::from(format!("/proc/{process}/ns/net"));
        Self { name: String::new(), path, label: label.to_owned(), owned: false }
    }

    /// The name that `ip -n` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was called in [`Self::new`].
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The file that keeps it alive.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Runs a closure on a thread of its own inside the namespace. Sockets that it opens stay in the namespace,
    /// wherever they are used later; `/proc/sys/net` is that of the namespace too.
    pub fn run<R: Send>(&self, body: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let file = File::open(self.path()).with_context(|| format!("opening namespace {}", self.label))?;
        let entered = || {
            // SAFETY: a system call on a descriptor that lives until the end of this function; it changes the
            // namespace of this thread only, which ends with the closure.
            if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error())
                    .with_context(|| format!("entering namespace {} (setns)", self.label));
            }
            body()
        };
        std::thread::scope(|scope| {
            scope.spawn(entered).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace. Only the network is another one: unlike with `ip netns exec`,
    /// bpffs and cgroups stay visible.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.path());
        let mut command = Command::new("nsenter");
        command.arg(net).arg("--").arg(program).args(args);
        command
    }

    /// Configures interfaces, addresses and routes inside the namespace: lines for `ip -batch`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        run_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), &format!("{lines}\n"))
            .with_context(|| format!("configuring namespace {}", self.label))?;
        Ok(())
    }

    /// The hardware address of an interface inside the namespace, as `ip` writes it.
    pub fn hardware_address(&self, interface: &str) -> Result<String> {
        let shown = run(Command::new("ip").args(["-n", &self.name, "-o", "link", "show", "dev", interface]))?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
        let address = words.nth(1).with_context(|| format!("no hardware address in: {shown}"))?;
        Ok(address.to_owned())
    }

    /// As [`Self::hardware_address`], as it is on the wire.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let text = self.hardware_address(interface)?;
        let bytes: Vec<u8> =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
        bytes.try_into().map_err(|_| anyhow::anyhow!("not a hardware address: {text}"))
    }

    /// Applies a rule of `iptables` or `ip6tables` inside the namespace.
    pub fn firewall(&self, tool: &str, rule: &str) -> Result<()> {
        run(&mut self.command(tool, ["-w"].into_iter().chain(rule.split_whitespace()))).map(drop)
    }

    /// Shows bridged packets to the namespace's filters, or does not; without the module there is nothing to be set.
    pub fn filter_bridged(&self, on: bool) -> Result<()> {
        if !has_bridge_filter() {
            return Ok(());
        }
        let names = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
        self.sysctl(&names.map(|name| (name, if on { "1" } else { "0" })))
    }

    /// Sets sysctls (`net/ipv4/ip_forward`) inside the namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(name, value)| {
                std::fs::write(format!("/proc/sys/{name}"), value)
                    .with_context(|| format!("setting {name} to {value} in {}", self.label))
            })
        })
    }
}

/// Index of an interface of the network that this thread is in.
///
/// # Errors
/// If there is none of this name.
pub fn interface_index(name: &str) -> Result<u32> {
    let text = std::ffi::CString::new(name)?;
    // SAFETY: a system call with a text that lives through it.
    let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
    ensure!(index != 0, "the interface {name}: {}", std::io::Error::last_os_error());
    Ok(index)
}

/// Whether bridged packets can be shown to iptables, without which services do not work between pods of one bridge.
pub fn has_bridge_filter() -> bool {
    Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// The folder of namespaces, ready for use: the first namespace that a machine gets makes it a mount point, which stays
/// when the namespace goes. Taken away again, once it is empty, if it was not there.
#[derive(Debug)]
pub struct Folder {
    made: bool,
}

impl Folder {
    /// Makes it, if it is not there.
    ///
    /// # Errors
    /// If no namespace can be made.
    pub fn open() -> Result<Self> {
        let made = !is_mounted()?;
        if made {
            drop(Namespace::new("nobody")?);
        }
        Ok(Self { made })
    }
}

fn is_mounted() -> Result<bool> {
    Ok(mounts()?.iter().any(|point| point == FOLDER))
}

/// Mount points of the calling thread.
fn mounts() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").context("the mounts of this thread")?;
    Ok(table.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())).collect())
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Others may be using it by now; the last of them is nobody's business. The names alone say nothing: those of
        // namespaces that are mounted elsewhere are in this folder, too.
        let inside = |points: Vec<String>| {
            points.iter().any(|point| Path::new(point).parent() == Some(Path::new(FOLDER)))
        };
        if !self.made || mounts().is_ok_and(inside) {
            return;
        }
        if let Err(error) = run(Command::new("umount").arg(FOLDER)) {
            eprintln!("unmounting the folder of namespaces: {error:#}");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("deleting the namespace of {}: {error:#}", self.label);
        }
    }
}
