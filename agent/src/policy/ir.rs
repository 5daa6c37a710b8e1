//! The intermediate representation: policies of every kind in one form, with nothing left in it that is not understood.
//!
//! The translators (`network_policy`, `identity_policy`, `cluster_identity_policy`) keep one invariant: what they could
//! not understand is reported and narrows access, never widens it. Whatever reads this form need not care any more.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;
use portcullis_common::abi::Mode;
use portcullis_common::policy::{PortKey, protocol};
use portcullis_common::{Direction, Kind};

use super::desired::Problem;
use super::selector::{PodSelector, list};

/// Where a policy is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before the policies of namespaces, by priority, the first rule that matches.
    Admin,
    /// `NetworkPolicy` and `IdentityPolicy`: all together.
    Namespace,
    /// After the policies of namespaces, by priority, the first rule that matches.
    Baseline,
}

/// A kind of policy, in the order in which rules of different kinds are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1` `NetworkPolicy`.
    NetworkPolicy,
    /// `portcullis.dev/v1alpha1` `IdentityPolicy`.
    IdentityPolicy,
    /// `portcullis.dev/v1alpha1` `ClusterIdentityPolicy`.
    ClusterIdentityPolicy,
}

impl PolicyKind {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::IdentityPolicy => "IdentityPolicy",
            Self::ClusterIdentityPolicy => "ClusterIdentityPolicy",
        }
    }
}

/// What names a policy. Its text is `NetworkPolicy shop/db`, or `ClusterIdentityPolicy guardrails`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; empty for one of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        let slash = if namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {namespace}{slash}{name}", kind.name())
    }
}

/// A policy of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What names it.
    pub name: PolicyName,
    /// Where it is evaluated.
    pub tier: Tier,
    /// Lower first, within the Admin and the Baseline tier.
    pub priority: i32,
    /// Its own mode; that of a subject's namespace may be more lenient.
    pub mode: Mode,
    /// The pods that it is about.
    pub subject: PodSelector,
    /// What reaches them; `None`: not touched.
    pub ingress: Option<Section>,
    /// What they reach; `None`: not touched.
    pub egress: Option<Section>,
}

impl Policy {
    /// Where the policy acts among all: by tier, then by priority, then by name. The order is total, so that of two
    /// policies with the same priority it is always the same one that comes first, whatever their kinds and however
    /// they got here.
    pub fn place(&self) -> impl Ord + '_ {
        let name = if self.tier == Tier::Namespace { "" } else { self.name.name.as_str() };
        (self.tier, self.priority, name, &self.name)
    }

    /// The section of a direction.
    pub fn section(&self, direction: Direction) -> Option<&Section> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// One direction of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What nothing in the tier accepts is denied. The name of that denial, as a rule: `None` where the section does
    /// not isolate.
    pub isolation: Option<String>,
    /// The rules, in their order.
    pub rules: Vec<Rule>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Allow it.
    Accept,
    /// Deny it.
    Deny,
    /// Leave it to the next tier. Not in the namespace tier.
    Pass,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `NetworkPolicy shop/db ingress[0]`: unique unless people give two rules of a section the same name.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// With whom.
    pub peers: Peers,
    /// On which protocols and destination ports.
    pub ports: Ports,
}

/// The peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every address there is.
    Everyone,
    /// What one of these matches; nobody if there are none.
    Any(BTreeSet<Peer>),
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Everything of a kind.
    Kind(Kind),
    /// Pods.
    Pods(PodSelector),
    /// Addresses, of whatever they are.
    Block(Block),
}

impl Peer {
    /// Pods; every pod there is, if the selector says so.
    pub fn pods(selector: PodSelector) -> Self {
        if selector.is_everything() { Self::Kind(Kind::Pod) } else { Self::Pods(selector) }
    }
}

/// A CIDR block with holes, host bits cleared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The block.
    pub cidr: IpNet,
    /// Its holes.
    pub except: BTreeSet<IpNet>,
}

