//! Who claims each address that is known exactly, and who has it.
//!
//! Invariant: who has an address depends on who claims it now, never on the order in which the claims came.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_common::Kind;

use crate::identity::{claims, is_known, started};
use crate::model::{Node, Pod, World};

/// What is behind an address.
#[derive(Clone, Copy)]
pub enum Holder<'w> {
    /// A known pod.
    Pod(&'w Pod),
    /// A node, or a pod of which not enough is known.
    Kind(Kind),
    /// A service; of a borrowed address only on the service's ports.
    Service {
        /// It is an external address, which exists without the service.
        borrowed: bool,
    },
}

/// Namespace and name of a service.
pub type ServiceName = Arc<(String, String)>;

/// The pods that claim an address, by UID. Nearly always it is one.
enum Claimants {
    One(Arc<str>),
    Many(BTreeSet<Arc<str>>),
}

/// Every claim.
#[derive(Default)]
pub struct Claims {
    pods: HashMap<IpAddr, Claimants>,
    /// Addresses of nodes and of this machine.
    fixed: BTreeMap<IpAddr, Kind>,
    /// Addresses of nodes in overlay networks.
    tunnels: BTreeMap<IpAddr, Kind>,
    /// Services, and whether each only borrows the address.
    services: HashMap<IpAddr, Vec<(ServiceName, bool)>>,
}

impl Claims {
    /// Every claim of a world, but for those of services.
    pub fn new(world: &World) -> Self {
        let mut all = Self { fixed: fixed(world), tunnels: tunnels(world), ..Self::default() };
        for pod in world.pods.values() {
            let mut uid = None;
            for address in claims(world, pod) {
                let uid = uid.get_or_insert_with(|| Arc::<str>::from(pod.uid.as_str()));
                all.claim(address, Arc::clone(uid));
            }
        }
        all
    }

    /// Every address that somebody claims.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let of_nodes = self.fixed.keys().chain(self.tunnels.keys());
        self.pods.keys().chain(of_nodes).chain(self.services.keys()).copied().collect()
    }

    /// A pod has changed that claimed these addresses `before`. Adds those whose owner may be another one now.
    pub fn update_pod(&mut self, world: &World, uid: &str, before: &[IpAddr], dirty: &mut BTreeSet<IpAddr>) {
        for address in before {
            self.disclaim(address, uid);
        }
        dirty.extend(before);
        let Some(pod) = world.pods.get(uid) else { return };
        let uid: Arc<str> = uid.into();
        for address in claims(world, pod) {
            dirty.insert(address);
            self.claim(address, Arc::clone(&uid));
        }
    }

    /// The addresses of nodes and of this machine may be others now.
    pub fn update_fixed(&mut self, world: &World, dirty: &mut BTreeSet<IpAddr>) {
        for (all, now) in [(&mut self.fixed, fixed(world)), (&mut self.tunnels, tunnels(world))] {
            let before = std::mem::replace(all, now);
            let addresses = before.keys().chain(all.keys()).copied();
            dirty.extend(addresses.filter(|address| before.get(address) != all.get(address)));
        }
    }

    /// A service has these addresses now and had those before; with each, whether it is borrowed.
    pub fn update_service(
        &mut self,
        name: &ServiceName,
        before: &[(IpAddr, bool)],
        now: &[(IpAddr, bool)],
        dirty: &mut BTreeSet<IpAddr>,
    ) {
        for (address, borrowed) in before {
            if let Some(services) = self.services.get_mut(address) {
                if let Some(at) = services.iter().position(|claim| (&claim.0, claim.1) == (name, *borrowed)) {
                    services.swap_remove(at);
                }
                if services.is_empty() {
                    self.services.remove(address);
                }
            }
        }
        for (address, borrowed) in now {
            self.services.entry(*address).or_default().push((Arc::clone(name), *borrowed));
        }
        dirty.extend(before.iter().chain(now).map(|(address, _)| *address));
    }

    /// Who has an address.
    ///
    /// Whoever may write a service may give it any address: one that is somebody's stays so. A node's address is the
    /// node's, whoever claims it; an address of this very machine is this node's. What a network plugin says of a node's
    /// tunnels comes after pods: it may be older than the pod that has the address now.
    pub fn holder<'w>(&self, world: &'w World, address: IpAddr) -> Option<Holder<'w>> {
        if let Some(kind) = self.fixed.get(&address) {
            return Some(Holder::Kind(*kind));
        }
        if let Some(pod) = self.owner(world, address) {
            return Some(if is_known(world, pod) { Holder::Pod(pod) } else { Holder::Kind(Kind::Unmanaged) });
        }
        if let Some(kind) = self.tunnels.get(&address) {
            return Some(Holder::Kind(*kind));
        }
        let services = self.services.get(&address)?;
        Some(Holder::Service { borrowed: services.iter().all(|(_, borrowed)| *borrowed) })
    }

    /// The pods that claim an address.
    pub fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        let (one, many) = match self.pods.get(&address) {
            None => (None, None),
            Some(Claimants::One(uid)) => (Some(uid), None),
            Some(Claimants::Many(uids)) => (None, Some(uids)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The services that have an address.
    pub fn services(&self, address: IpAddr) -> impl Iterator<Item = &ServiceName> {
        self.services.get(&address).into_iter().flatten().map(|(name, _)| name)
    }

    fn owner<'w>(&self, world: &'w World, address: IpAddr) -> Option<&'w Pod> {
        let pods = self.claimants(address).filter_map(|uid| world.pods.get(&**uid));
        pods.max_by_key(|pod| (started(world, pod, address), &pod.uid))
    }

    fn claim(&mut self, address: IpAddr, uid: Arc<str>) {
        match self.pods.entry(address) {
            std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(Claimants::One(uid))),
            std::collections::hash_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                Claimants::One(first) => {
                    let both = BTreeSet::from([Arc::clone(first), uid]);
                    entry.insert(Claimants::Many(both));
                }
                Claimants::Many(uids) => drop(uids.insert(uid)),
            },
        }
    }

    fn disclaim(&mut self, address: &IpAddr, uid: &str) {
        match self.pods.get_mut(address) {
            Some(Claimants::One(only)) if **only == *uid => drop(self.pods.remove(address)),
            Some(Claimants::Many(uids)) => {
                uids.remove(uid);
                if uids.len() < 2
                    && let Some(only) = uids.pop_first()
                {
                    self.pods.insert(*address, Claimants::One(only));
                }
            }
            _ => {}
        }
    }
}

/// The addresses of nodes and of this machine.
fn fixed(world: &World) -> BTreeMap<IpAddr, Kind> {
    let mut fixed = of_nodes(world, |node| &node.addresses);
    fixed.extend(world.settings.local_addresses.iter().map(|&address| (address, Kind::Host)));
    fixed
}

/// The addresses of nodes in overlay networks.
fn tunnels(world: &World) -> BTreeMap<IpAddr, Kind> {
    of_nodes(world, |node| &node.tunnel_addresses)
}

/// Addresses of nodes; one that several have is this node's.
fn of_nodes(world: &World, addresses: fn(&Node) -> &Vec<IpAddr>) -> BTreeMap<IpAddr, Kind> {
    let settings = &world.settings;
    let is_here = |name: &String| !settings.node_name.is_empty() && *name == settings.node_name;
    let mut all = BTreeMap::new();
    for here in [false, true] {
        let nodes = world.nodes.values().filter(|node| is_here(&node.name) == here);
        let kind = if here { Kind::Host } else { Kind::Node };
        all.extend(nodes.flat_map(addresses).map(|&address| (address, kind)));
    }
    all
}
