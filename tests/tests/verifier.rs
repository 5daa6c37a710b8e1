//! How much work the programs are to the verifier of the running kernel.

#![allow(clippy::unwrap_used, reason = "tests: a failure is a panic")]

use std::io::Write as _;

use portcullis::datapath::probe::{Verified, load_programs};

/// One and a half times the largest that was measured, of programs as they are in November 2026:
///
/// | Linux | `from_pod` | `to_pod` |
/// | --- | ---: | ---: |
/// | 6.1 | 202,915 | 202,370 |
/// | 6.12 | 88,083 | 118,935 |
/// | 6.18 | 93,045 | 92,869 |
///
/// The kernel gives up after a million.
const BUDGET: u32 = 300_000;

#[test]
fn each_program_is_in_the_budget_of_the_verifier_s_instructions() {
    let verified = load_programs().unwrap();
    assert_eq!(verified.len(), 2, "{verified:?}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for Verified { name, instructions } in verified {
        let instructions = instructions.unwrap();
        // Not captured: whoever runs the tests sees it.
        writeln!(
            std::io::stdout(),
            "verifier: Linux {}: {name} {instructions} instructions, budget {BUDGET}",
            release.trim()
        )
        .unwrap();
        assert!(instructions <= BUDGET, "{name}: {instructions}");
    }
}