impl Block {
    /// Reads a block as it is written. Host bits are cleared.
    ///
    /// # Errors
    /// The field within the block, and what is wrong there. The whole block is void then: without a hole it would
    /// contain more than was meant.
    pub fn parse(cidr: &str, except: &[String]) -> Result<Self, (String, String)> {
        let net = |text: &str| text.parse::<IpNet>().ok().map(|net| net.trunc());
        let Some(cidr) = net(cidr) else {
            return Err(("cidr".to_owned(), format!("{cidr:?} is no CIDR block; write one like 10.0.0.0/8")));
        };
        let mut holes = BTreeSet::new();
        for (i, text) in except.iter().enumerate() {
            match net(text) {
                Some(hole) if cidr.contains(&hole) && cidr != hole => drop(holes.insert(hole)),
                Some(_) => {
                    return Err((format!("except[{i}]"), format!("{text} is not a smaller part of {cidr}")));
                }
                None => return Err((format!("except[{i}]"), format!("{text:?} is no CIDR block"))),
            }
        }
        Ok(Self { cidr, except: holes })
    }

    /// Whether every address of its family is in it.
    pub fn is_family(&self) -> bool {
        self.cidr.prefix_len() == 0 && self.except.is_empty()
    }

    /// Whether it contains every address of a prefix.
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.cidr.contains(prefix) && !self.except.iter().any(|hole| hole.contains(prefix))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block({}", self.cidr)?;
        if !self.except.is_empty() {
            write!(f, " except {}", list(&self.except))?;
        }
        f.write_str(")")
    }
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every protocol and port, also protocols without ports.
    Every,
    /// What one of these matches; nothing if there are none.
    Any(Vec<PortMatch>),
}

/// Protocol and destination ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// From one key to another, both included.
    Range(PortKey, PortKey),
    /// The ports that the destination pod gives this name, of this protocol (`None`: of any).
    Named(String, Option<u8>),
}

impl PortMatch {
    /// The ports from `start` to `end` of a protocol.
    pub fn range(protocol: u8, start: u16, end: u16) -> Self {
        Self::Range(PortKey::new(protocol, start), PortKey::new(protocol, end))
    }

    /// Every port of a protocol.
    pub fn every(protocol: u8) -> Self {
        Self::range(protocol, 0, u16::MAX)
    }
}

/// A named port of a pod: name, protocol, port.
pub type NamedPort = (String, u8, u16);

/// The name of a protocol that has ports.
pub fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "?",
    }
}

/// Any protocol as people read it: `tcp`, `icmpv6`, `protocol 47`.
pub fn protocol_words(number: u8) -> String {
    match number {
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        protocol::TCP | protocol::UDP | protocol::SCTP => protocol_name(number).to_ascii_lowercase(),
        other => format!("protocol {other}"),
    }
}

/// Collects what is not understood in one object.
pub struct Report<'a> {
    object: String,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Report<'a> {
    /// About an object.
    pub fn new(object: impl fmt::Display, problems: &'a mut Vec<Problem>) -> Self {
        Self { object: object.to_string(), problems }
    }

    /// How many problems are known, of all objects: more than before is one of this object.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// Adds a problem: where, what is wrong there, and what follows.
    pub fn add(&mut self, field: impl Into<String>, what: impl fmt::Display, follows: impl fmt::Display) {
        let message = format!("{what}: {follows}");
        self.problems.push(Problem { object: self.object.clone(), field: field.into(), message });
    }
}

/// Reads a mode as people write it, in any case.
///
/// What is not understood is `Enforce`, and reported: nothing becomes lenient by a typing mistake.
pub fn parse_mode(text: Option<&str>, field: &str, report: &mut Report<'_>) -> Mode {
    let Some(text) = text else { return Mode::Enforce };
    Mode::from_name(text).unwrap_or_else(|| {
        report.add(field, format_args!("{text:?} is no mode"), "it is enforced; write enforce, audit or off");
        Mode::Enforce
    })
}
