//! The policies in force, with their selectors and blocks replaced by indexes: equal ones share an index, whichever
//! policy they stand in, and a class of peers is described by a few sorted lists of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use portcullis_common::{Direction, Kind};

use super::ir::{Action, Block, NamedPort, Peer, Peers, Policy, PortMatch, Ports};
use super::selector::{Namespaces, PodSelector, Selector};
use crate::model::Labels;

/// Every policy in force and what they name.
#[derive(Default)]
pub struct Linked {
    /// In the order in which they act.
    pub policies: Vec<LinkedPolicy>,
    /// The selectors of peers.
    pub selectors: Vec<PodSelector>,
    /// The CIDR blocks.
    pub blocks: Vec<Block>,
    /// Names of ports that egress rules use: of the peer's ports only these tell peers apart.
    pub peer_port_names: BTreeSet<String>,
    /// What the rules are called, by [`RuleId`].
    pub rule_names: Vec<String>,
    /// Keys of the pods' labels that a selector looks at: by others no pods are told apart.
    pub pod_label_keys: HashSet<String>,
    /// Which of [`Self::selectors`] look at a namespace.
    pub selector_index: NamespaceIndex,
    /// Whose subjects, of [`Self::policies`], are in a namespace.
    pub policy_index: NamespaceIndex,
}

/// Index of a rule, or of an isolation, among all that are in force.
pub type RuleId = usize;

/// A policy in force.
pub struct LinkedPolicy {
    /// As it was translated, without its sections.
    pub policy: Policy,
    ingress: Option<LinkedSection>,
    egress: Option<LinkedSection>,
}

impl LinkedPolicy {
    /// The section of a direction; `None` where the policy does nothing.
    pub fn section(&self, direction: Direction) -> Option<&LinkedSection> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// One direction of a policy.
pub struct LinkedSection {
    /// The rule that stands for the isolation.
    pub isolation: Option<RuleId>,
    /// The rules.
    pub rules: Vec<LinkedRule>,
}

/// A rule.
pub struct LinkedRule {
    /// Its index.
    pub id: RuleId,
    /// What it does.
    pub action: Action,
    /// Whom it matches.
    pub peers: LinkedPeers,
    /// Which ports it matches.
    pub ports: Ports,
}

/// Whom a rule matches: any of these.
#[derive(Default)]
pub struct LinkedPeers {
    /// Everything of these kinds.
    pub kinds: BTreeSet<Kind>,
    /// Indexes of selectors, ascending.
    pub selectors: Vec<u32>,
    /// Indexes of blocks, ascending.
    pub blocks: Vec<u32>,
}

impl LinkedRule {
    /// The names of ports that the rule uses.
    pub fn port_names(&self) -> impl Iterator<Item = &str> {
        let ports = match &self.ports {
            Ports::Every => &[],
            Ports::Any(ports) => ports.as_slice(),
        };
        ports.iter().filter_map(|port| match port {
            PortMatch::Named(name, _) => Some(name.as_str()),
            PortMatch::Range(..) => None,
        })
    }
}

/// What rules can see of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerView<'a> {
    /// What it is.
    pub kind: Kind,
    /// Indexes of the selectors that match it, ascending.
    pub selectors: &'a [u32],
    /// Indexes of the blocks that contain it, ascending.
    pub blocks: &'a [u32],
    /// Its named ports, of those that are used.
    pub ports: &'a [NamedPort],
}

impl LinkedPeers {
    /// Whether a peer is one of these.
    pub fn matches(&self, peer: &PeerView<'_>) -> bool {
        let common = |ours: &[u32], theirs: &[u32]| ours.iter().any(|id| theirs.binary_search(id).is_ok());
        self.kinds.contains(&peer.kind)
            || common(&self.selectors, peer.selectors)
            || common(&self.blocks, peer.blocks)
    }
}

