//! `cargo xtask fuzz`: the fuzz targets under libFuzzer. What is found comes to `fuzz/crashes`, which the tests replay; what
//! reaches new code is kept below the build folder, and with `--keep` in `fuzz/corpus`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;

/// Targets, as in `fuzz/Cargo.toml`.
const TARGETS: [&str; 2] = ["parser", "walk"];
/// Inputs are no longer: a dozen packets.
const LONGEST: &str = "-max_len=2048";

/// What `fuzz` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The target; all of them, one after the other, if none is named
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each one runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Write what reached new code into fuzz/corpus, without what it makes superfluous
    #[arg(long)]
    keep: bool,
}

/// Runs the targets; what they find is an error.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::setup::ensure_ready(crate::setup::Purpose::Fuzz)?;
    let chosen = |target: &&str| arguments.target.as_deref().is_none_or(|wanted| wanted == *target);
    for target in TARGETS.into_iter().filter(chosen) {
        let folder = cargo::root().join("fuzz");
        let corpus = folder.join("corpus").join(target);
        let fresh = folder.join("target/corpus").join(target);
        std::fs::create_dir_all(&fresh).with_context(|| fresh.display().to_string())?;
        let crashes = format!("-artifact_prefix={}/", folder.join("crashes").join(target).display());
        let seconds = format!("-max_total_time={}", arguments.seconds);
        let status =
            fuzzer(target, &[&fresh, &corpus], &[&seconds, &crashes, LONGEST, "-print_final_stats=1"])
                .status()
                .context("starting cargo fuzz")?;
        if !status.success() {
            bail!(
                "`{target}` found something: the input is in fuzz/crashes/{target} and fails in \
                 `cargo test -p portcullis-checks`"
            );
        }
        if arguments.keep {
            let status = fuzzer(target, &[&corpus, &fresh], &["-merge=1", LONGEST]).status();
            ensure!(
                status.context("starting cargo fuzz")?.success(),
                "the corpus of `{target}` was not merged"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The fuzzer with its folders and options. The code has nothing for a sanitizer to look at: no `unsafe`.
fn fuzzer(target: &str, folders: &[&PathBuf], options: &[&str]) -> Command {
    let mut command = cargo::cargo(["fuzz", "run", "--fuzz-dir", "fuzz", "--sanitizer", "none", target]);
    // cargo-fuzz asks for instrumentation that only a nightly compiler gives by itself.
    command.env("RUSTC_BOOTSTRAP", "1").env_remove("CARGO_TARGET_DIR");
    command.args(folders).arg("--").args(options);
    command
}
