//! What the compiler makes of an example: each line of its table, asked of the compiled maps by the judgement that runs in
//! the kernel, at both ends, for every pair of pods and addresses that the line is about.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use portcullis::identity::Numbers;
use portcullis::model::World;
use portcullis::policy::{Desired, HostMaps, compile};
use portcullis::sources::manifests;
use portcullis_common::abi::{Addr6, Endpoint, endpoint_flags};
use portcullis_common::flow::origin;
use portcullis_common::judge::{
    Family, Judgement, Maps, Metadata, Question, Serving, V4, V6, find_origin, judge_flow,
};
use portcullis_common::policy::protocol;
use portcullis_common::{Direction, Verdict};
use serde_json::{Value, json};

use super::expand::{Expanded, Node, Pod};
use super::table::{End, Expect, Host, Line, Place, Port, Protocol, Table};
use super::{Example, KUBE_DNS, Manifest, objects, text};
use crate::temp::TempDir;

/// An example, compiled by the agents of all nodes.
pub struct Judge {
    cluster: Expanded,
    agents: Vec<Agent>,
    table: Table,
}

impl Judge {
    /// Reads an example with some of its policies through the source, and compiles it.
    pub fn new(example: &Example, policies: &[Manifest]) -> Result<Self> {
        let dns = objects(KUBE_DNS)?;
        let cluster = Expanded::new(example.apps.objects.iter().chain(&dns))?;
        let world = read(&cluster, policies)?;
        let hosts = &example.table.hosts;
        let agents = cluster.nodes.iter().map(|node| Agent::new(world.clone(), node, hosts));
        let agents = agents.collect::<Result<_>>()?;
        Ok(Self { cluster, agents, table: example.table.clone() })
    }

    /// What is wrong with a line: every pair for which something else holds; empty if nothing is.
    pub fn wrong(&self, line: &Line) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut asked = 0;
        for case in self.cases(line)? {
            let found = if self.passes(&case) { Expect::Allow } else { Expect::Deny };
            asked += 1;
            if found != line.verdict {
                wrong.push(format!("{line}: {found} from {} to {}", case.source, case.destination));
            }
        }
        ensure!(asked > 0, "`{line}` is about nothing");
        Ok(wrong)
    }

    /// Every conversation that a line is about.
    fn cases(&self, line: &Line) -> Result<Vec<Case<'_>>> {
        let mut cases = Vec::new();
        match (&line.from, &line.to) {
            (End::Workload { .. }, End::Workload { .. }) => {
                for from in self.cluster.pods_of(&line.from) {
                    for to in self.cluster.pods_of(&line.to).filter(|to| to.uid != from.uid) {
                        for (source, destination) in pairs(&from.addresses, &to.addresses) {
                            cases.push(Case {
                                from: Some(from),
                                to: Some(to),
                                ..Case::new(line, source, destination)
                            });
                        }
                    }
                }
            }
            (End::Workload { .. }, to) => {
                for from in self.cluster.pods_of(&line.from) {
                    for (source, destination) in pairs(&from.addresses, &self.addresses(to, from.node)?) {
                        cases.push(Case { from: Some(from), ..Case::new(line, source, destination) });
                    }
                }
            }
            (from, End::Workload { .. }) => {
                for to in self.cluster.pods_of(&line.to) {
                    for (source, ifindex) in self.arrivals(from, to, line.port)? {
                        for (source, destination) in pairs(&[source], &to.addresses) {
                            cases.push(Case {
                                to: Some(to),
                                ifindex,
                                ..Case::new(line, source, destination)
                            });
                        }
                    }
                }
            }
            _ => bail!("`{line}`: one end must be a pod"),
        }
        Ok(cases)
    }

    /// The addresses of what is not a pod, for a pod of this node.
    fn addresses(&self, end: &End, node: usize) -> Result<Vec<IpAddr>> {
        Ok(match end {
            End::OwnNode => self.cluster.nodes[node].addresses.clone(),
            End::OtherNode => self.cluster.nodes[1 - node].addresses.clone(),
            End::Host(name) => {
                self.table.host(name).context("a host that is not declared")?.addresses.clone()
            }
            End::Workload { .. } => bail!("`{end}` is pods"),
        })
    }

    /// With which source addresses, and by which interface, packets of what is not a pod arrive at one.
    fn arrivals(&self, from: &End, to: &Pod, port: Port) -> Result<Vec<(IpAddr, u32)>> {
        let addresses = self.addresses(from, to.node)?;
        let by = |addresses: &[IpAddr], ifindex| addresses.iter().map(|&a| (a, ifindex)).collect::<Vec<_>>();
        let End::Host(name) = from else {
            return Ok(by(&addresses, if *from == End::OwnNode { GENERATED_HERE } else { UPLINK }));
        };
        let mut arrivals = by(&addresses, UPLINK);
        let here = |service: &&Value| text(service, "/metadata/namespace") == to.namespace;
        let mut services = self.cluster.services.iter().filter(here);
        if services.any(|service| masquerades_to(service, &to.labels, port)) {
            // kube-proxy puts an address of the node in its place at which the connection came in.
            arrivals.extend(self.cluster.nodes.iter().flat_map(|node| by(&node.addresses, UPLINK)));
        }
        let outside = self.table.host(name).is_some_and(|host| host.on == Place::Outside);
        ensure!(outside, "`{name}` is on every node: write own-node or other-node");
        Ok(arrivals)
    }

    /// Whether packets get through: out of the source's endpoint and into that of the destination.
    fn passes(&self, case: &Case<'_>) -> bool {
        let ask = |pod: &Pod, local, remote, opener| {
            let question = Asked { local, remote, opener, ifindex: case.ifindex, port: case.port };
            self.agents[pod.node].judge(pod, &question).decision.verdict
        };
        let out = case.from.map(|pod| ask(pod, case.source, case.destination, Direction::Egress));
        let into = case.to.map(|pod| ask(pod, case.destination, case.source, Direction::Ingress));
        out.into_iter().chain(into).all(|verdict| verdict == Verdict::Allow)
    }
}

