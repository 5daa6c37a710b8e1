//! Compares a file of truth tables with what Portcullis says, in three ways; `cargo xtask test oracle --truth FILE` runs
//! it. Exit status 1 if any cell differs, 2 if the comparison could not be made.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use portcullis_tests::loaded::with_loaded;
use portcullis_tests::oracle;

fn main() -> ExitCode {
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn compare() -> Result<bool> {
    let path = std::env::args_os().nth(1).context("name the file of truth tables")?;
    let steps = oracle::read(Path::new(&path))?;
    let comparison = with_loaded(move |loaded| oracle::compare(&steps, loaded))?;
    print!("{comparison}");
    Ok(comparison.differences() == 0)
}
