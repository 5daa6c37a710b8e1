use serde_json::json;

use super::*;
use crate::model::{ClusterIdentityPolicy, IdentityPolicy, NetworkPolicy};
use crate::sources::kubernetes::kinds::{ClusterIdentityPolicies, IdentityPolicies, NetworkPolicies, Pods};

fn read<K: Kind>(value: &Value) -> Item<K> {
    serde_json::from_str(&value.to_string()).unwrap()
}

fn network(spec: &Value) -> (NetworkPolicy, Vec<String>) {
    let item: Item<NetworkPolicies> =
        read(&json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec}));
    match item.decoded {
        Decoded { object: Some(Object::NetworkPolicy(policy)), problems } => (policy, problems),
        other => panic!("{other:?}"),
    }
}

fn identity(spec: &Value) -> (IdentityPolicy, Vec<String>) {
    let item: Item<IdentityPolicies> =
        read(&json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec}));
    match item.decoded {
        Decoded { object: Some(Object::IdentityPolicy(policy)), problems } => (policy, problems),
        other => panic!("{other:?}"),
    }
}

fn guardrail(spec: &Value) -> (ClusterIdentityPolicy, Vec<String>) {
    let item: Item<ClusterIdentityPolicies> = read(&json!({"metadata": {"name": "p"}, "spec": spec}));
    match item.decoded {
        Decoded { object: Some(Object::ClusterIdentityPolicy(policy)), problems } => (policy, problems),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_item_of_a_list_needs_no_type_and_keeps_only_what_it_is_known_by() {
    let item: Item<Pods> = read(&json!({
        "metadata": {"name": "a", "namespace": "shop", "uid": "u1", "resourceVersion": "7", "labels": {"app": "web"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]},
        "spec": {"containers": [], "soon": {"x": 1}},
        "status": {"podIPs": [{"ip": "10.0.0.1"}]}}));
    assert_eq!(item.meta().resource_version.as_deref(), Some("7"));
    assert!(item.meta().labels.is_none());
    assert_eq!(
        item.id(),
        Id { namespace: "shop".into(), name: "a".into(), uid: "u1".into(), version: Some(7) }
    );
    let Some(Object::Pod(pod)) = item.decoded.object else { panic!("no pod") };
    assert_eq!((pod.uid.as_str(), pod.addresses.len()), ("u1", 1));
    assert_eq!(item.decoded.problems, [""; 0]);
}

#[test]
fn an_object_that_cannot_be_understood_is_no_error() {
    let item: Item<Pods> =
        read(&json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"},
        "status": {"podIPs": [{"ip": "10.0.0"}]}}));
    assert_eq!(item.decoded.object, None);
    assert_eq!(item.decoded.problems, ["field `status.podIPs[0].ip`: `10.0.0` is not an IP address"]);
    let item: Item<Pods> = read(&json!({"metadata": {"name": "a", "labels": 5}, "spec": []}));
    assert_eq!(item.decoded.object, None);
    assert_eq!(item.decoded.problems.len(), 1);
}

#[test]
fn a_policy_that_is_understood_is_left_as_it_is() {
    let spec =
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]});
    let (policy, problems) = network(&spec);
    assert_eq!((serde_json::to_value(&policy.spec).unwrap(), problems), (spec, Vec::new()));
    let (policy, problems) = identity(&json!({"subject": {}, "ingress": {"rules": []}}));
    assert_eq!(problems, [""; 0]);
    assert!(policy.spec.ingress.is_some());
}

#[test]
fn each_part_of_a_network_policy_that_is_not_understood_is_named_and_narrowed() {
    let good = json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}]});
    for (pointer, key, value, field, place, narrowed) in [
        (
            "/ingress/0/from/1",
            "cluster",
            json!("b"),
            "spec.ingress[0].from[1].cluster",
            "/ingress/0/from/1",
            json!({}),
        ),
        (
            "/ingress/0/from/1/ipBlock",
            "except",
            json!("10.1.0.0/16"),
            "spec.ingress[0].from[1].ipBlock.except",
            "/ingress/0/from/1",
            json!({}),
        ),
        (
            "/ingress/0/ports/0",
            "icmp",
            json!({}),
            "spec.ingress[0].ports[0].icmp",
            "/ingress/0/ports/0",
            json!({"protocol": "not understood"}),
        ),
        ("/ingress/0", "unless", json!([]), "spec.ingress[0].unless", "/ingress", json!([{"from": [{}]}])),
        ("", "deny", json!([{}]), "spec.deny", "/ingress", json!([{"from": [{}]}])),
        ("", "ingress", json!("all"), "spec.ingress", "/ingress", json!([{"from": [{}]}])),
        ("", "policyTypes", json!("Ingress"), "spec.policyTypes", "/policyTypes", json!(["not understood"])),
    ] {
        let mut spec = good.clone();
        spec.pointer_mut(pointer).unwrap()[key] = value;
        let (policy, problems) = network(&spec);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&format!("field `{field}`: ")), "{problems:?}");
        let found = serde_json::to_value(&policy.spec).unwrap();
        assert_eq!(found.pointer(place), Some(&narrowed), "{field}");
        assert_eq!(found["podSelector"], good["podSelector"], "{field}");
    }
    let (policy, problems) = network(&json!({"podSelector": {"matchLabel": {"app": "db"}}, "ingress": [{}]}));
    assert!(problems[0].contains("isolates every pod of its namespace and allows nothing"), "{problems:?}");
    assert!(policy.spec.pod_selector.unwrap().match_expressions.is_some());
}

