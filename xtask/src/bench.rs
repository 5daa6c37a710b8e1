//! `cargo xtask bench`: the benchmark is a program of the tests' package, because it needs the agent's library, which
//! this program must compile without.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::cargo;

/// What `bench` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Arguments of the benchmark; `-o json` for machines, `--help` for the rest
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds the benchmark and the agent that it starts with optimisation, and becomes the benchmark.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let both = "build --release --package portcullis-tests --bin bench --package portcullis --bin portcullis";
    let built = cargo::executables(both.split(' '))?;
    let program = cargo::program(&built, "bench")?;
    let error = Command::new(&program).args(&arguments.args).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}
