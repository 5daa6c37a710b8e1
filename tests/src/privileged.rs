//! The frame around each privileged test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::netns;
use crate::poll::eventually_within;
use crate::residue::{Snapshot, Thing};

/// How long the kernel may take to remove what was given up; some of it happens in the background.
pub const TEARDOWN: Duration = Duration::from_secs(10);

/// Runs a test that needs root, and fails it if anything is left behind when it is over, also when it panics.
///
/// Tests of one process run one after the other, so that a leftover has one author.
pub fn privileged_test(body: impl FnOnce() -> Result<()>) -> Result<()> {
    privileged_test_within(TEARDOWN, body)
}

/// As [`privileged_test`], with another patience for what the kernel removes in the background.
pub fn privileged_test_within(teardown: Duration, body: impl FnOnce() -> Result<()>) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    require_privileges()?;
    let _folder = netns::Folder::open()?;
    let before = Snapshot::take();
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let left = leftovers(&before, teardown);
    if !left.is_empty() {
        eprintln!("{}", describe(&left));
    }
    match outcome {
        Ok(result) => result?,
        Err(panic) => resume_unwind(panic),
    }
    if !left.is_empty() {
        bail!("{}", describe(&left));
    }
    Ok(())
}

/// What is there now and was not before, once the kernel had time to clean up.
pub fn leftovers(before: &Snapshot, teardown: Duration) -> Vec<Thing> {
    let mut left = Vec::new();
    // An error means that something was left until the deadline, which the list says better.
    let _ = eventually_within(teardown, "nothing left behind", || {
        left = Snapshot::take().since(before);
        left.is_empty()
    });
    left
}

/// One line that names everything that was left behind.
pub fn describe(left: &[Thing]) -> String {
    let names: Vec<String> = left.iter().map(Thing::to_string).collect();
    format!("left behind: {}", names.join(", "))
}

/// Fails with a sentence that says what is missing, where privileged tests cannot run.
pub fn require_privileges() -> Result<()> {
    // SAFETY: a system call without arguments that cannot fail.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "privileged tests load programs into the kernel: run them as root");
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.nth(1) == Some("/sys/fs/bpf") && fields.next() == Some("bpf")
    });
    ensure!(
        mounted,
        "privileged tests pin maps, and no bpffs is mounted: run `mount -t bpf bpf /sys/fs/bpf`"
    );
    ensure!(
        ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"].iter().any(|path| Path::new(path).exists()),
        "privileged tests use `ip` of iproute2, which is missing: run `cargo xtask setup`"
    );
    Ok(())
}
