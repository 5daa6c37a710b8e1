//! The desired maps, in terms of numbers that are stable over a restart but not yet of slots and row sets: those belong
//! to the datapath, which owns what is in the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::policy::{Decision, PortKey, wildcard};
use portcullis_common::service::{Service, ServiceEntry, ServiceKey};
use portcullis_common::{Direction, Identity};

/// A finished function from protocol and port to a decision: sorted steps, the first at [`PortKey::FIRST`], neighbours
/// different. One step is a constant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    steps: Vec<(PortKey, Decision)>,
}

impl Function {
    /// The same decision for every protocol and port.
    pub fn constant(decision: Decision) -> Self {
        Self { steps: vec![(PortKey::FIRST, decision)] }
    }

    /// From steps sorted by key of which the first starts at [`PortKey::FIRST`]; equal neighbours are merged.
    ///
    /// Returns `None` for steps of another form.
    pub fn new(steps: impl IntoIterator<Item = (PortKey, Decision)>) -> Option<Self> {
        let mut merged: Vec<(PortKey, Decision)> = Vec::new();
        for (key, decision) in steps {
            match merged.last() {
                None if key != PortKey::FIRST => return None,
                Some((last, _)) if *last >= key => return None,
                Some((_, before)) if *before == decision => {}
                _ => merged.push((key, decision)),
            }
        }
        if merged.is_empty() { None } else { Some(Self { steps: merged }) }
    }

    /// The steps.
    pub fn steps(&self) -> &[(PortKey, Decision)] {
        &self.steps
    }

    /// The decision for a key.
    pub fn decide(&self, key: PortKey) -> Decision {
        let after = self.steps.partition_point(|(from, _)| *from <= key);
        self.steps[after.saturating_sub(1)].1
    }
}

/// The rows of a subject class: direction and peer (a peer class, or [`portcullis_common::policy::wildcard_of`] a kind)
/// to function. The wildcards of every kind are there in both directions (of a class that only pods elsewhere have, for
/// egress); a peer class has a row only where its function differs from that of its kind.
pub type RowSet = BTreeMap<(Direction, u32), Arc<Function>>;

/// What a peer class of a kind gets: its own row, or that of its kind.
pub fn function_of(rows: &RowSet, direction: Direction, (peer, kind): (u32, u8)) -> Option<&Arc<Function>> {
    rows.get(&(direction, peer)).or_else(|| rows.get(&(direction, wildcard(kind))))
}

/// What the longest prefix says about a net.
pub fn longest(cidrs: &BTreeMap<IpNet, Identity>, net: IpNet) -> Identity {
    let mut wanted = Some(net.trunc());
    while let Some(net) = wanted {
        if let Some(identity) = cidrs.get(&net) {
            return *identity;
        }
        wanted = net.supernet();
    }
    Identity::WORLD
}

/// More endpoints than a frontend can list. A peer class stands for them, and its row is constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSet {
    /// Transport protocol.
    pub protocol: u8,
    /// The endpoints.
    pub entries: Vec<ServiceEntry>,
}

/// What the endpoint of a pod of this node needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// `namespace/name`, for people.
    pub name: String,
    /// Number of the principal.
    pub principal: u32,
    /// Number of the subject class.
    pub subject: u32,
    /// The addresses that this pod owns: the only sources it may use, unless it routes.
    pub addresses: Vec<IpAddr>,
    /// It may forward packets of addresses outside of the cluster.
    pub routes: bool,
}

/// Something in an object that is not understood, or has no effect; nobody gains access by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// `NetworkPolicy shop/db`.
    pub object: String,
    /// `spec.ingress[0].ports[1].port`.
    pub field: String,
    /// What is wrong, what follows and what to do.
    pub message: String,
}

/// Names behind numbers, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Principal: `namespace/serviceAccount`, or a reserved name.
    pub principals: BTreeMap<u32, String>,
    /// Peer class: what all its addresses have in common, in words.
    pub peers: BTreeMap<u32, String>,
    /// Subject class: what selects it, in words.
    pub subjects: BTreeMap<u32, String>,
    /// Rule: `NetworkPolicy shop/db ingress[0]`, `IdentityPolicy shop/db ingress api`.
    pub rules: BTreeMap<u32, String>,
    /// Frontend: `shop/web:http`.
    pub services: BTreeMap<ServiceKey, String>,
}

/// Everything that shall be in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Exact addresses: pods, nodes, this host; `unmanaged` are those of pods whose namespace or service account is not
    /// known yet.
    pub ipcache: BTreeMap<IpAddr, Identity>,
    /// Prefixes, on a miss: CIDR blocks and their holes, pod ranges, and always `0.0.0.0/0` and `::/0`.
    pub cidrs: BTreeMap<IpNet, Identity>,
    /// Frontends of services.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Endpoints of frontends that have more than they can list, by peer class.
    pub sets: BTreeMap<u32, Arc<EndpointSet>>,
    /// Rows by subject class: of this node's pods in both directions, of other pods with egress rules for egress.
    pub subjects: BTreeMap<u32, Arc<RowSet>>,
    /// Pods of this node (or whose node is not said) that own an address, by UID.
    pub pods: BTreeMap<String, PodIdentity>,
    /// Names behind the numbers above.
    pub names: Names,
    /// What was not understood.
    pub problems: Vec<Problem>,
}

impl Desired {
    /// Who is behind an address: the exact entry, else the longest prefix, else the outside.
    pub fn identity(&self, address: IpAddr) -> Identity {
        self.ipcache.get(&address).copied().unwrap_or_else(|| longest(&self.cidrs, IpNet::from(address)))
    }
}
