//! The compiler: from the world to the desired maps, but for the numbers that it asks for.
//!
//! Policies are translated ([`super::ir`]) and linked ([`super::linked`]); pods are matched with them in groups
//! ([`groups`]); addresses fall into peer classes ([`super::classes`]), pods into subject classes ([`subjects`]), and each
//! subject class gets its rows by way of the tiers ([`super::tiers`]).
//!
//! It keeps what it found, and a change is one of the addresses that it makes *dirty*: they are looked at again, what they
//! no longer have is given back, and only rows of classes that came or went are written. A world that is compiled from
//! nothing is one in which every address is dirty, so there is one way for both.
//!
//! Invariant: after any series of changes what is desired is what compiling the world from nothing gives, but for the
//! numbers behind the names.

mod claims;
mod delta;
mod frontends;
mod groups;
mod subjects;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::abi::{Mode, NumberSpace};
use portcullis_common::identity::identity_flags;
use portcullis_common::{Identity, Kind};

pub use claims::{Claims, Holder};
pub use delta::Delta;

use super::blocks::Regions;
use super::classes::{PeerClass, PeerClasses, PeerId, Reach, used_ports};
use super::compile::{namespace_modes, policies_in_force};
use super::desired::{Desired, Function, PodIdentity, Problem};
use super::linked::Linked;
use super::services::is_local;
use super::subjects::SubjectClass;
use super::{cluster_config, services};
use crate::identity::Numbers;
use crate::model::{Changes, World};
use frontends::Frontends;
use groups::{GroupId, Groups, Matching};
use subjects::{SubjectId, Subjects};

/// What is known about a world, and what follows.
#[derive(Default)]
pub struct Compiler {
    /// What the maps shall hold.
    desired: Desired,
    linked: Linked,
    modes: HashMap<String, Mode>,
    /// Blocks that contain every address of a family, ascending. What tells peers apart is not to be in one.
    families: Arc<[u32]>,
    regions: Regions,
    /// The ranges that the regions were made from.
    ranges: Ranges,
    claims: Claims,
    groups: Groups,
    peers: PeerClasses,
    subjects: Subjects,
    frontends: Frontends,
    records: HashMap<IpAddr, Record>,
    functions: HashSet<Arc<Function>>,
    /// What was not understood in policies and namespaces.
    policy_problems: Vec<Problem>,
    /// How many functions there were after those of nobody were dropped.
    swept: usize,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("addresses", &self.records.len()).finish_non_exhaustive()
    }
}

/// The pod ranges and the service ranges.
type Ranges = (BTreeSet<IpNet>, BTreeSet<IpNet>);

/// What an address was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    peer: PeerId,
    subject: Option<SubjectId>,
    group: Option<GroupId>,
    /// It is a pod's of this node.
    local: bool,
    borrowed: bool,
}

impl Compiler {
    /// What the maps shall hold.
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// As [`Self::desired`], for good.
    pub fn into_desired(self) -> Desired {
        self.desired
    }

    /// Takes what has changed in the world since the last call, and says where the desired state is another one now.
    pub fn update(&mut self, world: &World, changes: &Changes, numbers: &mut Numbers) -> Delta {
        if changes.everything || changes.modes || !changes.policies.is_empty() {
            self.rebuild(world, numbers);
            return Delta::everything();
        }
        if changes.nodes && self.ranges != ranges(world) {
            self.rebuild(world, numbers);
            return Delta::everything();
        }
        let starved = self.subjects.without_number().clone();
        let mut dirty = self.subjects.starved(&self.records, numbers);
        if changes.nodes {
            self.claims.update_fixed(world, &mut dirty);
        }
        for (uid, before) in &changes.pods {
            self.claims.update_pod(world, uid, before, &mut dirty);
        }
        self.frontends.take(world, changes, &mut self.claims, &mut dirty);
        if !changes.namespaces.is_empty() || !changes.accounts.is_empty() {
            self.regroup(world, changes, &mut dirty);
        }
        let mut delta = Delta { names: changes.configs, ..Delta::default() };
        let reported = self.settle(world, &dirty, changes.pods.keys(), numbers, &mut delta);
        if reported || changes.configs || starved != *self.subjects.without_number() {
            self.report(world);
        }
        delta
    }

