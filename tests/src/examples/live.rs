//! The examples in a real cluster: what each line of a table means there, as connections to try.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::judge::{leads_to, masquerades_to, target_port};
use super::table::{End, Expect, Host, Line, Place, Port, Table};
use super::{is_workload, text};
use crate::cluster::{Cluster, names};
use crate::cluster_probe::{Check, Outcome, Probe, Protocol, Source};
use crate::traffic::Echo;

/// Pods and services of the cluster, as the API server has them.
#[derive(Debug)]
pub struct Live<'a> {
    cluster: &'a Cluster,
    pods: Vec<Pod>,
    services: Vec<Value>,
}

/// A pod with addresses of its own.
#[derive(Debug)]
struct Pod {
    namespace: String,
    name: String,
    account: String,
    labels: Value,
    node: usize,
    addresses: Vec<IpAddr>,
}

impl<'a> Live<'a> {
    /// Reads what there is.
    pub fn read(cluster: &'a Cluster) -> Result<Self> {
        let list = |what: &str| -> Result<Vec<Value>> {
            let text = cluster.kubectl(["get", what, "--all-namespaces", "--output=json"])?;
            let mut list: Value =
                serde_json::from_str(&text).with_context(|| format!("the list of {what}"))?;
            serde_json::from_value(list["items"].take()).context("a list without items")
        };
        let pods = list("pods")?;
        let pods = pods.iter().filter(|pod| {
            pod["spec"]["hostNetwork"] != true && pod["metadata"]["deletionTimestamp"].is_null()
        });
        Ok(Self { cluster, pods: pods.map(Pod::new).collect::<Result<_>>()?, services: list("services")? })
    }

