//! What libcni's cache adds to who owns which address.
//!
//! Invariant: the cache never speaks for itself. An entry counts only while an interface of this node shows one of its
//! addresses (under the name that the entry gives, if it gives one) and its pod is known, is one of this node's, and
//! has no other addresses in the API.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use crate::cni::CniEntry;
use crate::model::{CachedAddresses, Pod, World};

/// An interface, as far as it matters here: its name and the addresses behind it.
pub type Seen<'a> = (&'a str, &'a [IpAddr]);

/// The entries that count, by the UID of their pod.
pub fn cached_addresses(
    entries: &[CniEntry],
    world: &World,
    interfaces: &[Seen<'_>],
) -> BTreeMap<String, CachedAddresses> {
    let mut found: BTreeMap<String, CachedAddresses> = BTreeMap::new();
    for entry in entries {
        let Some(pod) = pod_of(entry, world) else { continue };
        let bears_out = |(name, addresses): &Seen<'_>| {
            // A stale entry names an interface that is gone, so a name that it gives must be borne out, too.
            let named = entry.host_interfaces.is_empty() || entry.host_interfaces.contains(*name);
            named && addresses.iter().any(|address| entry.addresses.contains(address))
        };
        if !interfaces.iter().any(bears_out) {
            continue;
        }
        let cached = found.entry(pod.uid.clone()).or_default();
        cached.addresses.extend(&entry.addresses);
        let written = entry.written.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        cached.started = cached.started.max(i64::try_from(written).unwrap_or(i64::MAX));
    }
    found
}

/// The pod that an entry is about, if it is one that can have an interface here.
fn pod_of<'w>(entry: &CniEntry, world: &'w World) -> Option<&'w Pod> {
    let named = |pod: &&Pod| (&pod.namespace, &pod.name) == (&entry.namespace, &entry.pod);
    let pod = match &entry.uid {
        Some(uid) => world.pods.get(uid).filter(named)?,
        // Of several with the name one at most is not over.
        None => world.pods.values().filter(named).find(|pod| !pod.finished)?,
    };
    let here = pod.node.is_empty() || pod.node == world.settings.node_name;
    Some(pod).filter(|pod| here && !pod.host_network && !pod.finished)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::identity::owners;
    use crate::model::Object;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn pod(name: &str, addresses: &[IpAddr], started: i64) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            uid: format!("u-{name}"),
            node: "here".into(),
            addresses: addresses.to_vec(),
            sandbox_started: started,
            ..Pod::default()
        }
    }

    fn entry(pod: &str, address: IpAddr, written: u64) -> CniEntry {
        CniEntry {
            namespace: "shop".into(),
            pod: pod.into(),
            uid: Some(format!("u-{pod}")),
            host_interfaces: BTreeSet::new(),
            addresses: [address].into(),
            written: SystemTime::UNIX_EPOCH + Duration::from_secs(written),
        }
    }

    /// Who owns the address A.
    fn owner(pods: &[Pod], entries: &[CniEntry], seen: &[(&str, &[IpAddr])]) -> Option<String> {
        let mut world = World::default();
        world.settings.node_name = "here".into();
        pods.iter().cloned().for_each(|pod| world.apply(Object::Pod(pod)));
        world.cached = cached_addresses(entries, &world, seen);
        owners(&world).get(&A).map(|pod| pod.name.clone())
    }

    #[test]
    fn a_pod_has_its_address_before_the_api_says_so() {
        let seen: &[(&str, &[IpAddr])] = &[("veth1", &[A])];
        assert_eq!(owner(&[pod("a", &[], 0)], &[entry("a", A, 5)], seen).as_deref(), Some("a"));
        let nameless = CniEntry { uid: None, ..entry("a", A, 5) };
        assert_eq!(owner(&[pod("a", &[], 0)], &[nameless], seen).as_deref(), Some("a"));
    }

    #[test]
    fn an_entry_that_no_interface_bears_out_says_nothing() {
        let pods = [pod("a", &[], 0)];
        let entries = [entry("a", A, 5)];
        assert_eq!(owner(&pods, &entries, &[]), None, "the container is gone");
        assert_eq!(owner(&pods, &entries, &[("veth1", &[B])]), None);
        let named = CniEntry { host_interfaces: ["cni0".into(), "veth2".into()].into(), ..entry("a", A, 5) };
        assert_eq!(owner(&pods, std::slice::from_ref(&named), &[("veth1", &[A])]), None, "another interface");
        assert_eq!(owner(&pods, &[named], &[("veth2", &[A])]).as_deref(), Some("a"));
    }

    #[test]
    fn an_entry_of_a_pod_that_is_over_elsewhere_or_another_of_the_name_says_nothing() {
        let seen: &[(&str, &[IpAddr])] = &[("veth1", &[A])];
        for pod in [
            Pod { finished: true, ..pod("a", &[], 0) },
            Pod { node: "there".into(), ..pod("a", &[], 0) },
            Pod { host_network: true, ..pod("a", &[], 0) },
            Pod { uid: "another".into(), ..pod("a", &[], 0) },
        ] {
            assert_eq!(owner(std::slice::from_ref(&pod), &[entry("a", A, 5)], seen), None, "{pod:?}");
        }
    }

    #[test]
    fn the_api_wins_when_it_says_something() {
        let seen: &[(&str, &[IpAddr])] = &[("veth1", &[A])];
        assert_eq!(owner(&[pod("a", &[B], 0)], &[entry("a", A, 5)], seen), None);
    }

    #[test]
    fn of_two_that_claim_an_address_the_later_one_has_it_whoever_says_so() {
        let seen: &[(&str, &[IpAddr])] = &[("veth1", &[A])];
        // The API still gives the address to the one before.
        let pods = [pod("old", &[A], 3), pod("new", &[], 0)];
        assert_eq!(owner(&pods, &[entry("new", A, 5)], seen).as_deref(), Some("new"));
        // And a stale entry takes nothing from a later sandbox.
        let pods = [pod("old", &[], 0), pod("new", &[A], 7)];
        assert_eq!(owner(&pods, &[entry("old", A, 5)], seen).as_deref(), Some("new"));
        let pods = [pod("old", &[], 0), pod("new", &[], 0)];
        let both = [entry("old", A, 5), entry("new", A, 6)];
        assert_eq!(owner(&pods, &both, seen).as_deref(), Some("new"));
        // What the API says of the new one does not make it older than the cache knows it to be.
        let pods = [pod("old", &[A], 3), pod("new", &[A], 2)];
        assert_eq!(owner(&pods, &[entry("new", A, 5)], seen).as_deref(), Some("new"));
    }
}
