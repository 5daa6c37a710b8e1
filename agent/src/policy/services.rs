//! Services: their frontends, and who stands behind each.
//!
//! Invariant: where it cannot be known which endpoint a flow will reach, or whether its node will judge it again, every
//! endpoint counts. Endpoints that policies cannot tell apart are one entry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::abi::{Addr6, NumberSpace};
use portcullis_common::policy::PortKey;
use portcullis_common::service::{
    EXPOSED, SERVICE_COMPILED, SERVICE_ENTRIES, Served, Service, ServiceEntry, ServiceKey, Tally, entry_flags,
};
use portcullis_common::{Direction, Identity, Kind};

use super::desired::{Desired, EndpointSet, Function, Problem, RowSet, function_of};
use super::ir::protocol_name;
use super::population::{Holder, Population};
use super::selector::list;
use crate::identity::Numbers;
use crate::model::{self, EndpointSlice, World};

/// The addresses of services, and whether each is only borrowed: an external one, which exists without the service.
pub fn addresses(world: &World) -> BTreeMap<IpAddr, bool> {
    let external = world.services.values().flat_map(|service| &service.external_addresses);
    let cluster = world.services.values().flat_map(|service| &service.cluster_addresses);
    external.map(|address| (*address, true)).chain(cluster.map(|address| (*address, false))).collect()
}

/// The ranges that services get their addresses from.
pub fn ranges(world: &World) -> BTreeSet<IpNet> {
    let objects = world.service_cidrs.values().flat_map(|range| &range.cidrs);
    objects.chain(&world.settings.service_cidrs).map(IpNet::trunc).collect()
}

/// The key of a frontend; an unspecified address stands for those of every node.
pub fn service_key(address: IpAddr, protocol: u8, port: u16) -> ServiceKey {
    let (address, family) = match address {
        IpAddr::V4(a) => (Addr6 { words_be: [u32::from_ne_bytes(a.octets()), 0, 0, 0] }, 4),
        IpAddr::V6(a) => (Addr6::from_bytes(a.octets()), 6),
    };
    ServiceKey { address, port, protocol, family }
}

/// The address of a frontend; unspecified: of every node.
pub fn service_address(key: &ServiceKey) -> IpAddr {
    if key.family & !EXPOSED == 4 {
        let [first, ..] = key.address.words_be;
        IpAddr::from(first.to_ne_bytes())
    } else {
        IpAddr::from(key.address.to_bytes())
    }
}

/// A frontend in words: `10.96.0.1:80/TCP`, `0.0.0.0:30080/TCP` for those of every node.
pub fn frontend_text(key: &ServiceKey) -> String {
    format!("{}/{}", SocketAddr::new(service_address(key), key.port), protocol_name(key.protocol))
}

/// The row of an endpoint set: what the rows of a subject say about all of its endpoints together.
pub fn row_of_set(rows: &RowSet, set: &EndpointSet) -> Function {
    let mut tally = Tally::default();
    for entry in &set.entries {
        let Some(function) = function_of(rows, Direction::Egress, (entry.peer, entry.kind)) else { continue };
        tally.add(entry, function.decide(PortKey::new(set.protocol, entry.port)));
    }
    let Served { decision, .. } = tally.outcome();
    Function::constant(decision)
}

/// A frontend on its way to its value.
#[derive(Default)]
struct Frontend {
    entries: BTreeSet<ServiceEntry>,
    names: BTreeSet<String>,
}

/// Fills in the frontends. The identities of all addresses must be there.
pub fn compile(world: &World, population: &Population<'_>, numbers: &mut Numbers, desired: &mut Desired) {
    let mut frontends: BTreeMap<ServiceKey, Frontend> = BTreeMap::new();
    {
        let compiler = Compiler::new(world, population, desired);
        for service in world.services.values() {
            compiler.service(service, &mut frontends);
        }
    }
    problems(world, population, desired);
    let mut sets = HashMap::new();
    for (key, Frontend { entries, names }) in frontends {
        let name = names.into_iter().collect::<Vec<_>>().join(", ");
        let value = if entries.len() > SERVICE_ENTRIES {
            let entry = set_entry(&entries, key.protocol, &name, &mut sets, numbers, desired);
            value(&key, SERVICE_COMPILED, [entry])
        } else {
            let count = u32::try_from(entries.len()).unwrap_or_default();
            value(&key, count, ordered(&entries, &desired.names.peers))
        };
        desired.services.insert(key, value);
        desired.names.services.insert(key, name);
    }
}

