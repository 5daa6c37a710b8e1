//! Which pod is behind which interface. An interface is bound to a pod once, by the addresses first seen in its
//! namespace (or by what an earlier agent had bound), and is not asked again while that pod owns an address: a pod with
//! `NET_ADMIN` can give itself any address, and must not choose its identity by it.
//!
//! A pod that owns none any more is over, and its address has gone to another one: the API may tell so only after the
//! new pod's interface was seen, so such a binding is made anew. But an interface that nobody is bound to comes first:
//! it is the new pod's own. Of several of those none is believed: one of them may have taken the address before it was seen.
//! An interface whose claim is not believed is denied, whatever unknown pods get.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

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
    /// When it was first seen.
    pub appeared: Instant,
}

/// What is known about an interface's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binding {
    name: String,
    uid: Option<String>,
    unknown: Verdict,
    warning: Option<String>,
    /// What was last seen behind it: a look that finds nothing must not loosen the checks of its packets.
    mac: Option<[u8; 6]>,
    addresses: Vec<IpAddr>,
}

/// What the addresses behind an interface say about its pod.
struct Claim<'a> {
    /// The first address that a pod owns.
    address: IpAddr,
    /// That pod.
    uid: &'a str,
    /// An address that another pod owns.
    other: Option<IpAddr>,
}

impl<'a> Claim<'a> {
    fn of(candidate: &Candidate, owner: &'a BTreeMap<IpAddr, String>) -> Option<Self> {
        let mut claims =
            candidate.addresses.iter().filter_map(|address| Some((*address, owner.get(address)?.as_str())));
        let (address, uid) = claims.next()?;
        let other = claims.find(|(_, other)| *other != uid).map(|(address, _)| address);
        Some(Self { address, uid, other })
    }
}