#[test]
fn each_part_of_an_identity_policy_that_is_not_understood_is_named_and_narrowed() {
    let good = json!({"subject": {"serviceAccounts": {"names": ["db"]}}, "ingress": {"isolate": false, "rules": [
        {"name": "r", "action": "Accept", "from": [{"entities": ["node"]}], "protocols": [{"tcp": {}}]},
        {"action": "Deny", "from": [{"entities": ["world"]}], "protocols": [{"udp": {}}]}]}});
    let unclear = json!([{}]);
    for (pointer, key, value, field, expected) in [
        (
            "/ingress/rules/0/from/0",
            "dns",
            json!("x"),
            "spec.ingress.rules[0].from[0].dns",
            vec![
                ("/ingress/rules/0/from", unclear.clone()),
                ("/ingress/rules/0/protocols", json!([{"tcp": {}}])),
            ],
        ),
        (
            "/ingress/rules/1/from/0",
            "entities",
            json!(["moon"]),
            "spec.ingress.rules[1].from[0].entities[0]",
            vec![("/ingress/rules/1/from", unclear.clone()), ("/ingress/rules/1/action", json!("Deny"))],
        ),
        (
            "/ingress/rules/1/protocols/0",
            "icmp",
            json!({}),
            "spec.ingress.rules[1].protocols[0].icmp",
            vec![("/ingress/rules/1/protocols", unclear.clone())],
        ),
        (
            "/ingress/rules/0",
            "when",
            json!("night"),
            "spec.ingress.rules[0].when",
            vec![
                ("/ingress/rules/0/protocols", unclear.clone()),
                ("/ingress/rules/0/action", json!("Accept")),
            ],
        ),
        (
            "/ingress/rules/0",
            "action",
            json!("Reject"),
            "spec.ingress.rules[0].action",
            vec![
                ("/ingress/rules/0/action", json!("Deny")),
                ("/ingress/rules/0/from/0", json!({"entities": ["node"]})),
            ],
        ),
        (
            "/ingress",
            "unless",
            json!({}),
            "spec.ingress.unless",
            vec![("/ingress/isolate", json!(true)), ("/ingress/rules/0/protocols", unclear.clone())],
        ),
        ("/ingress", "isolate", json!("no"), "spec.ingress.isolate", vec![("/ingress/isolate", json!(true))]),
        (
            "",
            "priority",
            json!(5),
            "spec.priority",
            vec![("/ingress/isolate", json!(true)), ("/ingress/rules/1/protocols", unclear.clone())],
        ),
        (
            "/subject",
            "pods",
            json!({}),
            "spec.subject.pods",
            vec![("/subject", json!({"serviceAccounts": {"names": []}}))],
        ),
    ] {
        let mut spec = good.clone();
        spec.pointer_mut(pointer).unwrap()[key] = value;
        let (policy, problems) = identity(&spec);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&format!("field `{field}`: ")), "{field} {problems:?}");
        let found = serde_json::to_value(&policy.spec).unwrap();
        for (place, narrowed) in expected {
            assert_eq!(found.pointer(place), Some(&narrowed), "{field} {place}");
        }
    }
    let mut spec = good.clone();
    spec["mode"] = json!("Shadow");
    let (policy, problems) = identity(&spec);
    assert_eq!((policy.spec.mode, problems.len()), (None, 1));
}

#[test]
fn an_identity_policy_of_which_nothing_is_understood_closes_its_namespace() {
    for spec in [json!(null), json!("open"), json!([])] {
        let (policy, problems) = identity(&spec);
        assert!(problems[0].contains("every pod of the namespace is closed"), "{problems:?}");
        let found = serde_json::to_value(&policy.spec).unwrap();
        assert_eq!(found["subject"], json!({}));
        assert_eq!(found["ingress"], json!({"isolate": true, "rules": [{"action": "Deny", "from": [{}]}]}));
        assert_eq!(found["egress"], json!({"isolate": true, "rules": [{"action": "Deny", "to": [{}]}]}));
    }
}

#[test]
fn a_policy_with_too_many_unclear_parts_is_closed_and_does_not_vanish() {
    let rule = json!({"action": "Accept", "from": [{"moon": 1}]});
    let (policy, problems) = identity(&json!({"subject": {}, "ingress": {"rules": vec![rule; 100]}}));
    assert!(problems.last().unwrap().starts_with("more than 64 parts"), "{problems:?}");
    assert_eq!(policy.spec.ingress.unwrap().rules.len(), 1);
    let peer = json!({"moon": 1});
    let (policy, problems) = network(&json!({"podSelector": {}, "ingress": [{"from": vec![peer; 100]}]}));
    assert_eq!(problems.len(), 100, "unknown fields are found all at once");
    assert_eq!(policy.spec.ingress.unwrap()[0].from.as_ref().unwrap().len(), 100);
}

