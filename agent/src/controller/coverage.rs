//! Pods of this node that no interface was found for: their traffic goes by a way that our programs do not see (ipvlan,
//! macvlan, SR-IOV), and nobody must believe that they are judged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_common::abi::Mode;

use crate::api::MODE_KEY;
use crate::model::{Pod, World};

/// The pods that were found without an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Whether there was more than one look.
    looked_again: bool,
    /// By UID, at the last look; `None` before the first one.
    suspects: Option<BTreeSet<String>>,
    /// `namespace/name` and addresses of those that were found so in two looks in a row: whatever was under way when
    /// one began was read before the next.
    uncovered: BTreeMap<String, Vec<IpAddr>>,
}

impl Coverage {
    /// Looks again. `bound`: UIDs that are bound to an interface; `seen`: every address found behind an interface.
    pub fn look(&mut self, world: &World, bound: &BTreeSet<&str>, seen: &BTreeSet<IpAddr>) {
        let mut suspects = BTreeSet::new();
        self.uncovered.clear();
        for pod in world.pods.values() {
            let found = bound.contains(pod.uid.as_str()) || pod.addresses.iter().any(|a| seen.contains(a));
            if found || !must_have_interface(world, pod) {
                continue;
            }
            if self.suspects.as_ref().is_some_and(|before| before.contains(&pod.uid)) {
                self.uncovered.insert(format!("{}/{}", pod.namespace, pod.name), pod.addresses.clone());
            }
            suspects.insert(pod.uid.clone());
        }
        self.looked_again = self.suspects.replace(suspects).is_some();
    }

    /// Whether there was no look yet.
    pub const fn is_unknown(&self) -> bool {
        self.suspects.is_none()
    }

    /// Whether every pod is covered, as far as it is known. After the very first look a doubt is enough to say no.
    pub fn is_complete(&self) -> bool {
        match &self.suspects {
            Some(suspects) if !self.looked_again => suspects.is_empty(),
            _ => self.uncovered.is_empty(),
        }
    }

    /// The pods: name and addresses.
    pub const fn uncovered(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.uncovered
    }
}

/// Whether the pod runs here with an address of its own, and its namespace wants anything of us.
fn must_have_interface(world: &World, pod: &Pod) -> bool {
    let label = world.namespaces.get(&pod.namespace).and_then(|namespace| namespace.labels.get(MODE_KEY));
    pod.running
        && pod.node == world.settings.node_name
        && !pod.node.is_empty()
        && !pod.host_network
        && !pod.addresses.is_empty()
        && label.and_then(|text| Mode::from_name(text)) != Some(Mode::Off)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Namespace, Object};

    fn pod(name: &str) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
            node: "here".into(),
            running: true,
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            ..Pod::default()
        }
    }

    /// The pods that are reported after a number of looks that see nothing.
    fn reported(pod: Pod, looks: usize) -> Vec<String> {
        let mut world = World::default();
        world.settings.node_name = "here".into();
        let off = [(MODE_KEY.to_owned(), "Off".to_owned())];
        world.apply(Object::Namespace(Namespace { name: "out".into(), labels: off.into() }));
        world.apply(Object::Pod(pod));
        let mut coverage = Coverage::default();
        for _ in 0..looks {
            coverage.look(&world, &BTreeSet::new(), &BTreeSet::new());
        }
        coverage.uncovered().keys().cloned().collect()
    }

    #[test]
    fn a_running_pod_of_this_node_that_is_behind_no_interface_is_reported_at_the_second_look() {
        assert_eq!(reported(pod("a"), 1), Vec::<String>::new());
        assert_eq!(reported(pod("a"), 2), ["shop/a"]);
        for other in [
            Pod { running: false, ..pod("a") },
            Pod { node: "there".into(), ..pod("a") },
            Pod { node: String::new(), ..pod("a") },
            Pod { host_network: true, ..pod("a") },
            Pod { addresses: Vec::new(), ..pod("a") },
            Pod { namespace: "out".into(), ..pod("a") },
        ] {
            assert_eq!(reported(other.clone(), 2), Vec::<String>::new(), "{other:?}");
        }
    }

    #[test]
    fn a_new_pod_is_no_doubt_about_the_others_but_one_of_the_start_is() {
        let mut world = World::default();
        world.settings.node_name = "here".into();
        let (nobody, nothing) = (BTreeSet::new(), BTreeSet::new());
        let mut coverage = Coverage::default();
        coverage.look(&world, &nobody, &nothing);
        coverage.look(&world, &nobody, &nothing);
        world.apply(Object::Pod(pod("a")));
        coverage.look(&world, &nobody, &nothing);
        assert!(coverage.is_complete(), "its interface may be under way");
        let mut coverage = Coverage::default();
        coverage.look(&world, &nobody, &nothing);
        assert!(!coverage.is_complete());
    }

    #[test]
    fn who_is_bound_or_whose_address_was_seen_is_covered() {
        let mut world = World::default();
        world.settings.node_name = "here".into();
        world.apply(Object::Pod(pod("a")));
        let mut coverage = Coverage::default();
        let seen = BTreeSet::from([IpAddr::from([10, 0, 0, 1])]);
        for (bound, seen, count) in [
            (BTreeSet::new(), BTreeSet::new(), 1),
            (BTreeSet::from(["a"]), BTreeSet::new(), 0),
            (BTreeSet::new(), seen, 0),
        ] {
            for _ in 0..2 {
                coverage.look(&world, &bound, &seen);
                assert_eq!(coverage.is_complete(), count == 0);
            }
            assert_eq!(coverage.uncovered().len(), count);
        }
    }
}
