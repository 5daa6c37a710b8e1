//! `cargo xtask ci`: the checks that need no kernel, then every test.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use crate::cargo::{cargo, root};
use crate::tally::Tally;
use crate::test;

/// The crate that is a workspace of its own.
const EBPF: &str = "agent-ebpf/Cargo.toml";

/// What `ci` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Leave out the tests, which `cargo xtask test` runs
    #[arg(long)]
    checks: bool,
}

/// Runs the checks, then the tests, and prints the sum of both.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut sum = Tally::default();
    for (what, mut command) in checks() {
        sum += Tally::one(check(what, &mut command));
    }
    if !arguments.checks {
        sum += test::all(None);
    }
    sum.finish()
}

fn checks() -> Vec<(&'static str, Command)> {
    vec![
        ("format", cargo(["fmt", "--all", "--check"])),
        ("format of the kernel side", cargo(["fmt", "--manifest-path", EBPF, "--check"])),
        ("lints", cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ("lints of the kernel side", ebpf_lints()),
        ("licences", deny("Cargo.toml")),
        ("licences of the kernel side", deny(EBPF)),
    ]
}

/// Licences, versions and sources. Not the advisories: their database is on the network and changes by the day, and a
/// check must not fail because of the date.
fn deny(manifest: &str) -> Command {
    let mut command = cargo(["deny", "--manifest-path", manifest, "--all-features"]);
    command.arg("--config").arg(root().join("deny.toml"));
    command.args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    command
}

/// The kernel side's compiler may come without clippy (Debian's does), so it is linted as if for this machine.
fn ebpf_lints() -> Command {
    let mut command = cargo(["clippy", "--manifest-path", EBPF, "--target-dir", "target/ebpf/clippy"]);
    command.args(["--features", "bench,log", "--", "-D", "warnings"]);
    let arch = std::env::consts::ARCH;
    command.env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\""));
    // aya-ebpf uses unstable features.
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Runs a check; its output goes to the terminal.
fn check(what: &str, command: &mut Command) -> bool {
    println!("==> {what}");
    let start = Instant::now();
    let passed = match command.stdin(Stdio::null()).status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("error: starting {command:?}: {error}");
            false
        }
    };
    let outcome = if passed { "ok" } else { "FAILED" };
    println!("    {what}: {outcome} in {:.0} s", start.elapsed().as_secs_f64());
    passed
}
