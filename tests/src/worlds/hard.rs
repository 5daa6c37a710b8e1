//! Worlds that are hard in one way: what their maps take shows whether rows grow with pairs.

use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicySpec,
};
use portcullis::model::{NetworkPolicy, Object, World};

use super::policies::{port, selector};
use super::{ACCOUNTS, Scale, namespace};

/// One label on 500 namespaces of 5 accounts each, and one policy in each that lets that label in and out.
pub fn one_label_everywhere() -> World {
    let scale = Scale { pods: 5000, accounts: 5000, policies: 0, services: 0 };
    let mut world = scale.world();
    // Ten accounts a namespace in these worlds: the second five are not used.
    world.pods.retain(|_, pod| pod.service_account.as_str() < "app-5");
    for i in 0..scale.namespaces() {
        let mut all = scale.namespace(i);
        all.labels.insert("team".to_owned(), "all".to_owned());
        world.apply(Object::Namespace(all));
        let peer = || NetworkPolicyPeer {
            namespace_selector: Some(selector("team", "all".to_owned())),
            ..Default::default()
        };
        world.apply(Object::NetworkPolicy(NetworkPolicy {
            namespace: namespace(i),
            name: "all".to_owned(),
            mode: None,
            spec: NetworkPolicySpec {
                ingress: Some(vec![NetworkPolicyIngressRule { from: Some(vec![peer()]), ports: None }]),
                egress: Some(vec![NetworkPolicyEgressRule { to: Some(vec![peer()]), ports: None }]),
                pod_selector: None,
                policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            },
        }));
    }
    world
}

/// Ten thousand services of ten endpoints each.
pub fn many_services() -> World {
    Scale { pods: 10_000, accounts: 500, policies: 1000, services: 10_000 }.world()
}

/// Ten thousand policies that all name the same port.
pub fn one_port() -> World {
    let scale = Scale { pods: 10_000, accounts: 500, policies: 0, services: 0 };
    let mut world = scale.world();
    for i in 0..10_000 {
        let app = i / scale.namespaces() % ACCOUNTS;
        let from = NetworkPolicyPeer {
            pod_selector: Some(selector("app", format!("app-{}", (app + 1) % ACCOUNTS))),
            ..Default::default()
        };
        world.apply(Object::NetworkPolicy(NetworkPolicy {
            namespace: namespace(i % scale.namespaces()),
            name: format!("np-{i}"),
            mode: None,
            spec: NetworkPolicySpec {
                pod_selector: Some(selector("app", format!("app-{app}"))),
                ingress: Some(vec![NetworkPolicyIngressRule {
                    from: Some(vec![from]),
                    ports: Some(vec![port("TCP", 8080)]),
                }]),
                ..Default::default()
            },
        }));
    }
    world
}
