//! `IdentityPolicies`, the tiers, modes and the default verdict, beside `NetworkPolicies`: the same plain way.

use k8s_openapi::api::networking::v1::IPBlock;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use portcullis::api::{
    Action, DestinationPort, Entity, Peer, PolicyMode, PolicyTier, PortMatch, ProtocolMatch,
};
use portcullis::model::{IdentityPolicy, Labels, Pod, World};
use portcullis_common::{Direction, Verdict};

use super::cluster::{Say, says};
use super::{Owner, Question, block_or_void, policy_allows, selector_matches};

/// How strict something is; more lenient is larger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strictness {
    Enforce,
    Audit,
    Off,
}

fn strictness(text: Option<&str>) -> Strictness {
    match text.map(str::to_lowercase).as_deref() {
        Some("audit") => Strictness::Audit,
        Some("off") => Strictness::Off,
        _ => Strictness::Enforce,
    }
}

impl From<Option<PolicyMode>> for Strictness {
    fn from(mode: Option<PolicyMode>) -> Self {
        match mode {
            Some(PolicyMode::Audit) => Self::Audit,
            Some(PolicyMode::Off) => Self::Off,
            _ => Self::Enforce,
        }
    }
}

/// What one policy says.
struct Opinion {
    strictness: Strictness,
    isolates: bool,
    accepts: bool,
    denies: bool,
}

/// The verdict of every policy together.
pub fn verdict(question: &Question<'_>) -> Verdict {
    let world = question.world;
    let namespace = world.namespaces[&question.subject.namespace].labels.get("portcullis.dev/mode");
    let namespace = strictness(namespace.map(String::as_str));
    let mut opinions = Vec::new();
    for policy in world.network_policies.values() {
        if let Some(accepts) = policy_allows(policy, question) {
            let strictness = strictness(policy.mode.as_deref()).max(namespace);
            opinions.push(Opinion { strictness, isolates: true, accepts, denies: false });
        }
    }
    for policy in world.identity_policies.values() {
        if let Some(opinion) = opinion(policy, question) {
            opinions.push(Opinion { strictness: opinion.strictness.max(namespace), ..opinion });
        }
    }
    let denied_by = |most_lenient: Strictness| {
        let first = |tier| says(tier, question, |strictness| strictness.max(namespace) <= most_lenient);
        match first(PolicyTier::Admin) {
            Some(Say::Accept) => return false,
            Some(Say::Deny) => return true,
            Some(Say::Pass) | None => {}
        }
        let default_denies = world.settings.default_verdict == Verdict::Deny && namespace <= most_lenient;
        let mut opinions = opinions.iter().filter(|opinion| opinion.strictness <= most_lenient);
        let (mut isolated, mut accepted) = (false, false);
        if opinions.any(|opinion| {
            isolated |= opinion.isolates;
            accepted |= opinion.accepts;
            opinion.denies
        }) {
            return true;
        }
        if isolated {
            return !accepted;
        }
        match first(PolicyTier::Baseline) {
            Some(Say::Accept) => false,
            Some(Say::Deny) => true,
            Some(Say::Pass) | None => default_denies,
        }
    };
    match (denied_by(Strictness::Enforce), denied_by(Strictness::Audit)) {
        (true, _) => Verdict::Deny,
        (false, true) => Verdict::Audit,
        (false, false) => Verdict::Allow,
    }
}

/// What a policy says; `None`: it is not about this pod and direction.
fn opinion(policy: &IdentityPolicy, question: &Question<'_>) -> Option<Opinion> {
    if policy.namespace != question.subject.namespace {
        return None;
    }
    let subject = match &policy.spec.subject.service_accounts {
        None => Some(true),
        Some(subject) => account_matches(
            question.world,
            question.subject,
            subject.names.as_ref(),
            subject.selector.as_ref(),
        ),
    };
    if subject == Some(false) {
        return None;
    }
    let subject_is_clear = subject.is_some();
    let mut opinion =
        Opinion { strictness: policy.spec.mode.into(), isolates: true, accepts: false, denies: false };
    let mut rule = |action: Action, peers: &[Peer], protocols: Option<&Vec<ProtocolMatch>>| match action {
        Action::Accept => {
            let matches = surely_matches(Some(&policy.namespace), peers, protocols, question);
            opinion.accepts |= matches && subject_is_clear;
        }
        Action::Deny => {
            opinion.denies |= possibly_matches(Some(&policy.namespace), peers, protocols, question, true);
        }
    };
    let isolate = match question.direction {
        Direction::Ingress => {
            let section = policy.spec.ingress.as_ref()?;
            section.rules.iter().for_each(|r| rule(r.action, &r.from, r.protocols.as_ref()));
            section.isolate
        }
        Direction::Egress => {
            let section = policy.spec.egress.as_ref()?;
            section.rules.iter().for_each(|r| rule(r.action, &r.to, r.protocols.as_ref()));
            section.isolate
        }
    };
    opinion.isolates = isolate != Some(false);
    Some(opinion)
}

/// Whether something in a rule that is clear matches. `home`: the namespace of the policy, if it has one.
pub fn surely_matches(
    home: Option<&str>,
    peers: &[Peer],
    protocols: Option<&Vec<ProtocolMatch>>,
    question: &Question<'_>,
) -> bool {
    peers.iter().any(|peer| peer_matches(home, peer, question) == Some(true))
        && protocols.is_none_or(|list| list.iter().any(|p| protocol_matches(p, question) == Some(true)))
}

