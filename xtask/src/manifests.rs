//! `cargo xtask manifests`: writes the files in `deploy/` that are made from others.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use portcullis_tests::deploy;

use crate::cargo;

/// Writes the definitions of our kinds, then the file to install, which contains them.
pub fn run() -> Result<ExitCode> {
    // A program of the tests' package, because it needs the agent's library, which this program must compile without.
    let built = cargo::executables(["build", "--package", "portcullis-tests", "--bin", "crds"])?;
    let program = cargo::program(&built, "crds")?;
    let status = Command::new(&program).arg(deploy::folder().join("crds")).status();
    let status = status.with_context(|| format!("starting {}", program.display()))?;
    ensure!(status.success(), "{} failed with {status}", program.display());
    let path = deploy::folder().join("portcullis.yaml");
    std::fs::write(&path, deploy::install()?).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}