/// One conversation.
struct Case<'a> {
    from: Option<&'a Pod>,
    to: Option<&'a Pod>,
    source: IpAddr,
    destination: IpAddr,
    /// The interface by which it comes to the destination's node.
    ifindex: u32,
    port: Port,
}

impl Case<'_> {
    const fn new(line: &Line, source: IpAddr, destination: IpAddr) -> Self {
        Self { from: None, to: None, source, destination, ifindex: UPLINK, port: line.port }
    }
}

/// Addresses of the same family.
fn pairs(sources: &[IpAddr], destinations: &[IpAddr]) -> Vec<(IpAddr, IpAddr)> {
    let all = sources.iter().flat_map(|&source| destinations.iter().map(move |&to| (source, to)));
    all.filter(|(source, to)| source.is_ipv4() == to.is_ipv4()).collect()
}

/// Index of an interface that is no pod's.
const UPLINK: u32 = 99;
/// The "interface" of what a process of the node itself sends.
const GENERATED_HERE: u32 = 0;

/// Whether a service selects pods with these labels.
pub fn selects(service: &Value, labels: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object();
    selector.is_some_and(|all| all.iter().all(|(key, value)| labels[key] == *value))
}

/// Whether a service leads to this port of pods with these labels.
pub fn leads_to(service: &Value, labels: &Value, port: Port) -> bool {
    let ports = service["spec"]["ports"].as_array();
    selects(service, labels) && ports.into_iter().flatten().any(|found| target_port(found) == Some(port))
}

/// Whether nodes send to this port of pods with these labels, with their own address, what comes from outside.
pub fn masquerades_to(service: &Value, labels: &Value, port: Port) -> bool {
    matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer")
        && text(service, "/spec/externalTrafficPolicy") != "Local"
        && leads_to(service, labels, port)
}

/// The port of the pods behind a port of a service.
pub fn target_port(port: &Value) -> Option<Port> {
    let protocol = match port["protocol"].as_str() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => return None,
    };
    let number = port["targetPort"].as_u64().or_else(|| port["port"].as_u64())?;
    Some(Port { protocol, number: u16::try_from(number).ok()? })
}