fn value(key: &ServiceKey, count: u32, entries: impl IntoIterator<Item = ServiceEntry>) -> Service {
    let mut value = Service { tag: key.tag(), count, ..Service::default() };
    for (to, entry) in value.entries.iter_mut().zip(entries) {
        *to = entry;
    }
    value
}

/// The entries in an order that does not depend on numbers: where several decide alike, the first one is told and counted.
fn ordered(entries: &BTreeSet<ServiceEntry>, peers: &BTreeMap<u32, String>) -> Vec<ServiceEntry> {
    let place = |entry: &ServiceEntry| (peers.get(&entry.peer), entry.port, entry.flags);
    let mut ordered: Vec<ServiceEntry> = entries.iter().copied().collect();
    ordered.sort_by(|a, b| place(a).cmp(&place(b)));
    ordered
}

/// The one entry that stands for more endpoints than a frontend can list: a peer class of their own, the same for the
/// same endpoints.
fn set_entry(
    entries: &BTreeSet<ServiceEntry>,
    protocol: u8,
    frontend: &str,
    sets: &mut HashMap<String, u32>,
    numbers: &mut Numbers,
    desired: &mut Desired,
) -> ServiceEntry {
    let mut members: Vec<String> = entries
        .iter()
        .map(|entry| {
            let class = desired.names.peers.get(&entry.peer).map_or("?", String::as_str);
            let again = if entry.is_judged_again() { " judged again" } else { "" };
            format!("({class}) on {}{again}", entry.port)
        })
        .collect();
    members.sort_unstable();
    let definition = format!("service; {} endpoints {}", protocol_name(protocol), list(members));
    let count = entries.len();
    let peer = *sets.entry(definition).or_insert_with_key(|definition| {
        let number = numbers.number(NumberSpace::Peer, definition);
        desired.names.peers.insert(number, format!("{count} kinds of endpoints of service {frontend}"));
        let entries = ordered(entries, &desired.names.peers);
        desired.sets.insert(number, Arc::new(EndpointSet { protocol, entries }));
        number
    });
    let mut principals = entries.iter().map(|entry| entry.principal);
    let first = principals.next().unwrap_or_default();
    let principal = if principals.all(|other| other == first) { first } else { Kind::Unmanaged.principal() };
    // Without a number there is no row, and an entry of no kind is denied.
    let kind = if peer == 0 { 0 } else { Kind::Service as u8 };
    ServiceEntry { peer, principal, port: 0, kind, flags: 0 }
}

/// Addresses of services that are somebody's: those stay what they are.
fn problems(world: &World, population: &Population<'_>, desired: &mut Desired) {
    for service in world.services.values() {
        for address in service.cluster_addresses.iter().chain(&service.external_addresses) {
            if let Some(Holder::Pod(pod, _)) = population.holders.get(address) {
                desired.problems.push(Problem {
                    object: format!("Service {}/{}", service.namespace, service.name),
                    field: String::new(),
                    message: format!(
                        "{address} is the address of pod {}/{}: it stays that pod's, and what is sent to it is \
                         judged as sent to the pod; give the service another address",
                        pod.namespace, pod.name
                    ),
                });
            }
        }
    }
}

struct Compiler<'a> {
    population: &'a Population<'a>,
    desired: &'a Desired,
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    /// The name of this node.
    node: &'a str,
    /// Nodes whose agent judges what comes to their pods.
    judging: BTreeSet<&'a str>,
}

