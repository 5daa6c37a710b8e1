//! Probes of the kubelet to pods that nobody may reach and that may reach nobody.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::{Cluster, names};
use portcullis_tests::eventually_within;
use portcullis_tests::installed::sum_of;
use serde_json::{Value, json};

use crate::objects::{accounts, pod};

/// The namespace.
pub const CLOSED: &str = "closed";
/// How many probes of each kind must succeed while everything is denied.
const PROBES: f64 = 4.0;
/// How long that may take: they come once a second.
const PATIENCE: Duration = Duration::from_secs(60);
const KINDS: [&str; 3] = ["http", "tcp", "exec"];

/// Everything but policies: on each node a pod with a probe of each kind, of which one failure is too many.
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
            probe["timeoutSeconds"] = 5.into();
            probe["failureThreshold"] = 1.into();
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

/// Waits until probes of every kind have succeeded often enough since now, and says that none has failed.
pub fn hold(cluster: &Cluster) -> Result<()> {
    let before = counts(cluster)?;
    let mut now = Ok(Vec::new());
    eventually_within(PATIENCE, "the kubelets to probe the pods that nobody may reach", || {
        now = counts(cluster);
        now.as_ref().map_or(true, |now| {
            now.iter()
                .zip(&before)
                .all(|(now, before)| now.failed > before.failed || now.succeeded >= before.succeeded + PROBES)
        })
    })?;
    for (now, before) in now?.iter().zip(&before) {
        let failed = now.failed - before.failed;
        ensure!(failed == 0.0, "{failed} probes failed: {}", now.what);
    }
    for node in [0, 1] {
        let pod = format!("pod/probed-{node}");
        let restarts = cluster.value(CLOSED, &pod, "{.status.containerStatuses[*].restartCount}")?;
        ensure!(restarts == "0 0 0", "containers of {pod} were started again: {restarts}");
        let ready = cluster.value(CLOSED, &pod, "{.status.containerStatuses[*].ready}")?;
        ensure!(ready == "true true true", "containers of {pod} are ready: {ready}");
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
