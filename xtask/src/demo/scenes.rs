//! The steps between the agent's start and its end, each with its expectations and its table.

use anyhow::{Context, Result, ensure};
use portcullis_tests::Agent;

use super::expectations::{Counter, Dump, Expectations, Metric, Sweep};
use super::play::Play;
use super::readings::{self, Counters};
use super::report::{self, CHECK_HEADER, Check};
use super::shop::Shop;
use super::spoof;
use super::traffic::{self, Seen, Try};
use crate::interrupt;

/// Sends everything once without an agent, and fails if it does not arrive: then a later denial would mean nothing.
/// Returns how many probes that were.
pub fn rehearse(shop: &Shop, expectations: &Expectations) -> Result<usize> {
    let mut tries = Vec::new();
    for line in &expectations.traffic {
        tries.extend(traffic::of_line(shop, line)?);
    }
    for sweep in &expectations.sweeps {
        tries.extend(traffic::of_sweep(shop, sweep)?);
    }
    let outcomes = traffic::send(shop, &tries, |_| true)?;
    for (Try { source, probe, .. }, outcome) in tries.iter().zip(&outcomes) {
        let (name, to, port) = (&source.name, probe.to, probe.port);
        ensure!(outcome.passed(), "{name} does not reach {to} {port} although no agent runs: {outcome:?}");
    }
    for line in &expectations.spoofs {
        interrupt::check()?;
        spoof::rehearse(shop, line)?;
    }
    Ok(tries.len() + 2 * expectations.spoofs.len())
}

/// The steps, with what they need.
pub struct Scenes<'a> {
    pub play: &'a Play<'a>,
    pub shop: &'a Shop,
    pub agent: &'a Agent<'a>,
}

