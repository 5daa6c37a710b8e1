//! A sample of the truth for real sockets: steps that between them have what is hard to get right, and the cells of them
//! that a plain socket can try.

use anyhow::{Context, Result};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::file::{Asked, Step};
use crate::cluster_probe::Protocol;

/// What a policy can have, and how it shows in its specification as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// For people.
    pub name: &'static str,
    /// The direction of its rules.
    direction: &'static str,
    /// What its specification has in it.
    has: &'static [&'static str],
}

/// Features that do not depend on the pods' addresses.
pub const ANYWHERE: [Feature; 5] = [
    Feature { name: "a port by name, ingress", direction: "ingress", has: &["\"port\":\"serve-"] },
    Feature { name: "a port by name, egress", direction: "egress", has: &["\"port\":\"serve-"] },
    Feature { name: "a range of ports, ingress", direction: "ingress", has: &["endPort"] },
    Feature { name: "a range of ports, egress", direction: "egress", has: &["endPort"] },
    Feature {
        name: "namespaces and pods by label",
        direction: "ingress",
        has: &["namespaceSelector\":{\"match", "podSelector\":{\"match"],
    },
];

/// Features that hold for the addresses that the file gives the pods.
pub const BY_ADDRESS: [Feature; 2] = [
    Feature { name: "a block with a hole, ingress", direction: "ingress", has: &["except"] },
    Feature { name: "a block with a hole, egress", direction: "egress", has: &["except"] },
];

/// For each feature the first step that has it in the given direction alone, and in which sockets can show both verdicts.
///
/// # Errors
/// If no step has a feature.
pub fn picks<'a>(steps: &'a [Step], features: &[Feature], addresses: bool) -> Result<Vec<&'a Step>> {
    let mut picked: Vec<&Step> = Vec::new();
    for feature in features {
        let found = steps.iter().find(|step| {
            let told = [true, false].iter().all(|wanted| {
                step.questions().filter(tried).filter(|asked| asked.wanted[2] == *wanted).count() > 10
            });
            let fits = addresses || !knows_addresses(step);
            told && fits && !picked.iter().any(|other| other.id == step.id) && has(step, feature)
        });
        picked.push(found.with_context(|| format!("no step of the file has {}", feature.name))?);
    }
    Ok(picked)
}

/// Whether the policies of a step know addresses, so that the truth holds for those of the file alone.
pub fn knows_addresses(step: &Step) -> bool {
    step.policies.iter().any(|policy| text(policy).contains("ipBlock"))
}

fn text(policy: &NetworkPolicy) -> String {
    serde_json::to_string(&policy.spec).unwrap_or_default()
}

fn has(step: &Step, feature: &Feature) -> bool {
    step.policies.iter().any(|policy| {
        let Some(spec) = &policy.spec else { return false };
        let rules = match feature.direction {
            "ingress" => serde_json::to_string(&spec.ingress),
            _ => serde_json::to_string(&spec.egress),
        };
        let rules = rules.unwrap_or_default();
        feature.has.iter().all(|what| rules.contains(what))
    })
}

/// Whether a plain socket can try it.
fn tried(asked: &Asked) -> bool {
    protocol(asked).is_some()
}

/// The protocol of a plain socket; there is none for SCTP here.
pub fn protocol(asked: &Asked) -> Option<Protocol> {
    match asked.port.protocol {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

/// The cells of a step that sockets can try: all, or about `most` with both verdicts in equal parts, spread over the table.
pub fn cells(step: &Step, most: Option<usize>) -> Vec<(Asked, Protocol)> {
    let all = || step.questions().filter_map(|asked| Some((asked, protocol(&asked)?)));
    let Some(most) = most else { return all().collect() };
    let mut sample = Vec::new();
    for wanted in [true, false] {
        let of_verdict: Vec<_> = all().filter(|(asked, _)| asked.wanted[2] == wanted).collect();
        let stride = (of_verdict.len() * 2).div_ceil(most.max(2)).max(1);
        // A stride that shares no factor with rows and ports, so that neither repeats.
        let stride = if stride.is_multiple_of(2) { stride + 1 } else { stride };
        sample.extend(of_verdict.into_iter().step_by(stride));
    }
    sample
}

/// The policies of a step as objects, each with a name that no other step's has.
pub fn policies(step: &Step) -> Result<Vec<Value>> {
    let objects = step.policies.iter().enumerate().map(|(index, policy)| {
        let mut object = serde_json::to_value(policy).context("a policy as JSON")?;
        object["apiVersion"] = "networking.k8s.io/v1".into();
        object["kind"] = "NetworkPolicy".into();
        let namespace = object["metadata"]["namespace"].take();
        object["metadata"] = json!({"name": policy_name(step, index), "namespace": namespace});
        Ok(object)
    });
    objects.collect()
}

fn policy_name(step: &Step, index: usize) -> String {
    format!("truth-{}-{}-{index}", step.id.0, step.id.1)
}

/// The namespaces and names of [`policies`].
pub fn policy_names(step: &Step) -> Vec<(String, String)> {
    let names = step.policies.iter().enumerate().map(|(index, policy)| {
        (policy.metadata.namespace.clone().unwrap_or_default(), policy_name(step, index))
    });
    names.collect()
}

/// The namespaces of a step as objects.
pub fn namespaces(step: &Step) -> Vec<Value> {
    let object = |(name, labels): (&String, _)| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    step.namespaces.iter().map(object).collect()
}
