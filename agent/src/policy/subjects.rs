//! Subject classes: which pods the same policies select, and their rows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use portcullis_common::abi::Mode;
use portcullis_common::policy::wildcard_of;
use portcullis_common::{Direction, Kind, Verdict};

use super::classes::{PeerClasses, port_text, used_ports};
use super::desired::{EndpointSet, Function, RowSet, function_of};
use super::ir::NamedPort;
use super::linked::{Linked, LinkedRule, LinkedSection, PeerView};
use super::population::Group;
use super::selector::list;
use super::services::row_of_set;
use super::tiers::{Acting, Defaults, Question};
use crate::model::Pod;

/// What makes a subject class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubjectClass {
    /// Indexes of the policies that act on it, ascending, and whether each is only audited.
    pub policies: Vec<(u32, bool)>,
    /// Where no policy has a say.
    pub defaults: Defaults,
    /// Its named ports, of those that its policies use for ingress.
    pub ports: Vec<NamedPort>,
}

impl SubjectClass {
    /// The class of a pod.
    pub fn new(
        linked: &Linked,
        group: &Group<'_>,
        pod: &Pod,
        namespace_mode: Mode,
        default: Verdict,
    ) -> Self {
        let effective = |&id: &u32| match linked.policies[id as usize].policy.mode.max(namespace_mode) {
            Mode::Enforce => Some((id, false)),
            Mode::Audit => Some((id, true)),
            Mode::Off => None,
        };
        let policies: Vec<(u32, bool)> = group.policies.iter().filter_map(effective).collect();
        let sections =
            policies.iter().filter_map(|(id, _)| linked.policies[*id as usize].section(Direction::Ingress));
        let rules = sections.flat_map(|section| &section.rules);
        let names: BTreeSet<&str> = rules.flat_map(LinkedRule::port_names).collect();
        let ports = used_ports(&pod.named_ports, |name| names.contains(name)).into_iter().collect();
        let defaults = match (default, namespace_mode) {
            (Verdict::Allow, _) | (_, Mode::Off) => {
                Defaults { enforced: Verdict::Allow, audited: Verdict::Allow }
            }
            (Verdict::Deny, Mode::Enforce) => Defaults { enforced: Verdict::Deny, audited: Verdict::Deny },
            _ => Defaults { enforced: Verdict::Allow, audited: Verdict::Deny },
        };
        Self { policies, defaults, ports }
    }

    /// Whether a policy acts in a direction.
    pub fn acts(&self, linked: &Linked, direction: Direction) -> bool {
        self.policies.iter().any(|(id, _)| linked.policies[*id as usize].section(direction).is_some())
    }

    /// What its pods have in common: the same text for the same meaning. `default` is the default verdict of all.
    pub fn definition(&self, linked: &Linked, default: Verdict) -> String {
        let name = |(id, audited): &(u32, bool)| {
            let name = &linked.policies[*id as usize].policy.name;
            format!("{name}{}", if *audited { " (audited)" } else { "" })
        };
        let mut text = if self.policies.is_empty() {
            "no policy".to_owned()
        } else {
            list(self.policies.iter().map(name))
        };
        if self.defaults.enforced != default {
            let enforced = if self.defaults.audited == Verdict::Deny { "audited" } else { "off" };
            text = format!("{text}; default {enforced}");
        }
        if !self.ports.is_empty() {
            text = format!("{text}; ports {}", list(self.ports.iter().map(port_text)));
        }
        text
    }

    fn sections<'l>(
        &self,
        linked: &'l Linked,
        direction: Direction,
    ) -> impl Iterator<Item = (u32, bool, &'l LinkedSection)> {
        let section = move |&(id, audited): &(u32, bool)| {
            linked.policies[id as usize].section(direction).map(|section| (id, audited, section))
        };
        self.policies.iter().filter_map(section)
    }

    /// The rules, and isolations, that can decide about it in a direction.
    pub fn rules(&self, linked: &Linked, direction: Direction) -> Vec<usize> {
        let of = |(_, _, section): (u32, bool, &LinkedSection)| -> Vec<usize> {
            section.rules.iter().map(|rule| rule.id).chain(section.isolation).collect()
        };
        self.sections(linked, direction).flat_map(of).collect()
    }
}

