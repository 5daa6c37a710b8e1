//! A world as manifests, so that a difference that was found can be kept as a file, and read back through the source that
//! people use.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use portcullis::model::{EndpointSlice, Node, Object, Pod, Service, TargetPort, World};
use portcullis::policy::protocol_name;
use portcullis::sources::SourceEvent;
use portcullis::sources::manifests::ManifestsSource;
use serde_json::{Value, json};

use super::objects;
use crate::poll::PATIENCE;

/// The objects of a world as YAML documents. Each is one line of JSON, which is YAML as well.
pub fn text(world: &World) -> String {
    let mut text = String::new();
    for object in objects::of(world) {
        // Writing to a text does not fail.
        let _ = writeln!(text, "---\n{}", manifest(&object));
    }
    text
}

/// Reads a folder of manifests as the agent does, once.
///
/// # Errors
/// If anything in it is not understood.
pub fn read(folder: &Path) -> Result<World> {
    let (sender, mut batches) = tokio::sync::mpsc::channel(1);
    let _source = ManifestsSource::start(folder, sender)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut world = World::default();
    loop {
        let next = runtime.block_on(async { tokio::time::timeout(PATIENCE, batches.recv()).await });
        let batch = next.context("the source does not get through the manifests")?;
        for event in batch.context("the source ended")?.events {
            match event {
                SourceEvent::Apply(object) => world.apply(object),
                SourceEvent::Delete { key, uid } => world.delete(&key, uid.as_deref()),
                SourceEvent::Problems(problems) => bail!("{problems:?}"),
                SourceEvent::Synced => return Ok(world),
            }
        }
    }
}

/// An object as people write it.
pub fn manifest(object: &Object) -> Value {
    match object {
        Object::Pod(pod) => pod_manifest(pod),
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace.name, "labels": namespace.labels},
        }),
        Object::ServiceAccount(account) => json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": account.namespace, "name": account.name, "labels": account.labels},
        }),
        Object::Node(node) => node_manifest(node),
        Object::Service(service) => service_manifest(service),
        Object::EndpointSlice(slice) => slice_manifest(slice),
        Object::ServiceCidr(range) => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": range.name}, "spec": {"cidrs": range.cidrs},
        }),
        Object::NetworkPolicy(policy) => {
            let annotations = policy.mode.as_ref().map(|mode| json!({"portcullis.dev/mode": mode}));
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": policy.namespace, "name": policy.name,
                             "annotations": annotations.unwrap_or_else(|| json!({}))},
                "spec": policy.spec,
            })
        }
        Object::IdentityPolicy(policy) => json!({
            "apiVersion": "portcullis.dev/v1alpha1", "kind": "IdentityPolicy",
            "metadata": {"namespace": policy.namespace, "name": policy.name},
            "spec": policy.spec,
        }),
        Object::ClusterIdentityPolicy(policy) => json!({
            "apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterIdentityPolicy",
            "metadata": {"name": policy.name}, "spec": policy.spec,
        }),
        Object::ClusterConfig(config) => json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": config.namespace, "name": config.name},
            "data": config.mode().map_or_else(|| json!({}), |mode| json!({"mode": mode.name()})),
        }),
    }
}

fn pod_manifest(pod: &Pod) -> Value {
    let ports: Vec<Value> = pod
        .named_ports
        .iter()
        .map(|(name, protocol, port)| {
            json!({"name": name, "protocol": protocol_name(*protocol), "containerPort": port})
        })
        .collect();
    let phase = if pod.finished { "Succeeded" } else { "Running" };
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let (minutes, seconds) = (pod.sandbox_started / 60 % 60, pod.sandbox_started % 60);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid, "labels": pod.labels},
        "spec": {
            "serviceAccountName": pod.service_account, "nodeName": pod.node, "hostNetwork": pod.host_network,
            "containers": [{"name": "c", "image": "none", "ports": ports}],
        },
        "status": {"phase": phase, "podIPs": ips,
                   "startTime": format!("1970-01-01T00:{minutes:02}:{seconds:02}Z")},
    })
}

fn node_manifest(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name, "labels": node.labels},
        "spec": {"podCIDRs": node.pod_cidrs}, "status": {"addresses": addresses},
    })
}

fn service_manifest(service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let target = match &port.target {
                TargetPort::Number(number) => json!(number),
                TargetPort::Name(name) => json!(name),
            };
            let mut object = json!({"name": port.name, "protocol": protocol_name(port.protocol),
                                    "port": port.port, "targetPort": target});
            if let Some(number) = port.node_port {
                object["nodePort"] = number.into();
            }
            object
        })
        .collect();
    let policy = if service.external_local { "Local" } else { "Cluster" };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": service.namespace, "name": service.name},
        "spec": {
            "type": "NodePort", "clusterIPs": service.cluster_addresses,
            "externalIPs": service.external_addresses, "externalTrafficPolicy": policy,
            "selector": service.selector, "ports": ports,
        },
    })
}

fn slice_manifest(slice: &EndpointSlice) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": protocol_name(port.protocol), "port": port.port}))
        .collect();
    let family = if slice.addresses.iter().any(std::net::IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"namespace": slice.namespace, "name": slice.name,
                     "labels": {"kubernetes.io/service-name": slice.service}},
        "ports": ports, "endpoints": [{"addresses": slice.addresses}],
    })
}
