//! `NetworkPolicy` of `networking.k8s.io/v1`, into the intermediate representation.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portcullis_common::Direction;
use portcullis_common::policy::protocol;

use super::desired::Problem;
use super::ir::{
    Action, Block, Peer, Peers, Policy, PolicyKind, PolicyName, PortMatch, Ports, Report, Rule, Section,
    Tier, parse_mode,
};
use super::selector::{Accounts, Namespaces, PodSelector, Selector};
use crate::api::MODE_KEY;
use crate::model::NetworkPolicy;

const NO_MATCH: &str = "this part of the rule matches nothing; correct or remove it";

/// A rule of either direction as it is written: its peers and ports.
type Written<'a> = (&'a [NetworkPolicyPeer], &'a [NetworkPolicyPort]);

/// Translates a policy.
pub fn translate(written: &NetworkPolicy, problems: &mut Vec<Problem>) -> Policy {
    let NetworkPolicy { namespace, name, mode, spec } = written;
    let name =
        PolicyName { kind: PolicyKind::NetworkPolicy, namespace: namespace.clone(), name: name.clone() };
    let mut report = Report::new(&name, problems);
    let mode = parse_mode(mode.as_deref(), &format!("metadata.annotations[{MODE_KEY}]"), &mut report);

    let mut subject = PodSelector::namespace(namespace);
    let mut understood = true;
    let everything = LabelSelector::default();
    match Selector::parse(spec.pod_selector.as_ref().unwrap_or(&everything)) {
        Ok(labels) => subject.labels = labels,
        Err(bad) => {
            let follows =
                "the policy isolates every pod of the namespace and allows nothing; correct the selector";
            report.add(format!("spec.podSelector.{}", bad.field), bad.message, follows);
            understood = false;
        }
    }

    let ingress: Vec<Written<'_>> =
        spec.ingress.iter().flatten().map(|r| (slice(r.from.as_ref()), slice(r.ports.as_ref()))).collect();
    let egress: Vec<Written<'_>> =
        spec.egress.iter().flatten().map(|r| (slice(r.to.as_ref()), slice(r.ports.as_ref()))).collect();
    let types = Types::new(slice(spec.policy_types.as_ref()), !egress.is_empty(), &mut report);
    let mut section = |direction, named, rules: &[Written<'_>]| {
        let isolates = named || types.unclear;
        isolates.then(|| Section {
            isolation: Some(format!("{name} {direction} (isolation)")),
            // Allows count only where it is clear that this direction and these pods were meant.
            rules: if named && understood {
                section_rules(&name, direction, rules, &mut report)
            } else {
                Vec::new()
            },
        })
    };
    let ingress = section(Direction::Ingress, types.ingress, &ingress);
    let egress = section(Direction::Egress, types.egress, &egress);
    Policy { name, tier: Tier::Namespace, priority: 0, mode, subject, ingress, egress }
}

fn slice<T>(list: Option<&Vec<T>>) -> &[T] {
    list.map(Vec::as_slice).unwrap_or_default()
}

/// Which directions a policy is about.
struct Types {
    ingress: bool,
    egress: bool,
    /// A type is not understood: the other direction is isolated too.
    unclear: bool,
}

impl Types {
    fn new(written: &[String], egress_rules: bool, report: &mut Report<'_>) -> Self {
        let mut types = Self { ingress: false, egress: false, unclear: false };
        if written.is_empty() {
            (types.ingress, types.egress) = (true, egress_rules);
        }
        for (i, text) in written.iter().enumerate() {
            match text.as_str() {
                "Ingress" => types.ingress = true,
                "Egress" => types.egress = true,
                other => {
                    types.unclear = true;
                    let what = format_args!("{other:?} is no policy type");
                    let follows = "both directions are isolated; write Ingress or Egress";
                    report.add(format!("spec.policyTypes[{i}]"), what, follows);
                }
            }
        }
        types
    }
}

