//! A policy evaluator written straight from the specification, one question at a time and without regard for speed.
//! It shares no code with the compiler that it is compared with.

mod cluster;
pub mod identity;
pub mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portcullis::api::Entity;
use portcullis::model::{NetworkPolicy, Pod, World};
use portcullis_common::Direction;

/// One end of a conversation: an address, and what it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub address: IpAddr,
    pub owner: Owner<'a>,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A pod's, not of one on the host's network.
    Pod(&'a Pod),
    /// Not a pod's.
    Entity(Entity),
}

impl<'a> End<'a> {
    fn pod(&self) -> Option<&'a Pod> {
        match self.owner {
            Owner::Pod(pod) => Some(pod),
            Owner::Entity(_) => None,
        }
    }
}

/// What is asked: may `subject`, by its policies for `direction`, have this conversation with `peer`?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub world: &'a World,
    pub direction: Direction,
    pub subject: &'a Pod,
    pub peer: End<'a>,
    pub protocol: u8,
    pub port: u16,
}

impl<'a> Question<'a> {
    /// The pod whose names of ports count.
    fn destination(&self) -> Option<&'a Pod> {
        match self.direction {
            Direction::Ingress => Some(self.subject),
            Direction::Egress => self.peer.pod(),
        }
    }
}

/// Whether all the `NetworkPolicies` together allow it.
pub fn allowed(question: &Question<'_>) -> bool {
    let policies = question.world.network_policies.values();
    let answers: Vec<bool> = policies.filter_map(|policy| policy_allows(policy, question)).collect();
    answers.is_empty() || answers.contains(&true)
}

/// Whether one policy allows it; `None`: it does not isolate this pod in this direction.
pub fn policy_allows(policy: &NetworkPolicy, question: &Question<'_>) -> Option<bool> {
    let subject_is_clear = selects(policy, question.subject)?;
    let direction_is_clear = applies(policy, question.direction)?;
    if !subject_is_clear || !direction_is_clear {
        return Some(false);
    }
    let rule_matches = |peers: Option<&Vec<NetworkPolicyPeer>>, ports: Option<&Vec<NetworkPolicyPort>>| {
        let peers = peers.map(Vec::as_slice).unwrap_or_default();
        let ports = ports.map(Vec::as_slice).unwrap_or_default();
        peers_match(question.world, policy, peers, question.peer)
            && ports_match(ports, question.destination(), question.protocol, question.port)
    };
    Some(match question.direction {
        Direction::Ingress => {
            let mut rules = policy.spec.ingress.iter().flatten();
            rules.any(|rule| rule_matches(rule.from.as_ref(), rule.ports.as_ref()))
        }
        Direction::Egress => {
            let mut rules = policy.spec.egress.iter().flatten();
            rules.any(|rule| rule_matches(rule.to.as_ref(), rule.ports.as_ref()))
        }
    })
}

/// Whether a policy is about a pod, and if so whether its rules may be believed: with a selector that cannot be read it is
/// about every pod of its namespace, and allows nothing.
fn selects(policy: &NetworkPolicy, pod: &Pod) -> Option<bool> {
    if policy.namespace != pod.namespace {
        return None;
    }
    match selector_matches(&policy.spec.pod_selector.clone().unwrap_or_default(), &pod.labels) {
        Some(true) => Some(true),
        Some(false) => None,
        None => Some(false),
    }
}

/// Whether a policy isolates in a direction, and if so whether its rules for it may be believed: a type that is not
/// understood may have meant either direction.
fn applies(policy: &NetworkPolicy, direction: Direction) -> Option<bool> {
    let types = policy.spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let has_egress_rules = policy.spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return (direction == Direction::Ingress || has_egress_rules).then_some(true);
    }
    let name = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
    if types.iter().any(|t| t == name) {
        return Some(true);
    }
    types.iter().any(|t| t != "Ingress" && t != "Egress").then_some(false)
}

fn peers_match(world: &World, policy: &NetworkPolicy, peers: &[NetworkPolicyPeer], end: End<'_>) -> bool {
    peers.is_empty() || peers.iter().any(|peer| peer_matches(world, policy, peer, end))
}

