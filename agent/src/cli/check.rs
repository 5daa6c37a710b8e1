//! `portcullis check`: what the kernel and this process's rights allow. Where it is cheap the real thing is tried, for
//! what a version number promises a distribution may have taken away.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use super::findings::{self, Finding};
use super::output::{self, Format};
use super::{Outcome, Paths};
use crate::datapath::{probe, sys};

/// The oldest kernel that Portcullis is tested on.
const OLDEST: (u32, u32) = (6, 1);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Runs the command.
pub fn run(format: Format, paths: &Paths) -> anyhow::Result<Outcome> {
    let findings = vec![
        kernel(&read("/proc/sys/kernel/osrelease")),
        capabilities(&read("/proc/self/status")),
        bpf_map(),
        programs(),
        attach(),
        bpffs(&paths.bpffs),
        run_dir(&paths.run_dir),
        jit(&read("/proc/sys/net/core/bpf_jit_enable")),
        lockdown(&read("/sys/kernel/security/lockdown")),
        memlock(&read("/proc/sys/kernel/osrelease")),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        conntrack(Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()),
    ];
    let broken = findings::broken(&findings);
    match format {
        Format::Json => output::write_json(&findings)?,
        Format::Table => {
            let verdict =
                if broken { "the agent cannot work here: see FAIL above" } else { "the agent can work here" };
            output::write(&format!("{}{verdict}\n", findings::render(&findings)))?;
        }
    }
    Ok(if broken { Outcome::Bad } else { Outcome::Good })
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel(release: &str) -> Finding {
    match sys::version_of(release) {
        Some(found) if found >= OLDEST => Finding::ok("kernel", format!("Linux {release}")),
        Some(_) => Finding::warn(
            "kernel",
            format!("Linux {release} is older than 6.1, the oldest that Portcullis is tested on"),
            "the line `programs` says whether it takes them; better use a newer kernel",
        ),
        None => Finding::warn(
            "kernel",
            format!("its release {release:?} is not understood"),
            "see the other lines",
        ),
    }
}

/// The effective capabilities in `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What is missing of the capabilities that the agent cannot do without, and what each is for; `None` where the
/// process's status does not say.
fn lacking(status: &str) -> Option<Vec<&'static str>> {
    let set = effective(status)?;
    let has = |capability: u32| set >> capability & 1 != 0;
    let missing = [
        ("CAP_NET_ADMIN (attach programs, see interfaces)", CAP_NET_ADMIN, false),
        ("CAP_BPF (maps and programs)", CAP_BPF, true),
        ("CAP_PERFMON (without it the verifier refuses the programs)", CAP_PERFMON, true),
    ]
    .into_iter()
    // CAP_SYS_ADMIN contains the two younger ones.
    .filter(|(_, capability, younger)| !(has(*capability) || *younger && has(CAP_SYS_ADMIN)))
    .map(|(name, ..)| name);
    Some(missing.collect())
}

/// What to do about missing capabilities.
const ADD_CAPABILITIES: &str =
    "run as root, or add them to securityContext.capabilities (CAP_SYS_ADMIN stands for the last two)";

/// Says which capability is missing before the kernel says only that something is not permitted.
///
/// # Errors
/// If one is missing.
pub fn require_capabilities() -> anyhow::Result<()> {
    match lacking(&read("/proc/self/status")) {
        Some(missing) if !missing.is_empty() => {
            anyhow::bail!("this process lacks {}: {ADD_CAPABILITIES}", missing.join(", "))
        }
        _ => Ok(()),
    }
}

fn capabilities(status: &str) -> Finding {
    let Some(missing) = lacking(status) else {
        return Finding::warn("capabilities", "/proc/self/status does not say", "see the other lines");
    };
    if missing.is_empty() {
        return Finding::ok("capabilities", "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON are there");
    }
    Finding::fail("capabilities", format!("this process lacks {}", missing.join(", ")), ADD_CAPABILITIES)
}