impl Scenes<'_> {
    /// All of them, in order.
    pub fn all(&self) -> Result<Vec<Check>> {
        let mut checks = self.traffic()?;
        checks.extend(self.sweeps()?);
        checks.extend(self.spoofs()?);
        checks.extend(self.counters()?);
        checks.extend(self.metrics()?);
        checks.extend(self.dumps()?);
        Ok(checks)
    }

    fn expectations(&self) -> &Expectations {
        self.play.expectations
    }

    fn traffic(&self) -> Result<Vec<Check>> {
        let mut lines = Vec::new();
        let mut tries = Vec::new();
        for line in &self.expectations().traffic {
            let first = tries.len();
            tries.extend(traffic::of_line(self.shop, line)?);
            lines.push((line, first..tries.len()));
        }
        let seen = traffic::observe(self.shop, self.agent, &tries)?;
        let mut rows = Vec::new();
        let mut checks = Vec::new();
        for (line, range) in lines {
            let seen = &seen[range];
            let check = Check {
                what: format!("{} to {} {} IPv{}", line.from, line.to, line.port, line.family),
                expected: line.expect.to_string(),
                seen: traffic::in_short(seen),
                held: seen.iter().all(|seen| seen.is(line.expect)),
                why: line.why.clone(),
            };
            let family = line.family.to_string();
            let port = line.port.to_string();
            let cells = [&line.from, &line.to, &port, &family, &check.expected, &check.seen];
            let mut row: Vec<String> = cells.map(Clone::clone).to_vec();
            row.extend([check.mark().to_owned(), line.why.clone()]);
            rows.push(row);
            checks.push(check);
        }
        self.play.title(&format!("Traffic: {} conversations, all at once", tries.len()));
        let header = ["from", "to", "port", "IP", "expected", "seen", "", "why"];
        self.play.say(&report::table(&header, &rows));
        Ok(checks)
    }

    fn sweeps(&self) -> Result<Vec<Check>> {
        let mut lines: Vec<(&Sweep, std::ops::Range<usize>)> = Vec::new();
        let mut tries = Vec::new();
        for sweep in &self.expectations().sweeps {
            let first = tries.len();
            tries.extend(traffic::of_sweep(self.shop, sweep)?);
            lines.push((sweep, first..tries.len()));
        }
        let seen = traffic::observe(self.shop, self.agent, &tries)?;
        let checks: Vec<Check> = lines
            .iter()
            .map(|(sweep, range)| {
                let seen = &seen[range.clone()];
                Check {
                    what: format!("{} sweeps {}", sweep.from, sweep.to),
                    expected: sweep.expect.to_string(),
                    seen: traffic::in_short(seen),
                    held: seen.iter().all(|seen| seen.is(sweep.expect)),
                    why: sweep.why.clone(),
                }
            })
            .collect();
        self.play.title(&format!("A sweep: {} tries at once (`.`: denied, and counted)", tries.len()));
        let all: Vec<(&Try<'_>, &Seen)> = tries.iter().zip(&seen).collect();
        let ports = lines.first().map(|(sweep, _)| sweep.ports.as_slice()).unwrap_or_default();
        self.play.say(&report::matrix(ports, &all));
        self.say_checks(&checks);
        Ok(checks)
    }

    fn spoofs(&self) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        for line in &self.expectations().spoofs {
            interrupt::check()?;
            let seen = spoof::observe(self.shop, self.agent, line)?;
            checks.push(Check {
                what: format!("{} as {} to {} {}", line.from, line.pretends, line.to, line.port),
                expected: "dropped".to_owned(),
                seen: if seen[0] == seen[1] { seen[0].to_owned() } else { seen.join(", ") },
                held: seen.iter().all(|seen| *seen == "dropped"),
                why: line.why.clone(),
            });
        }
        self.play.title("Lies: packets with another pod's source address");
        self.say_checks(&checks);
        Ok(checks)
    }

    fn counters(&self) -> Result<Vec<Check>> {
        interrupt::check()?;
        let counters = Counters::read(self.agent)?;
        let checks: Result<Vec<Check>> = self
            .expectations()
            .counters
            .iter()
            .map(|line| {
                let Counter { source, destination, direction, verdict, at_least, at_most, why } = line;
                let packets = counters.get(source, destination, direction);
                let seen =
                    packets.of(verdict).with_context(|| format!("`{verdict}` is no verdict of counters"))?;
                let bounds =
                    [at_least.map(|n| format!("at least {n}")), at_most.map(|n| format!("at most {n}"))];
                Ok(Check {
                    what: format!("{source} to {destination}, {direction}, {verdict}"),
                    expected: bounds.into_iter().flatten().collect::<Vec<_>>().join(", "),
                    seen: seen.to_string(),
                    held: at_least.is_none_or(|n| seen >= n) && at_most.is_none_or(|n| seen <= n),
                    why: why.clone(),
                })
            })
            .collect();
        let checks = checks?;
        self.play.title("Counters per pair of identities: portcullis dump counters");
        self.play.say(&report::indented(&self.agent.cli(["dump", "counters"])?));
        self.say_checks(&checks);
        Ok(checks)
    }

    fn metrics(&self) -> Result<Vec<Check>> {
        interrupt::check()?;
        let text = readings::metrics(self.agent)?;
        let lines = &self.expectations().metrics;
        let checks: Vec<Check> = lines
            .iter()
            .map(|line| {
                let Metric { family: metric, labels, at_least, why } = line;
                let sum = readings::sum(&text, metric, labels);
                let labels: Vec<&str> = labels.values().map(String::as_str).collect();
                Check {
                    what: format!("{metric} {}", labels.join(" ")),
                    expected: format!("at least {at_least}"),
                    seen: sum.map_or_else(|| "no such series".to_owned(), |sum| sum.to_string()),
                    #[expect(clippy::cast_precision_loss, reason = "small numbers, written by hand")]
                    held: sum.is_some_and(|sum| sum >= *at_least as f64),
                    why: why.clone(),
                }
            })
            .collect();
        self.play.title("Some lines of /metrics");
        for (metric, part, limit) in [
            ("portcullis_decisions_total", "verdict=\"audit\"", 2),
            ("portcullis_decisions_total", "verdict=\"deny\"", 4),
            ("portcullis_drops_total", "", 4),
            ("portcullis_endpoints", "", 4),
        ] {
            let wanted =
                |line: &str| line.starts_with(metric) && line.contains(part) && !line.ends_with(" 0");
            self.play.say(report::excerpt(&text, limit, wanted).trim_end());
        }
        self.play.say("");
        self.say_checks(&checks);
        Ok(checks)
    }

    fn dumps(&self) -> Result<Vec<Check>> {
        interrupt::check()?;
        let checks: Result<Vec<Check>> = self
            .expectations()
            .dumps
            .iter()
            .map(|Dump { what: dump, row, why }| {
                let value = readings::dump(self.agent, dump)?;
                let fields: Vec<String> = row.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let held = readings::has_row(&value, row);
                Ok(Check {
                    what: format!("dump {dump}: {}", fields.join(" ")),
                    expected: "a row".to_owned(),
                    seen: if held { "a row" } else { "no row" }.to_owned(),
                    held,
                    why: why.clone(),
                })
            })
            .collect();
        self.play.title("portcullis dump endpoints");
        self.play.say(&report::indented(&self.agent.cli(["dump", "endpoints"])?));
        self.play
            .title("portcullis dump policies: first lines without their wide first column, and the policies");
        self.play.say(&report::policy_lines(&self.agent.cli(["dump", "policies"])?));
        let checks = checks?;
        self.say_checks(&checks);
        Ok(checks)
    }

    fn say_checks(&self, checks: &[Check]) {
        let rows: Vec<Vec<String>> = checks.iter().map(Check::row).collect();
        self.play.say(&report::table(&CHECK_HEADER, &rows));
    }
}
