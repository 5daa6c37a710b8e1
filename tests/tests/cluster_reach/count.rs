//! Denials in the metrics: of the node that denied, under the pair that was denied.

use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis_tests::cluster::Cluster;
use portcullis_tests::cluster_probe::{self, Outcome, Probe, Protocol, Source};
use portcullis_tests::installed::{METRICS, sum_of};
use serde_json::{Value, json};

use crate::objects::{
    World, accept, accounts, at, from_outside, from_pod, node, pod, policy, probes, server, service,
};

/// The namespace.
pub const COUNT: &str = "count";
const PORT: u16 = 9000;
/// Before a SYN is sent a second time.
const ONCE: Duration = Duration::from_millis(700);

/// Everything but policies: a vault on the first node, and callers on both.
pub fn workloads() -> Vec<Value> {
    let mut objects = accounts(COUNT, &["vault", "near", "far", "caged"]);
    objects.push(server(COUNT, "vault", "vault", 0, PORT));
    let mut vault = service(COUNT, "vault", &json!({"app": "vault"}), PORT);
    vault["spec"]["type"] = "NodePort".into();
    objects.push(vault);
    for (account, node) in [("near", 0), ("far", 1), ("caged", 1)] {
        objects.push(pod(COUNT, account, account, node, &["pause"]));
    }
    objects
}

/// The vault is for nobody; the caged one may go nowhere.
pub fn policies() -> Vec<Value> {
    let nobody = json!([{"serviceAccounts": {"names": ["nobody"]}}]);
    vec![
        policy(COUNT, "vault", "ingress", &accept("ingress", &nobody)),
        policy(COUNT, "caged", "egress", &accept("egress", &nobody)),
    ]
}

/// The namespaces and names of the policies.
pub fn policy_names() -> Vec<(String, String)> {
    ["vault", "caged"].map(|name| (COUNT.to_owned(), name.to_owned())).into()
}

/// Who is denied: namespace and account of the caller, where and in which direction it is counted.
struct Caller {
    /// What it tries.
    probes: Vec<Probe>,
    principal: (&'static str, &'static str),
    node: usize,
    direction: &'static str,
}

/// Tries everything once and compares the counters before and after.
pub fn exactly(cluster: &Cluster, world: &World) -> Result<usize> {
    let pod = at(&world.pod(COUNT, "vault")?, PORT);
    let frontends = world.service(COUNT, "vault")?;
    let inside = |account: &'static str, node, direction| {
        let source = from_pod(COUNT, account);
        let mut tried = probes(&source, Protocol::Tcp, &[&pod[..], &frontends].concat());
        tried.extend(probes(&source, Protocol::Udp, &pod));
        Caller { probes: tried, principal: (COUNT, account), node, direction }
    };
    // Directly, and by a port of either node, both of which put their own address in the client's place.
    let node_port = world.node_port(COUNT, "vault", 0)?;
    let ways = [pod.clone(), at(&node(0), node_port), at(&node(1), node_port)].concat();
    let outside = ways.iter().flat_map(|to| probes(&from_outside(to), Protocol::Tcp, &[*to])).collect();
    let callers = [
        inside("near", 0, "ingress"),
        inside("far", 0, "ingress"),
        // Its own node denies it, and the other one sees nothing of it.
        inside("caged", 1, "egress"),
        Caller { probes: outside, principal: ("", "world"), node: 0, direction: "ingress" },
        // To a port that nothing leads to from outside.
        Caller {
            probes: probes(&Source::Node(1), Protocol::Udp, &pod),
            principal: ("", "node"),
            node: 0,
            direction: "ingress",
        },
    ];
    let before = counts(cluster, &callers)?;
    let flat: Vec<&Probe> = callers.iter().flat_map(|caller| &caller.probes).collect();
    for (probe, outcome) in flat.iter().zip(cluster_probe::send(cluster, &flat, ONCE)?) {
        ensure!(outcome == Outcome::Silence, "{probe}: {outcome}");
    }
    let after = counts(cluster, &callers)?;
    for (i, caller) in callers.iter().enumerate() {
        let counted = [0, 1].map(|node| after[node][i] - before[node][i]);
        let (namespace, account) = caller.principal;
        let sent = f64::from(u16::try_from(caller.probes.len())?);
        // A busy machine may send a SYN a second time before the client gives up.
        let here = counted[caller.node];
        ensure!(
            (sent..=2.0 * sent).contains(&here) && counted[1 - caller.node] == 0.0,
            "{sent} connections of {namespace}/{account} were denied at {}, and the nodes counted {counted:?}",
            caller.direction
        );
    }
    Ok(flat.len())
}

/// What each node counted as denied, for each caller.
fn counts(cluster: &Cluster, callers: &[Caller]) -> Result<[Vec<f64>; 2]> {
    let of_node = |node| -> Result<Vec<f64>> {
        let text = cluster.http_get(node, METRICS, "/metrics")?.body;
        let count = |caller: &Caller| {
            let labels = [
                ("source_namespace", caller.principal.0),
                ("source_service_account", caller.principal.1),
                ("destination_namespace", COUNT),
                ("destination_service_account", "vault"),
                ("verdict", "deny"),
            ];
            // In the other direction nothing may be counted.
            let in_direction = [&labels[..], &[("direction", caller.direction)]].concat();
            let all = sum_of(&text, "portcullis_decisions_total", &labels);
            let right = sum_of(&text, "portcullis_decisions_total", &in_direction);
            if all > right { f64::NAN } else { right }
        };
        Ok(callers.iter().map(count).collect())
    };
    Ok([of_node(0)?, of_node(1)?])
}