/// The same where what is unclear (`None`) counts as a match, also where another entry would be clear. `refuse_host`: that
/// the rule names the node itself has no effect on what comes from there.
pub fn possibly_matches(
    home: Option<&str>,
    peers: &[Peer],
    protocols: Option<&Vec<ProtocolMatch>>,
    question: &Question<'_>,
    refuse_host: bool,
) -> bool {
    let peer = peers.is_empty()
        || peers.iter().any(|peer| {
            let host = peer.entities.as_ref().is_some_and(|list| list.contains(&Entity::Host));
            let own_node = matches!(question.peer.owner, Owner::Entity(Entity::Host));
            let refused = refuse_host && host && own_node && question.direction == Direction::Ingress;
            peer_matches(home, peer, question).unwrap_or(true) && !(refused && only_entities(peer))
        });
    let protocol = protocols.is_none_or(|list| {
        list.is_empty() || list.iter().any(|p| protocol_matches(p, question).unwrap_or(true))
    });
    peer && protocol
}

/// Whether every part of a rule is clear.
pub fn is_clear(
    home: Option<&str>,
    peers: &[Peer],
    protocols: Option<&Vec<ProtocolMatch>>,
    question: &Question<'_>,
) -> bool {
    !peers.is_empty()
        && peers.iter().all(|peer| peer_matches(home, peer, question).is_some())
        && protocols.is_none_or(|list| {
            !list.is_empty() && list.iter().all(|p| protocol_matches(p, question).is_some())
        })
}

fn only_entities(peer: &Peer) -> bool {
    peer.service_accounts.is_none() && peer.pods.is_none() && peer.ip_block.is_none()
}

/// Whether a pod runs as one of these accounts; `None`: that is unclear.
pub fn account_matches(
    world: &World,
    pod: &Pod,
    names: Option<&Vec<String>>,
    selector: Option<&LabelSelector>,
) -> Option<bool> {
    let account = &world.service_accounts[&(pod.namespace.clone(), pod.service_account.clone())];
    let by_name = match names {
        None => true,
        Some(names) if names.is_empty() => return None,
        Some(names) => names.contains(&account.name),
    };
    Some(by_name & optional(selector, &account.labels)?)
}

/// An absent selector selects everything; `None`: it is unclear.
fn optional(selector: Option<&LabelSelector>, labels: &Labels) -> Option<bool> {
    selector.map_or(Some(true), |selector| selector_matches(selector, labels))
}

/// Whether a peer matches; `None`: it is unclear what it means, whoever is asked about.
fn peer_matches(home: Option<&str>, peer: &Peer, question: &Question<'_>) -> Option<bool> {
    let set = [
        peer.service_accounts.is_some(),
        peer.pods.is_some(),
        peer.ip_block.is_some(),
        peer.entities.is_some(),
    ];
    if set.into_iter().filter(|set| *set).count() != 1 {
        return None;
    }
    if let Some(block) = &peer.ip_block {
        let block = IPBlock { cidr: block.cidr.clone(), except: block.except.clone() };
        return block_or_void(&block, question.peer.address);
    }
    if let Some(entities) = &peer.entities {
        if entities.is_empty() {
            return None;
        }
        return Some(matches!(question.peer.owner, Owner::Entity(entity) if entities.contains(&entity)));
    }
    // Clear or not does not depend on who is asked about: anybody stands in for what is not a pod.
    let (pod, is_pod) = match question.peer.owner {
        Owner::Pod(pod) => (pod, true),
        Owner::Entity(_) => (question.subject, false),
    };
    let in_namespace = |selector: Option<&LabelSelector>| match selector {
        None => Some(pod.namespace == home?),
        Some(selector) => selector_matches(selector, &question.world.namespaces[&pod.namespace].labels),
    };
    let matches = if let Some(accounts) = &peer.service_accounts {
        in_namespace(accounts.namespaces.as_ref())?
            & account_matches(question.world, pod, accounts.names.as_ref(), accounts.selector.as_ref())?
    } else {
        let pods = peer.pods.as_ref()?;
        in_namespace(pods.namespaces.as_ref())? & optional(pods.selector.as_ref(), &pod.labels)?
    };
    Some(is_pod && matches)
}

/// Whether an entry of `protocols` matches; `None`: it is unclear.
fn protocol_matches(entry: &ProtocolMatch, question: &Question<'_>) -> Option<bool> {
    let fields = [(6, entry.tcp.as_ref()), (17, entry.udp.as_ref()), (132, entry.sctp.as_ref())];
    let mut set: Vec<(u8, &PortMatch)> =
        fields.into_iter().filter_map(|(p, ports)| Some((p, ports?))).collect();
    match (set.pop(), set.pop(), &entry.destination_named_port) {
        (Some((protocol, ports)), None, None) => {
            Some(ports_contain(ports, question.port)? && protocol == question.protocol)
        }
        (None, None, Some(name)) if !name.is_empty() => Some(question.destination().is_some_and(|pod| {
            let mut ports = pod.named_ports.iter();
            ports.any(|(n, protocol, port)| {
                n == name && *protocol == question.protocol && *port == question.port
            })
        })),
        _ => None,
    }
}

fn ports_contain(ports: &PortMatch, port: u16) -> Option<bool> {
    let valid = |number: i32| (1..=65535).contains(&number);
    match &ports.destination_port {
        None => Some(true),
        Some(DestinationPort { number: Some(number), range: None }) if valid(*number) => {
            Some(*number == i32::from(port))
        }
        Some(DestinationPort { number: None, range: Some(range) })
            if valid(range.start) && valid(range.end) && range.start <= range.end =>
        {
            Some((range.start..=range.end).contains(&i32::from(port)))
        }
        Some(_) => None,
    }
}