#[test]
fn each_part_of_a_cluster_identity_policy_that_is_not_understood_is_named_and_narrowed() {
    let good = json!({"tier": "Baseline", "priority": 5, "subject": {"namespaces": {"matchLabels": {"team": "shop"}}},
        "ingress": {"rules": [
            {"name": "r", "action": "Accept", "from": [{"entities": ["node"]}], "protocols": [{"tcp": {}}]},
            {"action": "Pass", "from": [{"entities": ["world"]}], "protocols": [{"udp": {}}]}]}});
    assert_eq!(guardrail(&good).1, [""; 0]);
    let unclear = json!([{}]);
    let denied = json!({"rules": [{"action": "Deny", "from": [{}]}]});
    let rules = "/ingress/rules";
    for (pointer, key, value, field, place, narrowed) in [
        ("", "tier", json!("Zone"), "spec.tier", "/tier", None),
        ("", "priority", json!("high"), "spec.priority", "/priority", None),
        ("", "priority", json!(1.5), "spec.priority", "/priority", None),
        ("/subject", "pods", json!({}), "spec.subject.pods", "/subject", Some(json!({}))),
        ("/subject", "namespaces", json!("shop"), "spec.subject.namespaces", "/subject", Some(json!({}))),
        (
            "/ingress/rules/1/from/0",
            "dns",
            json!("x"),
            "spec.ingress.rules[1].from[0].dns",
            "/ingress/rules/1/from",
            Some(unclear.clone()),
        ),
        (
            "/ingress/rules/1/protocols/0",
            "icmp",
            json!({}),
            "spec.ingress.rules[1].protocols[0].icmp",
            "/ingress/rules/1/protocols",
            Some(unclear.clone()),
        ),
        (
            "/ingress/rules/1",
            "when",
            json!("night"),
            "spec.ingress.rules[1].when",
            "/ingress/rules/1",
            Some(json!({"action": "Deny", "from": [{"entities": ["world"]}], "protocols": [{}]})),
        ),
        (
            "/ingress/rules/0",
            "when",
            json!("night"),
            "spec.ingress.rules[0].when",
            "/ingress/rules/0",
            Some(
                json!({"name": "r", "action": "Accept", "from": [{"entities": ["node"]}], "protocols": [{}]}),
            ),
        ),
        (
            "/ingress/rules/1",
            "action",
            json!("Log"),
            "spec.ingress.rules[1].action",
            "/ingress/rules/1/action",
            Some(json!("Deny")),
        ),
        ("/ingress", "isolate", json!(true), "spec.ingress.isolate", "/ingress", Some(denied.clone())),
        ("/ingress", "rules", json!("all"), "spec.ingress.rules", "/ingress", Some(denied.clone())),
        ("", "unless", json!({}), "spec.unless", "/ingress", Some(denied.clone())),
        ("", "mode", json!("Shadow"), "spec.mode", "/mode", None),
    ] {
        let mut spec = good.clone();
        spec.pointer_mut(pointer).unwrap()[key] = value;
        let (policy, problems) = guardrail(&spec);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&format!("field `{field}`: ")), "{field} {problems:?}");
        let found = serde_json::to_value(&policy.spec).unwrap();
        assert_eq!(found.pointer(place), narrowed.as_ref(), "{field} {place}");
        let other = found.pointer(rules).unwrap().as_array().unwrap().len();
        assert!(place == "/ingress" || other == 2, "{field}: the other rules stay");
        assert_eq!(found.get("egress"), None, "{field}: a direction that it does not name is not touched");
    }
    let mut spec = good.clone();
    spec.as_object_mut().unwrap().remove("subject");
    let (policy, problems) = guardrail(&spec);
    assert!(problems[0].contains("about every pod of the cluster and accepts nothing"), "{problems:?}");
    assert_eq!(serde_json::to_value(&policy.spec).unwrap()["subject"], json!({}));
}

#[test]
fn a_cluster_identity_policy_of_which_nothing_is_understood_closes_the_cluster() {
    for spec in [json!(null), json!("open"), json!([])] {
        let (policy, problems) = guardrail(&spec);
        assert!(problems[0].contains("every pod of the cluster is closed"), "{problems:?}");
        assert_eq!((policy.spec.tier, policy.spec.priority), (None, None), "before all others");
        let found = serde_json::to_value(&policy.spec).unwrap();
        assert_eq!(found["subject"], json!({"namespaces": {}}));
        assert_eq!(found["ingress"], json!({"rules": [{"action": "Deny", "from": [{}]}]}));
        assert_eq!(found["egress"], json!({"rules": [{"action": "Deny", "to": [{}]}]}));
    }
}
