//! What each policy does, in a few words, for people: status and dumps.

use std::collections::BTreeSet;

use portcullis_common::Direction;
use portcullis_common::abi::Mode;

use super::ir::Policy;
use super::selector::Namespaces;
use super::{cluster_identity_policy, identity_policy, network_policy};
use crate::api::MODE_KEY;
use crate::model::{Labels, World};

/// A policy, summarized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySummary {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; empty for one of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The mode that holds for its subjects: its own or its namespace's, the more lenient. Of a policy of the whole
    /// cluster its own: the namespaces of its subjects may differ.
    pub mode: Mode,
    /// The directions that it acts on.
    pub directions: Vec<Direction>,
    /// How many known pods it selects.
    pub pods: usize,
}

/// Every policy, by kind, namespace and name.
pub fn summarize(world: &World) -> Vec<PolicySummary> {
    // What is wrong with them is reported by the compiler.
    let mut ignored = Vec::new();
    let mut policies: Vec<Policy> = Vec::new();
    if world.settings.network_policies {
        policies.extend(world.network_policies.values().map(|p| network_policy::translate(p, &mut ignored)));
    }
    policies.extend(world.identity_policies.values().map(|p| identity_policy::translate(p, &mut ignored)));
    let of_cluster = world.cluster_identity_policies.values();
    policies.extend(of_cluster.map(|p| cluster_identity_policy::translate(p, &mut ignored)));
    policies.into_iter().map(|policy| summary(world, &policy)).collect()
}

fn summary(world: &World, policy: &Policy) -> PolicySummary {
    let label = world.namespaces.get(&policy.name.namespace).and_then(|n| n.labels.get(MODE_KEY));
    let namespace_mode = match label.map(|text| text.to_ascii_lowercase()).as_deref() {
        Some("off") => Mode::Off,
        Some("audit") => Mode::Audit,
        _ => Mode::Enforce,
    };
    let nothing = Labels::new();
    let in_namespaces: BTreeSet<&str> = match &policy.subject.namespaces {
        Namespaces::Named(name) => BTreeSet::from([name.as_str()]),
        Namespaces::Labelled(selector) => {
            let namespaces =
                world.namespaces.values().filter(|namespace| selector.matches(&namespace.labels));
            namespaces.map(|namespace| namespace.name.as_str()).collect()
        }
    };
    let selected = |pod: &&crate::model::Pod| {
        let account = world.service_accounts.get(&(pod.namespace.clone(), pod.service_account.clone()));
        let labels = account.map_or(&nothing, |account| &account.labels);
        in_namespaces.contains(pod.namespace.as_str())
            && !pod.host_network
            && !pod.finished
            && policy.subject.matches_within(&pod.labels, &pod.service_account, labels)
    };
    PolicySummary {
        kind: policy.name.kind.name(),
        mode: policy.mode.max(namespace_mode),
        directions: Direction::ALL.iter().copied().filter(|d| policy.section(*d).is_some()).collect(),
        pods: world.pods.values().filter(selected).count(),
        namespace: policy.name.namespace.clone(),
        name: policy.name.name.clone(),
    }
}