fn peer_matches(world: &World, policy: &NetworkPolicy, peer: &NetworkPolicyPeer, end: End<'_>) -> bool {
    if let Some(block) = &peer.ip_block {
        let alone = peer.pod_selector.is_none() && peer.namespace_selector.is_none();
        return alone && block_contains(block, end.address);
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return false;
    }
    let Some(pod) = end.pod() else { return false };
    let namespace_matches = match &peer.namespace_selector {
        None => pod.namespace == policy.namespace,
        Some(selector) => {
            let labels = &world.namespaces[&pod.namespace].labels;
            selector_matches(selector, labels) == Some(true)
        }
    };
    let pod_matches = match &peer.pod_selector {
        None => true,
        Some(selector) => selector_matches(selector, &pod.labels) == Some(true),
    };
    namespace_matches && pod_matches
}

/// `None`: the selector means nothing.
fn selector_matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Option<bool> {
    let mut result = true;
    for (key, value) in selector.match_labels.iter().flatten() {
        result &= labels.get(key) == Some(value);
    }
    for expression in selector.match_expressions.iter().flatten() {
        let values = expression.values.as_deref().unwrap_or_default();
        let label = labels.get(&expression.key);
        if expression.key.is_empty() {
            return None;
        }
        result &= match expression.operator.as_str() {
            "In" if !values.is_empty() => label.is_some_and(|label| values.contains(label)),
            "NotIn" if !values.is_empty() => !label.is_some_and(|label| values.contains(label)),
            "Exists" if values.is_empty() => label.is_some(),
            "DoesNotExist" if values.is_empty() => label.is_none(),
            _ => return None,
        };
    }
    Some(result)
}

/// A prefix as its family, the bits that count, and how many they are.
fn parse_cidr(text: &str) -> Option<(bool, u128, u32)> {
    let (address, length) = text.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    let (is4, bits) = address_bits(address.parse().ok()?);
    if length > if is4 { 32 } else { 128 } {
        return None;
    }
    Some((is4, first_bits(bits, length), length))
}

/// The bits of an address, left aligned.
fn address_bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(a) => (true, u128::from(u32::from(a)) << 96),
        IpAddr::V6(a) => (false, u128::from(a)),
    }
}

fn first_bits(bits: u128, length: u32) -> u128 {
    if length == 0 { 0 } else { bits >> (128 - length) << (128 - length) }
}

fn block_contains(block: &IPBlock, address: IpAddr) -> bool {
    block_or_void(block, address) == Some(true)
}

/// Whether an address is in a block; `None`: the block is void.
fn block_or_void(block: &IPBlock, address: IpAddr) -> Option<bool> {
    let (is4, prefix, length) = parse_cidr(&block.cidr)?;
    let (address4, bits) = address_bits(address);
    let mut inside = is4 == address4 && first_bits(bits, length) == prefix;
    for text in block.except.iter().flatten() {
        let (hole4, hole, hole_length) = parse_cidr(text)?;
        if hole4 != is4 || hole_length <= length || first_bits(hole, length) != prefix {
            return None; // not a smaller part of the block: the whole block is void
        }
        if hole4 == address4 && first_bits(bits, hole_length) == hole {
            inside = false;
        }
    }
    Some(inside)
}

fn ports_match(ports: &[NetworkPolicyPort], destination: Option<&Pod>, protocol: u8, port: u16) -> bool {
    ports.is_empty() || ports.iter().any(|entry| port_matches(entry, destination, protocol, port))
}

fn port_matches(entry: &NetworkPolicyPort, destination: Option<&Pod>, protocol: u8, port: u16) -> bool {
    let wanted = match entry.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => return false,
    };
    if protocol != wanted {
        return false;
    }
    match (&entry.port, entry.end_port) {
        (None, None) => true,
        (None | Some(IntOrString::String(_)), Some(_)) => false,
        (Some(IntOrString::Int(start)), None) => (1..=65535).contains(start) && i32::from(port) == *start,
        (Some(IntOrString::Int(start)), Some(end)) => {
            let valid = 1 <= *start && *start <= end && end <= 65535;
            valid && (*start..=end).contains(&i32::from(port))
        }
        (Some(IntOrString::String(name)), None) => destination.is_some_and(|pod| {
            pod.named_ports
                .iter()
                .any(|(n, proto, number)| n == name && *proto == protocol && *number == port)
        }),
    }
}
