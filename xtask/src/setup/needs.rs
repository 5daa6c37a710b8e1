//! What building and testing need, how it is found, and how it is got.

use std::path::Path;
use std::process::Command;

use portcullis_ebpf_build::{BPF_LINKER_VERSION, Toolchain, find_linker};

use super::line::Line;
use crate::image::target::{Target, has_std};

/// Where Debian's LLVM of the kernel side's compiler is.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The compiler for the kernel side on Debian. Names as in bookworm-security.
const COMPILER: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// What bpf-linker is compiled against there.
const LLVM: &[&str] = &["llvm-22-dev", "zlib1g-dev"];

/// Something that is missing.
#[derive(Debug)]
pub struct Need {
    /// Its name.
    pub what: &'static str,
    /// Who needs it.
    pub why: &'static str,
    /// How to get it.
    pub remedy: Remedy,
}

/// How to get it.
#[derive(Debug)]
pub enum Remedy {
    /// Commands that this program runs.
    Run(Vec<Line>),
    /// What to do, where this program does not know the system well enough.
    Advise(String),
}

/// What the machine is to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Building the agent and running it.
    Demo,
    /// The container image.
    Image,
    /// A cluster to play with.
    Cluster,
    /// Every test.
    Test,
    /// Every test and the checks: what the CI runs.
    Ci,
    /// The fuzzers, which need nothing of the kernel's.
    Fuzz,
}

/// Everything that is missing, in the order in which it is to be installed.
pub fn missing(purpose: Purpose) -> Vec<Need> {
    let apt = works("apt-get", &["--version"]);
    let mut needs = Vec::new();
    if !works("cc", &["--version"]) {
        let remedy = packages(apt, &["gcc", "libc6-dev"], "install a C compiler");
        needs.push(Need { what: "C compiler", why: "links every Rust program", remedy });
    }
    if purpose == Purpose::Fuzz {
        if !works("cargo", &["fuzz", "--version"]) {
            let remedy = Remedy::Run(vec![Line::new(["cargo", "install", "cargo-fuzz", "--locked"])]);
            needs.push(Need { what: "cargo-fuzz", why: "runs the fuzz targets", remedy });
        }
        return needs;
    }
    if !works("ip", &["-V"]) || !works("nsenter", &["--version"]) {
        let remedy = packages(apt, &["iproute2", "util-linux"], "install iproute2 and util-linux");
        needs.push(Need {
            what: "ip, nsenter",
            why: "make the network namespaces of tests and demo",
            remedy,
        });
    }
    if purpose != Purpose::Cluster {
        kernel_side(apt, &mut needs);
    }
    if matches!(purpose, Purpose::Image | Purpose::Test | Purpose::Ci) {
        static_binary(apt, &mut needs);
    }
    if !bpffs_is_mounted() {
        let remedy = Remedy::Run(vec![Line::new(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])]);
        needs.push(Need { what: "bpffs", why: "keeps maps and programs while the agent is down", remedy });
    }
    if matches!(purpose, Purpose::Cluster | Purpose::Test | Purpose::Ci) {
        super::cluster::needs(apt, &mut needs);
    }
    if matches!(purpose, Purpose::Test | Purpose::Ci) {
        super::kernels::needs(apt, &mut needs);
    }
    if purpose == Purpose::Ci {
        ci_tools(&mut needs);
    }
    needs
}

/// Compiler and linker of the eBPF programs.
fn kernel_side(apt: bool, needs: &mut Vec<Need>) {
    let toolchain = Toolchain::find();
    // Debian's own compiler where there is one; rustup's nightly elsewhere.
    let debian = apt
        && (matches!(toolchain, Some(Toolchain::System { .. }))
            || (toolchain.is_none() && offered(COMPILER)));
    if toolchain.is_none() {
        let remedy = if debian {
            install(COMPILER)
        } else if works("rustup", &["--version"]) {
            let words = [
                "rustup",
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ];
            Remedy::Run(vec![Line::new(words)])
        } else {
            Remedy::Advise(
                "get rustup from https://rustup.rs and run \
                 `rustup toolchain install nightly --profile minimal --component rust-src`"
                    .to_owned(),
            )
        };
        needs.push(Need {
            what: "eBPF compiler",
            why: "compiles the programs that run in the kernel",
            remedy,
        });
    }
    // Present but not fit to run, for want of its libraries, is as good as absent.
    let linker = find_linker()
        .is_some_and(|path| Command::new(path).arg("--version").output().is_ok_and(|o| o.status.success()));
    if !linker {
        let mut words =
            vec!["cargo", "install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"];
        let mut lines = Vec::new();
        let mut prefix = None;
        if debian {
            if !LLVM.iter().all(|package| installed(package)) {
                lines.extend(apt_lines(LLVM));
            }
            words.extend(["--no-default-features", "--features", "llvm-22"]);
            prefix = Some(LLVM_PREFIX);
        }
        let line = Line::new(words);
        lines.push(match prefix {
            Some(prefix) => line.with("LLVM_PREFIX", prefix),
            None => line,
        });
        needs.push(Need {
            what: "bpf-linker",
            why: "links the programs that run in the kernel",
            remedy: Remedy::Run(lines),
        });
    }
}

