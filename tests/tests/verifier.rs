//! How much work the programs are to the verifier of the running kernel.

#![allow(clippy::unwrap_used, reason = "tests: a failure is a panic")]

use std::io::Write as _;

use portcullis::datapath::probe::{Verified, load_programs};

/// A third more than the largest that was ever measured. Programs as they are in December 2026:
///
/// | Linux | `from_pod` | `to_pod` |
/// | --- | ---: | ---: |
/// | 6.1 | 222,099 | 221,636 |
/// | 6.12 | 110,951 | 110,582 |
/// | 6.18 | 118,056 | 117,947 |
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
