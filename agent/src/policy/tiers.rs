//! The order of evaluation: Admin tier, namespace tier, Baseline tier, default. This is the only place that knows it.
//!
//! Each step is a function from protocol and port to an outcome that may be undecided; the steps are laid one upon the
//! other, and what is decided stays decided.

use std::ops::Range;

use portcullis_common::policy::{Decision, PortKey};
use portcullis_common::{Direction, Reason, Verdict};

use super::desired::Function;
use super::ir::{Action, NamedPort, PortMatch, Ports, Tier};
use super::linked::{LinkedPolicy, LinkedRule, LinkedSection, PeerView, RuleId};

/// A section that acts on a subject.
pub struct Acting<'a> {
    /// Of this policy.
    pub policy: &'a LinkedPolicy,
    /// The section.
    pub section: &'a LinkedSection,
    /// It is only audited.
    pub audited: bool,
}

/// What is decided where no policy has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Defaults {
    /// Among what is enforced.
    pub enforced: Verdict,
    /// Among what is enforced and audited.
    pub audited: Verdict,
}

/// All that acts on a subject in one direction.
pub struct Question<'a> {
    /// The direction.
    pub direction: Direction,
    /// The sections, in the order in which their policies act.
    pub acting: Vec<Acting<'a>>,
    /// Where no policy has a say.
    pub defaults: Defaults,
    /// The subject's named ports.
    pub subject_ports: &'a [NamedPort],
    /// Numbers of the rules, by [`RuleId`].
    pub rule_numbers: &'a [u32],
}

