//! The owner of the world: the single writer of model, numbers, bindings and maps. Everything here is synchronous; the
//! loop around it waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use portcullis_common::Direction;

use super::bindings::{Bindings, Candidate};
use super::coverage::Coverage;
use crate::cni::CniEntry;
use crate::conntrack::{Connection, Tuple};
use crate::datapath::{Applied, Datapath, DatapathError, EndpointSpec, HookState, describe_program};
use crate::endpoints::{Classification, Snapshot, classify};
use crate::identity::{Numbers, cached_addresses};
use crate::model::{Changes, Object, ObjectKind, World};
use crate::policy::{Compiler, Delta, Desired, is_local};
use crate::sources::{Batch, SourceEvent, SourceProblem};

/// The owner.
#[expect(clippy::struct_excessive_bools, reason = "each says something of its own")]
pub struct Owner {
    /// Every object that is known.
    pub world: World,
    /// What has changed in it since it was compiled.
    changes: Changes,
    compiler: Compiler,
    /// What is desired otherwise since the maps were written.
    delta: Delta,
    /// What the datapath was told of the endpoints last.
    specs: Vec<EndpointSpec>,
    /// Something was seen that must not wait to be written down.
    urgent: bool,
    /// libcni's cache, the interfaces, or a pod that either could be about, have changed.
    look_up_cache: bool,
    /// Which pod is behind which interface.
    pub bindings: Bindings,
    /// What is wrong with the source now.
    pub problems: Vec<SourceProblem>,
    /// Whether every kind has been listed once: nothing is written to the maps before.
    pub synced: bool,
    /// What libcni's cache says.
    cni: Arc<Vec<CniEntry>>,
    /// The interfaces.
    pub links: Arc<Snapshot>,
    /// Interfaces that are endpoints now.
    pub endpoints: Vec<Candidate>,
    /// Interfaces that are none: name and reason.
    pub ignored: BTreeMap<String, String>,
    /// Interfaces of pods that our programs do not see: name and kind.
    pub bypassed: BTreeMap<String, String>,
    /// What could not be programmed at the last try.
    pub errors: Vec<String>,
    /// When the maps were last brought to the desired state without an error.
    pub last_success: Option<SystemTime>,
    /// Pods that no interface was found for.
    pub coverage: Coverage,
    datapath: Datapath,
    /// Whether the kernel holds what was compiled last, all of it: only then an unused number is unused there too.
    clean: bool,
    numbers: Numbers,
    /// Pods that are gone from the source while their interface lives: they keep their identity.
    retained: BTreeSet<String>,
    /// Interfaces whose programs were attached, with the moment they appeared.
    attached: BTreeMap<u32, Instant>,
    /// What the endpoints' hooks looked like at the last look.
    hooks: BTreeMap<(u32, Direction), HookState>,
    /// The programs that ran before ours at the last look: ids, and what they are called.
    foreign: BTreeMap<(u32, Direction), (Vec<u32>, Vec<String>)>,
}

/// How many hooks should have a program, and how they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Hooks that should have a program.
    pub expected: usize,
    /// Those that have it in the first place.
    pub attached: usize,
    /// Those that do not have it.
    pub missing: usize,
}

impl Owner {
    /// With an empty world.
    pub fn new(world: World, datapath: Datapath, mut numbers: Numbers, bindings: Bindings) -> Self {
        numbers.load(datapath.numbers());
        Self {
            world,
            changes: Changes::everything(),
            compiler: Compiler::default(),
            delta: Delta::everything(),
            specs: Vec::new(),
            urgent: true,
            look_up_cache: true,
            bindings,
            problems: Vec::new(),
            synced: false,
            cni: Arc::default(),
            links: Arc::default(),
            endpoints: Vec::new(),
            ignored: BTreeMap::new(),
            bypassed: BTreeMap::new(),
            errors: Vec::new(),
            last_success: None,
            coverage: Coverage::default(),
            datapath,
            clean: false,
            numbers,
            retained: BTreeSet::new(),
            attached: BTreeMap::new(),
            hooks: BTreeMap::new(),
            foreign: BTreeMap::new(),
        }
    }

