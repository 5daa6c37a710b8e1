//! The world: every object that is known, by key. One task owns it and is its only writer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::Verdict;
use portcullis_common::abi::Mode;

use super::objects::{
    EndpointSlice, IdentityPolicy, Namespace, NetworkPolicy, Node, Object, ObjectKey, ObjectKind, Pod,
    Service, ServiceAccount, ServiceCidr,
};

/// What the operator of this agent decided; the same for every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node.
    pub node_name: String,
    /// Addresses of the host's own network namespace (interfaces that are not endpoints), as found on this machine.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Pod ranges given by flag, beside those in the Node objects.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of the services' cluster addresses given by flag, beside those in the `ServiceCIDR` objects.
    pub service_cidrs: Vec<IpNet>,
    /// The namespace that Portcullis runs in: only pods there can be agents of ours.
    pub namespace: String,
    /// The verdict where no policy has a say.
    pub default_verdict: Verdict,
    /// Whether NetworkPolicies are ours to enforce.
    pub network_policies: bool,
    /// The mode of the whole agent. The datapath applies it; it is here so that dumps and reports can name it.
    pub mode: Mode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            local_addresses: BTreeSet::new(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            namespace: "portcullis-system".to_owned(),
            default_verdict: Verdict::Allow,
            network_policies: true,
            mode: Mode::Enforce,
        }
    }
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
        }
    }
}
