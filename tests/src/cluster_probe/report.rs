//! What was seen, compared with what was expected.

use std::fmt;

use anyhow::{Result, bail};

use super::{Check, Outcome};

/// The comparison.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many probes there were.
    pub probes: usize,
    /// How many of them were to get an answer.
    pub answers: usize,
    /// Those of which something else came than was expected.
    pub differences: Vec<Difference>,
}

/// A probe of which something else came.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What was expected.
    pub check: Check,
    /// What came.
    pub found: Outcome,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check: Check { probe, expect, what }, found } = self;
        write!(f, "expected {expect:<8} found {found:<8} {probe}    {what}")
    }
}

impl Report {
    pub(super) fn new(checks: &[Check], outcomes: Vec<Outcome>) -> Self {
        let pairs = checks.iter().zip(outcomes);
        let differences = pairs.filter(|(check, found)| check.expect != *found);
        Self {
            probes: checks.len(),
            answers: checks.iter().filter(|check| check.expect == Outcome::Answer).count(),
            differences: differences
                .map(|(check, found)| Difference { check: check.clone(), found })
                .collect(),
        }
    }

    /// An error with a line for each difference, if there is one.
    pub fn into_result(self) -> Result<()> {
        if self.differences.is_empty() {
            return Ok(());
        }
        bail!("{self}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} probes came out otherwise than expected", self.differences.len(), self.probes)?;
        self.differences.iter().try_for_each(|difference| write!(f, "\n  {difference}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_probe::{Probe, Protocol, Source};

    #[test]
    fn a_difference_names_the_probe_and_what_it_was_about() {
        let check = |port, expect| Check {
            probe: Probe {
                from: Source::Pod { namespace: "shop".to_owned(), pod: "api-0".to_owned() },
                protocol: Protocol::Tcp,
                to: ([10, 0, 0, 1], port).into(),
            },
            expect,
            what: format!("line {port}"),
        };
        let checks = [check(1, Outcome::Answer), check(2, Outcome::Silence)];
        Report::new(&checks, vec![Outcome::Answer, Outcome::Silence]).into_result().unwrap();
        let report = Report::new(&checks, vec![Outcome::Answer, Outcome::Refused]);
        let text = report.into_result().unwrap_err().to_string();
        assert_eq!(
            text,
            "1 of 2 probes came out otherwise than expected\n  \
             expected silence  found refused  shop/api-0 -> tcp 10.0.0.1:2    line 2"
        );
    }
}
