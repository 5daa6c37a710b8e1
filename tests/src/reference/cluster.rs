//! `ClusterIdentityPolicies`: what the first rule of a tier that matches says, the same plain way.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use portcullis::api::{ClusterAction, Peer, PolicyTier, ProtocolMatch};
use portcullis::model::ClusterIdentityPolicy;
use portcullis_common::Direction;

use super::identity::{Strictness, account_matches, is_clear, possibly_matches, surely_matches};
use super::{Question, selector_matches};

/// What a rule says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Accept,
    Deny,
    Pass,
}

/// What the first rule of a tier that matches says, among the policies that are strict enough.
pub fn says(tier: PolicyTier, question: &Question<'_>, counts: impl Fn(Strictness) -> bool) -> Option<Say> {
    let of_tier = |policy: &&ClusterIdentityPolicy| {
        // Where the tier is missing, the policy is in the first one.
        policy.spec.tier.unwrap_or(PolicyTier::Admin) == tier && counts(policy.spec.mode.into())
    };
    let mut policies: Vec<&ClusterIdentityPolicy> =
        question.world.cluster_identity_policies.values().filter(of_tier).collect();
    policies.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name)));
    policies.into_iter().find_map(|policy| of_policy(policy, question))
}

/// The priority; `None`, which is less than any, where the place of the policy is unclear.
fn order(policy: &ClusterIdentityPolicy) -> Option<i32> {
    policy.spec.tier?;
    policy.spec.priority.filter(|priority| (0..=1000).contains(priority))
}

fn of_policy(policy: &ClusterIdentityPolicy, question: &Question<'_>) -> Option<Say> {
    let subject = is_subject(policy, question);
    if subject == Some(false) {
        return None;
    }
    let clear = subject.is_some() && order(policy).is_some();
    let say = |action: ClusterAction, peers: &[Peer], protocols: Option<&Vec<ProtocolMatch>>| {
        let clear = clear && (action != ClusterAction::Pass || is_clear(None, peers, protocols, question));
        match action {
            ClusterAction::Accept => {
                (clear && surely_matches(None, peers, protocols, question)).then_some(Say::Accept)
            }
            ClusterAction::Pass if clear => {
                surely_matches(None, peers, protocols, question).then_some(Say::Pass)
            }
            // What is not clear enough to be passed on is denied.
            ClusterAction::Pass => {
                possibly_matches(None, peers, protocols, question, false).then_some(Say::Deny)
            }
            ClusterAction::Deny => {
                possibly_matches(None, peers, protocols, question, true).then_some(Say::Deny)
            }
        }
    };
    match question.direction {
        Direction::Ingress => {
            let mut rules = policy.spec.ingress.iter().flat_map(|section| &section.rules);
            rules.find_map(|rule| say(rule.action, &rule.from, rule.protocols.as_ref()))
        }
        Direction::Egress => {
            let mut rules = policy.spec.egress.iter().flat_map(|section| &section.rules);
            rules.find_map(|rule| say(rule.action, &rule.to, rule.protocols.as_ref()))
        }
    }
}

/// Whether the policy is about the pod; `None`: that is unclear, and so it is about every one.
fn is_subject(policy: &ClusterIdentityPolicy, question: &Question<'_>) -> Option<bool> {
    let subject = &policy.spec.subject;
    let namespaces: &LabelSelector = subject.namespaces.as_ref()?;
    let labels = &question.world.namespaces[&question.subject.namespace].labels;
    let in_namespace = selector_matches(namespaces, labels)?;
    let account = match &subject.service_accounts {
        None => true,
        Some(accounts) => account_matches(
            question.world,
            question.subject,
            accounts.names.as_ref(),
            accounts.selector.as_ref(),
        )?,
    };
    Some(in_namespace && account)
}
