//! Every way in which a service maps its port to pods, dialled by a pod that may reach the good pods on one port, and by one
//! that may reach everybody.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use portcullis_tests::cluster::Cluster;
use portcullis_tests::cluster_probe::Check;
use serde_json::{Value, json};

use crate::objects::{World, accounts, checks, from_pod, node, pod, policy, server};

/// The namespace.
pub const MAPPINGS: &str = "mappings";
/// Its pod never gets ready.
pub const UNREADY: &str = "unready";
/// What the client may reach of the good pods.
const OPEN: u16 = 8080;
/// What it may not.
const CLOSED: u16 = 8081;
/// The ports of the services for them.
const FRONT: u16 = 80;
const BACK: u16 = 81;

const SERVERS: [(&str, bool); 2] = [("good", true), ("bad", false)];
/// Whose pods dial, and whether a policy is about them.
const CALLERS: [(&str, bool); 2] = [("client", true), ("free", false)];

/// What a service says beside its selector: each has a port for [`OPEN`].
fn mappings(server: usize) -> Vec<(&'static str, Value)> {
    let to = |target: Value| json!([{"name": "open", "port": FRONT, "targetPort": target}]);
    let numbered = || to(json!(OPEN));
    vec![
        ("number", json!({"ports": numbered()})),
        ("name", json!({"ports": to(json!("open"))})),
        (
            "several",
            json!({"ports": [
                {"name": "open", "port": FRONT, "targetPort": "open"},
                {"name": "closed", "port": BACK, "targetPort": "closed"},
            ]}),
        ),
        ("affine", json!({"ports": numbered(), "sessionAffinity": "ClientIP"})),
        ("internal-local", json!({"ports": numbered(), "internalTrafficPolicy": "Local"})),
        ("node-port", json!({"ports": numbered(), "type": "NodePort"})),
        (
            "node-port-local",
            json!({"ports": numbered(), "type": "NodePort", "externalTrafficPolicy": "Local"}),
        ),
        ("external", json!({"ports": numbered(), "externalIPs": external(server)})),
    ]
}

/// External IPs that only the nodes' proxies know.
fn external(server: usize) -> [IpAddr; 2] {
    let i = u8::try_from(server).unwrap_or_default();
    [[203, 0, 113, 80 + i].into(), [0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1 + u16::from(i)].into()]
}

fn service(namespace: &str, name: &str, mut spec: Value) -> Value {
    spec["ipFamilyPolicy"] = json!("RequireDualStack");
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// Everything but policies.
pub fn workloads() -> Vec<Value> {
    let mut objects = accounts(MAPPINGS, &["good", "bad", "client", "free"]);
    objects.extend(accounts(UNREADY, &["good"]));
    for node in [0, 1] {
        for (account, _) in SERVERS {
            let mut pod = server(MAPPINGS, &format!("{account}-{node}"), account, node, OPEN);
            let open = &mut pod["spec"]["containers"][0];
            open["ports"] = json!([{"name": "open", "containerPort": OPEN}]);
            let mut closed = open.clone();
            closed["name"] = json!("closed");
            closed["args"] = json!(["netexec", format!("--http-port={CLOSED}"), "--udp-port=-1"]);
            closed["ports"] = json!([{"name": "closed", "containerPort": CLOSED}]);
            // Its path for health says no as long as it does not serve UDP.
            closed["readinessProbe"]["httpGet"] = json!({"path": "/", "port": CLOSED});
            pod["spec"]["containers"] = json!([open, closed]);
            objects.push(pod);
        }
        for (account, _) in CALLERS {
            objects.push(pod(MAPPINGS, &format!("{account}-{node}"), account, node, &["pause"]));
        }
    }
    for (i, (account, _)) in SERVERS.iter().enumerate() {
        for (name, mut spec) in mappings(i) {
            spec["selector"] = json!({"app": account});
            objects.push(service(MAPPINGS, &format!("{account}-{name}"), spec));
        }
        // Its endpoints are written by hand, once the pods have addresses.
        objects.push(service(
            MAPPINGS,
            &format!("{account}-manual"),
            json!({"ports": [{"name": "open", "port": FRONT}]}),
        ));
    }
    // Neither is a frontend, and neither is in anybody's way.
    objects.push(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": MAPPINGS, "name": "headless"},
        "spec": {"clusterIP": "None", "selector": {"app": "good"}, "ports": [{"port": FRONT}]}}),
    );
    objects.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": MAPPINGS, "name": "elsewhere"},
        "spec": {"type": "ExternalName", "externalName": "example.com"}}));
    let mut unready = server(UNREADY, "good", "good", 1, OPEN);
    unready["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/none", "port": CLOSED}, "periodSeconds": 5});
    objects.push(unready);
    for (name, publish) in [("published", true), ("unpublished", false)] {
        let spec = json!({"selector": {"app": "good"}, "publishNotReadyAddresses": publish,
            "ports": [{"port": FRONT, "targetPort": OPEN}]});
        objects.push(service(UNREADY, name, spec));
    }
    objects
}