impl Linked {
    /// Links policies. Those that have no effect at all must have been left out.
    pub fn new(mut policies: Vec<Policy>) -> Self {
        policies.sort_by(|a, b| a.place().cmp(&b.place()));
        let mut linker = Linker::default();
        let policies = policies
            .into_iter()
            .map(|policy| LinkedPolicy {
                ingress: linker.section(&policy, Direction::Ingress),
                egress: linker.section(&policy, Direction::Egress),
                // Linked, the sections are needed no more: of ten thousand policies they are most of the memory.
                policy: Policy { ingress: None, egress: None, ..policy },
            })
            .collect();
        let Linker { selectors, blocks, peer_port_names, rule_names } = linker;
        let mut all = Self {
            policies,
            selectors: selectors.items,
            blocks: blocks.items,
            peer_port_names,
            rule_names,
            ..Self::default()
        };
        let subjects = all.policies.iter().map(|policy| &policy.policy.subject);
        for selector in all.selectors.iter().chain(subjects.clone()) {
            all.pod_label_keys.extend(selector.labels.keys().map(str::to_owned));
        }
        all.selector_index = NamespaceIndex::new(all.selectors.iter());
        all.policy_index = NamespaceIndex::new(subjects);
        all
    }

    /// By what the policies of a subject are put in the order in which they act.
    pub fn order(&self, policy: u32) -> impl Ord + '_ {
        self.policies[policy as usize].policy.place()
    }
}

/// Selectors by the namespaces that they look at.
#[derive(Default)]
pub struct NamespaceIndex {
    named: HashMap<String, Vec<u32>>,
    labelled: HashMap<Selector, Vec<u32>>,
}

impl NamespaceIndex {
    /// Of selectors, by their place.
    fn new<'a>(selectors: impl Iterator<Item = &'a PodSelector>) -> Self {
        let mut index = Self::default();
        for (id, selector) in (0..).zip(selectors) {
            match &selector.namespaces {
                Namespaces::Named(name) => index.named.entry(name.clone()).or_default().push(id),
                Namespaces::Labelled(labels) => index.labelled.entry(labels.clone()).or_default().push(id),
            }
        }
        index
    }

    /// Those that look at a namespace, ascending.
    pub fn of(&self, name: &str, labels: &Labels) -> Vec<u32> {
        let mut ids = self.named.get(name).cloned().unwrap_or_default();
        for (_, matching) in self.labelled.iter().filter(|(selector, _)| selector.matches(labels)) {
            ids.extend(matching);
        }
        ids.sort_unstable();
        ids
    }
}

/// Gives equal items one index.
struct Interner<T> {
    items: Vec<T>,
    index: HashMap<T, u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { items: Vec::new(), index: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    fn id(&mut self, item: &T) -> u32 {
        if let Some(&id) = self.index.get(item) {
            return id;
        }
        let id = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        self.items.push(item.clone());
        self.index.insert(item.clone(), id);
        id
    }
}

#[derive(Default)]
struct Linker {
    selectors: Interner<PodSelector>,
    blocks: Interner<Block>,
    peer_port_names: BTreeSet<String>,
    rule_names: Vec<String>,
}

impl Linker {
    fn rule_id(&mut self, name: &str) -> RuleId {
        self.rule_names.push(name.to_owned());
        self.rule_names.len() - 1
    }

    fn section(&mut self, policy: &Policy, direction: Direction) -> Option<LinkedSection> {
        let section = policy.section(direction)?;
        if section.isolation.is_none() && section.rules.is_empty() {
            return None;
        }
        let mut rules = Vec::with_capacity(section.rules.len());
        for rule in &section.rules {
            let mut peers = LinkedPeers::default();
            match &rule.peers {
                Peers::Everyone => peers.kinds.extend(Kind::ALL),
                Peers::Any(any) => {
                    for peer in any {
                        match peer {
                            Peer::Kind(kind) => drop(peers.kinds.insert(*kind)),
                            Peer::Pods(selector) => peers.selectors.push(self.selectors.id(selector)),
                            Peer::Block(block) => peers.blocks.push(self.blocks.id(block)),
                        }
                    }
                }
            }
            peers.selectors.sort_unstable();
            peers.blocks.sort_unstable();
            let rule = LinkedRule {
                id: self.rule_id(&rule.name),
                action: rule.action,
                peers,
                ports: rule.ports.clone(),
            };
            if direction == Direction::Egress {
                self.peer_port_names.extend(rule.port_names().map(str::to_owned));
            }
            rules.push(rule);
        }
        let isolation = section.isolation.as_ref().map(|name| self.rule_id(name));
        Some(LinkedSection { isolation, rules })
    }
}