impl Question<'_> {
    /// The finished function for a peer.
    ///
    /// With E the verdict of what is enforced and A that of what is enforced or audited: where E denies, deny; where E
    /// allows and A denies, audit.
    pub fn answer(&self, peer: &PeerView<'_>) -> Function {
        let enforced = self.evaluate(peer, false);
        if self.defaults.enforced == self.defaults.audited && self.acting.iter().all(|acting| !acting.audited)
        {
            return function(enforced);
        }
        let all = self.evaluate(peer, true);
        function(zip(&enforced, &all, |&e, &a| match (e.verdict, a.verdict) {
            (Verdict::Allow, Verdict::Deny) => Decision { verdict: Verdict::Audit, ..a },
            _ => e,
        }))
    }

    /// The tiers, of the enforced policies alone or together with the audited ones.
    fn evaluate(&self, peer: &PeerView<'_>, with_audited: bool) -> Vec<Step<Decision>> {
        let verdict = if with_audited { self.defaults.audited } else { self.defaults.enforced };
        let default = Decision::new(verdict, Reason::Default);
        let sections = |tier: Tier| {
            let sections = self.acting.iter().filter(move |acting| acting.policy.policy.tier == tier);
            sections.filter(move |acting| with_audited || !acting.audited)
        };
        let mut decided = Partial::undecided();
        decided.or(&self.ordered(sections(Tier::Admin), peer));
        decided.or(&self.namespace(sections(Tier::Namespace), peer));
        decided.or(&self.ordered(sections(Tier::Baseline), peer));
        decided.otherwise(default)
    }

    /// A tier with priorities: the first rule that matches decides, or passes on to the next tier.
    fn ordered<'b>(
        &self,
        sections: impl Iterator<Item = &'b Acting<'b>>,
        peer: &PeerView<'_>,
    ) -> Partial<Decision> {
        let mut tier: Partial<Option<Decision>> = Partial::undecided();
        let mut sections: Vec<&Acting<'_>> = sections.collect();
        sections.sort_by(|a, b| a.policy.policy.place().cmp(&b.policy.policy.place()));
        for rule in sections.into_iter().flat_map(|acting| &acting.section.rules) {
            if !rule.peers.matches(peer) {
                continue;
            }
            let outcome = match rule.action {
                Action::Accept => Some(self.decision(Verdict::Allow, rule.id)),
                Action::Deny => Some(self.decision(Verdict::Deny, rule.id)),
                Action::Pass => None,
            };
            tier.decide(&self.ranges(rule, peer), outcome);
        }
        Partial(tier.0.into_iter().map(|(from, outcome)| (from, outcome.flatten())).collect())
    }

    /// The namespace tier: a Deny wins; otherwise, if anything isolates, the union of the allows decides.
    fn namespace<'b>(
        &self,
        sections: impl Iterator<Item = &'b Acting<'b>>,
        peer: &PeerView<'_>,
    ) -> Partial<Decision> {
        let sections: Vec<&LinkedSection> = sections.map(|acting| acting.section).collect();
        let mut tier = Partial::undecided();
        let mut apply = |action, verdict| {
            for rule in sections.iter().flat_map(|section| &section.rules) {
                if rule.action == action && !tier.is_complete() && rule.peers.matches(peer) {
                    tier.decide(&self.ranges(rule, peer), self.decision(verdict, rule.id));
                }
            }
        };
        apply(Action::Deny, Verdict::Deny);
        if let Some(isolation) = sections.iter().find_map(|section| section.isolation) {
            apply(Action::Accept, Verdict::Allow);
            tier.decide(&[EVERY], self.decision(Verdict::Deny, isolation));
        }
        tier
    }

    fn decision(&self, verdict: Verdict, rule: RuleId) -> Decision {
        Decision {
            verdict,
            reason: Reason::Policy,
            rule: self.rule_numbers.get(rule).copied().unwrap_or_default(),
        }
    }

    /// The keys that a rule matches, sorted and disjoint. Named ports are those of the destination: the subject on
    /// ingress, the peer on egress.
    fn ranges(&self, rule: &LinkedRule, peer: &PeerView<'_>) -> Vec<Range<u32>> {
        let Ports::Any(matches) = &rule.ports else { return vec![EVERY] };
        let destination = if self.direction == Direction::Ingress { self.subject_ports } else { peer.ports };
        let mut ranges = Vec::new();
        for port in matches {
            match port {
                PortMatch::Range(from, to) => ranges.push(from.0..to.0 + 1),
                PortMatch::Named(name, protocol) => {
                    let named =
                        destination.iter().filter(|(n, p, _)| n == name && protocol.is_none_or(|q| q == *p));
                    let keys = named.map(|(_, protocol, port)| PortKey::new(*protocol, *port).0);
                    ranges.extend(keys.map(|key| key..key + 1));
                }
            }
        }
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        let mut merged: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

/// Every protocol and port.
const EVERY: Range<u32> = 0..PortKey::END;

/// From a key on (up to the next step) this is the value.
type Step<T> = (u32, T);

/// A function that is not decided everywhere yet: steps, the first at 0.
struct Partial<T>(Vec<Step<Option<T>>>);

impl<T: Copy + PartialEq> Partial<T> {
    fn undecided() -> Self {
        Self(vec![(0, None)])
    }

    fn is_complete(&self) -> bool {
        self.0.iter().all(|(_, value)| value.is_some())
    }

    /// Decides the sorted, disjoint ranges, where they are not decided yet.
    fn decide(&mut self, ranges: &[Range<u32>], value: T) {
        let mut steps = Vec::with_capacity(ranges.len() * 2 + 1);
        steps.push((0, None));
        for range in ranges {
            steps.push((range.start, Some(value)));
            steps.push((range.end, None));
        }
        self.or(&Self(steps));
    }

    /// Lets another function decide where this one does not.
    fn or(&mut self, other: &Self) {
        self.0 = zip(&self.0, &other.0, |&ours, &theirs| ours.or(theirs));
    }

    fn otherwise(self, default: T) -> Vec<Step<T>> {
        self.0.into_iter().map(|(from, value)| (from, value.unwrap_or(default))).collect()
    }
}

/// Two functions of steps (each sorted, the first at 0; the last of several at one key counts), combined key by key.
fn zip<A, B, C: PartialEq>(a: &[Step<A>], b: &[Step<B>], combine: impl Fn(&A, &B) -> C) -> Vec<Step<C>> {
    let mut steps: Vec<Step<C>> = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let (mut left, mut right) = (None, None);
    while let Some(from) = [a.peek().map(|s| s.0), b.peek().map(|s| s.0)].into_iter().flatten().min() {
        while let Some((_, value)) = a.next_if(|step| step.0 == from) {
            left = Some(value);
        }
        while let Some((_, value)) = b.next_if(|step| step.0 == from) {
            right = Some(value);
        }
        let (Some(left), Some(right)) = (left, right) else { continue };
        let value = combine(left, right);
        if from < PortKey::END && steps.last().is_none_or(|(_, before)| *before != value) {
            steps.push((from, value));
        }
    }
    steps
}

fn function(steps: Vec<Step<Decision>>) -> Function {
    // Steps that start at 0 always make a function; were they missing, nothing may pass.
    Function::new(steps.into_iter().map(|(from, decision)| (PortKey(from), decision)))
        .unwrap_or_else(|| Function::constant(Decision::new(Verdict::Deny, Reason::NoPolicy)))
}
