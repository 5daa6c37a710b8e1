//! The links and addresses of this namespace, and what is still to be asked about them: no I/O.
//!
//! Invariants: a link is bound once, to the first addresses found behind it, and stays so until it is gone; an answer
//! is taken only for the link and the peer that it was asked about; what a dump does not contain is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::wire::{AddressRecord, Content, LinkRecord};
use super::{Link, LinkKind, Mac, PeerLink, Snapshot, names_a_pod};

/// A CNI plugin sets the address some milliseconds after the link, so that is when to look again.
const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Hints come from inside a pod's namespace: however many there are, they cause no more than one look in this time.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);

/// A look at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub ifindex: u32,
    pub netns_id: i32,
    pub peer_ifindex: u32,
}

/// What was seen there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Which link of this namespace that end says it belongs to.
    pub linked_to: Option<u32>,
    pub mac: Option<Mac>,
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug)]
struct Entry {
    link: Link,
    /// `IFLA_LINK`, when it means an interface of this namespace.
    linked_here: Option<u32>,
    carrier_changes: u32,
    tunnel_port: Option<u16>,
    /// `None` once bound, and where there is nobody to ask about.
    next_look: Option<NextLook>,
}

#[derive(Clone, Copy, Debug)]
struct NextLook {
    at: Instant,
    delay: Duration,
    last: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<u32, Entry>,
    addresses: BTreeSet<AddressRecord>,
    /// Links whose state a message elsewhere has made doubtful.
    doubtful: BTreeSet<u32>,
    complete: bool,
}

impl Table {
    /// Takes one notification.
    pub fn apply(&mut self, content: Content, now: Instant) {
        match content {
            Content::Link(record) => {
                // Its state has changed, so something is going on: a moment to look.
                self.put(record, now).hurry(now);
            }
            Content::LinkGone(ifindex) => self.remove(ifindex),
            Content::Address(record) => {
                self.addresses.insert(record);
            }
            Content::AddressGone(record) => {
                self.addresses.remove(&record);
            }
            Content::End(_) | Content::Nothing => {}
        }
    }

    /// Takes whole dumps, after which no earlier notification may be applied.
    pub fn resync(&mut self, links: Vec<LinkRecord>, addresses: Vec<AddressRecord>, now: Instant) {
        let seen: BTreeSet<u32> = links.iter().map(|link| link.ifindex).collect();
        self.entries.retain(|ifindex, _| seen.contains(ifindex));
        for record in links {
            // A deletion may have been lost between two dumps. Only marks that the pod cannot change are compared, for
            // otherwise it could make the watcher ask again who it is.
            if self.entries.get(&record.ifindex).is_some_and(|entry| !entry.can_be(&record)) {
                self.entries.remove(&record.ifindex);
            }
            self.put(record, now);
        }
        self.addresses = addresses.into_iter().collect();
        self.doubtful.clear();
    }

    /// Says that a look at this link went wrong: what is recorded of it may be old.
    pub fn doubt(&mut self, ifindex: u32) {
        self.doubtful.insert(ifindex);
    }

    /// Says that everything that was there at the start has been asked about.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    /// Links to be read again.
    pub fn take_doubtful(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.doubtful)
    }

    /// Takes what reading one link again gave.
    pub fn reread(&mut self, ifindex: u32, record: Option<LinkRecord>, now: Instant) {
        // One that is gone is left to its notification: a link that took its index may be in the queue behind it.
        if let Some(record) =
            record.filter(|record| record.ifindex == ifindex && self.entries.contains_key(&ifindex))
        {
            self.put(record, now);
        }
    }

    fn put(&mut self, record: LinkRecord, now: Instant) -> &mut Entry {
        let entry = self.entries.entry(record.ifindex).or_insert_with(|| Entry::new(&record, now));
        entry.update(record, now);
        entry
    }

    fn remove(&mut self, ifindex: u32) {
        self.entries.remove(&ifindex);
        self.doubtful.remove(&ifindex);
        self.addresses.retain(|record| record.ifindex != ifindex);
        // The kernel does not announce that a veth's other end has moved to another namespace; what it announces is
        // that this end is gone from here.
        let ends = self.entries.values().filter(|entry| entry.linked_here == Some(ifindex));
        self.doubtful.extend(ends.map(|entry| entry.link.ifindex));
    }

    /// Whether some link still has nobody behind it.
    pub fn is_waiting(&self) -> bool {
        self.entries.values().any(|entry| entry.next_look.is_some())
    }

    /// When the next look is due.
    pub fn next_look(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.next_look).map(|look| look.at).min()
    }

    /// The looks that are due, each put off to its next time.
    pub fn take_due(&mut self, now: Instant) -> Vec<Ask> {
        self.entries.values_mut().filter_map(|entry| entry.take_due(now)).collect()
    }

    /// Something has changed at this end in that namespace: look as soon as allowed. `None` stands for every one.
    pub fn hurry(&mut self, end: Option<(i32, u32)>, now: Instant) {
        for entry in self.entries.values_mut() {
            let Some(peer) = &entry.link.peer else { continue };
            if end.is_none_or(|end| end == (peer.netns_id, peer.ifindex)) {
                entry.hurry(now);
            }
        }
    }

    /// Takes an answer.
    pub fn answer(&mut self, ask: &Ask, answer: Answer) {
        let Some(entry) = self.entries.get_mut(&ask.ifindex) else { return };
        let Some(peer) = entry.link.peer.as_mut() else { return };
        let is_current = (peer.netns_id, peer.ifindex) == (ask.netns_id, ask.peer_ifindex);
        if entry.next_look.is_none() || !is_current {
            return;
        }
        if answer.linked_to != Some(ask.ifindex) {
            // The namespace's id has been given to another one, so this link is about to go, or its record is old.
            self.doubtful.insert(ask.ifindex);
            return;
        }
        let is_bound = answer.addresses.iter().any(names_a_pod);
        peer.addresses = answer.addresses;
        if is_bound {
            peer.mac = answer.mac;
            entry.next_look = None;
        }
    }

    /// The present state.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            links: self.entries.iter().map(|(ifindex, entry)| (*ifindex, entry.link.clone())).collect(),
            host_addresses: self.addresses.iter().flat_map(AddressRecord::all).collect(),
            tunnel_ports: self.entries.values().filter_map(|entry| entry.tunnel_port).collect(),
            complete: self.complete,
        }
    }
}

