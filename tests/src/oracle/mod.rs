//! Truth that nobody here wrote: tables of verdicts by an independent evaluator ([`file`]), compared cell by cell with what
//! Portcullis says in three ways ([`compare`]).

mod compare;
mod file;
pub mod live;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use compare::{Comparison, Compiled, Tally, Way, compare};
pub use file::{Accounts, Asked, Cell, Port, Step, StepPod, parse, read};

/// The file that comes with the project.
pub fn bundled() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/networkpolicy-truth.json")
}
