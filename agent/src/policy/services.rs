//! Services: their frontends, and who stands behind each.
//!
//! Invariant: where it cannot be known which endpoint a flow will reach, or whether its node will judge it again, every
//! endpoint counts. Endpoints that policies cannot tell apart are one entry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use portcullis_common::abi::Addr6;
use portcullis_common::policy::PortKey;
use portcullis_common::service::{EXPOSED, Served, Service, ServiceEntry, ServiceKey, Tally, entry_flags};
use portcullis_common::{Direction, Identity, Kind};

use super::compiler::{Claims, Holder};
use super::desired::{Desired, EndpointSet, Function, Problem, RowSet, function_of};
use super::ir::protocol_name;
use super::selector::list;
use crate::model::{self, EndpointSlice, Pod, World};

/// The addresses of a service, and whether each is only borrowed: an external one, which exists without the service.
pub fn addresses(service: &model::Service) -> Vec<(IpAddr, bool)> {
    let external = service.external_addresses.iter().map(|address| (*address, true));
    external.chain(service.cluster_addresses.iter().map(|address| (*address, false))).collect()
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

/// What a service has to say about one of its frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Who stands behind it.
    pub entries: BTreeSet<ServiceEntry>,
    /// What it is called; several ports of a service can share one.
    pub names: BTreeSet<String>,
}

/// The value of a frontend with so many entries.
pub fn value(key: &ServiceKey, count: u32, entries: impl IntoIterator<Item = ServiceEntry>) -> Service {
    let mut value = Service { tag: key.tag(), count, ..Service::default() };
    for (to, entry) in value.entries.iter_mut().zip(entries) {
        *to = entry;
    }
    value
}

/// The entries in an order that does not depend on numbers: where several decide alike, the first one is told and counted.
pub fn ordered(entries: &BTreeSet<ServiceEntry>, peers: &BTreeMap<u32, String>) -> Vec<ServiceEntry> {
    let place = |entry: &ServiceEntry| (peers.get(&entry.peer), entry.port, entry.flags);
    let mut ordered: Vec<ServiceEntry> = entries.iter().copied().collect();
    ordered.sort_by(|a, b| place(a).cmp(&place(b)));
    ordered
}

/// What makes an endpoint set: the same text for the same endpoints. `peers` are the names of the classes.
pub fn set_definition(
    entries: &BTreeSet<ServiceEntry>,
    protocol: u8,
    peers: &BTreeMap<u32, String>,
) -> String {
    let mut members: Vec<String> = entries
        .iter()
        .map(|entry| {
            let class = peers.get(&entry.peer).map_or("?", String::as_str);
            let again = if entry.is_judged_again() { " judged again" } else { "" };
            format!("({class}) on {}{again}", entry.port)
        })
        .collect();
    members.sort_unstable();
    format!("service; {} endpoints {}", protocol_name(protocol), list(members))
}

/// The one entry that stands for more endpoints than a frontend can list: a peer class of their own, the same for the
/// same endpoints.
pub fn set_entry(entries: &BTreeSet<ServiceEntry>, peer: u32) -> ServiceEntry {
    let mut principals = entries.iter().map(|entry| entry.principal);
    let first = principals.next().unwrap_or_default();
    let principal = if principals.all(|other| other == first) { first } else { Kind::Unmanaged.principal() };
    // Without a number there is no row, and an entry of no kind is denied.
    let kind = if peer == 0 { 0 } else { Kind::Service as u8 };
    ServiceEntry { peer, principal, port: 0, kind, flags: 0 }
}

/// Addresses of a service that are somebody's: those stay what they are.
pub fn problems(service: &model::Service, world: &World, claims: &Claims) -> Vec<Problem> {
    let mut problems = Vec::new();
    for address in service.cluster_addresses.iter().chain(&service.external_addresses) {
        if let Some(Holder::Pod(pod)) = claims.holder(world, *address) {
            problems.push(Problem {
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
    problems
}

/// Nodes whose agent judges what comes to their pods.
pub fn judging(world: &World) -> BTreeSet<String> {
    let settings = &world.settings;
    let agents =
        world.pods.values().filter(|pod| pod.judges && !pod.finished && pod.namespace == settings.namespace);
    let mut judging: BTreeSet<String> = agents.map(|pod| pod.node.clone()).collect();
    judging.insert(settings.node_name.clone());
    // Of a pod or an agent that does not say where it is nothing is known.
    judging.remove("");
    judging
}

/// What the frontends of a service are made from.
pub struct Serving<'a> {
    /// The world.
    pub world: &'a World,
    /// Who has which address.
    pub claims: &'a Claims,
    /// The identities of all addresses.
    pub desired: &'a Desired,
    /// Nodes whose agent judges what comes to their pods.
    pub judging: &'a BTreeSet<String>,
}

impl Serving<'_> {
    /// What a service has to say, with all of its slices.
    pub fn frontends(
        &self,
        service: &model::Service,
        slices: &[&EndpointSlice],
    ) -> BTreeMap<ServiceKey, Frontend> {
        let mut frontends = BTreeMap::new();
        self.service(service, slices, &mut frontends);
        frontends
    }

    fn service(
        &self,
        service: &model::Service,
        slices: &[&EndpointSlice],
        frontends: &mut BTreeMap<ServiceKey, Frontend>,
    ) {
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
        match self.claims.holder(self.world, *address) {
            Some(Holder::Pod(pod)) => is_local(self.world, pod),
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
        match self.claims.holder(self.world, *address) {
            Some(Holder::Pod(pod)) => self.judging.contains(pod.node.as_str()),
            _ => false,
        }
    }
}

/// Whether a pod is one of this node's: it runs here, or nothing says where it runs.
pub fn is_local(world: &World, pod: &Pod) -> bool {
    pod.node.is_empty() || pod.node == world.settings.node_name
}
