//! Which pod is behind which interface. An interface is bound to a pod once, by the addresses first seen in its
//! namespace (or by what an earlier agent had bound), and is not asked again while that pod owns an address: a pod with
//! `NET_ADMIN` can give itself any address, and must not choose its identity by it.
//!
//! A pod that owns none any more is over, and its address has gone to another one: the API may tell so only after the
//! new pod's interface was seen, so such a binding is made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_common::Verdict;

use crate::datapath::EndpointSpec;
use crate::state::EndpointState;

/// An interface that is an endpoint, as the links tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the host-side interface.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// MAC address of the pod's side.
    pub mac: Option<[u8; 6]>,
    /// Addresses first seen in the pod's namespace.
    pub addresses: Vec<IpAddr>,
}

/// What is known about an interface's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binding {
    name: String,
    uid: Option<String>,
    unknown: Verdict,
    warning: Option<String>,
}

/// The bindings of all endpoints.
#[derive(Clone, Debug)]
pub struct Bindings {
    by_ifindex: BTreeMap<u32, Binding>,
    /// What an earlier agent had bound: interface to UID and what it got while unknown.
    inherited: BTreeMap<(u32, String), (Option<String>, Verdict)>,
    /// What an endpoint gets that appears now and is not known yet.
    unknown: Verdict,
    /// What endpoints get that were there before anything was enforced on this node, until they are known.
    at_first: Option<Verdict>,
}

impl Bindings {
    /// With the endpoints of an earlier agent's names file. `first_start`: nothing is enforced on this node yet, so
    /// endpoints that are there already are audited until their pod is known.
    pub fn new(unknown: Verdict, first_start: bool, earlier: &[EndpointState]) -> Self {
        let inherited = if first_start { &[][..] } else { earlier };
        let inherited = inherited
            .iter()
            .map(|e| {
                let verdict = Verdict::ALL.iter().copied().find(|v| v.name() == e.unknown).unwrap_or(unknown);
                ((e.ifindex, e.interface.clone()), (e.uid.clone(), verdict))
            })
            .collect();
        Self {
            by_ifindex: BTreeMap::new(),
            inherited,
            unknown,
            at_first: first_start.then_some(Verdict::Audit),
        }
    }

    /// The UIDs that are bound to a living interface.
    pub fn bound(&self) -> BTreeSet<&str> {
        self.by_ifindex.values().filter_map(|binding| binding.uid.as_deref()).collect()
    }

    /// The UID that an interface is bound to.
    pub fn uid(&self, ifindex: u32) -> Option<&str> {
        self.by_ifindex.get(&ifindex)?.uid.as_deref()
    }

    /// What is wrong with an interface.
    pub fn warning(&self, ifindex: u32) -> Option<&str> {
        self.by_ifindex.get(&ifindex)?.warning.as_deref()
    }

    /// Forgets interfaces that are gone, binds new ones, and says what the datapath shall have. `owner` has the UID of
    /// the pod that owns an address.
    pub fn update(
        &mut self,
        candidates: &[Candidate],
        owner: &BTreeMap<IpAddr, String>,
    ) -> Vec<EndpointSpec> {
        let present: BTreeMap<u32, &Candidate> = candidates.iter().map(|c| (c.ifindex, c)).collect();
        self.by_ifindex.retain(|ifindex, _| present.contains_key(ifindex));
        for candidate in candidates {
            self.bind(candidate, owner);
        }
        // Only what was there at the first look is spared.
        self.at_first = None;
        self.inherited.clear();
        candidates
            .iter()
            .map(|candidate| {
                let binding = self.by_ifindex.get(&candidate.ifindex);
                EndpointSpec {
                    ifindex: candidate.ifindex,
                    name: candidate.name.clone(),
                    master: candidate.master,
                    mac: candidate.mac,
                    pod: binding.and_then(|binding| binding.uid.clone()),
                    addresses: candidate.addresses.clone(),
                    unknown: binding.map_or(self.unknown, |binding| binding.unknown),
                }
            })
            .collect()
    }

