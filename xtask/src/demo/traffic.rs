//! Conversations: who tries to reach whom, all at once, and what the kernel made of it.
//!
//! No verdict is believed for one reason alone: `allow` needs data and allowed flows, `deny` needs silence and counted
//! denials, `audit` needs data, a flow that says so, and a counter that rose.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis_tests::Agent;

use super::expectations::{Expect, Family, Port, Protocol, Sweep, Traffic};
use super::probe::{Outcome, Probe, send_all};
use super::readings::{Counters, Flows};
use super::shop::{Host, Place, Shop};
use crate::interrupt;

/// How long an answer may take before it is called silence; a first SYN is sent once in this time.
const SOON: Duration = Duration::from_millis(700);
/// How long it may take where an answer is expected and did not come at first: the machine may be busy.
const PATIENT: Duration = Duration::from_secs(3);

/// One address and port that somebody tries.
#[derive(Debug)]
pub struct Try<'a> {
    pub source: &'a Place,
    pub target: &'a Place,
    pub probe: Probe,
    /// What is expected of it.
    pub expect: Expect,
}

impl Try<'_> {
    fn pair(&self) -> (&str, &str) {
        (&self.source.principal, &self.target.principal)
    }

    fn is_to_itself(&self) -> bool {
        self.source.name == self.target.name
    }
}

/// What was seen of a try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    Allow,
    Audit,
    Deny,
    /// An answer that nobody listens: nothing kept the packet from arriving.
    Reached,
    /// Anything that makes no sense.
    Odd(String),
}

impl Seen {
    /// Whether it is what was expected.
    pub const fn is(&self, expect: Expect) -> bool {
        matches!(
            (self, expect),
            (Self::Allow, Expect::Allow) | (Self::Audit, Expect::Audit) | (Self::Deny, Expect::Deny)
        )
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::Reached => "reached",
            Self::Odd(what) => what,
        })
    }
}

/// The tries of a line of the expectations.
pub fn of_line<'a>(shop: &'a Shop, line: &Traffic) -> Result<Vec<Try<'a>>> {
    let Traffic { from, to, port, family, expect, why: _ } = line;
    tries(shop, (from, to), &[*port], *family, *expect)
}

/// The tries of a sweep.
pub fn of_sweep<'a>(shop: &'a Shop, sweep: &Sweep) -> Result<Vec<Try<'a>>> {
    let Sweep { from, to, ports, family, expect, why: _ } = sweep;
    tries(shop, (from, to), ports, *family, *expect)
}

fn tries<'a>(
    shop: &'a Shop,
    (from, to): (&str, &str),
    ports: &[Port],
    family: Family,
    expect: Expect,
) -> Result<Vec<Try<'a>>> {
    let (sources, targets) = (shop.find(from)?, shop.find(to)?);
    // Among several pods of one account each one tries the others, a single one tries itself.
    let others_only = from == to && sources.len() > 1;
    let (v4, v6) = family.tries();
    let mut tries = Vec::new();
    for source in sources {
        for &target in &targets {
            if others_only && source.name == target.name {
                continue;
            }
            for (is_v6, tried) in [(false, v4), (true, v6)] {
                for &port in ports.iter().filter(|_| tried) {
                    let probe = Probe { from: source.address(is_v6), to: target.address(is_v6), port };
                    tries.push(Try { source, target, probe, expect });
                }
            }
        }
    }
    ensure!(!tries.is_empty(), "`{from}` to `{to}` is nothing to try");
    Ok(tries)
}

/// Sends everything at once, and again, more patiently, what got no answer although `hoped` says that it should.
pub fn send(shop: &Shop, tries: &[Try<'_>], hoped: impl Fn(&Try<'_>) -> bool) -> Result<Vec<Outcome>> {
    let all: Vec<usize> = (0..tries.len()).collect();
    let mut outcomes: Vec<Outcome> = tries.iter().map(|_| Outcome::Silence).collect();
    send_some(shop, tries, &all, SOON, &mut outcomes)?;
    interrupt::check()?;
    let again: Vec<usize> =
        all.into_iter().filter(|&at| !outcomes[at].passed() && hoped(&tries[at])).collect();
    send_some(shop, tries, &again, PATIENT, &mut outcomes)?;
    interrupt::check()?;
    Ok(outcomes)
}

