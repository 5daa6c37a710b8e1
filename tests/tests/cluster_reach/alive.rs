//! Probes of the kubelet to pods that nobody may reach and that may reach nobody.
//!
//! A probe fails where its packets are dropped, and where the machine is too busy to answer in time. The agents tell the two
//! apart: nothing between a node and such a pod may ever be denied.

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::{Cluster, names};
use portcullis_tests::eventually;
use portcullis_tests::installed::{metric, sum_of};
use portcullis_tests::lifecycle::{Denials, LivePod};
use serde_json::{Value, json};

use crate::objects::{accounts, pod};

/// The namespace.
pub const CLOSED: &str = "closed";
/// How many probes of each kind must succeed while everything is denied.
const PROBES: f64 = 4.0;
/// One that is dropped fails after so many seconds: more than the kernel takes to send a SYN for the second time.
const TIMEOUT: u32 = 5;
/// So many in a row are a failure: what is dropped is always dropped, and who is starved is so for a while.
const FAILURES: u32 = 6;
const KINDS: [&str; 3] = ["http", "tcp", "exec"];

/// Everything but policies: on each node a pod with a probe of each kind, once a second.
pub fn workloads() -> Vec<Value> {
    let mut objects = accounts(CLOSED, &["probed"]);
    for node in [0, 1] {
        let mut pod = pod(CLOSED, &format!("probed-{node}"), "probed", node, &[]);
        let image = pod["spec"]["containers"][0]["image"].clone();
        let container = |(i, kind): (usize, &str)| {
            let port = 8081 + i;
            let mut probe = match kind {
                "http" => json!({"httpGet": {"path": "/", "port": port}}),
                "tcp" => json!({"tcpSocket": {"port": port}}),
                _ => json!({"exec": {"command": ["true"]}}),
            };
            probe["periodSeconds"] = 1.into();
            probe["timeoutSeconds"] = TIMEOUT.into();
            probe["failureThreshold"] = FAILURES.into();
            // It may take its time to start, and then none.
            let mut startup = probe.clone();
            startup["failureThreshold"] = 120.into();
            json!({
                "name": kind,
                "image": image,
                "args": ["netexec", format!("--http-port={port}"), "--udp-port=-1"],
                "startupProbe": startup,
                "livenessProbe": probe,
                "readinessProbe": probe,
            })
        };
        pod["spec"]["containers"] = KINDS.into_iter().enumerate().map(container).collect();
        objects.push(pod);
    }
    objects
}

/// Nobody may reach anybody.
pub fn policies() -> Vec<Value> {
    vec![json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": CLOSED, "name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    })]
}

/// The namespaces and names of the policies.
pub fn policy_names() -> Vec<(String, String)> {
    vec![(CLOSED.to_owned(), "default-deny".to_owned())]
}

/// Waits until probes of every kind have succeeded often enough since now, and says that none was denied: while a monitor
/// watches, no packet of one; since the agents count, no pair of a node and such a pod.
pub fn hold(cluster: &Cluster) -> Result<()> {
    let denials = Denials::start(cluster)?;
    let before = counts(cluster)?;
    let enough = |(now, before): (&Count, &Count)| now.succeeded >= before.succeeded + PROBES;
    let mut now = Ok(Vec::new());
    let waited = eventually("the kubelets to probe the pods that nobody may reach", || {
        now = counts(cluster);
        now.as_ref().map_or(true, |now| now.iter().zip(&before).all(enough))
    });
    let seen = denials.finish()?;
    let now = now?;
    let failed = now.iter().zip(&before).filter(|(now, before)| now.failed > before.failed);
    failed.for_each(|(now, before)| println!("{} probes failed: {}", now.failed - before.failed, now.what));
    ensure!(seen.missed == 0, "the monitors missed {} denied packets", seen.missed);
    for node in [0, 1] {
        let pod = LivePod::ready(cluster, CLOSED, &format!("probed-{node}"))?;
        let denied: Vec<_> = seen
            .events
            .iter()
            .filter(|(_, event)| {
                [event.source.address, event.destination.address]
                    .iter()
                    .any(|end| [pod.v4, pod.v6].contains(end))
            })
            .collect();
        ensure!(denied.is_empty(), "denied at {}: {denied:?}", pod.name);
    }
    waited?;
    for node in [0, 1] {
        let pod = format!("pod/probed-{node}");
        let restarts = cluster.value(CLOSED, &pod, "{.status.containerStatuses[*].restartCount}")?;
        ensure!(restarts == "0 0 0", "containers of {pod} were started again: {restarts}");
    }
    never_denied(cluster)
}

fn never_denied(cluster: &Cluster) -> Result<()> {
    let (host, probed) = (("", "host"), (CLOSED, "probed"));
    let count = |from: (&str, &str), to: (&str, &str), verdict| {
        let labels = [
            ("source_namespace", from.0),
            ("source_service_account", from.1),
            ("destination_namespace", to.0),
            ("destination_service_account", to.1),
            ("verdict", verdict),
        ];
        metric(cluster, "portcullis_decisions_total", &labels)
    };
    ensure!(count(host, probed, "allow")? > 0.0, "the agents counted no probe");
    for (from, to) in [(host, probed), (probed, host)] {
        let denied = count(from, to, "deny")?;
        ensure!(denied == 0.0, "{denied} flows from {from:?} to {to:?} were denied");
    }
    Ok(())
}

struct Count {
    what: String,
    succeeded: f64,
    failed: f64,
}

/// What the kubelets counted, for each container and each probe.
fn counts(cluster: &Cluster) -> Result<Vec<Count>> {
    let mut counts = Vec::new();
    for node in [0, 1] {
        let path = format!("/api/v1/nodes/{}/proxy/metrics/probes", names::node(node));
        let text = cluster.kubectl(["get", "--raw", &path]).context("what the kubelet counts")?;
        let pod = format!("probed-{node}");
        for container in KINDS {
            for kind in ["Liveness", "Readiness"] {
                let sum = |result| {
                    let labels = [
                        ("namespace", CLOSED),
                        ("pod", &pod),
                        ("container", container),
                        ("probe_type", kind),
                        ("result", result),
                    ];
                    sum_of(&text, "prober_probe_total", &labels)
                };
                counts.push(Count {
                    what: format!("{kind} by {container} of {pod}"),
                    succeeded: sum("successful"),
                    failed: sum("failed") + sum("unknown"),
                });
            }
        }
    }
    Ok(counts)
}
