//! The world: every object that is known, by key. One task owns it and is its only writer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::Verdict;
use portcullis_common::abi::Mode;

use super::cluster_config::ClusterConfig;
use super::objects::{
    ClusterIdentityPolicy, EndpointSlice, IdentityPolicy, Namespace, NetworkPolicy, Node, Object, ObjectKey,
    ObjectKind, Pod, Service, ServiceAccount, ServiceCidr,
};

/// What the operator of this agent decided; the same for every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node.
    pub node_name: String,
    /// The namespace that Portcullis runs in: its ConfigMap is there, and only pods there can be agents of ours.
    pub namespace: String,
    /// Addresses of the host's own network namespace (interfaces that are not endpoints), as found on this machine.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Pod ranges given by flag, beside those in the Node objects.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of the services' cluster addresses given by flag, beside those in the `ServiceCIDR` objects.
    pub service_cidrs: Vec<IpNet>,
    /// The verdict where no policy has a say.
    pub default_verdict: Verdict,
    /// Whether NetworkPolicies are ours to enforce.
    pub network_policies: bool,
    /// The mode of the whole agent where the cluster's ConfigMap sets none; see [`World::mode`].
    pub mode: Mode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            namespace: "portcullis-system".to_owned(),
            local_addresses: BTreeSet::new(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            default_verdict: Verdict::Allow,
            network_policies: true,
            mode: Mode::Enforce,
        }
    }
}

/// The addresses that a pod has by the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CachedAddresses {
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Seconds since the epoch at which the last of them was given.
    pub started: i64,
}

/// Every object that is known. Pods are kept by UID: two pods may have the same name one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The operator's decisions.
    pub settings: Settings,
    /// By UID.
    pub pods: BTreeMap<String, Pod>,
    /// By name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// By namespace and name.
    pub service_accounts: BTreeMap<(String, String), ServiceAccount>,
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// By namespace and name.
    pub services: BTreeMap<(String, String), Service>,
    /// By namespace and name.
    pub endpoint_slices: BTreeMap<(String, String), EndpointSlice>,
    /// By name.
    pub service_cidrs: BTreeMap<String, ServiceCidr>,
    /// By namespace and name.
    pub network_policies: BTreeMap<(String, String), NetworkPolicy>,
    /// By namespace and name.
    pub identity_policies: BTreeMap<(String, String), IdentityPolicy>,
    /// By name.
    pub cluster_identity_policies: BTreeMap<String, ClusterIdentityPolicy>,
    /// ConfigMaps named [`ClusterConfig::NAME`], by namespace; that of [`Settings::namespace`] counts.
    pub cluster_configs: BTreeMap<String, ClusterConfig>,
    /// Addresses of this node's pods by libcni's cache, by UID: only what an interface bears out.
    pub cached: BTreeMap<String, CachedAddresses>,
    /// The mode that was in force when this agent started, for a ConfigMap that cannot be read then.
    pub mode_before: Option<Mode>,
}

impl World {
    /// Adds or replaces an object. A pod replaces the one with its UID only.
    pub fn apply(&mut self, object: Object) {
        match object {
            Object::Pod(o) => drop(self.pods.insert(o.uid.clone(), o)),
            Object::Namespace(o) => drop(self.namespaces.insert(o.name.clone(), o)),
            Object::ServiceAccount(o) => {
                drop(self.service_accounts.insert((o.namespace.clone(), o.name.clone()), o));
            }
            Object::Node(o) => drop(self.nodes.insert(o.name.clone(), o)),
            Object::Service(o) => drop(self.services.insert((o.namespace.clone(), o.name.clone()), o)),
            Object::EndpointSlice(o) => {
                drop(self.endpoint_slices.insert((o.namespace.clone(), o.name.clone()), o));
            }
            Object::ServiceCidr(o) => drop(self.service_cidrs.insert(o.name.clone(), o)),
            Object::NetworkPolicy(o) => {
                drop(self.network_policies.insert((o.namespace.clone(), o.name.clone()), o));
            }
            Object::IdentityPolicy(o) => {
                drop(self.identity_policies.insert((o.namespace.clone(), o.name.clone()), o));
            }
            Object::ClusterIdentityPolicy(o) => {
                drop(self.cluster_identity_policies.insert(o.name.clone(), o));
            }
            Object::ClusterConfig(mut o) => {
                o.follow(match self.cluster_configs.get(&o.namespace) {
                    Some(before) => before.mode(),
                    None => self.mode_before,
                });
                drop(self.cluster_configs.insert(o.namespace.clone(), o));
            }
        }
    }

