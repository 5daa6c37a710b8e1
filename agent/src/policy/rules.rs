//! The rules of our own kinds: subjects, peers and protocols as `IdentityPolicy` and `ClusterIdentityPolicy` write them,
//! into the intermediate representation.
//!
//! Invariant: what is unclear in a rule never widens access. In an Accept it matches nothing. In a Deny it matches
//! everything that it could have meant; and so it does in a Pass, which is a Deny then, because what would be passed on
//! might be allowed later.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use portcullis_common::abi::Mode;
use portcullis_common::policy::protocol;
use portcullis_common::{Direction, Kind};

use super::ir::{Action, Block, Peer, Peers, PolicyName, PortMatch, Ports, Report, Rule};
use super::selector::{Accounts, Namespaces, PodSelector, Selector};
use crate::api::{
    self, DestinationPort, Entity, PeerAccounts, PeerPods, PolicyMode, PortMatch as WrittenPorts,
    ProtocolMatch, SubjectAccounts,
};

/// The field that is not understood, and why.
pub type Unclear = (String, String);

/// Why a missing selector of namespaces is not understood in a policy of the whole cluster.
pub const NO_NAMESPACES: &str =
    "it is missing, and a policy of the whole cluster has no namespace of its own; `{}` is every one";

/// A rule of either direction and kind, as it is written.
pub struct Written<'a> {
    /// What it is called.
    pub name: Option<&'a str>,
    /// What it does.
    pub action: Action,
    /// With whom.
    pub peers: &'a [api::Peer],
    /// On which protocols and ports.
    pub protocols: Option<&'a [ProtocolMatch]>,
}

/// A rule as it is written, by its type and the field with its peers.
macro_rules! written {
    ($($rule:ident: $peers:ident),* $(,)?) => {$(
        impl<'a> From<&'a api::$rule> for Written<'a> {
            fn from(rule: &'a api::$rule) -> Self {
                Self {
                    name: rule.name.as_deref(),
                    action: rule.action.into(),
                    peers: &rule.$peers,
                    protocols: rule.protocols.as_deref(),
                }
            }
        }
    )*};
}

written!(IngressRule: from, EgressRule: to, ClusterIngressRule: from, ClusterEgressRule: to);

impl From<api::Action> for Action {
    fn from(written: api::Action) -> Self {
        match written {
            api::Action::Accept => Self::Accept,
            api::Action::Deny => Self::Deny,
        }
    }
}

impl From<api::ClusterAction> for Action {
    fn from(written: api::ClusterAction) -> Self {
        match written {
            api::ClusterAction::Accept => Self::Accept,
            api::ClusterAction::Deny => Self::Deny,
            api::ClusterAction::Pass => Self::Pass,
        }
    }
}

/// A field that is not understood, and why.
pub fn unclear(field: impl Into<String>, what: impl Into<String>) -> Unclear {
    (field.into(), what.into())
}

/// The mode of a policy by its field.
pub const fn mode(written: Option<PolicyMode>) -> Mode {
    match written {
        None | Some(PolicyMode::Enforce) => Mode::Enforce,
        Some(PolicyMode::Audit) => Mode::Audit,
        Some(PolicyMode::Off) => Mode::Off,
    }
}

/// Reads a selector; an absent one selects everything.
///
/// # Errors
/// The field within it that is not understood, below `field`.
pub fn read_selector(written: Option<&LabelSelector>, field: &str) -> Result<Selector, Unclear> {
    let parsed = written.map(Selector::parse).transpose();
    parsed
        .map(Option::unwrap_or_default)
        .map_err(|bad| unclear(format!("{field}.{}", bad.field), bad.message))
}

fn read_names(written: Option<&Vec<String>>) -> Result<Option<BTreeSet<String>>, Unclear> {
    match written {
        Some(names) if names.is_empty() => Err(unclear("names", "the list is empty")),
        names => Ok(names.map(|names| names.iter().cloned().collect())),
    }
}

/// Reads the accounts of a subject; absent ones are every account.
///
/// # Errors
/// The field within them that is not understood.
pub fn read_accounts(written: Option<&SubjectAccounts>) -> Result<Accounts, Unclear> {
    let Some(SubjectAccounts { names, selector }) = written else { return Ok(Accounts::default()) };
    let labels = read_selector(selector.as_ref(), "selector")?;
    Ok(Accounts { names: read_names(names.as_ref())?, labels })
}

