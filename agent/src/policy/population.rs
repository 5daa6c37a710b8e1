//! Who is behind every address that is known exactly, and the pods grouped by what policies can see of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_common::Kind;

use super::linked::{Linked, by_namespace};
use super::services;
use crate::identity::{is_known, owners};
use crate::model::{Labels, Pod, World};

/// Pods of the same namespace, service account and labels: selectors are matched once for all of them.
pub struct Group<'w> {
    /// Their namespace.
    pub namespace: &'w str,
    /// Their service account.
    pub account: &'w str,
    /// Indexes of the selectors of peers that match them, ascending.
    pub selectors: Arc<[u32]>,
    /// Indexes of the policies that are about them, ascending.
    pub policies: Vec<u32>,
}

/// What is behind an address.
#[derive(Clone, Copy)]
pub enum Holder<'w> {
    /// A known pod, with the index of its group.
    Pod(&'w Pod, usize),
    /// A node, or a pod of which not enough is known.
    Kind(Kind),
    /// A service; of a borrowed address only on the service's ports.
    Service {
        /// It is an external address, which exists without the service.
        borrowed: bool,
    },
}

/// The pods and nodes of the world.
pub struct Population<'w> {
    /// The groups of known pods that own an address.
    pub groups: Vec<Group<'w>>,
    /// Every address that is known exactly.
    pub holders: BTreeMap<IpAddr, Holder<'w>>,
}

impl<'w> Population<'w> {
    /// Finds the holders, and matches the selectors of the policies in force.
    pub fn new(world: &'w World, linked: &Linked) -> Self {
        let mut grouping = Grouping::new(world, linked);
        // Whoever may write a service may give it any address: one that is somebody's stays so.
        let frontends = services::addresses(world).into_iter();
        let mut holders: BTreeMap<_, _> =
            frontends.map(|(address, borrowed)| (address, Holder::Service { borrowed })).collect();
        for (address, pod) in owners(world) {
            let holder = if is_known(world, pod) {
                Holder::Pod(pod, grouping.group_of(pod))
            } else {
                Holder::Kind(Kind::Unmanaged)
            };
            holders.insert(address, holder);
        }
        // A node's address is the node's, whoever claims it; an address of this very machine is this node's.
        let settings = &world.settings;
        for here in [false, true] {
            let is_here = |name: &String| !settings.node_name.is_empty() && *name == settings.node_name;
            let nodes = world.nodes.values().filter(|node| is_here(&node.name) == here);
            let kind = if here { Kind::Host } else { Kind::Node };
            holders
                .extend(nodes.flat_map(|node| &node.addresses).map(|&address| (address, Holder::Kind(kind))));
        }
        holders.extend(settings.local_addresses.iter().map(|&address| (address, Holder::Kind(Kind::Host))));
        Self { groups: grouping.groups, holders }
    }
}

struct Grouping<'w, 'l> {
    world: &'w World,
    linked: &'l Linked,
    selectors: HashMap<&'w str, Vec<u32>>,
    policies: HashMap<&'w str, Vec<u32>>,
    index: HashMap<(&'w str, &'w str, &'w Labels), usize>,
    shared: HashMap<Vec<u32>, Arc<[u32]>>,
    groups: Vec<Group<'w>>,
}

impl<'w, 'l> Grouping<'w, 'l> {
    fn new(world: &'w World, linked: &'l Linked) -> Self {
        let namespaces = || world.namespaces.values().map(|namespace| (&namespace.name, &namespace.labels));
        let subjects = linked.policies.iter().map(|policy| &policy.policy.subject);
        Self {
            world,
            linked,
            selectors: by_namespace(linked.selectors.iter(), namespaces()),
            policies: by_namespace(subjects, namespaces()),
            index: HashMap::new(),
            shared: HashMap::new(),
            groups: Vec::new(),
        }
    }

    fn group_of(&mut self, pod: &'w Pod) -> usize {
        let (namespace, account, labels) =
            (pod.namespace.as_str(), pod.service_account.as_str(), &pod.labels);
        if let Some(&group) = self.index.get(&(namespace, account, labels)) {
            return group;
        }
        let none = Labels::new();
        let object = self.world.service_accounts.get(&(pod.namespace.clone(), pod.service_account.clone()));
        let account_labels = object.map_or(&none, |account| &account.labels);
        let within = |index: &HashMap<&str, Vec<u32>>| index.get(namespace).cloned().unwrap_or_default();
        let mut selectors = within(&self.selectors);
        selectors
            .retain(|&id| self.linked.selectors[id as usize].matches_within(labels, account, account_labels));
        let mut policies = within(&self.policies);
        policies.retain(|&id| {
            let subject = &self.linked.policies[id as usize].policy.subject;
            subject.matches_within(labels, account, account_labels)
        });
        let selectors = self.shared.entry(selectors).or_insert_with_key(|ids| ids.as_slice().into()).clone();
        self.groups.push(Group { namespace, account, selectors, policies });
        self.index.insert((namespace, account, labels), self.groups.len() - 1);
        self.groups.len() - 1
    }
}
