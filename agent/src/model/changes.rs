//! What has changed in the world since it was compiled last.
//!
//! Invariant: whatever can make the maps differ is noted, with what must be known of its former state. What changes
//! nothing that decides (a status that was written again) is not noted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::objects::{EndpointSlice, Namespace, Object, ObjectKey, ObjectKind};
use super::world::{CachedAddresses, World};
use crate::api::MODE_KEY;
use crate::identity::claims;

/// The changes. Objects are named; what they are now is in the world.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a kind of change of its own")]
pub struct Changes {
    /// Anything may have changed.
    pub everything: bool,
    /// Pods by UID, with the addresses that they claimed before.
    pub pods: BTreeMap<String, Vec<IpAddr>>,
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
    /// Service accounts.
    pub accounts: BTreeSet<(String, String)>,
    /// Services.
    pub services: BTreeSet<(String, String)>,
    /// Slices, with what they were before.
    pub slices: BTreeMap<(String, String), Option<EndpointSlice>>,
    /// Addresses of nodes or of this machine, or ranges of addresses.
    pub nodes: bool,
    /// Which nodes have an agent that judges.
    pub agents: bool,
    /// Policies.
    pub policies: BTreeSet<ObjectKey>,
    /// The modes that namespaces ask for.
    pub modes: bool,
    /// What the cluster's ConfigMap says.
    pub configs: bool,
}

impl Changes {
    /// Everything.
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        let Self {
            everything,
            pods,
            namespaces,
            accounts,
            services,
            slices,
            nodes,
            agents,
            policies,
            modes,
            configs,
        } = self;
        let named = pods.is_empty() && namespaces.is_empty() && accounts.is_empty() && policies.is_empty();
        let served = services.is_empty() && slices.is_empty();
        named && served && !(*everything || *nodes || *agents || *modes || *configs)
    }

    /// Adds or replaces an object of the world, as [`World::apply`] does.
    pub fn apply(&mut self, world: &mut World, object: Object) {
        self.note(world, &object.key(), Some(&object));
        world.apply(object);
    }

    /// Removes an object from the world, as [`World::delete`] does.
    pub fn delete(&mut self, world: &mut World, key: &ObjectKey, uid: Option<&str>) {
        if key.kind == ObjectKind::Pod {
            if let Some(uid) = uid {
                self.note_pod(world, uid);
            } else {
                let named =
                    world.pods.values().filter(|pod| pod.namespace == key.namespace && pod.name == key.name);
                for pod in named {
                    self.note_pod(world, &pod.uid);
                }
            }
        } else {
            self.note(world, key, None);
        }
        world.delete(key, uid);
    }

    /// Removes a pod from the world.
    pub fn delete_pod(&mut self, world: &mut World, uid: &str) {
        self.note_pod(world, uid);
        world.pods.remove(uid);
    }

    /// Replaces what is known from libcni's cache.
    pub fn set_cached(&mut self, world: &mut World, cached: BTreeMap<String, CachedAddresses>) {
        let changed = |uid: &&String| world.cached.get(*uid) != cached.get(*uid);
        let uids: BTreeSet<String> =
            world.cached.keys().chain(cached.keys()).filter(changed).cloned().collect();
        for uid in &uids {
            self.note_pod(world, uid);
        }
        world.cached = cached;
    }

    /// Replaces the addresses of this machine.
    pub fn set_local_addresses(&mut self, world: &mut World, addresses: &BTreeSet<IpAddr>) {
        if world.settings.local_addresses != *addresses {
            world.settings.local_addresses.clone_from(addresses);
            self.nodes = true;
        }
    }

    /// Notes that a pod is about to change.
    fn note_pod(&mut self, world: &World, uid: &str) {
        let Some(pod) = world.pods.get(uid) else {
            self.pods.entry(uid.to_owned()).or_default();
            return;
        };
        self.agents |= pod.judges;
        if !self.pods.contains_key(uid) {
            self.pods.insert(uid.to_owned(), claims(world, pod).collect());
        }
    }

    /// Notes that an object is about to become `new`, or nothing.
    fn note(&mut self, world: &World, key: &ObjectKey, new: Option<&Object>) {
        let pair = || (key.namespace.clone(), key.name.clone());
        match (key.kind, new) {
            (_, Some(Object::Pod(pod))) => {
                if world.pods.get(&pod.uid) != Some(pod) {
                    self.agents |= pod.judges;
                    self.note_pod(world, &pod.uid);
                }
            }
            (ObjectKind::Pod, _) => {}
            (ObjectKind::Namespace, new) => self.note_namespace(world, &key.name, new),
            (ObjectKind::ServiceAccount, new) => {
                let old = world.service_accounts.get(&pair());
                if differs(old, new, |object| match object {
                    Object::ServiceAccount(new) => Some(new),
                    _ => None,
                }) {
                    self.accounts.insert(pair());
                }
            }
            (ObjectKind::Service, new) => {
                let old = world.services.get(&pair());
                if differs(old, new, |object| match object {
                    Object::Service(new) => Some(new),
                    _ => None,
                }) {
                    self.services.insert(pair());
                }
            }
            (ObjectKind::EndpointSlice, new) => {
                let old = world.endpoint_slices.get(&pair());
                if differs(old, new, |object| match object {
                    Object::EndpointSlice(new) => Some(new),
                    _ => None,
                }) {
                    self.slices.entry(pair()).or_insert_with(|| old.cloned());
                }
            }
            (ObjectKind::Node, new) => {
                let old = world.nodes.get(&key.name);
                self.nodes |= differs(old, new, |object| match object {
                    Object::Node(new) => Some(new),
                    _ => None,
                });
            }
            (ObjectKind::ServiceCidr, _) => self.nodes = true,
            (ObjectKind::NetworkPolicy, new) => {
                let old = world.network_policies.get(&pair());
                if differs(old, new, |object| match object {
                    Object::NetworkPolicy(new) => Some(new),
                    _ => None,
                }) {
                    self.policies.insert(key.clone());
                }
            }
            (ObjectKind::IdentityPolicy, new) => {
                let old = world.identity_policies.get(&pair());
                if differs(old, new, |object| match object {
                    Object::IdentityPolicy(new) => Some(new),
                    _ => None,
                }) {
                    self.policies.insert(key.clone());
                }
            }
            (ObjectKind::ClusterIdentityPolicy, new) => {
                let old = world.cluster_identity_policies.get(&key.name);
                if differs(old, new, |object| match object {
                    Object::ClusterIdentityPolicy(new) => Some(new),
                    _ => None,
                }) {
                    self.policies.insert(key.clone());
                }
            }
            (ObjectKind::ClusterConfig, _) => self.configs = true,
        }
    }

    fn note_namespace(&mut self, world: &World, name: &str, new: Option<&Object>) {
        let old = world.namespaces.get(name);
        let new = match new {
            Some(Object::Namespace(new)) => Some(new),
            _ => None,
        };
        if old == new {
            return;
        }
        let mode = |namespace: Option<&Namespace>| namespace.and_then(|n| n.labels.get(MODE_KEY).cloned());
        self.modes |= mode(old) != mode(new);
        self.namespaces.insert(name.to_owned());
    }
}

/// Whether an object is another one now.
fn differs<'o, T: PartialEq + 'o>(
    old: Option<&T>,
    new: Option<&'o Object>,
    of_kind: impl Fn(&'o Object) -> Option<&'o T>,
) -> bool {
    old != new.and_then(of_kind)
}