/// What the image's binary is built with, which uses no library of the system.
fn static_binary(apt: bool, needs: &mut Vec<Need>) {
    let triple = Target::native().triple();
    if !has_std(triple) {
        let remedy = if works("rustup", &["--version"]) {
            Remedy::Run(vec![Line::new(["rustup", "target", "add", triple])])
        } else {
            Remedy::Advise(format!("install Rust's library for {triple} from where your compiler came from"))
        };
        needs.push(Need { what: "Rust for musl", why: "builds the image's static binary", remedy });
    }
    if !works("musl-gcc", &["--version"]) {
        let remedy = packages(apt, &["musl-tools"], "install the C library musl and its musl-gcc");
        needs.push(Need { what: "musl-gcc", why: "compiles the C parts of that binary", remedy });
    }
}

/// What only the CI needs.
fn ci_tools(needs: &mut Vec<Need>) {
    for (component, what, why) in
        [("rustfmt", "rustfmt", "checks the format"), ("clippy", "clippy", "checks the lints")]
    {
        let subcommand = if component == "rustfmt" { "fmt" } else { component };
        if !works("cargo", &[subcommand, "--version"]) {
            let remedy = if works("rustup", &["--version"]) {
                Remedy::Run(vec![Line::new(["rustup", "component", "add", component])])
            } else {
                Remedy::Advise(format!("install {component} from where your Rust compiler came from"))
            };
            needs.push(Need { what, why, remedy });
        }
    }
    if !works("cargo", &["deny", "--version"]) {
        let remedy = Remedy::Run(vec![Line::new(["cargo", "install", "cargo-deny", "--locked"])]);
        needs.push(Need {
            what: "cargo-deny",
            why: "checks licences and sources (compiles for 3 minutes)",
            remedy,
        });
    }
}

/// How to get packages: by apt, or by hand.
pub fn packages(apt: bool, names: &[&str], advice: &str) -> Remedy {
    if apt { install(names) } else { Remedy::Advise(format!("{advice} with your package manager")) }
}

fn install(names: &[&str]) -> Remedy {
    Remedy::Run(apt_lines(names))
}

/// The commands that install packages.
pub fn apt_lines(names: &[&str]) -> Vec<Line> {
    let words =
        ["apt-get", "install", "--yes", "--no-install-recommends"].into_iter().chain(names.iter().copied());
    vec![Line::new(["apt-get", "update"]), Line::new(words).with("DEBIAN_FRONTEND", "noninteractive")]
}

/// Whether a program is there and runs.
pub fn works(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// Whether a Debian package is installed.
pub fn installed(package: &str) -> bool {
    let query =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

/// Whether the package sources have all of these. A machine that never ran `apt-get update` knows none; Debian then
/// still is the better guess than a nightly.
fn offered(packages: &[&str]) -> bool {
    let known = |package: &&str| {
        let query = Command::new("apt-cache").args(["--names-only", "show", package]).output();
        query.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
    };
    packages.iter().all(known) || (!known(&"libc6") && Path::new("/etc/debian_version").exists())
}

fn bpffs_is_mounted() -> bool {
    std::fs::read_to_string("/proc/self/mounts").is_ok_and(|table| is_bpffs_listed(&table))
}

fn is_bpffs_listed(table: &str) -> bool {
    table.lines().any(|line| line.split(' ').skip(1).take(2).eq(["/sys/fs/bpf", "bpf"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_counts_only_at_its_place() {
        assert!(is_bpffs_listed("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,relatime 0 0\n"));
        assert!(!is_bpffs_listed("bpf /mnt bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
    }

    #[test]
    fn a_program_that_is_absent_or_fails_does_not_work() {
        assert!(works("true", &[]));
        assert!(!works("false", &[]));
        assert!(!works("/nonexistent", &[]));
    }
}
