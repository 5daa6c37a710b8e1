//! A small cluster for the scripted server, with an object of every kind, and random changes of all of them.

use serde_json::{Value, json};

use super::{Chance, Server};

/// The first address of the pods that [`change`] makes, on another node; those below are of the node `n1`.
const FIRST_ADDRESS: u64 = 10;

/// A namespace with the label `team`.
pub fn namespace(name: &str, team: u64) -> Value {
    json!({"metadata": {"name": name, "uid": name, "labels": {"team": format!("t{team}")}}})
}

/// An account of the namespace `shop` with the label `tier`.
pub fn account(name: &str, tier: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"tier": format!("t{tier}")}}})
}

/// A running pod of `shop` with the address `10.77.0.<address>`.
pub fn pod(name: &str, uid: &str, address: u64) -> Value {
    let node = if address < FIRST_ADDRESS { "n1" } else { "n2" };
    json!({"metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": name},
            "managedFields": [{"manager": "kubelet"}]},
        "spec": {"serviceAccountName": "api", "nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.77.0.{address}")}]}})
}

/// A NetworkPolicy for every pod of `shop` that lets a port in.
pub fn policy(name: &str, port: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": port}]}]}})
}

/// An IdentityPolicy for every pod of `shop` that lets an account in.
pub fn identity(name: &str, account: u64) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "IdentityPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"subject": {}, "ingress": {"rules": [
            {"action": "Accept", "from": [{"serviceAccounts": {"names": [format!("a{account}")]}}]}]}}})
}

/// A node with the address `192.0.2.<100 + number>`.
pub fn node(number: u64, label: u64) -> Value {
    json!({"metadata": {"name": format!("n{number}"), "uid": format!("n{number}"), "labels": {"zone": format!("z{label}")}},
        "spec": {"podCIDRs": [format!("10.77.{}.0/24", number - 1)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{}", 100 + number)}]}})
}

/// A service of `shop` with the cluster address `10.96.0.<number>`.
pub fn service(name: &str, number: u64, port: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"clusterIP": format!("10.96.0.{number}"), "clusterIPs": [format!("10.96.0.{number}")],
            "selector": {"app": "p1"}, "ports": [{"name": "p", "protocol": "TCP", "port": port, "targetPort": 80}]}})
}

/// Endpoints of a service of `shop`, with the address `10.77.0.<address>`.
pub fn slice(service: &str, address: u64) -> Value {
    json!({"metadata": {"name": format!("{service}-1"), "namespace": "shop", "uid": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "p", "protocol": "TCP", "port": 80}],
        "endpoints": [{"addresses": [format!("10.77.0.{address}")]}]})
}

/// A range of services, `10.<number>.0.0/16`.
pub fn service_range(name: &str, number: u64) -> Value {
    json!({"metadata": {"name": name, "uid": name}, "spec": {"cidrs": [format!("10.{number}.0.0/16")]}})
}

/// The ConfigMap of the agent.
pub fn config(mode: &str) -> Value {
    json!({"metadata": {"name": "portcullis", "namespace": "portcullis-system", "uid": "c"}, "data": {"mode": mode}})
}

/// Makes a small cluster: seven pods on the node `n1`, with the addresses from `10.77.0.2` on, all of the account
/// `shop/api`, and a policy of either kind.
pub fn fill(server: &Server) {
    server.put("namespaces", namespace("shop", 1));
    server.put("serviceaccounts", account("api", 1));
    server.put("nodes", node(1, 1));
    for i in 1..8 {
        server.put("pods", pod(&format!("p{i}"), &format!("u{i}"), i + 1));
    }
    server.put("networkpolicies", policy("np", 80));
    server.put("identitypolicies", identity("idp", 1));
}

/// Makes or changes an object. Now and then another object takes its name, and the former's end and its beginning are
/// seen at once.
fn put(server: &Server, plural: &str, mut object: Value, chance: &mut Chance, made: u64) {
    let key = super::store::key(&object);
    server.set(|shared| {
        let uid = &mut object["metadata"]["uid"];
        if chance.below(4) == 0 {
            *uid = format!("{}-{made}", uid.as_str().unwrap_or_default()).into();
            shared.store.remove(plural, &key);
        } else if let Some(old) = shared.store.get(plural, &key) {
            *uid = old["metadata"]["uid"].clone();
        }
        shared.store.put(plural, object);
    });
}

/// One random change; `made` counts them.
pub fn change(server: &Server, chance: &mut Chance, made: &mut u64) {
    *made += 1;
    let made = *made;
    let number = chance.below(6);
    let name = |what: &str| format!("{what}{number}");
    let shop = |what: &str| format!("shop/{what}{number}");
    let some = chance.below(3);
    match chance.below(24) {
        0..=4 => {
            let address = FIRST_ADDRESS + chance.below(200);
            put(server, "pods", pod(&name("q"), &name("v"), address), chance, made);
        }
        5 => server.remove("pods", &shop("q")),
        6 => put(server, "namespaces", namespace(&name("ns"), some), chance, made),
        7 => server.remove("namespaces", &format!("/ns{number}")),
        8 | 9 => put(server, "networkpolicies", policy(&name("np"), some + 80), chance, made),
        10 => server.remove("networkpolicies", &shop("np")),
        11 | 12 => put(server, "identitypolicies", identity(&name("idp"), some), chance, made),
        13 => server.remove("identitypolicies", &shop("idp")),
        14 => {
            let object = config(if chance.below(2) == 0 { "Enforce" } else { "Audit" });
            put(server, "configmaps", object, chance, made);
        }
        15 => put(server, "serviceaccounts", account(&name("a"), some), chance, made),
        16 => server.remove("serviceaccounts", &shop("a")),
        17 => put(server, "services", service(&name("s"), number + 1, some + 80), chance, made),
        18 => server.remove("services", &shop("s")),
        19 => put(server, "endpointslices", slice(&name("s"), number + 1), chance, made),
        20 => server.remove("endpointslices", &format!("shop/s{number}-1")),
        21 => put(server, "nodes", node(number + 2, some), chance, made),
        22 => server.remove("nodes", &format!("/n{}", number + 2)),
        _ => {
            let range = service_range(&format!("range{some}"), 96 + some);
            put(server, "servicecidrs", range, chance, made);
        }
    }
}