impl Entry {
    fn new(record: &LinkRecord, now: Instant) -> Self {
        let link = Link {
            ifindex: record.ifindex,
            name: String::new(),
            kind: record.kind.clone(),
            master: None,
            up: false,
            mac: None,
            peer: None,
            appeared: now,
        };
        Self { link, linked_here: None, carrier_changes: 0, tunnel_port: None, next_look: None }
    }

    /// Whether a dump's record can be of this same link.
    fn can_be(&self, record: &LinkRecord) -> bool {
        let Link { kind, mac, name, .. } = &self.link;
        (kind, mac, name) == (&record.kind, &record.mac, &record.name)
            && record.carrier_changes >= self.carrier_changes
    }

    fn update(&mut self, record: LinkRecord, now: Instant) {
        let LinkRecord { ifindex: _, name, kind, master, up, mac, linked_to, netns_id, .. } = record;
        self.link.name = name;
        self.link.kind = kind;
        self.link.master = master;
        self.link.up = up;
        self.link.mac = mac;
        self.carrier_changes = record.carrier_changes;
        self.tunnel_port = record.tunnel_port;
        // While a pair is being deleted the surviving end is announced with 0 for the other one.
        let linked_to = linked_to.filter(|ifindex| *ifindex != 0);
        self.linked_here = linked_to.filter(|_| netns_id.is_none());
        // What a tunnel or a macvlan is linked to is its lower device, not somebody behind it.
        let has_peer = matches!(self.link.kind, LinkKind::Veth | LinkKind::Netkit);
        let end = netns_id.zip(linked_to).filter(|_| has_peer);
        let is_bound = self.link.peer.is_some() && self.next_look.is_none();
        match end {
            // Whose link it is was settled when it was bound; the pod may have moved its end since.
            Some(_) if is_bound => {}
            Some((netns_id, ifindex)) => {
                if self
                    .link
                    .peer
                    .as_ref()
                    .is_none_or(|peer| (peer.netns_id, peer.ifindex) != (netns_id, ifindex))
                {
                    self.link.peer = Some(PeerLink { netns_id, ifindex, mac: None, addresses: Vec::new() });
                    self.next_look = Some(NextLook { at: now, delay: FIRST_DELAY, last: None });
                }
            }
            None if is_bound && self.linked_here.is_none() => {}
            None => {
                self.link.peer = None;
                self.next_look = None;
            }
        }
    }

    fn hurry(&mut self, now: Instant) {
        if let Some(look) = &mut self.next_look {
            let allowed = look.last.map_or(now, |last| now.max(last + SHORTEST_DELAY));
            look.at = look.at.min(allowed);
        }
    }

    fn take_due(&mut self, now: Instant) -> Option<Ask> {
        let look = self.next_look.as_mut().filter(|look| look.at <= now)?;
        let peer = self.link.peer.as_ref()?;
        *look =
            NextLook { at: now + look.delay, delay: (look.delay * 2).min(LONGEST_DELAY), last: Some(now) };
        Some(Ask { ifindex: self.link.ifindex, netns_id: peer.netns_id, peer_ifindex: peer.ifindex })
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