/// The world as the source tells it; the policies from the files themselves. Every problem is an error.
fn read(cluster: &Expanded, policies: &[Manifest]) -> Result<World> {
    let folder = TempDir::new()?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": cluster.objects});
    folder.write("cluster.json", &list.to_string())?;
    for manifest in policies {
        folder.write(&manifest.file.replace('/', "-"), &manifest.text)?;
    }
    let reading = manifests::read(folder.path())?;
    ensure!(reading.problems.is_empty(), "{:?}", reading.problems);
    let mut world = World::default();
    reading.objects.into_iter().for_each(|object| world.apply(object));
    Ok(world)
}

/// The agent of a node: its compiled maps.
struct Agent {
    desired: Desired,
    maps: HostMaps,
}

/// What is asked about a packet.
struct Asked {
    local: IpAddr,
    remote: IpAddr,
    opener: Direction,
    ifindex: u32,
    port: Port,
}

impl Agent {
    fn new(mut world: World, node: &Node, hosts: &[Host]) -> Result<Self> {
        let every_node = hosts.iter().filter(|host| host.on == Place::EveryNode);
        let local: BTreeSet<IpAddr> =
            every_node.flat_map(|host| &host.addresses).chain(&node.addresses).copied().collect();
        world.settings.node_name.clone_from(&node.name);
        world.settings.local_addresses = local;
        let desired = compile(&world, &mut Numbers::default());
        ensure!(desired.problems.is_empty(), "not understood: {:?}", desired.problems);
        Ok(Self { maps: HostMaps::new(&desired), desired })
    }

    fn judge(&self, pod: &Pod, asked: &Asked) -> Judgement {
        let identity = &self.desired.pods[&pod.uid];
        let mut endpoint = Endpoint {
            ifindex: 1,
            flags: endpoint_flags::KNOWN,
            principal: identity.principal,
            subject: identity.subject,
            ..Endpoint::default()
        };
        for address in &pod.addresses {
            match address {
                IpAddr::V4(v4) => endpoint.addr4_be[0] = u32::from_ne_bytes(v4.octets()),
                IpAddr::V6(v6) => endpoint.addr6[0] = Addr6::from_bytes(v6.octets()),
            }
        }
        match (asked.local, asked.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let address = |address: std::net::Ipv4Addr| u32::from_ne_bytes(address.octets());
                self.judge_as::<V4>(&endpoint, asked, address(local), address(remote))
            }
            (local, remote) => {
                let address = |address: IpAddr| match address {
                    IpAddr::V4(v4) => Addr6::from_bytes(v4.to_ipv6_mapped().octets()),
                    IpAddr::V6(v6) => Addr6::from_bytes(v6.octets()),
                };
                self.judge_as::<V6>(&endpoint, asked, address(local), address(remote))
            }
        }
    }

    fn judge_as<F: Family>(
        &self,
        endpoint: &Endpoint,
        asked: &Asked,
        local: F::Address,
        remote: F::Address,
    ) -> Judgement
    where
        HostMaps: Maps<F>,
    {
        let mut question = asked.question::<F>(local, remote);
        if question.opener == Direction::Ingress {
            let metadata = Metadata { ingress_ifindex: asked.ifindex, ..Metadata::default() };
            question.origin =
                find_origin(&self.maps, endpoint, &question, &metadata, &mut Serving::default());
        }
        judge_flow(&self.maps, endpoint, &question)
    }
}

impl Asked {
    fn question<F: Family>(&self, local: F::Address, remote: F::Address) -> Question<F> {
        const EPHEMERAL: u16 = 40_000;
        let port = self.port.number;
        let (local_port, remote_port) = match self.opener {
            Direction::Ingress => (port, EPHEMERAL),
            Direction::Egress => (EPHEMERAL, port),
        };
        Question {
            local,
            remote,
            local_port,
            remote_port,
            protocol: match self.port.protocol {
                Protocol::Tcp => protocol::TCP,
                Protocol::Udp => protocol::UDP,
            },
            opener: self.opener,
            origin: origin::ADDRESS,
        }
    }
}