/// The client may reach the accounts that are called `good`, of every namespace, on one port.
pub fn policies() -> Vec<Value> {
    let rules = json!([{
        "action": "Accept",
        "to": [{"serviceAccounts": {"namespaces": {}, "names": ["good"]}}],
        "protocols": [{"tcp": {"destinationPort": {"number": OPEN}}}],
    }]);
    vec![policy(MAPPINGS, "client", "egress", &rules)]
}

/// The namespaces and names of the policies.
pub fn policy_names() -> Vec<(String, String)> {
    vec![(MAPPINGS.to_owned(), "client".to_owned())]
}

/// Writes the endpoints of the services without a selector.
pub fn link(cluster: &Cluster, world: &World) -> Result<()> {
    let mut slices = Vec::new();
    for (account, _) in SERVERS {
        for address in world.pod(MAPPINGS, &format!("{account}-0"))? {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": MAPPINGS, "name": format!("{account}-manual-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": format!("{account}-manual")},
                },
                "addressType": family,
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                "ports": [{"name": "open", "protocol": "TCP", "port": OPEN}],
            }));
        }
    }
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": slices}).to_string())?;
    Ok(())
}

/// Every caller to every service.
pub fn reach(world: &World) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    for (caller, judged) in CALLERS {
        for at in [0, 1] {
            let from = from_pod(MAPPINGS, &format!("{caller}-{at}"));
            let mut add = |targets: &[SocketAddr], answered: bool, what: &str| {
                all.extend(checks(&from, targets, answered, what));
            };
            for (i, (account, good)) in SERVERS.into_iter().enumerate() {
                let allowed = !judged || good;
                for (name, _) in mappings(i).into_iter().chain([("manual", Value::Null)]) {
                    let service = format!("{account}-{name}");
                    let targets = on_port(&world.service(MAPPINGS, &service)?, FRONT);
                    add(&targets, allowed, &service);
                }
                let several = world.service(MAPPINGS, &format!("{account}-several"))?;
                add(&on_port(&several, BACK), !judged, "the other port of a service");
                // Another node does not masquerade what comes to it with `Local`, and may send it on to a pod beside the
                // caller, whose answer does not come back by that node: with or without policies.
                for (name, nodes) in [("node-port", &[0, 1][..]), ("node-port-local", &[at][..])] {
                    let port = world.node_port(MAPPINGS, &format!("{account}-{name}"), 0)?;
                    let targets = nodes.iter().flat_map(|i| node(*i).map(|ip| SocketAddr::new(ip, port)));
                    add(&targets.collect::<Vec<_>>(), allowed, &format!("{account}, by a {name}"));
                }
                let external = external(i).map(|ip| SocketAddr::new(ip, FRONT));
                add(&external, allowed, &format!("{account}, by an external IP"));
            }
            let published = world.service(UNREADY, "published")?;
            add(&on_port(&published, FRONT), true, "a pod that is not ready, and published all the same");
        }
    }
    Ok(all)
}

fn on_port(addresses: &[SocketAddr], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(address.ip(), port)).collect()
}
