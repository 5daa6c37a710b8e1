//! Pods grouped by what policies can see of them: the same namespace, service account and labels, of those labels that
//! some selector looks at. Selectors are matched once for all of them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use portcullis_common::Verdict;
use portcullis_common::abi::{Mode, NumberSpace};

use super::super::linked::{Linked, NamespaceIndex};
use super::super::subjects::SubjectBase;
use crate::identity::Numbers;
use crate::model::{Labels, Pod, World};

/// Index of a group while an address of a pod in it is known.
pub type GroupId = u32;

/// A group.
pub struct Group {
    namespace: String,
    account: String,
    /// Those labels that selectors look at.
    labels: Vec<(String, String)>,
    hash: u64,
    /// `namespace/account`.
    pub principal_name: String,
    /// Number of the principal.
    pub principal: u32,
    /// Indexes of the selectors of peers that match them, ascending.
    pub selectors: Arc<[u32]>,
    /// What their subject classes have in common.
    pub subject: SubjectBase,
    users: u32,
    /// What was matched holds no longer: nobody new gets into it.
    stale: bool,
}

/// What selectors are matched against.
#[derive(Clone, Copy)]
pub struct Matching<'c> {
    /// The world.
    pub world: &'c World,
    /// The policies in force.
    pub linked: &'c Linked,
    /// The modes that namespaces ask for.
    pub modes: &'c HashMap<String, Mode>,
}

/// Every group that a pod is in.
#[derive(Default)]
pub struct Groups {
    slots: Vec<Option<Group>>,
    free: Vec<GroupId>,
    index: HashMap<u64, Vec<GroupId>>,
    hashes: RandomState,
    shared: HashSet<Arc<[u32]>>,
    /// For each namespace the selectors, and the subjects of policies, that look at it.
    selectors: HashMap<String, Arc<[u32]>>,
    policies: HashMap<String, Arc<[u32]>>,
}

impl Groups {
    /// The group of a pod that has one more address.
    pub fn acquire(&mut self, matching: Matching<'_>, pod: &Pod, numbers: &mut Numbers) -> GroupId {
        let seen = |(key, _): &(&String, &String)| matching.linked.pod_label_keys.contains(key.as_str());
        let labels = || pod.labels.iter().filter(seen);
        let mut hasher = self.hashes.build_hasher();
        (&pod.namespace, &pod.service_account).hash(&mut hasher);
        labels().for_each(|label| label.hash(&mut hasher));
        let hash = hasher.finish();
        let same = |id: &&GroupId| {
            self.get(**id).is_some_and(|group| {
                !group.stale
                    && (&group.namespace, &group.account) == (&pod.namespace, &pod.service_account)
                    && group.labels.len() == labels().count()
                    && group.labels.iter().zip(labels()).all(|(a, b)| (&a.0, &a.1) == b)
            })
        };
        let known = self.index.get(&hash).and_then(|ids| ids.iter().find(same)).copied();
        let id = known.unwrap_or_else(|| {
            let labels = labels().map(|(key, value)| (key.clone(), value.clone())).collect();
            self.add(matching, pod, labels, hash, numbers)
        });
        if let Some(Some(group)) = self.slots.get_mut(id as usize) {
            group.users += 1;
        }
        id
    }

    /// A group.
    pub fn get(&self, id: GroupId) -> Option<&Group> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// One address less. Returns the group if that was the last one.
    pub fn release(&mut self, id: GroupId) -> Option<Group> {
        let slot = self.slots.get_mut(id as usize)?;
        let group = slot.as_mut()?;
        group.users = group.users.saturating_sub(1);
        if group.users > 0 {
            return None;
        }
        let group = slot.take()?;
        self.free.push(id);
        if let Some(ids) = self.index.get_mut(&group.hash) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.index.remove(&group.hash);
            }
        }
        Some(group)
    }

    /// A namespace or account has changed: its pods have to be matched again.
    pub fn forget(&mut self, changed: impl Fn(&str, &str) -> bool) {
        for group in self.slots.iter_mut().flatten() {
            group.stale |= changed(&group.namespace, &group.account);
        }
    }

    /// A namespace has changed: which selectors look at it has to be found again.
    pub fn forget_namespace(&mut self, name: &str) {
        self.selectors.remove(name);
        self.policies.remove(name);
    }

    fn add(
        &mut self,
        matching: Matching<'_>,
        pod: &Pod,
        seen: Vec<(String, String)>,
        hash: u64,
        numbers: &mut Numbers,
    ) -> GroupId {
        let Matching { world, linked, modes } = matching;
        let (namespace, account) = (&pod.namespace, &pod.service_account);
        let none = Labels::new();
        let namespace_labels = world.namespaces.get(namespace).map_or(&none, |object| &object.labels);
        let key = (namespace.clone(), account.clone());
        let account_labels = world.service_accounts.get(&key).map_or(&none, |object| &object.labels);
        let within = |cache: &mut HashMap<String, Arc<[u32]>>, index: &NamespaceIndex| {
            let found = || index.of(namespace, namespace_labels).into();
            Arc::clone(cache.entry(namespace.clone()).or_insert_with(found))
        };
        let selectors = within(&mut self.selectors, &linked.selector_index);
        let policies = within(&mut self.policies, &linked.policy_index);
        let matches = |selector: &super::super::selector::PodSelector| {
            selector.matches_within(&pod.labels, account, account_labels)
        };
        let selectors: Vec<u32> =
            selectors.iter().copied().filter(|&id| matches(&linked.selectors[id as usize])).collect();
        let mut policies: Vec<u32> = policies
            .iter()
            .copied()
            .filter(|&id| matches(&linked.policies[id as usize].policy.subject))
            .collect();
        policies.sort_by(|&a, &b| linked.order(a).cmp(&linked.order(b)));
        let selectors = if let Some(shared) = self.shared.get(selectors.as_slice()) {
            Arc::clone(shared)
        } else {
            let shared: Arc<[u32]> = selectors.into();
            self.shared.insert(Arc::clone(&shared));
            shared
        };
        let mode = modes.get(namespace).copied().unwrap_or(Mode::Enforce);
        let default: Verdict = world.settings.default_verdict;
        let principal_name = format!("{namespace}/{account}");
        let group = Group {
            namespace: namespace.clone(),
            account: account.clone(),
            labels: seen,
            hash,
            principal: numbers.number(NumberSpace::Principal, &principal_name),
            principal_name,
            selectors,
            subject: SubjectBase::new(linked, &policies, mode, default),
            users: 0,
            stale: false,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(slot) = self.slots.get_mut(id as usize) {
            *slot = Some(group);
        }
        self.index.entry(hash).or_default().push(id);
        id
    }
}
