//! `ClusterIdentityPolicy` of `portcullis.dev/v1alpha1`, into the intermediate representation.
//!
//! Invariant: a policy of which it is unclear whom it is about, or when it has its say, is about every pod of the cluster,
//! or has its say first, and allows nothing: its Accepts are gone, and what it would pass on is denied.

use std::ops::RangeInclusive;

use portcullis_common::Direction;

use super::desired::Problem;
use super::ir::{Action, Policy, PolicyKind, PolicyName, Report, Rule, Section, Tier};
use super::rules::{NO_NAMESPACES, Unclear, Written, mode, read_accounts, read_rule, read_selector, unclear};
use super::selector::{Accounts, Namespaces, PodSelector, Selector};
use crate::api::{ClusterSubject, PolicyTier};
use crate::model::ClusterIdentityPolicy;

/// Before every priority that can be written.
const FIRST: i32 = i32::MIN;
/// What can be written.
const PRIORITIES: RangeInclusive<i32> = 0..=1000;

/// Translates a policy.
pub fn translate(written: &ClusterIdentityPolicy, problems: &mut Vec<Problem>) -> Policy {
    let ClusterIdentityPolicy { name, spec, .. } = written;
    let kind = PolicyKind::ClusterIdentityPolicy;
    let name = PolicyName { kind, namespace: String::new(), name: name.clone() };
    let mut report = Report::new(&name, problems);
    let before = report.count();
    let (tier, priority) = place(spec.tier, spec.priority, &mut report);
    let subject = read_subject(&spec.subject).unwrap_or_else(|(field, what)| {
        let follows =
            "the policy is about every pod of the cluster and accepts nothing, and what it would pass on it denies; \
             correct or remove it";
        report.add(format!("spec.subject.{field}"), what, follows);
        PodSelector { namespaces: everywhere(), labels: Selector::default(), accounts: Accounts::default() }
    });
    let understood = report.count() == before;

    let mut section = |direction: Direction, rules: Vec<Written<'_>>| {
        let read = |(i, rule): (usize, Written<'_>)| read_rule(&name, direction, i, &rule, &mut report);
        let mut rules: Vec<Rule> = rules.into_iter().enumerate().map(read).collect();
        if !understood {
            rules.retain(|rule| rule.action != Action::Accept);
            for rule in &mut rules {
                rule.action = Action::Deny;
            }
        }
        Section { isolation: None, rules }
    };
    let ingress = spec
        .ingress
        .as_ref()
        .map(|ingress| section(Direction::Ingress, ingress.rules.iter().map(Written::from).collect()));
    let egress = spec
        .egress
        .as_ref()
        .map(|egress| section(Direction::Egress, egress.rules.iter().map(Written::from).collect()));
    Policy { name, tier, priority, mode: mode(spec.mode), subject, ingress, egress }
}

/// When the policy has its say. Where that is unclear it comes first, and must not allow anything.
fn place(tier: Option<PolicyTier>, priority: Option<i32>, report: &mut Report<'_>) -> (Tier, i32) {
    let first = |what: String, report: &mut Report<'_>| {
        let follows = "the policy comes first in its tier and accepts nothing, and what it would pass on it denies; write \
                       a number from 0 to 1000";
        report.add("spec.priority", what, follows);
        FIRST
    };
    let priority = match priority {
        Some(priority) if PRIORITIES.contains(&priority) => priority,
        Some(priority) => first(format!("{priority} is no priority from 0 to 1000"), report),
        None => first("the priority is missing".to_owned(), report),
    };
    match tier {
        Some(PolicyTier::Admin) => (Tier::Admin, priority),
        Some(PolicyTier::Baseline) => (Tier::Baseline, priority),
        None => {
            let follows = "the policy comes before all others and accepts nothing, and what it would pass on it denies; \
                           write Admin or Baseline";
            report.add("spec.tier", "the tier is missing", follows);
            (Tier::Admin, FIRST)
        }
    }
}

fn everywhere() -> Namespaces {
    Namespaces::Labelled(Selector::default())
}

fn read_subject(written: &ClusterSubject) -> Result<PodSelector, Unclear> {
    let ClusterSubject { namespaces, service_accounts } = written;
    if namespaces.is_none() {
        return Err(unclear("namespaces", NO_NAMESPACES));
    }
    let accounts = read_accounts(service_accounts.as_ref());
    Ok(PodSelector {
        namespaces: Namespaces::Labelled(read_selector(namespaces.as_ref(), "namespaces")?),
        labels: Selector::default(),
        accounts: accounts.map_err(|(field, what)| unclear(format!("serviceAccounts.{field}"), what))?,
    })
}
