//! `IdentityPolicy` of `portcullis.dev/v1alpha1`, into the intermediate representation.

use portcullis_common::Direction;

use super::desired::Problem;
use super::ir::{Action, Policy, PolicyKind, PolicyName, Report, Rule, Section, Tier};
use super::rules::{Written, mode, read_accounts, read_rule};
use super::selector::PodSelector;
use crate::model::IdentityPolicy;

/// Translates a policy.
pub fn translate(written: &IdentityPolicy, problems: &mut Vec<Problem>) -> Policy {
    let IdentityPolicy { namespace, name, spec, .. } = written;
    let name =
        PolicyName { kind: PolicyKind::IdentityPolicy, namespace: namespace.clone(), name: name.clone() };
    let mut report = Report::new(&name, problems);
    let accounts = read_accounts(spec.subject.service_accounts.as_ref());
    if let Err((field, what)) = &accounts {
        let follows =
            "the policy is about every account of the namespace and accepts nothing; correct or remove it";
        report.add(format!("spec.subject.serviceAccounts.{field}"), what, follows);
    }
    let understood = accounts.is_ok();
    let mut subject = PodSelector::namespace(namespace);
    subject.accounts = accounts.unwrap_or_default();

    let mut section = |direction: Direction, isolate: Option<bool>, rules: Vec<Written<'_>>| {
        let read = |(i, rule): (usize, Written<'_>)| read_rule(&name, direction, i, &rule, &mut report);
        let mut rules: Vec<Rule> = rules.into_iter().enumerate().map(read).collect();
        rules.retain(|rule| understood || rule.action == Action::Deny);
        let isolates = isolate.unwrap_or(true);
        Section { isolation: isolates.then(|| format!("{name} {direction} (isolation)")), rules }
    };
    let ingress = spec.ingress.as_ref().map(|ingress| {
        section(Direction::Ingress, ingress.isolate, ingress.rules.iter().map(Written::from).collect())
    });
    let egress = spec.egress.as_ref().map(|egress| {
        section(Direction::Egress, egress.isolate, egress.rules.iter().map(Written::from).collect())
    });
    Policy { name, tier: Tier::Namespace, priority: 0, mode: mode(spec.mode), subject, ingress, egress }
}