fn bpf_map() -> Finding {
    match probe::create_map() {
        Ok(()) => Finding::ok("maps", "a map was created, and let go"),
        Err(error) => {
            let action = match error.raw_os_error() {
                Some(libc::EPERM) => "it takes CAP_BPF, and a seccomp profile that allows bpf(2)",
                Some(libc::ENOSYS) => "the kernel must be built with CONFIG_BPF_SYSCALL",
                _ => "see dmesg",
            };
            Finding::fail("maps", format!("bpf(BPF_MAP_CREATE) failed: {error}"), action)
        }
    }
}

fn programs() -> Finding {
    match probe::load_programs() {
        Ok(_) => Finding::ok("programs", "both programs passed this kernel's verifier, and were let go"),
        Err(error) => {
            let text = brief(&error.to_string());
            Finding::fail(
                "programs",
                text,
                "if the capabilities are there, this kernel is not supported: please report it",
            )
        }
    }
}

/// Of a verifier's log of a hundred lines the first line and the one that says why.
fn brief(text: &str) -> String {
    let (first, log) = text.split_once('\n').unwrap_or((text, ""));
    let statistics = ["processed ", "stack depth ", "verification time ", ":"];
    let why = log.lines().rev().find(|line| !statistics.iter().any(|word| line.starts_with(word)));
    let first = first.split(" Verifier output:").next().unwrap_or(first);
    why.map_or_else(|| first.to_owned(), |why| format!("{first} The verifier says: {why}"))
}

fn attach() -> Finding {
    // The loopback interface is always index 1 of a network namespace.
    match sys::tcx_programs(1, false).map_err(|error| (error.raw_os_error(), error)) {
        Ok(_) => Finding::ok("attach", "TCX: links that outlive the agent"),
        Err((Some(libc::EPERM), _)) => {
            Finding::fail("attach", "whether there is TCX may not be asked", "it takes CAP_NET_ADMIN")
        }
        Err((Some(libc::EINVAL), _)) => Finding::warn(
            "attach",
            "no TCX (Linux 6.6 and later): clsact filters are used, and others may put theirs before ours",
            "the kernel must be built with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF",
        ),
        Err((_, error)) => Finding::warn("attach", format!("whether there is TCX is not clear: {error}"), ""),
    }
}

