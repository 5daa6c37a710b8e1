//! The frontends of all services, brought up to date service by service.
//!
//! Invariant: what is desired for a frontend is what its services say together, whichever of them was looked at last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_common::abi::NumberSpace;
use portcullis_common::service::{SERVICE_COMPILED, SERVICE_ENTRIES, ServiceEntry, ServiceKey};

use super::super::desired::{Desired, EndpointSet, Problem};
use super::super::services::{
    Frontend, Serving, addresses, judging, ordered, problems, set_definition, set_entry, value,
};
use super::claims::{Claims, ServiceName};
use super::delta::Delta;
use crate::identity::Numbers;
use crate::model::{Changes, EndpointSlice, World};

/// What is known of the services.
#[derive(Default)]
pub struct Frontends {
    /// Services by an address that their slices list, with how many slices do.
    by_endpoint: HashMap<IpAddr, Vec<(ServiceName, u32)>>,
    /// Names of the slices of a service.
    slices: HashMap<ServiceName, BTreeSet<String>>,
    services: HashMap<ServiceName, Known>,
    /// The services that have a frontend.
    by_key: HashMap<ServiceKey, BTreeSet<ServiceName>>,
    sets: Sets,
    judging: BTreeSet<String>,
    dirty: BTreeSet<ServiceName>,
}

/// A service as it was looked at last.
#[derive(Default)]
struct Known {
    addresses: Vec<(IpAddr, bool)>,
    frontends: BTreeMap<ServiceKey, Frontend>,
    problems: Vec<Problem>,
}

impl Frontends {
    /// Every service of a world is to be looked at.
    pub fn new(world: &World, claims: &mut Claims) -> Self {
        let mut all = Self { judging: judging(world), ..Self::default() };
        for slice in world.endpoint_slices.values() {
            all.list(slice);
        }
        for (namespace, name) in world.services.keys() {
            all.note(world, &Arc::new((namespace.clone(), name.clone())), claims, &mut BTreeSet::new());
        }
        all
    }

    /// Takes what has changed; adds addresses that may be somebody else's now.
    pub fn take(
        &mut self,
        world: &World,
        changes: &Changes,
        claims: &mut Claims,
        dirty: &mut BTreeSet<IpAddr>,
    ) {
        for (key, before) in &changes.slices {
            if let Some(slice) = before {
                self.unlist(slice);
            }
            if let Some(slice) = world.endpoint_slices.get(key) {
                self.list(slice);
            }
        }
        for name in &changes.services {
            self.note(world, &Arc::new(name.clone()), claims, dirty);
        }
        if changes.agents {
            self.judge(world, claims);
        }
    }

    /// The identity of an address, or where its pod is, may have changed.
    pub fn moved(&mut self, address: IpAddr, claims: &Claims) {
        let listing = self.by_endpoint.get(&address).into_iter().flatten().map(|(name, _)| name);
        self.dirty.extend(listing.chain(claims.services(address)).cloned());
    }

    /// Brings what is desired up to date. Returns whether the endpoint sets, or the problems, have changed.
    pub fn update(
        &mut self,
        world: &World,
        claims: &Claims,
        desired: &mut Desired,
        numbers: &mut Numbers,
        delta: &mut Delta,
    ) -> (bool, bool) {
        let mut keys = BTreeSet::new();
        let mut reported = false;
        for name in std::mem::take(&mut self.dirty) {
            let serving = Serving { world, claims, desired, judging: &self.judging };
            let service = world.services.get(&*name);
            let slices = self.slices.get(&name).into_iter().flatten();
            let slices: Vec<&EndpointSlice> = slices
                .filter_map(|slice| world.endpoint_slices.get(&(name.0.clone(), slice.clone())))
                .collect();
            let frontends = service.map(|service| serving.frontends(service, &slices)).unwrap_or_default();
            let problems = service.map(|service| problems(service, world, claims)).unwrap_or_default();
            let known = self.services.entry(Arc::clone(&name)).or_default();
            reported |= known.problems != problems;
            known.problems = problems;
            let before = std::mem::replace(&mut known.frontends, frontends);
            for key in before.keys().chain(known.frontends.keys()) {
                if before.get(key) == known.frontends.get(key) {
                    continue;
                }
                let named = self.by_key.entry(*key).or_default();
                if known.frontends.contains_key(key) {
                    named.insert(Arc::clone(&name));
                } else {
                    named.remove(&name);
                }
                keys.insert(*key);
            }
            if service.is_none() {
                self.services.remove(&name);
            }
        }
        // The name of a class may be another one under the same number: then so is the set's.
        for key in keys {
            self.merge(key, desired, numbers);
            delta.services.insert(key);
        }
        (self.sets.settle(desired, numbers), reported)
    }