/// Sends the tries at these places, from each namespace in a thread of its own.
fn send_some(
    shop: &Shop,
    tries: &[Try<'_>],
    which: &[usize],
    deadline: Duration,
    outcomes: &mut [Outcome],
) -> Result<()> {
    let mut by_host: BTreeMap<Host, Vec<usize>> = BTreeMap::new();
    for &at in which {
        by_host.entry(tries[at].source.host()).or_default().push(at);
    }
    let results = thread::scope(|scope| {
        let mut running = Vec::new();
        for (host, which) in &by_host {
            let ns = shop.ns(*host)?;
            let probes: Vec<Probe> = which.iter().map(|&at| tries[at].probe).collect();
            running.push((which, scope.spawn(move || send_all(ns, &probes, deadline))));
        }
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(|(which, thread)| Ok((which, join(thread)?))).collect::<Result<Vec<_>>>()
    })?;
    for (which, found) in results {
        for (&at, outcome) in which.iter().zip(found) {
            outcomes[at] = outcome;
        }
    }
    Ok(())
}

/// Sends the tries past the agent and says what was seen of each.
pub fn observe(shop: &Shop, agent: &Agent<'_>, tries: &[Try<'_>]) -> Result<Vec<Seen>> {
    let before = Counters::read(agent)?;
    let outcomes = send(shop, tries, |one| one.expect != Expect::Deny)?;
    let flows = Flows::read(agent)?;
    let after = Counters::read(agent)?;
    let mut silent: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (one, outcome) in tries.iter().zip(&outcomes) {
        if matches!(outcome, Outcome::Silence) {
            *silent.entry(one.pair()).or_default() += 1;
        }
    }
    let seen = tries.iter().zip(&outcomes).map(|(one, outcome)| {
        let (source, target) = one.pair();
        match outcome {
            Outcome::Echo { local, .. } => {
                passed(one, *local, &flows, || after.audited(source, target) > before.audited(source, target))
            }
            Outcome::Refused => Seen::Reached,
            Outcome::Silence => {
                let denied = after.denied(source, target) - before.denied(source, target);
                let silent = silent.get(&one.pair()).copied().unwrap_or_default();
                if denied >= silent {
                    Seen::Deny
                } else {
                    Seen::Odd(format!("lost ({silent} silent, {denied} counted)"))
                }
            }
            Outcome::Broken(error) => Seen::Odd(error.to_string()),
        }
    });
    Ok(seen.collect())
}

/// What a try was whose data came back.
fn passed(one: &Try<'_>, local: u16, flows: &Flows, audit_counted: impl Fn() -> bool) -> Seen {
    if one.is_to_itself() {
        return Seen::Allow;
    }
    let Probe { from, to, port: Port { protocol, number } } = one.probe;
    let remote = if protocol == Protocol::Icmp { local } else { number };
    let verdicts = flows.between(protocol, (from, local), (to, remote));
    if verdicts.is_empty() {
        return Seen::Odd("data, but no flow".to_owned());
    }
    match (verdicts.iter().find(|verdict| **verdict != "allow"), audit_counted()) {
        (None, _) => Seen::Allow,
        (Some(&"audit"), true) => Seen::Audit,
        (Some(other), _) => Seen::Odd(format!("data, with a flow of verdict {other} that was not counted")),
    }
}

/// What was seen of several tries: one word if they agree.
pub fn in_short(seen: &[Seen]) -> String {
    let mut counts: BTreeMap<&Seen, usize> = BTreeMap::new();
    for one in seen {
        *counts.entry(one).or_default() += 1;
    }
    match counts.len() {
        1 => counts.keys().map(ToString::to_string).collect(),
        _ => counts.iter().map(|(seen, count)| format!("{count} {seen}")).collect::<Vec<_>>().join(", "),
    }
}
