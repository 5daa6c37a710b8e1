//! A sample of the truth tables in the real cluster: pods with named ports on both nodes, dialled by their own addresses and
//! through cluster IPs, over both families.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::{Cluster, images, names};
use portcullis_tests::cluster_probe::{self, Check, Outcome, Probe};
use portcullis_tests::installed::{self, Wanted};
use portcullis_tests::oracle::{self, Step, StepPod, live};
use serde_json::{Value, json};

use crate::Clock;
use crate::objects::{World, from_pod, ready_when_it_listens};

/// Cells of a step that are tried, each by four addresses.
const CELLS: usize = 48;
/// The account of the pods; policies of this kind do not look at it.
const ACCOUNT: &str = "truth";

/// Replays some steps: ports by name in both directions, and a range of ports.
pub fn replay(cluster: &Cluster, clock: &Clock) -> Result<()> {
    let steps = oracle::read(&oracle::bundled())?;
    let picked = live::picks(&steps, &live::ANYWHERE[..3], false)?;
    let first = picked[0];
    cluster.apply(&crate::list(&workloads(first)))?;
    for namespace in first.namespaces.keys() {
        cluster.wait_for(namespace, "pods --all", "condition=Ready")?;
    }
    let world = World::read(cluster)?;
    clock.note("the pods of the truth tables are ready");
    for step in picked {
        let same = |(a, b): (&StepPod, &StepPod)| (a.to_string(), &a.labels) == (b.to_string(), &b.labels);
        ensure!(
            step.namespaces == first.namespaces && step.pods.iter().zip(&first.pods).all(same),
            "{}: other pods than in the step before",
            step.title
        );
        let policies = crate::list(&live::policies(step)?);
        cluster.apply(&policies)?;
        wait(cluster, &world, step)?;
        let report = cluster_probe::check(cluster, &checks(&world, step)?)?;
        clock.note(&format!("{}: {} probes, {} of them answered", step.title, report.probes, report.answers));
        ensure!(report.answers > 0 && report.answers < report.probes, "both verdicts are shown");
        report.into_result().with_context(|| step.title.clone())?;
        cluster.delete(&policies)?;
    }
    Ok(())
}

/// Waits until every agent has programmed the pods and the policies of a step, and no policies of the step before.
fn wait(cluster: &Cluster, world: &World, step: &Step) -> Result<()> {
    let namespaces: Vec<&str> = step.namespaces.keys().map(String::as_str).collect();
    let wanted: BTreeSet<_> = live::policy_names(step).into_iter().collect();
    installed::wait_for_agents(cluster, "only the policies of the step", |_, state| {
        let of_step = state.policies.iter().filter(|policy| namespaces.contains(&policy.namespace.as_str()));
        of_step.map(|policy| (policy.namespace.clone(), policy.name.clone())).collect::<BTreeSet<_>>()
            == wanted
    })?;
    let pods = world.names(&namespaces);
    installed::wait_programmed(cluster, &Wanted { policies: wanted.into_iter().collect(), pods })
}

/// The sample of cells, by every address that leads to the receiver.
fn checks(world: &World, step: &Step) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (asked, protocol) in live::cells(step, Some(CELLS)) {
        let (from, to) = (&step.pods[asked.from], &step.pods[asked.to]);
        let port = asked.port.number;
        let own = world.pod(&to.namespace, &to.name)?.map(|ip| SocketAddr::new(ip, port));
        let service = world.service(&to.namespace, &service_name(to))?;
        ensure!(service.len() == 2, "the service of {to} has {service:?}");
        let frontends = service.into_iter().map(|address| SocketAddr::new(address.ip(), port));
        let expect = if asked.wanted[2] { Outcome::Answer } else { Outcome::Silence };
        for address in own.into_iter().chain(frontends) {
            checks.push(Check {
                probe: Probe { from: from_pod(&from.namespace, &from.name), protocol, to: address },
                expect: expect.clone(),
                what: format!("{from} -> {to} {}", asked.port),
            });
        }
    }
    Ok(checks)
}

fn service_name(pod: &StepPod) -> String {
    format!("to-{}", pod.name)
}

/// Namespaces, an account in each, pods on both nodes, and a service for each pod.
fn workloads(step: &Step) -> Vec<Value> {
    let mut objects = live::namespaces(step);
    for namespace in step.namespaces.keys() {
        objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount",
                            "metadata": {"namespace": namespace, "name": ACCOUNT}}));
    }
    for (index, pod) in step.pods.iter().enumerate() {
        objects.push(pod_object(step, pod, index % 2));
        objects.push(service_object(step, pod));
    }
    objects
}

/// A container for each number: a server for TCP and UDP, ready when it answers.
fn pod_object(step: &Step, pod: &StepPod, node: usize) -> Value {
    let numbers: BTreeSet<u16> = step.served().into_iter().map(|port| port.number).collect();
    let containers: Vec<Value> = numbers
        .into_iter()
        .map(|number| {
            let ports: Vec<Value> = step
                .served()
                .into_iter()
                .filter(|port| port.number == number)
                .map(|port| {
                    json!({"name": port.container_name(), "containerPort": number,
                           "protocol": port.protocol_name()})
                })
                .collect();
            json!({
                "name": format!("serve-{number}"),
                "image": images::AGNHOST,
                "args": ["netexec", format!("--http-port={number}"), format!("--udp-port={number}")],
                "ports": ports,
                "readinessProbe": ready_when_it_listens(number),
            })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels},
        "spec": {
            "nodeName": names::node(node),
            "serviceAccountName": ACCOUNT,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "containers": containers,
        },
    })
}

/// A service of both families for one pod, whose targets are ports by name.
fn service_object(step: &Step, pod: &StepPod) -> Value {
    // kube-proxy needs a kernel that knows SCTP for the ports that no socket here can try anyway.
    let ports: Vec<Value> = step
        .served()
        .into_iter()
        .filter(|port| port.protocol_name() != "SCTP")
        .map(|port| {
            json!({"name": port.container_name(), "protocol": port.protocol_name(), "port": port.number,
                   "targetPort": port.container_name()})
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": pod.namespace, "name": service_name(pod)},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "selector": pod.labels, "ports": ports},
    })
}