fn section_rules(
    policy: &PolicyName,
    direction: Direction,
    written: &[Written<'_>],
    report: &mut Report<'_>,
) -> Vec<Rule> {
    let side = if direction == Direction::Ingress { "from" } else { "to" };
    let rule = |(i, (peers, ports)): (usize, &Written<'_>)| {
        let field = format!("spec.{direction}[{i}]");
        Rule {
            name: format!("{policy} {direction}[{i}]"),
            action: Action::Accept,
            peers: rule_peers(&policy.namespace, peers, &format!("{field}.{side}"), report),
            ports: rule_ports(ports, &format!("{field}.ports"), report),
        }
    };
    written.iter().enumerate().map(rule).collect()
}

fn rule_peers(namespace: &str, written: &[NetworkPolicyPeer], field: &str, report: &mut Report<'_>) -> Peers {
    if written.is_empty() {
        return Peers::Everyone;
    }
    let mut peers = BTreeSet::new();
    for (i, peer) in written.iter().enumerate() {
        match read_peer(namespace, peer) {
            Ok(peer) => drop(peers.insert(peer)),
            Err((part, what)) => report.add(format!("{field}[{i}]{part}"), what, NO_MATCH),
        }
    }
    Peers::Any(peers)
}

/// A peer, or the field within it that is not understood (with a leading dot) and why.
fn read_peer(namespace: &str, written: &NetworkPolicyPeer) -> Result<Peer, (String, String)> {
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = written;
    let parse = |selector: &LabelSelector, field: &str| {
        Selector::parse(selector).map_err(|bad| (format!(".{field}.{}", bad.field), bad.message))
    };
    match (ip_block, namespace_selector, pod_selector) {
        (None, None, None) => Err((String::new(), "the peer is empty".to_owned())),
        (Some(block), None, None) => Block::parse(&block.cidr, slice(block.except.as_ref()))
            .map(Peer::Block)
            .map_err(|(part, what)| (format!(".ipBlock.{part}"), what)),
        (Some(_), _, _) => {
            Err((".ipBlock".to_owned(), "a peer is an ipBlock or has selectors, not both".to_owned()))
        }
        (None, namespaces, pods) => Ok(Peer::pods(PodSelector {
            namespaces: match namespaces {
                Some(selector) => Namespaces::Labelled(parse(selector, "namespaceSelector")?),
                None => Namespaces::Named(namespace.to_owned()),
            },
            labels: match pods {
                Some(selector) => parse(selector, "podSelector")?,
                None => Selector::default(),
            },
            accounts: Accounts::default(),
        })),
    }
}

fn rule_ports(written: &[NetworkPolicyPort], field: &str, report: &mut Report<'_>) -> Ports {
    if written.is_empty() {
        return Ports::Every;
    }
    let mut ports = Vec::new();
    for (i, port) in written.iter().enumerate() {
        match read_port(port) {
            Ok(port) => ports.push(port),
            Err((part, what)) => report.add(format!("{field}[{i}].{part}"), what, NO_MATCH),
        }
    }
    Ports::Any(ports)
}

fn read_port(written: &NetworkPolicyPort) -> Result<PortMatch, (&'static str, String)> {
    let NetworkPolicyPort { end_port, port, protocol } = written;
    let protocol = match protocol.as_deref() {
        None | Some("TCP") => protocol::TCP,
        Some("UDP") => protocol::UDP,
        Some("SCTP") => protocol::SCTP,
        Some(other) => return Err(("protocol", format!("{other:?} is none of TCP, UDP and SCTP"))),
    };
    let number = |field, value: i32| match u16::try_from(value) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err((field, format!("{value} is no port from 1 to 65535"))),
    };
    match (port, end_port) {
        (None, None) => Ok(PortMatch::every(protocol)),
        (None, Some(_)) => Err(("endPort", "a range needs a port to start from".to_owned())),
        (Some(IntOrString::String(_)), Some(_)) => {
            Err(("endPort", "a range needs a number to start from, not a name".to_owned()))
        }
        (Some(IntOrString::String(name)), None) => {
            if name.chars().any(|c| c.is_ascii_alphabetic()) {
                Ok(PortMatch::Named(name.clone(), Some(protocol)))
            } else {
                Err(("port", format!("{name:?} is no name of a port; write a number without quotes")))
            }
        }
        (Some(IntOrString::Int(port)), end) => {
            let start = number("port", *port)?;
            let end = end.map_or(Ok(start), |end| number("endPort", end))?;
            if end < start {
                return Err(("endPort", format!("the range from {start} to {end} is empty")));
            }
            Ok(PortMatch::range(protocol, start, end))
        }
    }
}