    /// Removes an object. `uid` tells pods of the same name apart; a delete without one removes every pod of the name.
    pub fn delete(&mut self, key: &ObjectKey, uid: Option<&str>) {
        let pair = || (key.namespace.clone(), key.name.clone());
        match key.kind {
            ObjectKind::Pod => self.pods.retain(|id, pod| {
                let named = pod.namespace == key.namespace && pod.name == key.name;
                !(named && uid.is_none_or(|uid| uid == id))
            }),
            ObjectKind::Namespace => drop(self.namespaces.remove(&key.name)),
            ObjectKind::ServiceAccount => drop(self.service_accounts.remove(&pair())),
            ObjectKind::Node => drop(self.nodes.remove(&key.name)),
            ObjectKind::Service => drop(self.services.remove(&pair())),
            ObjectKind::EndpointSlice => drop(self.endpoint_slices.remove(&pair())),
            ObjectKind::ServiceCidr => drop(self.service_cidrs.remove(&key.name)),
            ObjectKind::NetworkPolicy => drop(self.network_policies.remove(&pair())),
            ObjectKind::IdentityPolicy => drop(self.identity_policies.remove(&pair())),
            ObjectKind::ClusterIdentityPolicy => drop(self.cluster_identity_policies.remove(&key.name)),
            ObjectKind::ClusterConfig => drop(self.cluster_configs.remove(&key.namespace)),
        }
    }

    /// What the ConfigMap of the agent's own namespace says.
    pub fn cluster_config(&self) -> Option<&ClusterConfig> {
        self.cluster_configs.get(&self.settings.namespace)
    }

    /// The mode of the whole agent: that of the cluster's ConfigMap, else that of the flag. The datapath applies it.
    pub fn mode(&self) -> Mode {
        self.cluster_config().and_then(ClusterConfig::mode).unwrap_or(self.settings.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModeSetting;

    fn config(namespace: &str, mode: ModeSetting) -> Object {
        let name = ClusterConfig::NAME.to_owned();
        Object::ClusterConfig(ClusterConfig {
            namespace: namespace.to_owned(),
            name,
            mode,
            unknown_keys: Vec::new(),
        })
    }

    fn unreadable() -> ModeSetting {
        ModeSetting::Unreadable { text: "adit".to_owned(), before: None }
    }

    #[test]
    fn the_config_map_of_our_namespace_wins_over_the_flag_and_its_end_gives_it_back() {
        let mut world = World::default();
        let own = config("portcullis-system", ModeSetting::Set(Mode::Audit));
        world.apply(config("shop", ModeSetting::Set(Mode::Off)));
        assert_eq!(world.mode(), Mode::Enforce, "a foreign namespace's decides nothing");
        world.apply(own.clone());
        assert_eq!(world.mode(), Mode::Audit);
        world.apply(config("portcullis-system", ModeSetting::Unset));
        assert_eq!(world.mode(), Mode::Enforce);
        world.settings.mode = Mode::Off;
        world.apply(config("portcullis-system", ModeSetting::Set(Mode::Enforce)));
        assert_eq!(world.mode(), Mode::Enforce, "stricter than the flag, too");
        world.delete(&own.key(), None);
        assert_eq!(world.mode(), Mode::Off);
    }

    #[test]
    fn a_mode_that_cannot_be_read_leaves_the_last_good_one() {
        let mut world = World::default();
        world.apply(config("portcullis-system", unreadable()));
        assert_eq!(world.mode(), Mode::Enforce, "there was none: the flag's");
        world.apply(config("portcullis-system", ModeSetting::Set(Mode::Audit)));
        for _ in 0..2 {
            world.apply(config("portcullis-system", unreadable()));
            assert_eq!(world.mode(), Mode::Audit);
        }
        let mut restarted = World { mode_before: Some(Mode::Audit), ..World::default() };
        assert_eq!(restarted.mode(), Mode::Enforce);
        restarted.apply(config("portcullis-system", unreadable()));
        assert_eq!(restarted.mode(), Mode::Audit);
        world.apply(config("portcullis-system", ModeSetting::Unset));
        world.apply(config("portcullis-system", unreadable()));
        assert_eq!(world.mode(), Mode::Enforce, "a mode that was taken back is not the last good one");
    }
}