    /// The datapath, for looking.
    pub const fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// What the maps shall hold.
    pub const fn desired(&self) -> &Desired {
        self.compiler.desired()
    }

    /// Takes a batch of the source into the world.
    pub fn take(&mut self, batch: Batch) {
        for event in batch.events {
            match event {
                SourceEvent::Apply(object) => {
                    if let Object::Pod(pod) = &object {
                        self.retained.remove(&pod.uid);
                        let before = self.world.pods.get(&pod.uid);
                        self.look_up_cache |= is_local(&self.world, pod)
                            || before.is_some_and(|before| is_local(&self.world, before));
                    }
                    self.changes.apply(&mut self.world, object);
                }
                SourceEvent::Delete { key, uid } => {
                    let bound = self.bindings.bound();
                    // Few are bound, however many pods there are.
                    let living: Vec<String> = bound
                        .into_iter()
                        .filter_map(|bound| self.world.pods.get(bound))
                        .filter(|pod| {
                            key.kind == ObjectKind::Pod
                                && (&pod.namespace, &pod.name) == (&key.namespace, &key.name)
                                && uid.as_ref().is_none_or(|uid| *uid == pod.uid)
                        })
                        .map(|pod| pod.uid.clone())
                        .collect();
                    if living.is_empty() {
                        self.look_up_cache |= key.kind == ObjectKind::Pod;
                        self.changes.delete(&mut self.world, &key, uid.as_deref());
                    }
                    self.retained.extend(living);
                }
                SourceEvent::Synced => {
                    self.synced = true;
                    // What is there is known: a ConfigMap that comes later has no past.
                    self.world.mode_before = None;
                }
                SourceEvent::Problems(problems) => {
                    self.urgent |= self.problems != problems;
                    self.problems = problems;
                }
            }
        }
    }

    /// Takes a new look at the interfaces.
    pub fn look(&mut self, links: Arc<Snapshot>) {
        self.changes.set_local_addresses(&mut self.world, &links.host_addresses);
        self.links = links;
        self.look_up_cache = true;
    }

    /// Takes what libcni's cache says now.
    pub fn take_cache(&mut self, entries: Arc<Vec<CniEntry>>) {
        self.cni = entries;
        self.look_up_cache = true;
    }

    /// Whether something was seen since the last call that must not wait to be written down.
    pub const fn take_urgent(&mut self) -> bool {
        std::mem::replace(&mut self.urgent, false)
    }

    /// Whether enough is known to write the maps.
    pub fn ready_to_program(&self) -> bool {
        self.synced && self.links.complete
    }

    /// Compiles what has changed, and brings the kernel to it.
    ///
    /// # Errors
    /// If the kernel's state cannot be read or the revision not be raised.
    pub fn program(&mut self) -> Result<Applied, DatapathError> {
        self.forget_pods_without_interface();
        if std::mem::take(&mut self.look_up_cache) {
            let behind = self.links.links.values().filter_map(|link| Some((&link.name, link.peer.as_ref()?)));
            let seen: Vec<_> =
                behind.map(|(name, peer)| (name.as_str(), peer.addresses.as_slice())).collect();
            let cached = cached_addresses(&self.cni, &self.world, &seen);
            self.changes.set_cached(&mut self.world, cached);
        }
        let since = std::mem::take(&mut self.changes);
        self.delta.join(self.compiler.update(&self.world, &since, &mut self.numbers));
        let owner_of = self.owner_of();
        self.classify_links(&owner_of);
        let specs = self.bindings.update(&self.endpoints, &owner_of);
        let (desired, mode) = (self.compiler.desired(), self.world.mode());
        // What the kernel holds is known to be what was desired before only if nothing went wrong then.
        let small = std::mem::take(&mut self.clean) && !self.delta.everything;
        let numbers = self.numbers.take_changed();
        self.datapath.set_tunnels(&self.links.tunnel_ports);
        let applied = if small {
            self.datapath.apply_delta(desired, &self.delta, &specs, mode, numbers)?
        } else {
            self.datapath.apply(desired, &specs, mode, self.numbers.entries())?
        };
        self.delta = Delta::default();
        let errors: Vec<String> = applied.errors.iter().map(ToString::to_string).collect();
        // A restarted agent takes bindings over from the names file.
        self.urgent |= self.specs != specs || self.errors != errors || self.last_success.is_none();
        (self.specs, self.errors) = (specs, errors);
        self.clean = self.errors.is_empty();
        if self.clean {
            self.last_success = Some(SystemTime::now());
        }
        Ok(applied)
    }