/// Reads the rule with index `i` of a section.
pub fn read_rule(
    policy: &PolicyName,
    direction: Direction,
    i: usize,
    written: &Written<'_>,
    report: &mut Report<'_>,
) -> Rule {
    let field = format!("spec.{direction}.rules[{i}]");
    let name = match written.name.filter(|name| !name.is_empty()) {
        Some(name) => format!("{policy} {direction} {name}"),
        None => format!("{policy} {direction}[{i}]"),
    };
    let before = report.count();
    let peers = read_peers(policy, direction, written, &field, report);
    let ports = read_ports(written, &field, report);
    let clear = report.count() == before;
    let action = if written.action == Action::Pass && !clear { Action::Deny } else { written.action };
    Rule { name, action, peers, ports }
}

/// An unclear peer of an Accept matches nobody, that of a Deny or Pass everybody: neither widens access.
fn read_peers(
    policy: &PolicyName,
    direction: Direction,
    written: &Written<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Peers {
    let field = format!("{field}.{}", if direction == Direction::Ingress { "from" } else { "to" });
    let strict = written.action != Action::Accept;
    let follows = if strict {
        "the rule denies everyone; correct or remove it"
    } else {
        "this peer matches nobody; correct or remove it"
    };
    let mut everyone = false;
    if written.peers.is_empty() {
        report.add(&field, "a rule needs at least one peer", follows);
        everyone = strict;
    }
    let mut peers = BTreeSet::new();
    for (i, peer) in written.peers.iter().enumerate() {
        match read_peer(policy, peer) {
            Ok(read) => peers.extend(read),
            Err((part, what)) => {
                report.add(format!("{field}[{i}]{part}"), what, follows);
                everyone |= strict;
            }
        }
        let host = peer.entities.iter().flatten().any(|entity| *entity == Entity::Host);
        let deny = written.action == Action::Deny;
        if deny && host && direction == Direction::Ingress && peers.remove(&Peer::Kind(Kind::Host)) {
            let what = "what the node itself sends to its own pods is always allowed";
            report.add(format!("{field}[{i}].entities"), what, "the deny of host has no effect; remove it");
        }
    }
    if everyone { Peers::Everyone } else { Peers::Any(peers) }
}

/// What a peer stands for, or the field within it that is unclear (with a leading dot) and why.
fn read_peer(policy: &PolicyName, written: &api::Peer) -> Result<Vec<Peer>, Unclear> {
    let within = |field: &'static str| move |(part, what): Unclear| (format!(".{field}.{part}"), what);
    let namespaces = |selector: &Option<LabelSelector>| -> Result<Namespaces, Unclear> {
        match selector {
            Some(_) => Ok(Namespaces::Labelled(read_selector(selector.as_ref(), "namespaces")?)),
            None if policy.namespace.is_empty() => Err(unclear("namespaces", NO_NAMESPACES)),
            None => Ok(Namespaces::Named(policy.namespace.clone())),
        }
    };
    match written {
        api::Peer { service_accounts: Some(accounts), pods: None, ip_block: None, entities: None } => {
            let read = |accounts: &PeerAccounts| {
                Ok(PodSelector {
                    namespaces: namespaces(&accounts.namespaces)?,
                    labels: Selector::default(),
                    accounts: Accounts {
                        names: read_names(accounts.names.as_ref())?,
                        labels: read_selector(accounts.selector.as_ref(), "selector")?,
                    },
                })
            };
            Ok(vec![Peer::pods(read(accounts).map_err(within("serviceAccounts"))?)])
        }
        api::Peer { service_accounts: None, pods: Some(pods), ip_block: None, entities: None } => {
            let read = |pods: &PeerPods| {
                Ok(PodSelector {
                    namespaces: namespaces(&pods.namespaces)?,
                    labels: read_selector(pods.selector.as_ref(), "selector")?,
                    accounts: Accounts::default(),
                })
            };
            Ok(vec![Peer::pods(read(pods).map_err(within("pods"))?)])
        }
        api::Peer { service_accounts: None, pods: None, ip_block: Some(block), entities: None } => {
            let except = block.except.as_deref().unwrap_or_default();
            let block = Block::parse(&block.cidr, except).map_err(within("ipBlock"))?;
            Ok(vec![Peer::Block(block)])
        }
        api::Peer { service_accounts: None, pods: None, ip_block: None, entities: Some(entities) } => {
            if entities.is_empty() {
                return Err(unclear(".entities", "the list is empty"));
            }
            let kind = |entity: &Entity| match entity {
                Entity::Host => Kind::Host,
                Entity::Node => Kind::Node,
                Entity::World => Kind::World,
                Entity::Unmanaged => Kind::Unmanaged,
            };
            Ok(entities.iter().map(|entity| Peer::Kind(kind(entity))).collect())
        }
        _ => Err(unclear("", "a peer is exactly one of serviceAccounts, pods, ipBlock and entities")),
    }
}

/// Unclear protocols of an Accept match nothing, those of a Deny or Pass everything.
fn read_ports(written: &Written<'_>, field: &str, report: &mut Report<'_>) -> Ports {
    let Some(protocols) = written.protocols else { return Ports::Every };
    let strict = written.action != Action::Accept;
    let follows = if strict {
        "the rule denies every protocol and port; correct or remove it"
    } else {
        "this part matches nothing; correct or remove it"
    };
    let mut every = false;
    if protocols.is_empty() {
        let what = "the list is empty, leave the field out for every protocol";
        report.add(format!("{field}.protocols"), what, follows);
        every = strict;
    }
    let mut ports = Vec::new();
    for (i, protocol) in protocols.iter().enumerate() {
        match read_protocol(protocol) {
            Ok(port) => ports.push(port),
            Err((part, what)) => {
                report.add(format!("{field}.protocols[{i}]{part}"), what, follows);
                every |= strict;
            }
        }
    }
    if every { Ports::Every } else { Ports::Any(ports) }
}

fn read_protocol(written: &ProtocolMatch) -> Result<PortMatch, Unclear> {
    match written {
        ProtocolMatch { tcp: Some(ports), udp: None, sctp: None, destination_named_port: None } => {
            read_port(protocol::TCP, "tcp", ports)
        }
        ProtocolMatch { tcp: None, udp: Some(ports), sctp: None, destination_named_port: None } => {
            read_port(protocol::UDP, "udp", ports)
        }
        ProtocolMatch { tcp: None, udp: None, sctp: Some(ports), destination_named_port: None } => {
            read_port(protocol::SCTP, "sctp", ports)
        }
        ProtocolMatch { tcp: None, udp: None, sctp: None, destination_named_port: Some(name) } => {
            if name.is_empty() {
                return Err(unclear(".destinationNamedPort", "the name is empty"));
            }
            Ok(PortMatch::Named(name.clone(), None))
        }
        _ => Err(unclear("", "exactly one of tcp, udp, sctp and destinationNamedPort must be set")),
    }
}

fn read_port(protocol: u8, field: &str, written: &WrittenPorts) -> Result<PortMatch, Unclear> {
    let number = |part: &str, value: i32| match u16::try_from(value) {
        Ok(number) if number != 0 => Ok(number),
        _ => {
            let field = format!(".{field}.destinationPort.{part}");
            Err((field, format!("{value} is no port from 1 to 65535")))
        }
    };
    match &written.destination_port {
        None => Ok(PortMatch::every(protocol)),
        Some(DestinationPort { number: Some(port), range: None }) => {
            let port = number("number", *port)?;
            Ok(PortMatch::range(protocol, port, port))
        }
        Some(DestinationPort { number: None, range: Some(range) }) => {
            let (start, end) = (number("range.start", range.start)?, number("range.end", range.end)?);
            if end < start {
                let what = format!("the range from {start} to {end} is empty");
                return Err((format!(".{field}.destinationPort.range"), what));
            }
            Ok(PortMatch::range(protocol, start, end))
        }
        Some(_) => {
            Err(unclear(format!(".{field}.destinationPort"), "exactly one of number and range must be set"))
        }
    }
}
