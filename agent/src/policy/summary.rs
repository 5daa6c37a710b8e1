//! What each policy does, in a few words, for people: status and dumps.

use std::collections::HashMap;

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
    let pods = alike(world);
    policies.into_iter().map(|policy| summary(world, &pods, &policy)).collect()
}

/// The pods of a namespace that selectors cannot tell apart, and how many there are.
type Alike<'w> = HashMap<(&'w str, &'w Labels), usize>;

/// The pods that policies can be about, by namespace.
fn alike(world: &World) -> HashMap<&str, Alike<'_>> {
    let mut found: HashMap<&str, Alike<'_>> = HashMap::new();
    for pod in world.pods.values().filter(|pod| !pod.host_network && !pod.finished) {
        let alike = found.entry(&pod.namespace).or_default();
        *alike.entry((&pod.service_account, &pod.labels)).or_default() += 1;
    }
    found
}

fn summary(world: &World, pods: &HashMap<&str, Alike<'_>>, policy: &Policy) -> PolicySummary {
    let label = world.namespaces.get(&policy.name.namespace).and_then(|n| n.labels.get(MODE_KEY));
    let namespace_mode = match label.map(|text| text.to_ascii_lowercase()).as_deref() {
        Some("off") => Mode::Off,
        Some("audit") => Mode::Audit,
        _ => Mode::Enforce,
    };
    let in_namespaces: Vec<&str> = match &policy.subject.namespaces {
        Namespaces::Named(name) => vec![name],
        Namespaces::Labelled(selector) => {
            let namespaces = world.namespaces.values().filter(|found| selector.matches(&found.labels));
            namespaces.map(|namespace| namespace.name.as_str()).collect()
        }
    };
    let nothing = Labels::new();
    let selected = |namespace: &str, account: &str, labels: &Labels| {
        let object = world.service_accounts.get(&(namespace.to_owned(), account.to_owned()));
        let account_labels = object.map_or(&nothing, |account| &account.labels);
        policy.subject.matches_within(labels, account, account_labels)
    };
    let within = in_namespaces.into_iter().flat_map(|namespace| {
        let alike = pods.get(namespace).into_iter().flatten();
        alike.filter(move |((account, labels), _)| selected(namespace, account, labels))
    });
    PolicySummary {
        kind: policy.name.kind.name(),
        mode: policy.mode.max(namespace_mode),
        directions: Direction::ALL.iter().copied().filter(|d| policy.section(*d).is_some()).collect(),
        pods: within.map(|(_, count)| count).sum(),
        namespace: policy.name.namespace.clone(),
        name: policy.name.name.clone(),
    }
}
