//! `IdentityPolicy` of `portcullis.dev/v1alpha1`, into the intermediate representation.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use portcullis_common::abi::Mode;
use portcullis_common::policy::protocol;
use portcullis_common::{Direction, Kind};

use super::desired::Problem;
use super::ir::{
    self, Block, Peers, Policy, PolicyKind, PolicyName, PortMatch, Ports, Report, Rule, Section, Tier,
};
use super::selector::{Accounts, Namespaces, PodSelector, Selector};
use crate::api::{
    Action, DestinationPort, Entity, Peer, PeerAccounts, PeerPods, PolicyMode, PortMatch as WrittenPorts,
    ProtocolMatch, Subject,
};
use crate::model::IdentityPolicy;

/// The field that is not understood, and why.
type Unclear = (String, String);

/// A rule of either direction.
struct Written<'a> {
    name: Option<&'a str>,
    action: Action,
    peers: &'a [Peer],
    protocols: Option<&'a [ProtocolMatch]>,
}

/// Translates a policy.
pub fn translate(written: &IdentityPolicy, problems: &mut Vec<Problem>) -> Policy {
    let IdentityPolicy { namespace, name, spec, .. } = written;
    let name =
        PolicyName { kind: PolicyKind::IdentityPolicy, namespace: namespace.clone(), name: name.clone() };
    let mut report = Report::new(&name, problems);
    let mode = match spec.mode {
        None | Some(PolicyMode::Enforce) => Mode::Enforce,
        Some(PolicyMode::Audit) => Mode::Audit,
        Some(PolicyMode::Off) => Mode::Off,
    };
    let subject = read_subject(namespace, &spec.subject);
    if let Err((field, what)) = &subject {
        let follows =
            "the policy is about every account of the namespace and accepts nothing; correct or remove it";
        report.add(format!("spec.subject.serviceAccounts.{field}"), what, follows);
    }
    let understood = subject.is_ok();
    let subject = subject.unwrap_or_else(|_| PodSelector::namespace(namespace));

    let mut section = |direction: Direction, isolate: Option<bool>, rules: Vec<Written<'_>>| {
        let read = |(i, rule): (usize, Written<'_>)| read_rule(&name, direction, i, &rule, &mut report);
        let mut rules: Vec<Rule> = rules.into_iter().enumerate().map(read).collect();
        rules.retain(|rule| understood || rule.action == ir::Action::Deny);
        let isolates = isolate.unwrap_or(true);
        Section { isolation: isolates.then(|| format!("{name} {direction} (isolation)")), rules }
    };
    let ingress = spec.ingress.as_ref().map(|ingress| {
        let rules = ingress.rules.iter().map(|rule| Written {
            name: rule.name.as_deref(),
            action: rule.action,
            peers: &rule.from,
            protocols: rule.protocols.as_deref(),
        });
        section(Direction::Ingress, ingress.isolate, rules.collect())
    });
    let egress = spec.egress.as_ref().map(|egress| {
        let rules = egress.rules.iter().map(|rule| Written {
            name: rule.name.as_deref(),
            action: rule.action,
            peers: &rule.to,
            protocols: rule.protocols.as_deref(),
        });
        section(Direction::Egress, egress.isolate, rules.collect())
    });
    Policy { name, tier: Tier::Namespace, priority: 0, mode, subject, ingress, egress }
}

fn unclear(field: impl Into<String>, what: impl Into<String>) -> Unclear {
    (field.into(), what.into())
}

