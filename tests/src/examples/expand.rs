//! What a cluster makes of the manifests, on paper: of each Deployment a pod on each of two nodes, with addresses, and of
//! each Service its addresses, node ports and endpoints. Where a pod runs must not change what holds, so every line is
//! judged on the same node and across nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::judge::{selects, target_port};
use super::table::End;
use super::{is_workload, text};

/// A node of the cluster on paper.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A pod of the cluster on paper.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The Deployment that it belongs to.
    pub workload: End,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Value,
    /// Its UID.
    pub uid: String,
    /// The index of its node.
    pub node: usize,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The cluster on paper.
#[derive(Clone, Debug)]
pub struct Expanded {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Its pods with addresses of their own.
    pub pods: Vec<Pod>,
    /// Its services, as the API server completes them.
    pub services: Vec<Value>,
    /// Nodes, pods and what the API server and its controllers make of the manifests, as objects of the API.
    pub objects: Vec<Value>,
}

const NODES: u8 = 2;

impl Expanded {
    /// Expands manifests.
    pub fn new<'a>(manifests: impl IntoIterator<Item = &'a Value>) -> Result<Self> {
        let mut expanded =
            Self { nodes: Vec::new(), pods: Vec::new(), services: Vec::new(), objects: Vec::new() };
        for index in 0..NODES {
            expanded.add_node(index);
        }
        let (workloads, others): (Vec<&Value>, Vec<&Value>) =
            manifests.into_iter().partition(|object| is_workload(object));
        for (count, workload) in workloads.into_iter().enumerate() {
            let host = u8::try_from(count + 2).context("too many workloads")?;
            for node in 0..NODES {
                expanded.add_pod(workload, node, host);
            }
        }
        let (services, others): (Vec<&Value>, Vec<&Value>) =
            others.into_iter().partition(|object| text(object, "/kind") == "Service");
        for (count, service) in services.into_iter().enumerate() {
            expanded.add_service(service, u16::try_from(count).context("too many services")?);
        }
        expanded.objects.extend(others.into_iter().cloned());
        Ok(expanded)
    }

    fn add_node(&mut self, index: u8) {
        let name = format!("node-{index}");
        let v4 = Ipv4Addr::new(10, 10, 0, 10 + index);
        let v6 = Ipv6Addr::new(0xfd10, 0x10, 0, 0, 0, 0, 0, 0x10 + u16::from(index));
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": [format!("10.244.{index}.0/24"), format!("fd24:0:0:{index}::/64")]},
            "status": {"addresses": [{"type": "InternalIP", "address": v4}, {"type": "InternalIP", "address": v6}]},
        }));
        self.nodes.push(Node { name, addresses: vec![v4.into(), v6.into()] });
    }

    fn add_pod(&mut self, workload: &Value, node: u8, host: u8) {
        let (namespace, name) = (text(workload, "/metadata/namespace"), text(workload, "/metadata/name"));
        let template = &workload["spec"]["template"];
        let mut spec = template["spec"].clone();
        let on_host = spec["hostNetwork"] == true;
        let node = usize::from(node);
        let addresses = if on_host {
            self.nodes[node].addresses.clone()
        } else {
            let network = u8::try_from(node).unwrap_or_default();
            let v6 = Ipv6Addr::new(0xfd24, 0, 0, u16::from(network), 0, 0, 0, u16::from(host));
            vec![Ipv4Addr::new(10, 244, network, host).into(), v6.into()]
        };
        spec["nodeName"] = self.nodes[node].name.clone().into();
        let pod = format!("{name}-{node}");
        let uid = format!("{namespace}/{pod}");
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": namespace, "uid": uid, "labels": template["metadata"]["labels"]},
            "spec": spec,
            "status": {"phase": "Running", "podIPs": ips},
        }));
        if !on_host {
            let workload = End::Workload { namespace: namespace.to_owned(), name: name.to_owned() };
            let labels = template["metadata"]["labels"].clone();
            self.pods.push(Pod { workload, namespace: namespace.to_owned(), labels, uid, node, addresses });
        }
    }

    /// Adds a service with what the API server gives it, and the endpoints that the controller finds for it.
    fn add_service(&mut self, service: &Value, count: u16) {
        let mut service = service.clone();
        let (v4, v6) = (
            Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 10)) + u32::from(count)),
            Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10 + count),
        );
        if text(&service, "/spec/clusterIP") != "None" {
            service["spec"]["clusterIP"] = json!(v4);
            service["spec"]["clusterIPs"] = json!([v4, v6]);
        }
        let has_node_ports = matches!(text(&service, "/spec/type"), "NodePort" | "LoadBalancer");
        let mut targets = Vec::new();
        let ports = service["spec"]["ports"].as_array_mut();
        for (node_port, port) in (30_000 + 10 * count..).zip(ports.into_iter().flatten()) {
            if has_node_ports {
                port["nodePort"] = json!(node_port);
            }
            if let Some(target) = target_port(port) {
                let (name, protocol) = (&port["name"], target.protocol.to_string().to_uppercase());
                targets.push(json!({"name": name, "protocol": protocol, "port": target.number}));
            }
        }
        let (namespace, name) = (text(&service, "/metadata/namespace"), text(&service, "/metadata/name"));
        let backends =
            self.pods.iter().filter(|pod| pod.namespace == namespace && selects(&service, &pod.labels));
        let addresses: Vec<IpAddr> = backends.flat_map(|pod| pod.addresses.iter().copied()).collect();
        for (family, of_family) in [("IPv4", true), ("IPv6", false)] {
            let addresses = addresses.iter().filter(|address| address.is_ipv4() == of_family);
            let endpoints: Vec<Value> = addresses.map(|address| json!({"addresses": [address]})).collect();
            self.objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", family.to_lowercase()), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family, "endpoints": endpoints, "ports": targets,
            }));
        }
        self.objects.push(service.clone());
        self.services.push(service);
    }

    /// The pods of a workload.
    pub fn pods_of<'a>(&'a self, workload: &End) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.workload == *workload)
    }
}
