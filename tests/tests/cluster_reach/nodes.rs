//! The API server and pods on the network of their node, reached when a policy says so and only then.

use std::net::IpAddr;

use anyhow::Result;
use portcullis_tests::cluster::names;
use portcullis_tests::cluster_probe::Check;
use serde_json::{Value, json};

use crate::objects::{
    World, accept, accounts, at, blocks, checks, from_pod, node, pod, policy, server, service,
};

/// The namespace.
pub const NODES: &str = "nodes";
/// Where the pods on the nodes' network listen.
const PORT: u16 = 18_090;

/// Who may go where: the account, and its peers; without peers nowhere, and `free` has no policy.
fn callers() -> Vec<(&'static str, Option<Value>)> {
    let control: [IpAddr; 2] = [names::CONTROL_PLANE.0.into(), names::CONTROL_PLANE.1.into()];
    vec![
        ("free", None),
        ("caged", Some(json!([{"serviceAccounts": {"names": ["nobody"]}}]))),
        ("own", Some(json!([{"entities": ["host"]}]))),
        ("all", Some(json!([{"entities": ["host", "node"]}]))),
        ("first", Some(blocks(&node(0)))),
        ("control", Some(blocks(&control))),
    ]
}

/// Whether an account may go from a node to a node.
fn may(account: &str, from: usize, to: usize) -> bool {
    match account {
        "free" | "all" => true,
        "own" => from == to,
        "first" => to == 0,
        _ => false,
    }
}

/// Everything but policies.
pub fn workloads() -> Vec<Value> {
    let callers = callers();
    let names: Vec<&str> = callers.iter().map(|(account, _)| *account).chain(["server"]).collect();
    let mut objects = accounts(NODES, &names);
    objects.push(service(NODES, "server", &json!({"app": "server"}), PORT));
    for node in [0, 1] {
        let mut server = server(NODES, &format!("server-{node}"), "server", node, PORT);
        server["spec"]["hostNetwork"] = true.into();
        objects.push(server);
        let selector = json!({"app": "server", "on": names::node(node)});
        objects.push(service(NODES, &format!("server-{node}"), &selector, PORT));
        for (account, _) in &callers {
            objects.push(pod(NODES, &format!("{account}-{node}"), account, node, &["pause"]));
        }
    }
    objects
}

/// The policies.
pub fn policies() -> Vec<Value> {
    let policies = callers()
        .into_iter()
        .filter_map(|(account, peers)| Some(policy(NODES, account, "egress", &accept("egress", &peers?))));
    policies.collect()
}

/// The namespaces and names of the policies.
pub fn policy_names() -> Vec<(String, String)> {
    let with = callers().into_iter().filter(|(_, peers)| peers.is_some());
    with.map(|(account, _)| (NODES.to_owned(), account.to_owned())).collect()
}

/// Everyone to everything.
pub fn reach(world: &World) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    let api = world.service("default", "kubernetes")?;
    for from in [0, 1] {
        for (account, _) in callers() {
            let source = from_pod(NODES, &format!("{account}-{from}"));
            let mut add = |to: &[_], answered, what| all.extend(checks(&source, to, answered, what));
            for to in [0, 1] {
                let answered = may(account, from, to);
                add(&at(&node(to), PORT), answered, "a pod on the network of its node, directly");
                let service = world.service(NODES, &format!("server-{to}"))?;
                add(&service, answered, "a pod on the network of its node, through a cluster IP");
            }
            // Nobody judges again there, so all of them must be allowed.
            let answered = may(account, from, 0) && may(account, from, 1);
            add(
                &world.service(NODES, "server")?,
                answered,
                "pods on the network of both nodes, through a cluster IP",
            );
            add(&api, matches!(account, "free" | "control"), "the API server, through its cluster IP");
        }
    }
    Ok(all)
}