/// Writes the rows of subject classes. Equal functions are shared.
pub struct RowWriter<'l> {
    /// The policies in force.
    pub linked: &'l Linked,
    /// The peers.
    pub peers: &'l PeerClasses<'l>,
    /// Numbers of the rules.
    pub rule_numbers: &'l [u32],
    /// The functions so far.
    pub functions: HashSet<Arc<Function>>,
}

/// What the rules of a subject see of a peer: peers that look alike get the same function.
type Looks = (Kind, Vec<u32>, Vec<u32>, Vec<NamedPort>);

impl RowWriter<'_> {
    /// Adds the rows of a direction.
    ///
    /// The row of a kind holds for a peer that no selector matches, that has no named port and that is in no block but
    /// those of a whole family, all of them. Every other class that the rules could tell from it is tried, and gets a row
    /// of its own where the result differs.
    pub fn write(&mut self, class: &SubjectClass, direction: Direction, rows: &mut RowSet) {
        let acting = class.sections(self.linked, direction).map(|(id, audited, section)| Acting {
            policy: &self.linked.policies[id as usize],
            section,
            audited,
        });
        let question = Question {
            direction,
            acting: acting.collect(),
            defaults: class.defaults,
            subject_ports: &class.ports,
            rule_numbers: self.rule_numbers,
        };
        let (mut selectors, mut blocks, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for rule in question.acting.iter().flat_map(|acting| &acting.section.rules) {
            selectors.extend(&rule.peers.selectors);
            blocks.extend(&rule.peers.blocks);
            if direction == Direction::Egress {
                names.extend(rule.port_names());
            }
        }
        let mut answers: HashMap<Looks, Arc<Function>> = HashMap::new();
        let mut answer = |peer: PeerView<'_>| {
            let seen =
                |ids: &[u32], by: &BTreeSet<u32>| ids.iter().copied().filter(|id| by.contains(id)).collect();
            let ports =
                peer.ports.iter().filter(|(name, ..)| names.contains(name.as_str())).cloned().collect();
            let looks: Looks =
                (peer.kind, seen(peer.selectors, &selectors), seen(peer.blocks, &blocks), ports);
            let function = answers.entry(looks).or_insert_with_key(|(kind, selectors, blocks, ports)| {
                let function = question.answer(&PeerView { kind: *kind, selectors, blocks, ports });
                if let Some(shared) = self.functions.get(&function) {
                    return shared.clone();
                }
                let shared = Arc::new(function);
                self.functions.insert(shared.clone());
                shared
            });
            function.clone()
        };
        for kind in Kind::ALL {
            // The address of a service is in no block, whatever the block says.
            let blocks = if kind == Kind::Service { &[][..] } else { &self.peers.families };
            let anything = PeerView { kind, selectors: &[], blocks, ports: &[] };
            rows.insert((direction, wildcard_of(kind)), answer(anything));
        }
        for at in self.peers.candidates(&selectors, &blocks, &names) {
            let (class, number) = &self.peers.classes[at];
            let function = answer(class.view());
            if rows.get(&(direction, wildcard_of(class.kind))) != Some(&function) {
                rows.insert((direction, *number), function);
            }
        }
    }

    /// Adds the rows of endpoint sets; those of the endpoints' classes must be there.
    pub fn write_sets(&mut self, sets: &BTreeMap<u32, Arc<EndpointSet>>, rows: &mut RowSet) {
        for (&number, set) in sets {
            let function = row_of_set(rows, set);
            let kind = function_of(rows, Direction::Egress, (number, Kind::Service as u8));
            if kind.is_none_or(|kind| **kind != function) {
                let function = self.share(function);
                rows.insert((Direction::Egress, number), function);
            }
        }
    }

    fn share(&mut self, function: Function) -> Arc<Function> {
        if let Some(shared) = self.functions.get(&function) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(function);
        self.functions.insert(Arc::clone(&shared));
        shared
    }
}
