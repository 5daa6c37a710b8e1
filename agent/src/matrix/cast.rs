//! Who takes part: the pods of a folder, in a world in which what the folder leaves out is assumed.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Options;
use super::addresses;
use crate::model::{Namespace, Object, ObjectKey, ObjectKind, Pod, ServiceAccount, World};
use crate::policy::Desired;
use crate::sources::manifests::{Reading, is_workload};

/// A pod, or a workload that stands for its pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub account: String,
    /// Its UID.
    pub uid: String,
    /// It stands for several pods, so that it may have to reach another one of them.
    pub several: bool,
}

/// The pods and their world.
#[derive(Debug, Default)]
pub(super) struct Cast {
    /// What is compiled.
    pub world: World,
    /// Who takes part, by namespace and name.
    pub members: Vec<Member>,
    /// What is left out, and what was assumed.
    pub notes: Vec<String>,
    /// Where pods got addresses from that the folder gives none; empty if it gives all of them.
    pub ranges: Vec<IpNet>,
    /// How many pods did.
    pub given: usize,
}

impl Cast {
    /// The cast of a folder.
    pub fn new(reading: &Reading, options: &Options) -> Self {
        let mut world = World::default();
        world.settings.default_verdict = options.default_verdict;
        for object in reading.objects.iter().cloned() {
            world.apply(match object {
                // Without a node every pod is one of this agent's, so that one compiled world answers for all of them.
                Object::Pod(pod) => Object::Pod(Pod { node: String::new(), ..pod }),
                other => other,
            });
        }
        let mut cast = Self { world, ..Self::default() };
        cast.assume(reading);
        let given = addresses::give(&mut cast.world, &options.pod_cidrs);
        cast.leave_out(
            "no address is left in the ranges of pods: larger ones with --pod-cidr",
            given.without,
        );
        (cast.given, cast.ranges) = (given.pods, given.ranges);
        cast.choose(reading);
        cast
    }

    /// Adds what every cluster has although no manifest says it: the namespaces and accounts of the pods.
    fn assume(&mut self, reading: &Reading) {
        let (mut namespaces, mut accounts) = (BTreeSet::new(), BTreeSet::new());
        for pod in self.world.pods.values() {
            namespaces.insert(pod.namespace.clone());
            accounts.insert((pod.namespace.clone(), pod.service_account.clone()));
        }
        namespaces.retain(|name| {
            !self.world.namespaces.contains_key(name) && !reading.is_unclear(&namespace_key(name))
        });
        accounts.retain(|account| {
            !self.world.service_accounts.contains_key(account) && !reading.is_unclear(&account_key(account))
        });
        for name in &namespaces {
            let own = (NAMESPACE_NAME.to_owned(), name.clone());
            self.world.apply(Object::Namespace(Namespace { name: name.clone(), labels: [own].into() }));
        }
        for (namespace, name) in accounts.iter().cloned() {
            self.world.apply(Object::ServiceAccount(ServiceAccount {
                namespace,
                name,
                ..ServiceAccount::default()
            }));
        }
        // Each namespace has its `default` account, and few label it.
        accounts.retain(|(_, name)| name != "default");
        self.assumed("Namespace", "no labels but its name", namespaces);
        let accounts = accounts.into_iter().map(|(namespace, name)| format!("{namespace}/{name}"));
        self.assumed("ServiceAccount", "no labels", accounts.collect());
    }

    fn assumed(&mut self, kind: &str, labels: &str, names: BTreeSet<String>) {
        if !names.is_empty() {
            let names: Vec<String> = names.into_iter().collect();
            self.notes
                .push(format!("no {kind} in the folder, taken for one with {labels}: {}", names.join(", ")));
        }
    }

    /// Leaves out what has no traffic of its own to judge.
    fn choose(&mut self, reading: &Reading) {
        let mut left_out: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut members = Vec::new();
        for pod in self.world.pods.values() {
            let account = (pod.namespace.clone(), pod.service_account.clone());
            let why = if pod.host_network {
                "with hostNetwork a pod is its node, of which policies for pods say nothing"
            } else if pod.finished {
                "finished"
            } else if reading.is_unclear(&namespace_key(&pod.namespace)) {
                "the Namespace is not understood"
            } else if reading.is_unclear(&account_key(&account)) {
                "the ServiceAccount is not understood"
            } else if pod.addresses.is_empty() {
                continue;
            } else {
                members.push(Member {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    account: pod.service_account.clone(),
                    uid: pod.uid.clone(),
                    several: is_workload(&pod.name),
                });
                continue;
            };
            left_out.entry(why).or_default().push(format!("{}/{}", pod.namespace, pod.name));
        }
        members.sort();
        self.members = members;
        for (why, names) in left_out {
            self.leave_out(why, names);
        }
    }

    /// Says that addresses were made up where a rule looks at addresses.
    pub fn note_addresses(&mut self, desired: &Desired) {
        let of_pods: BTreeSet<IpNet> =
            self.world.nodes.values().flat_map(|node| &node.pod_cidrs).map(IpNet::trunc).collect();
        let is_block = |net: &&IpNet| net.prefix_len() != 0 && !of_pods.contains(net);
        if self.given != 0 && desired.cidrs.keys().any(|net| is_block(&net)) {
            let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
            self.notes.push(format!(
                "{} without an address in the folder got one of {}, and rules with ipBlock look at it: say the ranges of \
                 the cluster's pods with --pod-cidr if they are others",
                count(self.given, "pod"),
                ranges.join(", ")
            ));
        }
    }

    fn leave_out(&mut self, why: &str, mut names: Vec<String>) {
        if !names.is_empty() {
            names.sort();
            self.notes.push(format!("left out ({why}): {}", names.join(", ")));
        }
    }
}

/// `1 pod`, `2 pods`.
pub(super) fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

/// Label that every namespace carries with its own name as the value.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

fn namespace_key(name: &str) -> ObjectKey {
    ObjectKey { kind: ObjectKind::Namespace, namespace: String::new(), name: name.to_owned() }
}

fn account_key((namespace, name): &(String, String)) -> ObjectKey {
    ObjectKey { kind: ObjectKind::ServiceAccount, namespace: namespace.clone(), name: name.clone() }
}
