//! Connections tried in a real cluster, many at once, and what was seen compared with what was expected.
//!
//! A probe comes from a pod (`kubectl exec`, one for all probes of the pod, with the client that the documents name), from
//! a node itself, or from outside. What should be answered and is not gets a second, more patient try: a busy machine is
//! slow, not wrong. What should not be answered and is has no second chance.

mod local;
mod report;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;

pub use report::{Difference, Report};

/// How long an answer may take before it is called silence: one retransmission of a SYN.
pub const SOON: Duration = Duration::from_millis(1500);
/// How long it may take where an answer is expected and did not come at first.
pub const PATIENT: Duration = Duration::from_secs(5);
/// How many pods are asked at the same time.
const EXECS: usize = 4;

/// A transport protocol that can be tried with a plain socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP: the connection is opened.
    Tcp,
    /// UDP: a datagram is sent and one comes back.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Who opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A pod, of an image with `/agnhost` and a shell.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// A process of a node that is in no pod.
    Node(usize),
    /// A client that is no node, with one of its addresses.
    Outside(IpAddr),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, pod } => write!(f, "{namespace}/{pod}"),
            Self::Node(i) => write!(f, "node{i}"),
            Self::Outside(address) => write!(f, "outside {address}"),
        }
    }
}

/// One connection to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Who opens it.
    pub from: Source,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// To which address: of a pod, a service, a node, the outside.
    pub to: SocketAddr,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.from, self.protocol, self.to)
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The other side answered.
    Answer,
    /// Nothing came back.
    Silence,
    /// Somebody said that nobody listens: packets did get through, or kube-proxy knows no endpoint.
    Refused,
    /// Anything else, in words.
    Other(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Answer => "answer",
            Self::Silence => "silence",
            Self::Refused => "refused",
            Self::Other(what) => what,
        })
    }
}

/// A probe and what is expected of it.
#[derive(Clone, Debug)]
pub struct Check {
    /// The probe.
    pub probe: Probe,
    /// What shall come of it.
    pub expect: Outcome,
    /// What the expectation is about, for the message where something else comes of it.
    pub what: String,
}

/// Tries everything and says what was different.
pub fn check(cluster: &Cluster, checks: &[Check]) -> Result<Report> {
    let probes: Vec<&Probe> = checks.iter().map(|check| &check.probe).collect();
    let mut outcomes = send(cluster, &probes, SOON)?;
    let hoped = |at: &usize| checks[*at].expect == Outcome::Answer && outcomes[*at] != Outcome::Answer;
    let again: Vec<usize> = (0..checks.len()).filter(hoped).collect();
    let probes: Vec<&Probe> = again.iter().map(|&at| &checks[at].probe).collect();
    for (&at, outcome) in again.iter().zip(send(cluster, &probes, PATIENT)?) {
        outcomes[at] = outcome;
    }
    Ok(Report::new(checks, outcomes))
}

/// Tries everything at once; the outcomes are in the order of the probes.
pub fn send(cluster: &Cluster, probes: &[&Probe], timeout: Duration) -> Result<Vec<Outcome>> {
    let mut groups: BTreeMap<&Source, Vec<usize>> = BTreeMap::new();
    for (at, probe) in probes.iter().enumerate() {
        groups.entry(&probe.from).or_default().push(at);
    }
    let groups: Vec<_> = groups.into_iter().collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![Outcome::Silence; probes.len()]);
    let work = || {
        while let Some((source, which)) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mine: Vec<&Probe> = which.iter().map(|&at| probes[at]).collect();
            let outcomes = from(cluster, source, &mine, timeout)?;
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            for (&at, outcome) in which.iter().zip(outcomes) {
                found[at] = outcome;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..EXECS).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().try_for_each(join)
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Tries everything that one source tries.
fn from(cluster: &Cluster, source: &Source, probes: &[&Probe], timeout: Duration) -> Result<Vec<Outcome>> {
    match source {
        Source::Pod { namespace, pod } => {
            let printed = cluster.exec(namespace, pod, ["sh", "-c", &script(probes, timeout)])?;
            parse(&printed, probes.len())
                .with_context(|| format!("the probes of {source} printed:\n{printed}"))
        }
        Source::Node(i) => local::send_all(&cluster.node(*i).place.net, None, probes, timeout),
        Source::Outside(address) => local::send_all(&cluster.outside, Some(*address), probes, timeout),
    }
}

/// A shell script that tries all at once and prints a line for each: its number, then what the client says; nothing where
/// it got an answer.
fn script(probes: &[&Probe], timeout: Duration) -> String {
    let mut script =
        "p() { out=$(/agnhost connect --timeout=\"$2\" --protocol=\"$3\" \"$4\" 2>&1); code=$?; \
                      echo \"$1 $code\" $out; }\n"
            .to_owned();
    for (at, Probe { protocol, to, .. }) in probes.iter().enumerate() {
        // Writing to a text does not fail.
        let _ = writeln!(script, "p {at} {}ms {protocol} '{to}' &", timeout.as_millis());
    }
    script + "wait\n"
}

/// What the script printed.
fn parse(printed: &str, probes: usize) -> Option<Vec<Outcome>> {
    let mut outcomes = vec![None; probes];
    for line in printed.lines() {
        let mut words = line.splitn(3, ' ');
        let at: usize = words.next()?.parse().ok()?;
        let code = words.next()?;
        let said = words.next().unwrap_or_default();
        *outcomes.get_mut(at)? = Some(match (code, said.split([':', ' ']).next()) {
            ("0", _) => Outcome::Answer,
            (_, Some("TIMEOUT")) => Outcome::Silence,
            (_, Some("REFUSED")) => Outcome::Refused,
            _ => Outcome::Other(format!("exit code {code}: {said}")),
        });
    }
    outcomes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_is_understood() {
        let printed =
            "1 1 TIMEOUT\n0 0\n2 1 REFUSED: read: connection refused\n3 1 OTHER: no route to host\n";
        let wanted = [
            Outcome::Answer,
            Outcome::Silence,
            Outcome::Refused,
            Outcome::Other("exit code 1: OTHER: no route to host".to_owned()),
        ];
        assert_eq!(parse(printed, 4), Some(wanted.to_vec()));
        assert_eq!(parse("0 0\n", 2), None, "one is missing");
        assert_eq!(parse("command not found\n", 1), None);
    }
}
