//! Who owns an address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Pod, World};

/// The owner of every address that a pod claims: of the pods that have an address of their own and are not finished, the
/// one whose sandbox started last; of several, the one with the largest UID.
///
/// Finished pods keep their address in the API while another pod has it already, and deletes arrive late, so neither
/// the order of events nor of creation says who has an address. A pod of which the API tells no address yet claims what
/// [`World::cached`] says.
pub fn owners(world: &World) -> BTreeMap<IpAddr, &Pod> {
    let mut owners: BTreeMap<IpAddr, (i64, &Pod)> = BTreeMap::new();
    for pod in world.pods.values() {
        for address in claims(world, pod) {
            let claim = (started(world, pod, address), pod);
            let owner = owners.entry(address).or_insert(claim);
            if (claim.0, &claim.1.uid) > (owner.0, &owner.1.uid) {
                *owner = claim;
            }
        }
    }
    owners.into_iter().map(|(address, (_, pod))| (address, pod)).collect()
}

/// The addresses that a pod claims.
pub fn claims<'w>(world: &'w World, pod: &'w Pod) -> impl Iterator<Item = IpAddr> + 'w {
    let early = || world.cached.get(&pod.uid).filter(|_| pod.addresses.is_empty());
    let own = !pod.host_network && !pod.finished;
    let early = own.then(early).flatten().into_iter().flat_map(|cached| &cached.addresses);
    let told = if own { pod.addresses.as_slice() } else { &[] };
    told.iter().chain(early).copied()
}

/// When the pod was given an address that it claims.
pub fn started(world: &World, pod: &Pod, address: IpAddr) -> i64 {
    let given = world.cached.get(&pod.uid).filter(|cached| cached.addresses.contains(&address));
    given.map_or(pod.sandbox_started, |given| given.started.max(pod.sandbox_started))
}

/// Whether a pod can be judged: its namespace and its service account are known too. Before that a selector such as
/// `NotIn` would match labels that are merely not there yet.
pub fn is_known(world: &World, pod: &Pod) -> bool {
    world.namespaces.contains_key(&pod.namespace)
        && world.service_accounts.contains_key(&(pod.namespace.clone(), pod.service_account.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Object;

    fn pod(uid: &str, started: i64) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: uid.into(),
            uid: uid.into(),
            service_account: "default".into(),
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            sandbox_started: started,
            ..Pod::default()
        }
    }

    /// The owner's UID, after the pods became known in this order.
    fn owner(pods: &[&Pod]) -> Option<String> {
        let mut world = World::default();
        for &pod in pods {
            world.apply(Object::Pod(pod.clone()));
        }
        owners(&world).get(&IpAddr::from([10, 0, 0, 1])).map(|pod| pod.uid.clone())
    }

    #[test]
    fn the_newest_sandbox_owns_the_address_whatever_the_order_of_events() {
        // The UIDs sort against the starts, so that no accident of the map decides.
        let (old, new) = (pod("z", 100), pod("a", 200));
        assert_eq!(owner(&[&old, &new]).as_deref(), Some("a"));
        assert_eq!(owner(&[&new, &old]).as_deref(), Some("a"));
        let (old, new) = (pod("a", 100), pod("z", 200));
        assert_eq!(owner(&[&old, &new]).as_deref(), Some("z"));
        assert_eq!(owner(&[&new, &old]).as_deref(), Some("z"));
    }

    #[test]
    fn of_two_that_started_in_the_same_second_the_larger_uid_owns_it() {
        assert_eq!(owner(&[&pod("a", 7), &pod("b", 7)]).as_deref(), Some("b"));
        assert_eq!(owner(&[&pod("b", 7), &pod("a", 7)]).as_deref(), Some("b"));
    }

    #[test]
    fn finished_and_host_network_pods_own_nothing() {
        let old = pod("a", 1);
        let finished = Pod { finished: true, ..pod("b", 9) };
        let host = Pod { host_network: true, ..pod("c", 9) };
        assert_eq!(owner(&[&finished, &host, &old]).as_deref(), Some("a"));
        assert_eq!(owner(&[&finished, &host]), None);
    }

    #[test]
    fn when_the_newer_pod_is_gone_the_older_claim_counts_again() {
        let (old, new) = (pod("a", 1), pod("b", 2));
        let mut world = World::default();
        world.apply(Object::Pod(old.clone()));
        world.apply(Object::Pod(new.clone()));
        world.delete(&Object::Pod(new).key(), Some("b"));
        assert_eq!(owners(&world).values().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