    /// What is wrong with services.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.services.values().flat_map(|known| &known.problems)
    }

    /// Decides what a frontend is.
    fn merge(&mut self, key: ServiceKey, desired: &mut Desired, numbers: &mut Numbers) {
        let names = self.by_key.get(&key).into_iter().flatten();
        let said: Vec<&Frontend> =
            names.filter_map(|name| self.services.get(name)?.frontends.get(&key)).collect();
        if said.is_empty() {
            self.by_key.remove(&key);
            desired.services.remove(&key);
            desired.names.services.remove(&key);
            self.sets.leave(&key);
            return;
        }
        let entries: BTreeSet<ServiceEntry> =
            said.iter().flat_map(|frontend| &frontend.entries).copied().collect();
        let names: BTreeSet<&str> =
            said.iter().flat_map(|frontend| &frontend.names).map(String::as_str).collect();
        let name = names.into_iter().collect::<Vec<_>>().join(", ");
        let found = if entries.len() > SERVICE_ENTRIES {
            let peer = self.sets.join(key, &entries, &name, desired, numbers);
            value(&key, SERVICE_COMPILED, [set_entry(&entries, peer)])
        } else {
            self.sets.leave(&key);
            let count = u32::try_from(entries.len()).unwrap_or_default();
            value(&key, count, ordered(&entries, &desired.names.peers))
        };
        desired.services.insert(key, found);
        desired.names.services.insert(key, name);
    }

    /// A service is new, changed or gone.
    fn note(&mut self, world: &World, name: &ServiceName, claims: &mut Claims, dirty: &mut BTreeSet<IpAddr>) {
        let now = world.services.get(&**name).map(addresses).unwrap_or_default();
        let known = self.services.entry(Arc::clone(name)).or_default();
        let before = std::mem::replace(&mut known.addresses, now);
        claims.update_service(name, &before, &known.addresses, dirty);
        self.dirty.insert(Arc::clone(name));
    }

    fn list(&mut self, slice: &EndpointSlice) {
        let Some(service) = service_of(slice) else { return };
        for address in distinct(slice) {
            let services = self.by_endpoint.entry(address).or_default();
            match services.iter_mut().find(|(name, _)| *name == service) {
                Some((_, times)) => *times += 1,
                None => services.push((Arc::clone(&service), 1)),
            }
        }
        self.slices.entry(Arc::clone(&service)).or_default().insert(slice.name.clone());
        self.dirty.insert(service);
    }

    fn unlist(&mut self, slice: &EndpointSlice) {
        let Some(service) = service_of(slice) else { return };
        for address in distinct(slice) {
            let Some(services) = self.by_endpoint.get_mut(&address) else { continue };
            for (_, times) in services.iter_mut().filter(|(name, _)| *name == service) {
                *times -= 1;
            }
            services.retain(|(_, times)| *times > 0);
            if services.is_empty() {
                self.by_endpoint.remove(&address);
            }
        }
        if let Some(names) = self.slices.get_mut(&service) {
            names.remove(&slice.name);
            if names.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// Which nodes have an agent may have changed: endpoints on those are, or are not, judged again.
    fn judge(&mut self, world: &World, claims: &Claims) {
        let before = std::mem::replace(&mut self.judging, judging(world));
        let changed: BTreeSet<&str> =
            before.symmetric_difference(&self.judging).map(String::as_str).collect();
        let moved: Vec<IpAddr> = world
            .pods
            .values()
            .filter(|pod| changed.contains(pod.node.as_str()))
            .flat_map(|pod| crate::identity::claims(world, pod))
            .collect();
        for address in moved {
            self.moved(address, claims);
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ServiceName> {
    (!slice.service.is_empty()).then(|| Arc::new((slice.namespace.clone(), slice.service.clone())))
}

fn distinct(slice: &EndpointSlice) -> BTreeSet<IpAddr> {
    slice.addresses.iter().copied().collect()
}

/// The endpoint sets that some frontend needs.
#[derive(Default)]
struct Sets {
    by_definition: HashMap<String, Set>,
    of_key: HashMap<ServiceKey, String>,
    changed: BTreeSet<String>,
}

struct Set {
    number: u32,
    endpoints: Arc<EndpointSet>,
    /// The frontends that have it, with their names.
    users: BTreeMap<ServiceKey, String>,
    /// Whether it is in what is desired, just so.
    settled: bool,
}

impl Sets {
    /// A frontend needs a set of these endpoints; returns its number.
    fn join(
        &mut self,
        key: ServiceKey,
        entries: &BTreeSet<ServiceEntry>,
        name: &str,
        desired: &Desired,
        numbers: &mut Numbers,
    ) -> u32 {
        let definition = set_definition(entries, key.protocol, &desired.names.peers);
        if self.of_key.get(&key) != Some(&definition) {
            self.leave(&key);
            self.of_key.insert(key, definition.clone());
        }
        self.changed.insert(definition.clone());
        let set = self.by_definition.entry(definition).or_insert_with_key(|definition| Set {
            number: numbers.number(NumberSpace::Peer, definition),
            endpoints: Arc::new(EndpointSet { protocol: key.protocol, entries: Vec::new() }),
            users: BTreeMap::new(),
            settled: false,
        });
        set.users.insert(key, name.to_owned());
        // The same endpoints in words can have other numbers than before.
        let entries = ordered(entries, &desired.names.peers);
        if set.endpoints.entries != entries {
            set.endpoints = Arc::new(EndpointSet { protocol: key.protocol, entries });
            set.settled = false;
        }
        set.number
    }

    /// A frontend needs no set any more.
    fn leave(&mut self, key: &ServiceKey) {
        let Some(definition) = self.of_key.remove(key) else { return };
        if let Some(set) = self.by_definition.get_mut(&definition) {
            set.users.remove(key);
            self.changed.insert(definition);
        }
    }

    /// Brings what is desired up to date; `true` if it has other sets now.
    fn settle(&mut self, desired: &mut Desired, numbers: &mut Numbers) -> bool {
        let mut changed = false;
        for definition in std::mem::take(&mut self.changed) {
            let Some(set) = self.by_definition.get_mut(&definition) else { continue };
            let Some(frontend) = set.users.values().next() else {
                if numbers.release(NumberSpace::Peer, set.number) {
                    desired.names.peers.remove(&set.number);
                }
                changed |= desired.sets.remove(&set.number).is_some();
                self.by_definition.remove(&definition);
                continue;
            };
            let count = set.endpoints.entries.len();
            let name = format!("{count} kinds of endpoints of service {frontend}");
            desired.names.peers.insert(set.number, name);
            if !std::mem::replace(&mut set.settled, true) {
                desired.sets.insert(set.number, Arc::clone(&set.endpoints));
                changed = true;
            }
        }
        changed
    }
}