/// The nearest folder above that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn writable(path: &Path) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path ends with a zero byte.
    if unsafe { libc::access(text.as_ptr(), libc::W_OK | libc::X_OK) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn bpffs(path: &Path) -> Finding {
    let above = existing(path);
    match sys::is_bpffs(above) {
        Ok(true) => match writable(above) {
            Ok(()) => {
                Finding::ok("bpffs", format!("{} is on a BPF file system and can be written", path.display()))
            }
            Err(error) => Finding::fail(
                "bpffs",
                format!("{} cannot be written: {error}", above.display()),
                "run as root",
            ),
        },
        Ok(false) => Finding::fail(
            "bpffs",
            format!(
                "{} is not on a BPF file system: nothing can be pinned, so nothing would outlive the agent",
                path.display()
            ),
            "mount -t bpf bpf /sys/fs/bpf (in a pod: a hostPath volume with mountPropagation), or --bpffs DIR",
        ),
        Err(error) => {
            Finding::fail("bpffs", format!("cannot look at {}: {error}", above.display()), "see --bpffs")
        }
    }
}

fn run_dir(path: &Path) -> Finding {
    let above = existing(path);
    match writable(above) {
        Ok(()) => Finding::ok("run-dir", format!("{} can be written", path.display())),
        Err(error) => Finding::fail(
            "run-dir",
            format!(
                "{} cannot be written ({error}): no names file, so dumps would have numbers only",
                path.display()
            ),
            "run as root, or name another folder with --run-dir",
        ),
    }
}

fn jit(enabled: &str) -> Finding {
    match enabled {
        "0" => Finding::warn(
            "jit",
            "programs are interpreted: every packet costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // The file is hidden in other network namespaces than the first, and absent where the JIT is always on.
        "" => Finding::ok("jit", "the kernel does not say (it is always on in most kernels)"),
        _ => Finding::ok("jit", "programs are compiled"),
    }
}

fn lockdown(text: &str) -> Finding {
    let mode = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(mode, _)| mode);
    match mode {
        None | Some("none") => Finding::ok("lockdown", "off"),
        // LOCKDOWN_BPF_READ_KERNEL forbids reading kernel memory by helper; these programs read packets and maps only.
        Some(mode) => Finding::ok(
            "lockdown",
            format!("{mode}: does not touch these programs, which read no kernel memory"),
        ),
    }
}

fn memlock(release: &str) -> Finding {
    // Linux 5.11 and later charge maps to the memory cgroup.
    match sys::version_of(release) {
        Some(found) if found < (5, 11) => Finding::warn(
            "memlock",
            "this kernel charges maps to RLIMIT_MEMLOCK, which is small by default",
            "ulimit -l unlimited before the agent starts",
        ),
        _ => Finding::ok(
            "memlock",
            "maps are charged to the memory cgroup: a pod's memory limit must cover them",
        ),
    }
}

fn btf(there: bool) -> Finding {
    let found = if there { "there" } else { "not there" };
    Finding::ok("btf", format!("{found}; not needed: the programs use no kernel structures"))
}

fn conntrack(there: bool) -> Finding {
    if there {
        return Finding::ok("conntrack", "the kernel tracks connections");
    }
    Finding::warn(
        "conntrack",
        "connection tracking is not loaded: TCP connections that are open when the agent first attaches are cut",
        "modprobe nf_conntrack before the first start, or expect them to be opened anew",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::findings::Level;

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, level) in [
            ("6.1.0-40-cloud-amd64", Level::Ok),
            ("6.18.0", Level::Ok),
            ("10.0", Level::Ok),
            ("5.15.0-generic", Level::Warn),
            ("unheard of", Level::Warn),
        ] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
        assert_eq!(memlock("5.10.0").level, Level::Warn);
        assert_eq!(memlock("5.11.0").level, Level::Ok);
    }

    #[test]
    fn missing_capabilities_are_named_and_the_older_one_stands_for_the_younger() {
        let status = |bits: &[u32]| {
            let set: u64 = bits.iter().map(|bit| 1u64 << bit).sum();
            format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{set:016x}\n")
        };
        assert_eq!(capabilities(&status(&[CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON])).level, Level::Ok);
        assert_eq!(capabilities(&status(&[CAP_NET_ADMIN, CAP_SYS_ADMIN])).level, Level::Ok);
        let found = capabilities(&status(&[CAP_BPF]));
        assert_eq!(found.level, Level::Fail);
        assert!(
            found.message.contains("CAP_NET_ADMIN") && found.message.contains("CAP_PERFMON"),
            "{}",
            found.message
        );
        assert!(!found.message.contains("CAP_BPF"), "{}", found.message);
    }

    #[test]
    fn the_mode_in_brackets_is_the_one_in_force() {
        assert_eq!(lockdown("[none] integrity confidentiality").message, "off");
        assert!(lockdown("none integrity [confidentiality]").message.starts_with("confidentiality"));
        assert_eq!(lockdown("").message, "off");
    }

    #[test]
    fn of_a_verifier_log_the_reason_is_kept() {
        let log = "cannot load: Permission denied. Verifier output: 0: R1=ctx()\n1: (61) r1\nattempt to corrupt\n\
                   stack depth 8\nprocessed 3 insns\n: Permission denied";
        assert_eq!(brief(log), "cannot load: Permission denied. The verifier says: attempt to corrupt");
        assert_eq!(brief("no log"), "no log");
    }

    #[test]
    fn a_folder_that_is_not_on_bpffs_fails() {
        assert_eq!(bpffs(Path::new("/proc/nothing")).level, Level::Fail);
    }
}