    /// Forgets everything and compiles the world.
    pub fn rebuild(&mut self, world: &World, numbers: &mut Numbers) {
        numbers.begin();
        *self = Self::default();
        self.modes = namespace_modes(world, &mut self.policy_problems);
        self.linked = Linked::new(policies_in_force(world, &self.modes, &mut self.policy_problems));
        self.families =
            (0..).zip(&self.linked.blocks).filter(|(_, block)| block.is_family()).map(|(id, _)| id).collect();
        self.ranges = ranges(world);
        self.regions = Regions::new(&self.linked.blocks, &self.ranges.0, &self.ranges.1);
        self.peers = PeerClasses::new(&self.linked, &self.families);
        for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Pod | Kind::Service)) {
            self.desired.names.principals.insert(kind.principal(), kind.name().to_owned());
        }
        self.prefixes(numbers);
        self.claims = Claims::new(world);
        self.frontends = Frontends::new(world, &mut self.claims);
        let dirty = self.claims.addresses();
        self.settle(world, &dirty, std::iter::empty(), numbers, &mut Delta::default());
        self.report(world);
    }

    /// Pods of namespaces and accounts that came, went or changed have to be matched again.
    fn regroup(&mut self, world: &World, changes: &Changes, dirty: &mut BTreeSet<IpAddr>) {
        let Changes { namespaces, accounts, .. } = changes;
        for name in namespaces {
            self.groups.forget_namespace(name);
        }
        let by_namespace: HashMap<&str, HashSet<&str>> =
            accounts.iter().fold(HashMap::new(), |mut found, (namespace, name)| {
                found.entry(namespace.as_str()).or_insert_with(HashSet::new).insert(name.as_str());
                found
            });
        let is_about = |namespace: &str, account: &str| {
            namespaces.contains(namespace)
                || by_namespace.get(namespace).is_some_and(|names| names.contains(account))
        };
        self.groups.forget(is_about);
        let pods = world.pods.values().filter(|pod| is_about(&pod.namespace, &pod.service_account));
        dirty.extend(pods.flat_map(|pod| crate::identity::claims(world, pod)));
    }

    /// The prefixes between which blocks and ranges tell.
    fn prefixes(&mut self, numbers: &mut Numbers) {
        for (prefix, region) in self.regions.iter() {
            let kind = match (region.service_range, region.pod_range) {
                (true, _) => Kind::Service,
                (_, true) => Kind::Unmanaged,
                _ => Kind::World,
            };
            let class = PeerClass::without_pod(kind, Arc::clone(&region.blocks));
            let id = self.peers.acquire(&self.linked, class, false, kind.name(), numbers);
            let number = self.peers.get(id).map_or(0, |peer| peer.number);
            self.desired.cidrs.insert(prefix, Identity::new(kind.principal(), number, kind));
        }
    }

    /// Looks at the dirty addresses again, and does all that follows. `pods` have changed. Returns whether something else is
    /// wrong with services now.
    fn settle<'p>(
        &mut self,
        world: &World,
        dirty: &BTreeSet<IpAddr>,
        pods: impl Iterator<Item = &'p String>,
        numbers: &mut Numbers,
        delta: &mut Delta,
    ) -> bool {
        for &address in dirty {
            let record = self.record(world, address, numbers);
            let before = match record {
                Some(record) => self.records.insert(address, record),
                None => self.records.remove(&address),
            };
            // Given back only now: what stays the same keeps its number.
            if let Some(before) = before {
                self.give_back(before, numbers);
            }
        }
        let default = world.settings.default_verdict;
        let changed_subjects = self.subjects.number(&self.linked, numbers, &mut self.desired, default, delta);
        let reached = self.peers.take_changed();
        self.desired.names.peers.append(&mut self.peers.names);
        let mut written = self.write_rows(&changed_subjects, &reached, delta);
        for gone in reached.iter().filter(|reached| reached.now == Reach::Nobody) {
            let number = self.peers.get(gone.id).map_or(0, |peer| peer.number);
            if numbers.release(NumberSpace::Peer, number) {
                self.desired.names.peers.remove(&number);
            }
            self.peers.remove(gone.id);
        }
        delta.names |= !reached.is_empty() || !changed_subjects.is_empty();

        for &address in dirty {
            self.identify(address, delta);
            self.frontends.moved(address, &self.claims);
        }
        self.local_pods(world, dirty, pods, delta);

        let before: BTreeSet<u32> = self.desired.sets.keys().copied().collect();
        let (sets, reported) = self.frontends.update(world, &self.claims, &mut self.desired, numbers, delta);
        if sets {
            delta.sets = true;
            written = self.subjects.local().collect();
        }
        if sets || !self.desired.sets.is_empty() {
            self.write_sets(&written, &before, delta);
        }
        delta.names |= reported;
        if self.functions.len() > 2 * self.swept + 64 {
            self.functions.retain(|function| Arc::strong_count(function) > 1);
            self.swept = self.functions.len();
        }
        reported
    }

    /// Who has an address, with one more user of all that it has.
    fn record(&mut self, world: &World, address: IpAddr, numbers: &mut Numbers) -> Option<Record> {
        let holder = self.claims.holder(world, address)?;
        let (mut record, class, name) = match holder {
            Holder::Pod(pod) => {
                let matching = Matching { world, linked: &self.linked, modes: &self.modes };
                let id = self.groups.acquire(matching, pod, numbers);
                let group = self.groups.get(id)?;
                self.desired
                    .names
                    .principals
                    .entry(group.principal)
                    .or_insert_with(|| group.principal_name.clone());
                let local = is_local(world, pod);
                let subject = (local || group.subject.acts_on_egress).then(|| {
                    let names = &group.subject.port_names;
                    let ports = used_ports(&pod.named_ports, |name| names.contains(name));
                    let class = SubjectClass {
                        policies: Arc::clone(&group.subject.policies),
                        defaults: group.subject.defaults,
                        ports: ports.into_iter().collect(),
                    };
                    self.subjects.acquire(class, local)
                });
                let used = &self.linked.peer_port_names;
                let ports = used_ports(&pod.named_ports, |name| used.contains(name));
                let class = PeerClass {
                    kind: Kind::Pod,
                    principal: group.principal,
                    selectors: Arc::clone(&group.selectors),
                    blocks: self.blocks(address),
                    ports: ports.into_iter().collect(),
                };
                let record = Record { peer: 0, subject, group: Some(id), local, borrowed: false };
                (record, class, group.principal_name.as_str())
            }
            Holder::Kind(_) | Holder::Service { .. } => {
                let (kind, borrowed) = match holder {
                    Holder::Kind(kind) => (kind, false),
                    Holder::Service { borrowed } => (Kind::Service, borrowed),
                    Holder::Pod(_) => return None,
                };
                let class = PeerClass::without_pod(kind, self.blocks(address));
                let record = Record { peer: 0, subject: None, group: None, local: false, borrowed };
                (record, class, kind.name())
            }
        };
        record.peer = self.peers.acquire(&self.linked, class, record.local, name, numbers);
        Some(record)
    }

    fn blocks(&self, address: IpAddr) -> Arc<[u32]> {
        self.regions.find(address).map(|region| Arc::clone(&region.blocks)).unwrap_or_default()
    }

    /// An address has no longer what it had.
    fn give_back(&mut self, before: Record, numbers: &mut Numbers) {
        self.peers.release(before.peer, before.local);
        if let Some(subject) = before.subject {
            self.subjects.release(subject, before.local);
        }
        if let Some(group) = before.group.and_then(|id| self.groups.release(id))
            && numbers.release(NumberSpace::Principal, group.principal)
        {
            self.desired.names.principals.remove(&group.principal);
        }
    }

    /// Writes what an address is.
    fn identify(&mut self, address: IpAddr, delta: &mut Delta) {
        let identity = self.records.get(&address).and_then(|record| {
            let peer = self.peers.get(record.peer)?;
            let mut identity = Identity::new(peer.class.principal, peer.number, peer.class.kind);
            identity.subject = record.subject.map_or(0, |id| self.subjects.number_of(id));
            if record.borrowed {
                identity.flags |= identity_flags::BORROWED;
            }
            Some(identity)
        });
        let before = match identity {
            Some(identity) => self.desired.ipcache.insert(address, identity),
            None => self.desired.ipcache.remove(&address),
        };
        if before != identity {
            delta.addresses.insert(address);
        }
    }

    /// What the endpoints of this node's pods need: of pods that changed, and of those that claim a dirty address.
    fn local_pods<'p>(
        &mut self,
        world: &World,
        dirty: &BTreeSet<IpAddr>,
        changed: impl Iterator<Item = &'p String>,
        delta: &mut Delta,
    ) {
        let mut uids: BTreeSet<&str> = changed.map(String::as_str).collect();
        for address in dirty {
            let claimants = self.claims.claimants(*address);
            // Of the pods elsewhere nothing is kept here.
            let ours = |uid: &&Arc<str>| {
                self.desired.pods.contains_key(&***uid)
                    || world.pods.get(&***uid).is_some_and(|pod| is_local(world, pod))
            };
            uids.extend(claimants.filter(ours).map(|uid| &**uid));
        }
        let mut identities: Vec<(String, Option<PodIdentity>)> = Vec::new();
        for uid in uids {
            let pod = world.pods.get(uid).filter(|pod| is_local(world, pod));
            let identity = pod.and_then(|pod| self.pod_identity(world, pod));
            if self.desired.pods.get(uid) != identity.as_ref() {
                identities.push((uid.to_owned(), identity));
            }
        }
        delta.names |= !identities.is_empty();
        for (uid, identity) in identities {
            match identity {
                Some(identity) => drop(self.desired.pods.insert(uid, identity)),
                None => drop(self.desired.pods.remove(&uid)),
            }
        }
    }

    fn pod_identity(&self, world: &World, pod: &crate::model::Pod) -> Option<PodIdentity> {
        let mut addresses: BTreeSet<IpAddr> = crate::identity::claims(world, pod).collect();
        addresses.retain(|address| {
            matches!(self.claims.holder(world, *address), Some(Holder::Pod(owner)) if owner.uid == pod.uid)
        });
        let first = self.desired.ipcache.get(addresses.first()?)?;
        Some(PodIdentity {
            name: format!("{}/{}", pod.namespace, pod.name),
            principal: first.principal,
            subject: first.subject,
            addresses: addresses.into_iter().collect(),
            routes: pod.routes && may_route(world, &pod.namespace),
        })
    }

    /// Everything that was not understood.
    fn report(&mut self, world: &World) {
        let mut problems = self.policy_problems.clone();
        cluster_config::report(world, &mut problems);
        problems.extend(self.frontends.problems().cloned());
        problems.extend(self.subjects.problems(&self.linked, world.settings.default_verdict));
        problems.sort();
        problems.dedup();
        self.desired.problems = problems;
    }
}

/// Whether pods of a namespace may forward packets of others.
fn may_route(world: &World, namespace: &str) -> bool {
    let namespace = world.namespaces.get(namespace);
    namespace.is_some_and(|namespace| {
        namespace.labels.get(crate::api::ROUTING_LABEL).is_some_and(|value| value == "allowed")
    })
}

fn ranges(world: &World) -> Ranges {
    let pods = world.nodes.values().flat_map(|node| &node.pod_cidrs).chain(&world.settings.pod_cidrs);
    (pods.copied().collect(), services::ranges(world))
}
