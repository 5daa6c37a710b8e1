//! The expectations, as `deploy/demo/expectations.yaml` has them. Nothing here knows what the right answer is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// What every pod, the node and the first host outside serve.
    pub serve: Vec<Port>,
    /// Hosts behind the uplink.
    pub outside: Vec<Outside>,
    /// Single conversations.
    pub traffic: Vec<Traffic>,
    /// Every address and port of a target, tried by one pod.
    pub sweeps: Vec<Sweep>,
    /// Packets with the source address of another pod.
    pub spoofs: Vec<Spoof>,
    /// Counters of pairs.
    pub counters: Vec<Counter>,
    /// Sums of series in `/metrics`.
    pub metrics: Vec<Metric>,
    /// Rows of `portcullis dump`.
    pub dumps: Vec<Dump>,
    /// What holds when everything was cleaned up.
    pub afterwards: Vec<Afterwards>,
}

impl Expectations {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let found: Self = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        for port in found.sweeps.iter().flat_map(|sweep| &sweep.ports) {
            ensure!(
                found.sweeps.iter().all(|sweep| sweep.ports.contains(port)),
                "{port} is not in every sweep"
            );
        }
        Ok(found)
    }

    /// How many expectations there are.
    pub fn len(&self) -> usize {
        let Self { serve: _, outside: _, traffic, sweeps, spoofs, counters, metrics, dumps, afterwards } =
            self;
        traffic.len()
            + sweeps.len()
            + spoofs.len()
            + counters.len()
            + metrics.len()
            + dumps.len()
            + afterwards.len()
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// A protocol and its port; ICMP has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub protocol: Protocol,
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "tcp/{}", self.number),
            Protocol::Udp => write!(f, "udp/{}", self.number),
            Protocol::Icmp => f.write_str("icmp"),
        }
    }
}

impl Port {
    fn parse(text: &str) -> Option<Self> {
        if text == "icmp" {
            return Some(Self { protocol: Protocol::Icmp, number: 0 });
        }
        let (protocol, number) = text.split_once('/')?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        Some(Self { protocol, number: number.parse().ok()? })
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is none of tcp/PORT, udp/PORT and icmp")))
    }
}

/// Address families to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
    #[default]
    Both,
}

impl Family {
    /// Whether IPv4 is tried, and IPv6.
    pub const fn tries(self) -> (bool, bool) {
        match self {
            Self::Ipv4 => (true, false),
            Self::Ipv6 => (false, true),
            Self::Both => (true, true),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ipv4 => "4",
            Self::Ipv6 => "6",
            Self::Both => "4 and 6",
        })
    }
}

/// A verdict that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    Allow,
    Deny,
    Audit,
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        })
    }
}

/// A host outside.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    pub name: String,
    pub addresses: (Ipv4Addr, Ipv6Addr),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    pub from: String,
    pub to: String,
    pub port: Port,
    #[serde(default)]
    pub family: Family,
    pub expect: Expect,
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    pub from: String,
    pub to: String,
    pub ports: Vec<Port>,
    #[serde(default)]
    pub family: Family,
    pub expect: Expect,
    pub why: String,
}

/// How a pod lies about its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// A header written by hand, through a raw socket.
    Raw,
    /// The address on its own interface, and an ordinary socket.
    Address,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spoof {
    pub from: String,
    #[serde(rename = "as")]
    pub pretends: String,
    pub to: String,
    pub port: Port,
    pub how: How,
    pub why: String,
}

/// Packets of a pair.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    pub source: String,
    pub destination: String,
    pub direction: String,
    /// `allowed`, `denied` or `audited`.
    pub verdict: String,
    pub at_least: Option<u64>,
    pub at_most: Option<u64>,
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    #[serde(rename = "metric")]
    pub family: String,
    pub labels: BTreeMap<String, String>,
    pub at_least: u64,
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    /// What `portcullis dump` shall print.
    #[serde(rename = "dump")]
    pub what: String,
    /// Fields that one of its rows has.
    pub row: BTreeMap<String, serde_json::Value>,
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Afterwards {
    pub nothing_left: bool,
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Expectations {
        Expectations::load(&crate::cargo::root().join("deploy/demo/expectations.yaml")).unwrap()
    }

    #[test]
    fn the_file_has_expectations_of_every_kind_and_verdict() {
        let file = file();
        assert!(file.len() >= 20, "{}", file.len());
        for expect in [Expect::Allow, Expect::Deny, Expect::Audit] {
            assert!(file.traffic.iter().any(|line| line.expect == expect), "{expect}");
        }
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            assert!(file.traffic.iter().any(|line| line.port.protocol == protocol), "{protocol:?}");
        }
        assert!(file.counters.iter().all(|line| line.at_least.is_some() || line.at_most.is_some()));
    }

    #[test]
    fn ports_are_read_as_they_are_written() {
        for text in ["tcp/8080", "udp/53", "icmp"] {
            assert_eq!(Port::parse(text).unwrap().to_string(), text);
        }
        for text in ["tcp", "tcp/x", "sctp/1", "tcp/65536", ""] {
            assert_eq!(Port::parse(text), None, "{text}");
        }
    }
}
