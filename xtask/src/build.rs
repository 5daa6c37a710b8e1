//! `cargo xtask build`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;

/// What `build` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Build quickly and without optimisation, as the tests do
    #[arg(long)]
    dev: bool,
}

/// Builds the agent and prints where it is.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    println!("{}", agent(!arguments.dev)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent's binary and returns its path.
pub fn agent(release: bool) -> Result<PathBuf> {
    let mut args = vec!["build", "--package", "portcullis"];
    args.extend(release.then_some("--release"));
    cargo::program(&cargo::executables(args)?, "portcullis")
}
