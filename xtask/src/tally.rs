//! How many checks or tests passed and failed: the line that every run ends with.

use std::fmt;
use std::ops::AddAssign;
use std::process::ExitCode;

/// The sum of a run. Displays as `N passed, N failed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// What held.
    pub passed: u64,
    /// What did not.
    pub failed: u64,
}

impl Tally {
    /// One check.
    pub fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed) }
    }

    /// Reads the last line of a test program: `test result: ok. 3 passed; 0 failed; ..`.
    pub fn of_result_line(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut parts = numbers.split("; ");
        let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
        let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
        Some(Self { passed, failed })
    }

    /// Prints the sum as the last line. A run in which nothing ran has shown nothing, and fails.
    pub fn finish(self) -> ExitCode {
        println!("{self}");
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read_and_others_are_not() {
        let read = |line| Tally::of_result_line(line).map(|tally| tally.to_string());
        let ok =
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s";
        assert_eq!(read(ok).as_deref(), Some("3 passed, 0 failed"));
        let failed = "test result: FAILED. 8 passed; 12 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(read(failed).as_deref(), Some("8 passed, 12 failed"));
        assert_eq!(read("test a_test ... ok"), None);
        assert_eq!(read("test result: ok."), None);
    }

    #[test]
    fn only_a_run_without_failures_in_which_something_ran_succeeds() {
        let code = |passed, failed| format!("{:?}", Tally { passed, failed }.finish());
        let (success, failure) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(code(1, 0), success);
        assert_eq!(code(0, 0), failure);
        assert_eq!(code(5, 1), failure);
    }
}
