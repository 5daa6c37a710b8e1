//! The policies of large worlds: what clusters have, in fixed shares.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portcullis::model::{IdentityPolicy, NetworkPolicy, Object};

use super::{ACCOUNTS, Scale, namespace};

/// A policy of the world. Of three one is an `IdentityPolicy`.
///
/// # Panics
/// If its text is wrong.
pub fn policy(scale: Scale, i: usize) -> Object {
    let (namespace, app) = (namespace(i % scale.namespaces()), i / scale.namespaces() % ACCOUNTS);
    if i % 3 == 2 {
        Object::IdentityPolicy(identity_policy(i, namespace, app))
    } else {
        Object::NetworkPolicy(network_policy(i, namespace, app))
    }
}

/// Selects one application, lets another one of its namespace and one team in at a port; every fourth has egress rules,
/// every tenth a block with a hole.
pub fn network_policy(i: usize, namespace: String, app: usize) -> NetworkPolicy {
    let selects = |app: usize| selector("app", format!("app-{}", app % ACCOUNTS));
    let pods = |app: usize| NetworkPolicyPeer { pod_selector: Some(selects(app)), ..Default::default() };
    let team = NetworkPolicyPeer {
        namespace_selector: Some(selector("team", format!("t{}", i % 20))),
        ..Default::default()
    };
    let mut from = vec![pods(app + 1)];
    if i.is_multiple_of(2) {
        from.push(team);
    }
    if i.is_multiple_of(10) {
        let third = i / 10 % 100;
        from.push(NetworkPolicyPeer {
            ip_block: Some(IPBlock {
                cidr: format!("192.168.{third}.0/24"),
                except: Some(vec![format!("192.168.{third}.128/25")]),
            }),
            ..Default::default()
        });
    }
    let ports = vec![port("TCP", 8000 + i32::try_from(i % 50).unwrap_or_default())];
    let ingress = vec![NetworkPolicyIngressRule { from: Some(from), ports: Some(ports) }];
    let egress = i.is_multiple_of(4).then(|| {
        let everywhere =
            NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..Default::default() };
        vec![
            NetworkPolicyEgressRule { ports: None, to: Some(vec![pods(app + 2)]) },
            NetworkPolicyEgressRule { ports: Some(vec![port("UDP", 53)]), to: Some(vec![everywhere]) },
        ]
    });
    let mut policy_types = vec!["Ingress".to_owned()];
    policy_types.extend(egress.is_some().then(|| "Egress".to_owned()));
    NetworkPolicy {
        namespace,
        name: format!("np-{i}"),
        mode: None,
        spec: NetworkPolicySpec {
            pod_selector: Some(selects(app)),
            ingress: Some(ingress),
            egress,
            policy_types: Some(policy_types),
        },
    }
}

fn identity_policy(i: usize, namespace: String, app: usize) -> IdentityPolicy {
    let spec = serde_json::json!({
        "subject": {"serviceAccounts": {"names": [format!("app-{app}")]}},
        "ingress": {"rules": [
            {"name": "next", "action": "Accept",
             "from": [{"serviceAccounts": {"names": [format!("app-{}", (app + 1) % ACCOUNTS)]}}],
             "protocols": [{"tcp": {"destinationPort": {"number": 8080}}}]},
            {"name": "team", "action": if i.is_multiple_of(5) { "Deny" } else { "Accept" },
             "from": [{"serviceAccounts": {"namespaces": {"matchLabels": {"team": format!("t{}", i % 20)}},
                                            "selector": {"matchLabels": {"tier": format!("tier-{}", i % 3)}}}}]},
        ]},
    });
    IdentityPolicy {
        namespace,
        name: format!("ip-{i}"),
        generation: 1,
        spec: serde_json::from_value(spec).expect("the form of an IdentityPolicy"),
    }
}

/// One label.
pub fn selector(key: &str, value: String) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(key.to_owned(), value)])),
        ..LabelSelector::default()
    }
}

/// One port.
pub fn port(protocol: &str, number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        end_port: None,
        port: Some(IntOrString::Int(number)),
        protocol: Some(protocol.to_owned()),
    }
}