    /// Judges the connection of a packet that was dropped for want of a flow; whether it goes on.
    ///
    /// # Errors
    /// If the programs cannot be run.
    pub fn recall(
        &mut self,
        connection: &Connection,
        ifindex: u32,
        packet: Tuple,
    ) -> Result<bool, DatapathError> {
        self.datapath.recall(connection, ifindex, packet)
    }

    /// Addresses of this node's pods that are known with namespace and service account, and their UIDs.
    fn owner_of(&self) -> BTreeMap<IpAddr, String> {
        let pods = self.desired().pods.iter();
        pods.flat_map(|(uid, pod)| pod.addresses.iter().map(|address| (*address, uid.clone()))).collect()
    }

    fn classify_links(&mut self, owner_of: &BTreeMap<IpAddr, String>) {
        let own_node = self.world.nodes.get(&self.world.settings.node_name);
        let ranges: Vec<_> = own_node
            .iter()
            .flat_map(|n| &n.pod_cidrs)
            .chain(&self.world.settings.pod_cidrs)
            .copied()
            .collect();
        self.endpoints.clear();
        self.ignored.clear();
        self.bypassed.clear();
        self.bindings
            .see(&self.links.links.values().map(|link| (link.ifindex, link.name.as_str())).collect());
        for link in self.links.links.values() {
            // What was an endpoint stays one, whatever becomes of its pod and its addresses, and keeps its programs and
            // its flows while it has to be looked at again.
            let known = self.bindings.knows(link.ifindex, &link.name);
            let class = classify(link, |address| known || owner_of.contains_key(&address), &ranges);
            match class {
                Classification::Pending if !known => {
                    self.ignored.insert(link.name.clone(), "waits for an address".to_owned());
                }
                Classification::Endpoint | Classification::Pending => {
                    // A look without a pod's address tells nothing.
                    let peer = link.peer.as_ref().filter(|_| class == Classification::Endpoint);
                    self.endpoints.push(Candidate {
                        ifindex: link.ifindex,
                        name: link.name.clone(),
                        master: link.master,
                        mac: peer.and_then(|peer| peer.mac),
                        addresses: peer.map(|peer| peer.addresses.clone()).unwrap_or_default(),
                        appeared: link.appeared,
                    });
                }
                Classification::Ignored(reason) => drop(self.ignored.insert(link.name.clone(), reason)),
                Classification::Bypassed(kind) => {
                    self.bypassed.insert(link.name.clone(), kind.to_string());
                }
            }
        }
    }

    /// Pods that are gone from the source go when their interface goes.
    fn forget_pods_without_interface(&mut self) {
        let alive: BTreeSet<String> = self
            .links
            .links
            .keys()
            .filter_map(|ifindex| self.bindings.uid(*ifindex))
            .map(str::to_owned)
            .collect();
        let gone: Vec<String> = self.retained.iter().filter(|uid| !alive.contains(*uid)).cloned().collect();
        for uid in gone {
            self.retained.remove(&uid);
            self.changes.delete_pod(&mut self.world, &uid);
            self.look_up_cache = true;
        }
    }