impl<'a> Compiler<'a> {
    fn new(world: &'a World, population: &'a Population<'a>, desired: &'a Desired) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in world.endpoint_slices.values().filter(|slice| !slice.service.is_empty()) {
            slices.entry((slice.namespace.as_str(), slice.service.as_str())).or_default().push(slice);
        }
        let settings = &world.settings;
        let agents = world
            .pods
            .values()
            .filter(|pod| pod.judges && !pod.finished && pod.namespace == settings.namespace);
        let mut judging: BTreeSet<&str> = agents.map(|pod| pod.node.as_str()).collect();
        judging.insert(&settings.node_name);
        // Of a pod or an agent that does not say where it is nothing is known.
        judging.remove("");
        Self { population, desired, slices, node: &settings.node_name, judging }
    }

    fn service(&self, service: &model::Service, frontends: &mut BTreeMap<ServiceKey, Frontend>) {
        let slices = self.slices.get(&(service.namespace.as_str(), service.name.as_str()));
        let slices = slices.map(Vec::as_slice).unwrap_or_default();
        let families = [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::is_ipv6),
        ];
        for port in &service.ports {
            let from_outside = port.node_port.is_some() || !service.external_addresses.is_empty();
            if from_outside && !service.external_local {
                let name = format!("{}/{} from outside", service.namespace, service.name);
                self.expose(slices, port, &name, frontends);
            }
            for (any, of_family) in families {
                let cluster: Vec<IpAddr> =
                    service.cluster_addresses.iter().copied().filter(of_family).collect();
                let external: Vec<IpAddr> =
                    service.external_addresses.iter().copied().filter(of_family).collect();
                if cluster.is_empty() && external.is_empty() {
                    continue;
                }
                let entries = self.entries(slices, port, of_family);
                let name = if port.name.is_empty() {
                    format!("{}/{}", service.namespace, service.name)
                } else {
                    format!("{}/{}:{}", service.namespace, service.name, port.name)
                };
                let mut add = |address: IpAddr, number: u16, entries: &BTreeSet<ServiceEntry>| {
                    let frontend = frontends.entry(service_key(address, port.protocol, number)).or_default();
                    frontend.entries.extend(entries);
                    frontend.names.insert(name.clone());
                };
                for address in &cluster {
                    add(*address, port.port, &entries);
                }
                // What goes to these is masqueraded: the endpoint's node does not see the pod.
                let alone: BTreeSet<ServiceEntry> = entries
                    .iter()
                    .map(|entry| ServiceEntry { flags: entry.flags & !entry_flags::JUDGED_AGAIN, ..*entry })
                    .collect();
                for address in &external {
                    add(*address, port.port, &alone);
                }
                if let Some(node_port) = port.node_port {
                    add(any, node_port, &alone);
                }
            }
        }
    }

    /// Adds the addresses and ports of this node's pods to which other nodes masquerade what comes from outside.
    fn expose(
        &self,
        slices: &[&EndpointSlice],
        port: &model::ServicePort,
        name: &str,
        frontends: &mut BTreeMap<ServiceKey, Frontend>,
    ) {
        for slice in slices {
            let ports = slice.ports.iter();
            for target in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
                for address in slice.addresses.iter().filter(|address| self.is_here(address)) {
                    let key = service_key(*address, target.protocol, target.port);
                    let key = ServiceKey { family: key.family | EXPOSED, ..key };
                    frontends.entry(key).or_default().names.insert(name.to_owned());
                }
            }
        }
    }

    /// Whether an address is that of a pod of this node, or of one that does not say where it is.
    fn is_here(&self, address: &IpAddr) -> bool {
        match self.population.holders.get(address) {
            Some(Holder::Pod(pod, _)) => pod.node.is_empty() || pod.node == self.node,
            _ => false,
        }
    }

    /// The endpoints of a port, as they are seen through a cluster address.
    fn entries(
        &self,
        slices: &[&EndpointSlice],
        port: &model::ServicePort,
        of_family: fn(&IpAddr) -> bool,
    ) -> BTreeSet<ServiceEntry> {
        let mut entries = BTreeSet::new();
        for slice in slices {
            let ports = slice.ports.iter();
            for target in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
                for address in slice.addresses.iter().filter(|address| of_family(address)) {
                    let Identity { principal, peer, kind, .. } = self.desired.identity(*address);
                    let flags = if self.is_judged_again(address) { entry_flags::JUDGED_AGAIN } else { 0 };
                    entries.insert(ServiceEntry { peer, principal, port: target.port, kind, flags });
                }
            }
        }
        entries
    }

    /// Whether the node of an endpoint judges what comes to it, by the pod that it comes from.
    fn is_judged_again(&self, address: &IpAddr) -> bool {
        match self.population.holders.get(address) {
            Some(Holder::Pod(pod, _)) => self.judging.contains(pod.node.as_str()),
            _ => false,
        }
    }
}