    /// The pods of these namespaces by address, as the agents name them.
    pub fn addresses(&self, namespaces: &BTreeSet<&str>) -> BTreeMap<IpAddr, String> {
        let pods = self.pods.iter().filter(|pod| namespaces.contains(pod.namespace.as_str()));
        pods.flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, format!("{}/{}", pod.namespace, pod.name))))
            .collect()
    }

    /// What must come of a line.
    pub fn checks(&self, line: &Line, table: &Table, workloads: &[&Value]) -> Result<Vec<Check>> {
        let expect = match line.verdict {
            Expect::Allow => Outcome::Answer,
            Expect::Deny => Outcome::Silence,
        };
        let probes = self.probes(line, table, workloads)?;
        ensure!(!probes.is_empty(), "`{line}` is about nothing in the cluster");
        Ok(probes
            .into_iter()
            .map(|probe| Check { probe, expect: expect.clone(), what: line.to_string() })
            .collect())
    }

    fn probes(&self, line: &Line, table: &Table, workloads: &[&Value]) -> Result<Vec<Probe>> {
        let Port { protocol, number } = line.port;
        let mut probes = Vec::new();
        let mut add = |from: &Source, to: SocketAddr| probes.push(Probe { from: from.clone(), protocol, to });
        let from = self.pods_of(&line.from, workloads);
        let to = self.pods_of(&line.to, workloads);
        match (&line.from, &line.to) {
            (End::Workload { .. }, End::Workload { .. }) => {
                for from in from {
                    for to in to.iter().filter(|to| to.name != from.name || to.namespace != from.namespace) {
                        to.addresses.iter().for_each(|ip| add(&from.source(), (*ip, number).into()));
                    }
                    let frontends: BTreeSet<_> =
                        to.iter().flat_map(|to| self.frontends(to, line.port)).collect();
                    for frontend in frontends {
                        add(&from.source(), frontend);
                    }
                }
            }
            (End::Workload { .. }, end) => {
                for from in from {
                    let addresses = self.addresses_of(end, from.node, table)?;
                    for ip in addresses {
                        add(&from.source(), (ip, number).into());
                    }
                }
            }
            (End::Host(name), End::Workload { .. }) => {
                let host = table.host(name).context("a host that is not declared")?;
                for to in to {
                    let frontends = self.node_ports(to, line.port);
                    let direct = to.addresses.iter().map(|ip| SocketAddr::new(*ip, number));
                    for target in direct.chain(frontends) {
                        let same = host.addresses.iter().filter(|ip| ip.is_ipv4() == target.is_ipv4());
                        same.for_each(|ip| add(&Source::Outside(*ip), target));
                    }
                }
            }
            (end, End::Workload { .. }) => {
                for to in to {
                    for node in self.nodes(end, to.node) {
                        to.addresses.iter().for_each(|ip| add(&Source::Node(node), (*ip, number).into()));
                    }
                }
            }
            _ => bail!("`{line}`: one end must be a pod"),
        }
        Ok(probes)
    }

    /// The service accounts, or the reserved principal, behind the sender and the receiver of a line, as metrics name
    /// them.
    pub fn principals(&self, line: &Line, workloads: &[&Value]) -> [Vec<(String, String)>; 2] {
        let reserved = |name: &str| vec![(String::new(), name.to_owned())];
        let of = |end: &End| match end {
            End::OwnNode => reserved("host"),
            End::OtherNode => reserved("node"),
            End::Host(_) => reserved("world"),
            End::Workload { .. } => {
                let pods = self.pods_of(end, workloads).into_iter();
                pods.map(|pod| (pod.namespace.clone(), pod.account.clone())).collect()
            }
        };
        let mut pods = self.pods_of(&line.to, workloads).into_iter();
        let masquerades = |pod: &Pod| {
            let services = self.services.iter().filter(|s| text(s, "/metadata/namespace") == pod.namespace);
            services.into_iter().any(|service| masquerades_to(service, &pod.labels, line.port))
        };
        // Of a port that nodes masquerade to, other nodes are taken for the outside.
        if line.from == End::OtherNode && pods.any(masquerades) {
            return [reserved("world"), of(&line.to)];
        }
        [of(&line.from), of(&line.to)]
    }

    fn pods_of(&self, end: &End, workloads: &[&Value]) -> Vec<&Pod> {
        let End::Workload { namespace, name } = end else { return Vec::new() };
        let mut found = workloads.iter().filter(|object| {
            is_workload(object)
                && text(object, "/metadata/namespace") == namespace
                && text(object, "/metadata/name") == name
        });
        let Some(selector) =
            found.next().and_then(|object| object["spec"]["selector"]["matchLabels"].as_object())
        else {
            return Vec::new();
        };
        let selected = |pod: &&Pod| {
            pod.namespace == *namespace && selector.iter().all(|(key, value)| pod.labels[key] == *value)
        };
        self.pods.iter().filter(selected).collect()
    }

    fn nodes(&self, end: &End, of: usize) -> Vec<usize> {
        let own = *end == End::OwnNode;
        (0..self.cluster.nodes().len()).filter(|node| (*node == of) == own).collect()
    }

    fn addresses_of(&self, end: &End, node: usize, table: &Table) -> Result<Vec<IpAddr>> {
        if let End::Host(name) = end {
            return Ok(table.host(name).context("a host that is not declared")?.addresses.clone());
        }
        Ok(self
            .nodes(end, node)
            .into_iter()
            .flat_map(|node| both(self.cluster.node_addresses(node)))
            .collect())
    }

    fn services_for<'s>(&'s self, pod: &'s Pod, port: Port) -> impl Iterator<Item = &'s Value> {
        self.services.iter().filter(move |service| {
            text(service, "/metadata/namespace") == pod.namespace && leads_to(service, &pod.labels, port)
        })
    }

    /// The addresses and ports of services that lead to a port of a pod.
    fn frontends(&self, pod: &Pod, port: Port) -> Vec<SocketAddr> {
        let of_service = |service: &Value| {
            let ips: Vec<IpAddr> =
                serde_json::from_value(service["spec"]["clusterIPs"].clone()).unwrap_or_default();
            let ports = ports(service, port, "port");
            ips.into_iter().flat_map(move |ip| ports.clone().into_iter().map(move |port| (ip, port).into()))
        };
        self.services_for(pod, port).flat_map(of_service).collect()
    }

    /// The addresses of nodes with the node ports of services that lead to a port of a pod.
    fn node_ports(&self, pod: &Pod, port: Port) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        for service in self.services_for(pod, port) {
            let local = text(service, "/spec/externalTrafficPolicy") == "Local";
            for node in (0..self.cluster.nodes().len()).filter(|node| !local || *node == pod.node) {
                for number in ports(service, port, "nodePort") {
                    found.extend(
                        both(self.cluster.node_addresses(node)).map(|ip| SocketAddr::new(ip, number)),
                    );
                }
            }
        }
        found
    }
}