    /// How long each interface had to wait for its programs that has them now and had not before.
    pub fn newly_attached(&mut self) -> Vec<std::time::Duration> {
        let mut waited = Vec::new();
        let mut now_attached = BTreeMap::new();
        for endpoint in &self.endpoints {
            let Some(link) = self.links.links.get(&endpoint.ifindex) else { continue };
            if Direction::ALL.iter().any(|d| self.hook(endpoint.ifindex, *d) == HookState::Missing) {
                continue;
            }
            if self.attached.get(&endpoint.ifindex) != Some(&link.appeared) {
                waited.push(link.appeared.elapsed());
            }
            now_attached.insert(endpoint.ifindex, link.appeared);
        }
        self.attached = now_attached;
        waited
    }

    /// Asks the kernel what is on the endpoints' hooks: one query each, so not more often than needed.
    pub fn look_at_hooks(&mut self) {
        let hooks = self.endpoints.iter().flat_map(|e| Direction::ALL.iter().map(|d| (e.ifindex, *d)));
        self.hooks = hooks.map(|(ifindex, d)| ((ifindex, d), self.datapath.hook_state(ifindex, d))).collect();
        let not_first = self.hooks.iter().filter(|(_, state)| **state == HookState::NotFirst);
        let mut foreign = BTreeMap::new();
        for (hook, _) in not_first {
            let ids = self.datapath.before_ours(hook.0, hook.1);
            // To find out what they are called, the kernel is asked for every program there is.
            let as_before = self.foreign.remove(hook).filter(|(before, _)| *before == ids);
            let programs = as_before.unwrap_or_else(|| {
                let described = ids.iter().copied().map(describe_program).collect();
                (ids, described)
            });
            foreign.insert(*hook, programs);
        }
        self.foreign = foreign;
    }

    /// Looks for pods of this node that have no interface. What a bypassed interface shows is reported as that.
    pub fn look_at_coverage(&mut self) {
        if !self.ready_to_program() {
            return;
        }
        let peers = self.links.links.values().filter_map(|link| link.peer.as_ref());
        let seen = peers.flat_map(|peer| peer.addresses.iter().copied()).collect();
        self.coverage.look(&self.world, &self.bindings.bound(), &seen);
    }

    /// The programs that ran before ours on a hook at the last look.
    pub fn foreign(&self, ifindex: u32, direction: Direction) -> &[String] {
        self.foreign.get(&(ifindex, direction)).map_or(&[], |(_, names)| names)
    }

    /// What a hook was like at the last look.
    pub fn hook(&self, ifindex: u32, direction: Direction) -> HookState {
        self.hooks.get(&(ifindex, direction)).copied().unwrap_or(HookState::Missing)
    }

    /// How the hooks were at the last look.
    pub fn hooks(&self) -> Hooks {
        let count = |wanted| self.hooks.values().filter(|state| **state == wanted).count();
        Hooks {
            expected: self.hooks.len(),
            attached: count(HookState::Attached),
            missing: count(HookState::Missing),
        }
    }

    /// Deletes what was retired, and gives numbers back that nobody uses. Principals keep theirs: their counters live.
    ///
    /// # Errors
    /// If the grace period cannot be had.
    pub fn collect(&mut self) -> Result<usize, DatapathError> {
        let unused: Vec<_> = self
            .numbers
            .unused()
            .filter(|key| self.clean && key.space != portcullis_common::abi::NumberSpace::Principal as u32)
            .collect();
        let retired = self.datapath.has_retired();
        let count = self.datapath.collect()?;
        if !retired && !unused.is_empty() {
            // A program may still hold a number that it read from an address map.
            self.datapath.wait_for_programs()?;
        }
        for key in unused {
            self.numbers.free(key);
        }
        Ok(count)
    }
}
