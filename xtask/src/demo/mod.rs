//! The shop demo.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// What the demo takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the demo.
pub fn run(_: &Arguments) -> Result<ExitCode> {
    bail!("there is no demo yet")
}