fn read_selector(written: Option<&LabelSelector>, field: &str) -> Result<Selector, Unclear> {
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

fn read_subject(namespace: &str, written: &Subject) -> Result<PodSelector, Unclear> {
    let mut subject = PodSelector::namespace(namespace);
    if let Some(accounts) = &written.service_accounts {
        let labels = read_selector(accounts.selector.as_ref(), "selector")?;
        subject.accounts = Accounts { names: read_names(accounts.names.as_ref())?, labels };
    }
    Ok(subject)
}

fn read_rule(
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
    let action = match written.action {
        Action::Accept => ir::Action::Accept,
        Action::Deny => ir::Action::Deny,
    };
    Rule {
        name,
        action,
        peers: read_peers(&policy.namespace, direction, written, &field, report),
        ports: read_ports(written, &field, report),
    }
}

/// An unclear peer of an Accept matches nobody, that of a Deny everybody: neither widens access.
fn read_peers(
    namespace: &str,
    direction: Direction,
    written: &Written<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Peers {
    let field = format!("{field}.{}", if direction == Direction::Ingress { "from" } else { "to" });
    let deny = written.action == Action::Deny;
    let follows = if deny {
        "the rule denies everyone; correct or remove it"
    } else {
        "this peer matches nobody; correct or remove it"
    };
    let mut everyone = false;
    if written.peers.is_empty() {
        report.add(&field, "a rule needs at least one peer", follows);
        everyone = deny;
    }
    let mut peers = BTreeSet::new();
    for (i, peer) in written.peers.iter().enumerate() {
        match read_peer(namespace, peer) {
            Ok(read) => peers.extend(read),
            Err((part, what)) => {
                report.add(format!("{field}[{i}]{part}"), what, follows);
                everyone |= deny;
            }
        }
        let host = peer.entities.iter().flatten().any(|entity| *entity == Entity::Host);
        if deny && host && direction == Direction::Ingress && peers.remove(&ir::Peer::Kind(Kind::Host)) {
            let what = "what the node itself sends to its own pods is always allowed";
            report.add(format!("{field}[{i}].entities"), what, "the deny of host has no effect; remove it");
        }
    }
    if everyone { Peers::Everyone } else { Peers::Any(peers) }
}

/// What a peer stands for, or the field within it that is unclear (with a leading dot) and why.
fn read_peer(namespace: &str, written: &Peer) -> Result<Vec<ir::Peer>, Unclear> {
    let within = |field: &'static str| move |(part, what): Unclear| (format!(".{field}.{part}"), what);
    let namespaces = |selector: &Option<LabelSelector>| -> Result<Namespaces, Unclear> {
        Ok(match selector {
            Some(_) => Namespaces::Labelled(read_selector(selector.as_ref(), "namespaces")?),
            None => Namespaces::Named(namespace.to_owned()),
        })
    };
    match written {
        Peer { service_accounts: Some(accounts), pods: None, ip_block: None, entities: None } => {
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
            Ok(vec![ir::Peer::pods(read(accounts).map_err(within("serviceAccounts"))?)])
        }
        Peer { service_accounts: None, pods: Some(pods), ip_block: None, entities: None } => {
            let read = |pods: &PeerPods| {
                Ok(PodSelector {
                    namespaces: namespaces(&pods.namespaces)?,
                    labels: read_selector(pods.selector.as_ref(), "selector")?,
                    accounts: Accounts::default(),
                })
            };
            Ok(vec![ir::Peer::pods(read(pods).map_err(within("pods"))?)])
        }
        Peer { service_accounts: None, pods: None, ip_block: Some(block), entities: None } => {
            let except = block.except.as_deref().unwrap_or_default();
            let block = Block::parse(&block.cidr, except).map_err(within("ipBlock"))?;
            Ok(vec![ir::Peer::Block(block)])
        }
        Peer { service_accounts: None, pods: None, ip_block: None, entities: Some(entities) } => {
            if entities.is_empty() {
                return Err(unclear(".entities", "the list is empty"));
            }
            let kind = |entity: &Entity| match entity {
                Entity::Host => Kind::Host,
                Entity::Node => Kind::Node,
                Entity::World => Kind::World,
                Entity::Unmanaged => Kind::Unmanaged,
            };
            Ok(entities.iter().map(|entity| ir::Peer::Kind(kind(entity))).collect())
        }
        _ => Err(unclear("", "a peer is exactly one of serviceAccounts, pods, ipBlock and entities")),
    }
}

/// Unclear protocols of an Accept match nothing, those of a Deny everything.
fn read_ports(written: &Written<'_>, field: &str, report: &mut Report<'_>) -> Ports {
    let Some(protocols) = written.protocols else { return Ports::Every };
    let deny = written.action == Action::Deny;
    let follows = if deny {
        "the rule denies every protocol and port; correct or remove it"
    } else {
        "this part matches nothing; correct or remove it"
    };
    let mut every = false;
    if protocols.is_empty() {
        let what = "the list is empty, leave the field out for every protocol";
        report.add(format!("{field}.protocols"), what, follows);
        every = deny;
    }
    let mut ports = Vec::new();
    for (i, protocol) in protocols.iter().enumerate() {
        match read_protocol(protocol) {
            Ok(port) => ports.push(port),
            Err((part, what)) => {
                report.add(format!("{field}.protocols[{i}]{part}"), what, follows);
                every |= deny;
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