fn both((v4, v6): (std::net::Ipv4Addr, std::net::Ipv6Addr)) -> [IpAddr; 2] {
    [v4.into(), v6.into()]
}

/// The `port` or `nodePort` of a service's ports that lead to this port of pods.
fn ports(service: &Value, port: Port, field: &str) -> Vec<u16> {
    let all = service["spec"]["ports"].as_array().into_iter().flatten();
    let found =
        all.filter(|found| target_port(found) == Some(port)).filter_map(|found| found[field].as_u64());
    found.filter_map(|number| u16::try_from(number).ok()).collect()
}

impl Pod {
    fn new(object: &Value) -> Result<Self> {
        let name = text(object, "/metadata/name").to_owned();
        let ips = object["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses = ips.map(|ip| text(ip, "/ip").parse()).collect::<Result<Vec<IpAddr>, _>>();
        let node = text(object, "/spec/nodeName").strip_prefix("node").and_then(|number| number.parse().ok());
        Ok(Self {
            namespace: text(object, "/metadata/namespace").to_owned(),
            account: text(object, "/spec/serviceAccountName").to_owned(),
            labels: object["metadata"]["labels"].clone(),
            node: node.with_context(|| format!("the pod {name} has no node"))?,
            addresses: addresses.with_context(|| format!("the addresses of {name}"))?,
            name,
        })
    }

    fn source(&self) -> Source {
        Source::Pod { namespace: self.namespace.clone(), pod: self.name.clone() }
    }
}

/// Gives the hosts of a table their addresses, and servers on the ports that its lines ask for.
pub fn add_hosts(cluster: &Cluster, table: &Table) -> Result<Vec<Echo>> {
    let mut servers = Vec::new();
    for host in &table.hosts {
        match host.on {
            Place::EveryNode => {
                for node in cluster.nodes() {
                    node.place.net.ip(&on_loopback(host))?;
                }
            }
            Place::Outside => {
                cluster.outside.ip(&on_loopback(host))?;
                for ip in &host.addresses {
                    let via: IpAddr =
                        if ip.is_ipv4() { names::OUTSIDE.0.into() } else { names::OUTSIDE.1.into() };
                    for node in cluster.nodes() {
                        node.place.net.ip(&format!("route replace {ip} via {via}"))?;
                    }
                    let asked = table.expect.iter().filter(|line| line.to == End::Host(host.name.clone()));
                    let ports: BTreeSet<Port> = asked.map(|line| line.port).collect();
                    for Port { protocol, number } in ports {
                        let at = SocketAddr::new(*ip, number);
                        servers.push(match protocol {
                            Protocol::Tcp => cluster.outside.tcp_echo(at)?,
                            Protocol::Udp => cluster.outside.udp_echo(at)?,
                        });
                    }
                }
            }
        }
    }
    Ok(servers)
}

fn on_loopback(host: &Host) -> String {
    let line =
        |ip: &IpAddr| format!("addr replace {ip}/{} dev lo", if ip.is_ipv4() { "32" } else { "128 nodad" });
    host.addresses.iter().map(line).collect::<Vec<_>>().join("\n").replace(" nodad dev lo", " dev lo nodad")
}