/// The bindings of all endpoints.
#[derive(Clone, Debug)]
pub struct Bindings {
    by_ifindex: BTreeMap<u32, Binding>,
    /// What an earlier agent had bound: interface to UID and what it got while unknown. An entry stays until its
    /// interface is looked at or gone.
    inherited: BTreeMap<(u32, String), (Option<String>, Verdict)>,
    /// What an endpoint gets that appears now and is not known yet.
    unknown: Verdict,
    /// Interfaces that were there before anything was enforced on this node, and are not looked at yet: they are
    /// audited until they are known. `None`: the interfaces have not been listed yet.
    at_first: Option<BTreeSet<u32>>,
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
        Self { by_ifindex: BTreeMap::new(), inherited, unknown, at_first: (!first_start).then(BTreeSet::new) }
    }

    /// Takes the list of all interfaces: what is remembered of those that are gone is dropped.
    pub fn see(&mut self, links: &BTreeMap<u32, &str>) {
        self.inherited.retain(|(ifindex, name), _| links.get(ifindex) == Some(&name.as_str()));
        match &mut self.at_first {
            Some(first) => first.retain(|ifindex| links.contains_key(ifindex)),
            // Only what is there at the first look is spared.
            None => self.at_first = Some(links.keys().copied().collect()),
        }
    }

    /// Whether the interface is an endpoint already, or was an earlier agent's.
    pub fn knows(&self, ifindex: u32, name: &str) -> bool {
        self.by_ifindex.contains_key(&ifindex) || self.inherited.contains_key(&(ifindex, name.to_owned()))
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
        let present: BTreeSet<u32> = candidates.iter().map(|c| c.ifindex).collect();
        self.by_ifindex.retain(|ifindex, _| present.contains(ifindex));
        for candidate in candidates {
            self.remember(candidate);
        }
        let owning: BTreeSet<&str> = owner.values().map(String::as_str).collect();
        let mut open: Vec<&Candidate> = Vec::new();
        for candidate in candidates {
            let Some(binding) = self.by_ifindex.get_mut(&candidate.ifindex) else { continue };
            binding.warning = None;
            if binding.uid.as_ref().is_none_or(|uid| !owning.contains(uid.as_str())) {
                open.push(candidate);
            }
        }
        // Whoever is bound to nobody comes first, then the newest: a pod that is over must not get its successor's
        // identity, and an address that was given out again is the later interface's.
        open.sort_by_key(|c| {
            let was_bound = self.uid(c.ifindex).is_some();
            (was_bound, std::cmp::Reverse((c.appeared, c.ifindex)))
        });
        let newcomers = self.newcomers(&open, owner);
        for candidate in open {
            self.bind(candidate, owner, &newcomers);
        }
        candidates.iter().map(|candidate| self.spec(candidate, owner)).collect()
    }

    /// The interfaces that were never bound, by the one pod that each claims. Who claims two is believed by nobody, and so is
    /// in nobody's way.
    fn newcomers<'a>(
        &self,
        open: &[&'a Candidate],
        owner: &'a BTreeMap<IpAddr, String>,
    ) -> BTreeMap<&'a str, Vec<&'a Candidate>> {
        let mut newcomers: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
        for candidate in open.iter().filter(|candidate| self.uid(candidate.ifindex).is_none()) {
            if let Some(Claim { uid, other: None, .. }) = Claim::of(candidate, owner) {
                newcomers.entry(uid).or_default().push(candidate);
            }
        }
        newcomers
    }

    /// Makes sure that the interface has an entry, and notes how it looks.
    fn remember(&mut self, candidate: &Candidate) {
        let inherited = self.inherited.remove(&(candidate.ifindex, candidate.name.clone()));
        let first = match &mut self.at_first {
            Some(first) => first.remove(&candidate.ifindex),
            None => true,
        };
        let fresh = self.unknown;
        let binding = self.by_ifindex.entry(candidate.ifindex).or_insert_with(|| {
            let (uid, unknown) = inherited.unwrap_or((None, if first { Verdict::Audit } else { fresh }));
            // Who was known once is no newcomer: leniency is over, also after a restart.
            let unknown = if uid.is_some() { fresh } else { unknown };
            Binding { name: String::new(), uid, unknown, warning: None, mac: None, addresses: Vec::new() }
        });
        binding.name.clone_from(&candidate.name);
        if !candidate.addresses.is_empty() {
            binding.addresses.clone_from(&candidate.addresses);
            binding.mac = candidate.mac.or(binding.mac);
        }
    }

    fn spec(&self, candidate: &Candidate, owner: &BTreeMap<IpAddr, String>) -> EndpointSpec {
        let binding = self.by_ifindex.get(&candidate.ifindex);
        let disbelieved = binding.is_some_and(|binding| binding.warning.is_some());
        let addresses = binding.map_or(&candidate.addresses, |binding| &binding.addresses);
        // Neighbours are not to hear from it where the address of another pod is.
        let speaks_for = addresses.iter().filter(|address| !disbelieved || !owner.contains_key(*address));
        EndpointSpec {
            ifindex: candidate.ifindex,
            name: candidate.name.clone(),
            master: candidate.master,
            mac: binding.map_or(candidate.mac, |binding| binding.mac),
            pod: binding.filter(|binding| binding.warning.is_none()).and_then(|binding| binding.uid.clone()),
            addresses: speaks_for.copied().collect(),
            unknown: self.unknown(candidate.ifindex),
        }
    }

    /// Binds an interface that is bound to nobody, or to a pod that is over.
    fn bind(
        &mut self,
        candidate: &Candidate,
        owner: &BTreeMap<IpAddr, String>,
        newcomers: &BTreeMap<&str, Vec<&Candidate>>,
    ) {
        let Some(Claim { address, uid, other }) = Claim::of(candidate, owner) else { return };
        let taken = self
            .by_ifindex
            .iter()
            .find(|(ifindex, b)| **ifindex != candidate.ifindex && b.uid.as_deref() == Some(uid))
            .map(|(_, binding)| binding.name.clone());
        let rival =
            newcomers.get(uid).and_then(|all| all.iter().find(|other| other.ifindex != candidate.ifindex));
        let Some(binding) = self.by_ifindex.get_mut(&candidate.ifindex) else { return };
        if let Some(other) = other {
            binding.warning = Some(format!(
                "its addresses {address} and {other} belong to two pods: it is bound to neither, and denied"
            ));
        } else if let Some(name) = taken {
            binding.warning = Some(format!(
                "its address {address} belongs to the pod behind {name}: a second claimant is not believed, and denied"
            ));
        } else if let Some(rival) = rival {
            binding.warning = Some(format!(
                "its address {address} is behind {}, too: whose it is cannot be told, and both are denied until one of them is gone",
                rival.name
            ));
        } else {
            binding.uid = Some(uid.to_owned());
            // Spared was only who nobody knew yet.
            binding.unknown = self.unknown;
        }
    }

    /// What an endpoint gets while its pod is not known; a claim that is not believed is always denied.
    pub fn unknown(&self, ifindex: u32) -> Verdict {
        match self.by_ifindex.get(&ifindex) {
            Some(binding) if binding.warning.is_some() => Verdict::Deny,
            Some(binding) => binding.unknown,
            None => self.unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::*;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    /// An interface; a higher index is newer.
    fn candidate(ifindex: u32, addresses: &str) -> Candidate {
        Candidate {
            ifindex,
            name: format!("veth{ifindex}"),
            master: None,
            mac: None,
            addresses: addresses.split_whitespace().map(|address| address.parse().unwrap()).collect(),
            appeared: *START + Duration::from_secs(ifindex.into()),
        }
    }

    /// Takes the list of interfaces, as the owner does before it updates.
    fn see(bindings: &mut Bindings, indexes: &[u32]) {
        let names: Vec<String> = indexes.iter().map(|i| format!("veth{i}")).collect();
        bindings.see(&indexes.iter().copied().zip(names.iter().map(String::as_str)).collect());
    }

    fn earlier(ifindex: u32, uid: Option<&str>, unknown: &str) -> EndpointState {
        EndpointState {
            ifindex,
            interface: format!("veth{ifindex}"),
            uid: uid.map(str::to_owned),
            unknown: unknown.to_owned(),
            ..EndpointState::default()
        }
    }

    fn pods(specs: &[EndpointSpec]) -> Vec<Option<&str>> {
        specs.iter().map(|spec| spec.pod.as_deref()).collect()
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
    fn a_second_claimant_of_a_pod_is_denied_until_the_first_is_gone() {
        let mut bindings = Bindings::new(Verdict::Allow, false, &[]);
        let api = owners(&[("10.0.0.2", "api")]);
        let both = [candidate(5, "10.0.0.2"), candidate(6, "10.0.0.2")];
        assert_eq!(pods(&bindings.update(&both[..1], &api)), [Some("api")]);
        let specs = bindings.update(&both, &api);
        assert_eq!(pods(&specs), [Some("api"), None]);
        assert_eq!(specs[1].unknown, Verdict::Deny, "whatever unknown pods get");
        assert!(bindings.warning(6).unwrap().contains("veth5"));
        let specs = bindings.update(&both[1..], &api);
        assert_eq!((pods(&specs), bindings.warning(6)), (vec![Some("api")], None));
    }

    #[test]
    fn of_two_interfaces_with_a_pods_address_that_nobody_was_bound_to_neither_is_believed() {
        let mut bindings = Bindings::new(Verdict::Allow, true, &[]);
        let api = owners(&[("10.0.0.2", "api"), ("fd00::2", "api"), ("10.0.0.3", "db")]);
        let both = [candidate(5, "10.0.0.2"), candidate(6, "fd00::2"), candidate(7, "10.0.0.3")];
        see(&mut bindings, &[5, 6, 7]);
        for _ in 0..2 {
            let specs = bindings.update(&both, &api);
            assert_eq!(pods(&specs), [None, None, Some("db")]);
            assert_eq!([specs[0].unknown, specs[1].unknown], [Verdict::Deny; 2], "at the first start, too");
            assert!(bindings.warning(5).unwrap().contains("veth6"));
            assert!(bindings.warning(6).unwrap().contains("veth5"));
        }
        // One of both is gone.
        let left = [both[0].clone(), both[2].clone()];
        assert_eq!(pods(&bindings.update(&left, &api)), [Some("api"), Some("db")]);
        assert_eq!(bindings.warning(5), None);
        assert_eq!(pods(&bindings.update(&both, &api)), [Some("api"), None, Some("db")], "bound for good");
    }

    #[test]
    fn while_of_two_new_interfaces_neither_is_believed_a_former_pods_does_not_get_their_pod() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        let old = candidate(5, "10.0.0.2");
        bindings.update(std::slice::from_ref(&old), &owners(&[("10.0.0.2", "old")]));
        let new = owners(&[("10.0.0.2", "new")]);
        let all = [old, candidate(8, "10.0.0.2"), candidate(9, "10.0.0.2")];
        assert_eq!(pods(&bindings.update(&all, &new)), [None, None, None]);
        // One of both is gone.
        assert_eq!(pods(&bindings.update(&all[..2], &new)), [None, Some("new")]);
    }

    #[test]
    fn who_claims_two_pods_keeps_neither_of_them_from_its_interface() {
        let mut bindings = Bindings::new(Verdict::Deny, true, &[]);
        let pods_of = owners(&[("10.0.0.2", "api"), ("10.0.0.3", "db")]);
        let all = [candidate(5, "10.0.0.2"), candidate(6, "10.0.0.3"), candidate(7, "10.0.0.2 10.0.0.3")];
        see(&mut bindings, &[5, 6, 7]);
        assert_eq!(pods(&bindings.update(&all, &pods_of)), [Some("api"), Some("db"), None]);
    }

    #[test]
    fn a_new_pod_gets_its_identity_and_not_the_interface_of_the_one_that_had_its_address() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        let old = candidate(5, "10.0.0.2");
        bindings.update(std::slice::from_ref(&old), &owners(&[("10.0.0.2", "old")]));
        let both = [old, candidate(9, "10.0.0.2")];
        for _ in 0..2 {
            let specs = bindings.update(&both, &owners(&[("10.0.0.2", "new")]));
            assert_eq!(pods(&specs), [None, Some("new")]);
            assert_eq!(specs[0].unknown, Verdict::Deny);
            assert!(bindings.warning(5).unwrap().contains("veth9"));
        }
    }

    #[test]
    fn nobody_is_bound_by_an_address_of_another_pod_beside_its_own() {
        let api = owners(&[("10.0.0.3", "db"), ("10.0.0.7", "intruder")]);
        let mut bindings = Bindings::new(Verdict::Allow, true, &[]);
        for addresses in ["10.0.0.3 10.0.0.7", "10.0.0.7 10.0.0.3"] {
            for ifindex in [4, 8] {
                let specs = bindings.update(&[candidate(ifindex, addresses), candidate(6, "10.0.0.3")], &api);
                assert_eq!(pods(&specs), [None, Some("db")], "{ifindex} with {addresses}");
                assert_eq!(specs[0].unknown, Verdict::Deny);
                assert!(bindings.warning(ifindex).unwrap().contains("10.0.0.7"));
            }
        }
        // Before its own pod is known it claims the database alone: until then nobody is believed.
        let mut bindings = Bindings::new(Verdict::Deny, true, &[]);
        let db = owners(&[("10.0.0.3", "db")]);
        let both = [candidate(4, "10.0.0.3 10.0.0.7"), candidate(6, "10.0.0.3")];
        assert_eq!(pods(&bindings.update(&both, &db)), [None, None]);
        let specs = bindings.update(&both, &api);
        assert_eq!(pods(&specs), [None, Some("db")]);
        // It answers for no address that is somebody's.
        assert_eq!(specs[0].addresses, [] as [IpAddr; 0]);
    }

    #[test]
    fn both_addresses_of_a_pod_are_one_claim() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        let api = owners(&[("10.0.0.3", "db"), ("fd00::3", "db")]);
        assert_eq!(pods(&bindings.update(&[candidate(4, "10.0.0.3 fd00::3")], &api)), [Some("db")]);
        assert_eq!(bindings.warning(4), None);
    }

    #[test]
    fn endpoints_of_the_very_first_start_are_audited_and_later_ones_denied_until_known() {
        let mut bindings = Bindings::new(Verdict::Deny, true, &[]);
        let nobody = owners(&[]);
        see(&mut bindings, &[5, 7]);
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.2")], &nobody)[0].unknown, Verdict::Audit);
        see(&mut bindings, &[5, 6, 7]);
        let specs = bindings.update(&[candidate(5, "10.0.0.2"), candidate(6, "10.0.0.3")], &nobody);
        assert_eq!((specs[0].unknown, specs[1].unknown), (Verdict::Audit, Verdict::Deny));
        // It was there, too, and had only not been looked at.
        let specs = bindings.update(&[candidate(7, "10.0.0.4")], &nobody);
        assert_eq!(specs[0].unknown, Verdict::Audit);
        // Another one with its index is new.
        see(&mut bindings, &[]);
        bindings.update(&[], &nobody);
        see(&mut bindings, &[7]);
        assert_eq!(bindings.update(&[candidate(7, "10.0.0.4")], &nobody)[0].unknown, Verdict::Deny);
    }

    #[test]
    fn a_pod_that_was_known_once_is_not_audited_when_it_is_unknown_again() {
        let mut bindings = Bindings::new(Verdict::Deny, true, &[]);
        let (api, nobody) = (owners(&[("10.0.0.2", "api")]), owners(&[]));
        let five = [candidate(5, "10.0.0.2")];
        see(&mut bindings, &[5]);
        assert_eq!(bindings.update(&five, &nobody)[0].unknown, Verdict::Audit);
        assert_eq!(bindings.update(&five, &api)[0].unknown, Verdict::Deny);
        assert_eq!(bindings.update(&five, &nobody)[0].unknown, Verdict::Deny, "its service account is gone");
        // Nor by a restart, whatever an earlier agent wrote.
        let mut bindings = Bindings::new(Verdict::Deny, false, &[earlier(5, Some("api"), "audit")]);
        see(&mut bindings, &[5]);
        let specs = bindings.update(&five, &nobody);
        assert_eq!((pods(&specs), specs[0].unknown), (vec![Some("api")], Verdict::Deny));
        let mut bindings = Bindings::new(Verdict::Deny, false, &[earlier(5, None, "audit")]);
        see(&mut bindings, &[5]);
        assert_eq!(bindings.update(&five, &nobody)[0].unknown, Verdict::Audit, "never known yet");
    }

    #[test]
    fn what_an_earlier_agent_bound_waits_until_its_interface_was_looked_at() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[earlier(5, Some("api"), "deny")]);
        let api = owners(&[("10.0.0.2", "api"), ("10.0.0.3", "db")]);
        see(&mut bindings, &[5, 6]);
        assert!(bindings.knows(5, "veth5") && !bindings.knows(6, "veth6"));
        bindings.update(&[candidate(6, "10.0.0.9")], &api);
        see(&mut bindings, &[5, 6]);
        assert_eq!(pods(&bindings.update(&[candidate(5, "10.0.0.3")], &api)), [Some("api")]);
        // A name that has gone to another interface says nothing.
        let mut bindings = Bindings::new(Verdict::Deny, false, &[earlier(5, Some("api"), "deny")]);
        see(&mut bindings, &[6]);
        see(&mut bindings, &[5]);
        assert_eq!(pods(&bindings.update(&[candidate(5, "10.0.0.3")], &api)), [Some("db")]);
    }

    #[test]
    fn a_look_that_finds_nothing_takes_nothing_away() {
        let mut bindings = Bindings::new(Verdict::Deny, false, &[]);
        let nobody = owners(&[]);
        let full = Candidate { mac: Some([2; 6]), ..candidate(5, "10.0.0.2") };
        let seen = bindings.update(std::slice::from_ref(&full), &nobody);
        assert_eq!((seen[0].mac, seen[0].addresses.len()), (Some([2; 6]), 1));
        assert_eq!(bindings.update(&[candidate(5, "")], &nobody), seen);
    }

    #[test]
    fn a_restarted_agent_takes_the_bindings_over() {
        let earlier = [earlier(5, Some("api"), "audit")];
        let spoofed = owners(&[("10.0.0.2", "api"), ("10.0.0.3", "db")]);
        let mut bindings = Bindings::new(Verdict::Deny, false, &earlier);
        assert_eq!(bindings.update(&[candidate(5, "10.0.0.3")], &spoofed)[0].pod.as_deref(), Some("api"));
        let mut other = Bindings::new(Verdict::Deny, false, &earlier);
        let renamed = Candidate { name: "other".to_owned(), ..candidate(5, "10.0.0.3") };
        assert_eq!(other.update(&[renamed], &spoofed)[0].pod.as_deref(), Some("db"), "another interface");
    }
}
