//! The table of an example: what must hold with its folder applied, as `expect.yaml` has it. Nothing here knows what the
//! right answer is.

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

pub use crate::cluster_probe::Protocol;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Hosts that are not pods, and that the lines name.
    #[serde(default)]
    pub hosts: Vec<Host>,
    /// The lines.
    pub expect: Vec<Line>,
}

impl Table {
    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }
}

/// Something with addresses that is not a pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What lines call it.
    pub name: String,
    /// Where it is.
    pub on: Place,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Where a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Outside of the cluster.
    Outside,
    /// Every node has its addresses.
    EveryNode,
}

/// One line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Who opens the connection.
    pub from: End,
    /// To whom.
    pub to: End,
    /// The port of the process that is reached: of the pod, not of a service.
    pub port: Port,
    /// What comes of it.
    pub verdict: Expect,
    /// Why that is meant.
    pub why: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, port, verdict, why } = self;
        write!(f, "{from} -> {to} {port}: {verdict} ({why})")
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The node of the pod at the other end.
    OwnNode,
    /// Any other node.
    OtherNode,
    /// A host of the table.
    Host(String),
    /// The pods of a Deployment or `DaemonSet`.
    Workload {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnNode => f.write_str("own-node"),
            Self::OtherNode => f.write_str("other-node"),
            Self::Host(name) => f.write_str(name),
            Self::Workload { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.split_once('/') {
            Some((namespace, name)) => Self::Workload { namespace: namespace.into(), name: name.into() },
            None if text == "own-node" => Self::OwnNode,
            None if text == "other-node" => Self::OtherNode,
            None => Self::Host(text),
        })
    }
}

/// A transport protocol with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.number)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let (protocol, number) = text.split_once('/')?;
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            Some(Self { protocol, number: number.parse().ok()? })
        };
        parse().ok_or_else(|| D::Error::custom(format!("`{text}` is neither tcp/PORT nor udp/PORT")))
    }
}

/// What is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// The other end answers.
    Allow,
    /// Silence.
    Deny,
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}