    fn bind(&mut self, candidate: &Candidate, owner: &BTreeMap<IpAddr, String>) {
        let taken: BTreeMap<String, String> = self
            .by_ifindex
            .iter()
            .filter(|(ifindex, _)| **ifindex != candidate.ifindex)
            .filter_map(|(_, binding)| Some((binding.uid.clone()?, binding.name.clone())))
            .collect();
        let inherited = self.inherited.remove(&(candidate.ifindex, candidate.name.clone()));
        let unknown = self.at_first.unwrap_or(self.unknown);
        let binding = self.by_ifindex.entry(candidate.ifindex).or_insert_with(|| {
            let (uid, unknown) = inherited.unwrap_or((None, unknown));
            Binding { name: candidate.name.clone(), uid, unknown, warning: None }
        });
        binding.name.clone_from(&candidate.name);
        if binding.uid.as_ref().is_some_and(|uid| owner.values().any(|owning| owning == uid)) {
            return;
        }
        binding.warning = None;
        for address in &candidate.addresses {
            let Some(uid) = owner.get(address) else { continue };
            if let Some(other) = taken.get(uid) {
                binding.warning = Some(format!(
                    "its address {address} belongs to the pod behind {other}: a second claimant is not believed"
                ));
                continue;
            }
            binding.uid = Some(uid.clone());
            binding.warning = None;
            return;
        }
    }

    /// What an unknown endpoint gets.
    pub fn unknown(&self, ifindex: u32) -> Verdict {
        self.by_ifindex.get(&ifindex).map_or(self.unknown, |binding| binding.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(ifindex: u32, address: &str) -> Candidate {
        Candidate {
            ifindex,
            name: format!("veth{ifindex}"),
            master: None,
            mac: None,
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn owners(pairs: &[(&str, &str)]) -> BTreeMap<IpAddr, String> {
        pairs.iter().map(|(address, uid)| (address.parse().unwrap(), (*uid).to_owned())).collect()
    }

    #[test]
    fn an_interface_that_was_seen_before_its_pod_was_known_gets_it_when_the_address_changes_hands() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        // The interface of the new pod is there, and the API still says that the address is the old one's.
        let new = [candidate(7, "10.0.0.2")];
        assert_eq!(bindings.update(&new, &owners(&[("10.0.0.2", "old")]))[0].pod.as_deref(), Some("old"));
        assert_eq!(
            bindings.update(&new, &owners(&[]))[0].pod.as_deref(),
            Some("old"),
            "nobody else claims it"
        );
        assert_eq!(bindings.update(&new, &owners(&[("10.0.0.2", "new")]))[0].pod.as_deref(), Some("new"));
    }

    #[test]
    fn an_interface_stays_with_the_pod_that_it_was_bound_to() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        let api = owners(&[("10.0.0.2", "api"), ("10.0.0.3", "db")]);
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.2")], &api)[0].pod.as_deref(), Some("api"));
        // The pod gives itself the database's address.
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.3")], &api)[0].pod.as_deref(), Some("api"));
        // A new interface with the same index is a new endpoint once the old one is gone.
        bindings.update(&[], &api);
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.3")], &api)[0].pod.as_deref(), Some("db"));
    }

    #[test]
    fn a_second_claimant_of_a_pod_is_not_believed_until_the_first_is_gone() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        let api = owners(&[("10.0.0.2", "api")]);
        let both = [candidate(5, "10.0.0.2"), candidate(6, "10.0.0.2")];
        let specs = bindings.update(&both, &api);
        assert_eq!((specs[0].pod.as_deref(), specs[1].pod.as_deref()), (Some("api"), None));
        assert!(bindings.warning(6).unwrap().contains("veth5"));
        assert_eq!(bindings.update(&both[1..], &api)[0].pod.as_deref(), Some("api"));
        assert_eq!(bindings.warning(6), None);
    }

    #[test]
    fn endpoints_of_the_very_first_start_are_audited_and_later_ones_denied_until_known() {
        let mut bindings = Bindings::new(Verdict::Deny, true, &[]);
        let nobody = owners(&[]);
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.2")], &nobody)[0].unknown, Verdict::Audit);
        let specs = bindings.update(&[candidate(5, "10.0.0.2"), candidate(6, "10.0.0.3")], &nobody);
        assert_eq!((specs[0].unknown, specs[1].unknown), (Verdict::Audit, Verdict::Deny));
    }

    #[test]
    fn a_restarted_agent_takes_the_bindings_over() {
        let earlier = [EndpointState {
            ifindex: 5,
            interface: "veth5".to_owned(),
            uid: Some("api".to_owned()),
            unknown: "audit".to_owned(),
            ..EndpointState::default()
        }];
        let spoofed = owners(&[("10.0.0.2", "api"), ("10.0.0.3", "db")]);
        let mut bindings = Bindings::new(Verdict::Deny, false, &earlier);
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.3")], &spoofed)[0].pod.as_deref(), Some("api"));
        let mut other = Bindings::new(Verdict::Deny, false, &earlier);
        let renamed = Candidate { name: "other".to_owned(), ..candidate(5, "10.0.0.3") };
        assert_eq!(other.update(&[renamed], &spoofed)[0].pod.as_deref(), Some("db"), "another interface");
    }
}
