//! Subject classes: which pods the same policies select.

use std::collections::BTreeSet;
use std::sync::Arc;

use portcullis_common::abi::Mode;
use portcullis_common::{Direction, Verdict};

use super::classes::port_text;
use super::ir::NamedPort;
use super::linked::{Linked, LinkedRule, LinkedSection};
use super::selector::list;
use super::tiers::Defaults;

/// What the subject classes of a group of pods have in common: only their named ports may differ.
#[derive(Clone, Debug)]
pub struct SubjectBase {
    /// Indexes of the policies that act on them, in the order in which they act, and whether each is only audited.
    pub policies: Arc<[(u32, bool)]>,
    /// Where no policy has a say.
    pub defaults: Defaults,
    /// Names of ports that these policies use for ingress.
    pub port_names: BTreeSet<String>,
    /// Whether a policy acts on egress.
    pub acts_on_egress: bool,
}

impl SubjectBase {
    /// Of pods that these policies select, in a namespace with this mode.
    pub fn new(linked: &Linked, selected: &[u32], namespace_mode: Mode, default: Verdict) -> Self {
        let effective = |&id: &u32| match linked.policies[id as usize].policy.mode.max(namespace_mode) {
            Mode::Enforce => Some((id, false)),
            Mode::Audit => Some((id, true)),
            Mode::Off => None,
        };
        let policies: Arc<[(u32, bool)]> = selected.iter().filter_map(effective).collect();
        let sections = |direction| {
            policies.iter().filter_map(move |(id, _)| linked.policies[*id as usize].section(direction))
        };
        let rules = sections(Direction::Ingress).flat_map(|section| &section.rules);
        let port_names = rules.flat_map(LinkedRule::port_names).map(str::to_owned).collect();
        let acts_on_egress = sections(Direction::Egress).next().is_some();
        let defaults = match (default, namespace_mode) {
            (Verdict::Allow, _) | (_, Mode::Off) => {
                Defaults { enforced: Verdict::Allow, audited: Verdict::Allow }
            }
            (Verdict::Deny, Mode::Enforce) => Defaults { enforced: Verdict::Deny, audited: Verdict::Deny },
            _ => Defaults { enforced: Verdict::Allow, audited: Verdict::Deny },
        };
        Self { policies, defaults, port_names, acts_on_egress }
    }
}

/// What makes a subject class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubjectClass {
    /// Indexes of the policies that act on it, in the order in which they act, and whether each is only audited.
    pub policies: Arc<[(u32, bool)]>,
    /// Where no policy has a say.
    pub defaults: Defaults,
    /// Its named ports, of those that its policies use for ingress.
    pub ports: Vec<NamedPort>,
}

impl SubjectClass {
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

    /// Its sections of a direction, with the policy of each and whether it is only audited.
    pub fn sections<'l>(
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
