//! What a processor remembers of the last packets, so that the next of their like cost less: flows that were in use a
//! moment ago, and judgements that permitted a new flow.
//!
//! Only what permits is remembered, with the endpoint's revision: whatever may turn an allow into a deny raises that, and
//! what was remembered is forgotten. A place is one of few and belongs to who came last; nothing is lost by that but time.

use crate::abi::{Addr6, map_type};
use crate::flow::{FlowKey, FlowKey4, FlowKey6, spread};
use crate::packet::Address;

/// How many flows of a version a processor remembers; a power of two.
pub const FLOWS: usize = 512;
/// How many judgements of a version; a power of two.
pub const VERDICTS: usize = 512;

/// For how many jiffies a flow passes without a look into its table.
///
/// So long may it go on after its entry was lost, or hold up the entry's idle time and its place among the entries
/// that were used last: a small part of any time-out, and of the time that a table takes to be filled once.
pub const RECENT: u32 = 8;

/// A flow that is open, allowed, and was found in its table a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct CachedFlow<K> {
    /// Its key.
    pub key: K,
    /// How it was found.
    pub found: Found,
}

/// How a flow was found in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Found {
    /// The endpoint's interface: the keys of two endpoints may be equal.
    pub ifindex: u32,
    /// The endpoint's revision at that time.
    pub revision: u32,
    /// When that was: the low word of jiffies.
    pub since: u32,
    /// The epoch of its place at that time, read before the entry.
    pub epoch: u32,
    /// Counter slot of the pair.
    pub slot: u32,
    /// Explicit padding, zero.
    pub pad: u32,
}

map_type!(CachedFlow<FlowKey4>, 40, found = 16);
map_type!(CachedFlow<FlowKey6>, 64, found = 40);

/// Where a flow is remembered.
#[inline(always)]
pub fn place_of<K: FlowKey>(key: &K) -> usize {
    key.place(FLOWS.ilog2())
}

impl<K: FlowKey> CachedFlow<K> {
    /// Whether it is the flow of this key, and may still be believed; `now` says what has to be so for that.
    #[inline(always)]
    pub fn is(&self, key: &K, now: &Found) -> bool {
        self.key.equals(key)
            && self.found.ifindex == now.ifindex
            && self.found.revision == now.revision
            && self.found.epoch == now.epoch
            && now.since.wrapping_sub(self.found.since) < RECENT
    }
}

/// What was judged about new flows: all of those between two addresses to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct VerdictKey<A> {
    /// Address of the pod.
    pub local: A,
    /// The other address.
    pub remote: A,
    /// The port that it is opened to, host order.
    pub port: u16,
    /// Transport protocol.
    pub protocol: u8,
    /// The [`crate::Direction`] it is opened in.
    pub opener: u8,
    /// The endpoint's interface.
    pub ifindex: u32,
    /// The endpoint's revision, read before the judgement.
    pub revision: u32,
}

/// A judgement that permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct CachedVerdict<A> {
    /// What was judged.
    pub key: VerdictKey<A>,
    /// Counter slot of the pair.
    pub slot: u32,
}

map_type!(CachedVerdict<u32>, 24, slot = 20);
map_type!(CachedVerdict<Addr6>, 48, slot = 44);

impl<A: Address> VerdictKey<A> {
    /// Where it is remembered.
    #[inline(always)]
    pub fn place(&self) -> usize {
        let ports = self.port as u32 | (self.protocol as u32) << 16;
        let words =
            self.remote.mixed() ^ self.local.mixed().rotate_left(7) ^ ports ^ self.ifindex.rotate_left(20);
        spread(words as u64, VERDICTS.ilog2())
    }

    /// Whether both are the same.
    #[inline(always)]
    pub fn equals(&self, other: &Self) -> bool {
        self.local.same(other.local)
            && self.remote.same(other.remote)
            && self.port == other.port
            && self.protocol == other.protocol
            && self.opener == other.opener
            && self.ifindex == other.ifindex
            && self.revision == other.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Direction;

    #[test]
    fn a_flow_is_believed_only_as_it_was_found_and_a_moment_ago() {
        let key = FlowKey4::build(1, 2, (4000, 80), 6, 0);
        let found = Found { ifindex: 7, revision: 3, since: u32::MAX - 1, epoch: 5, slot: 9, pad: 0 };
        let cached = CachedFlow { key, found };
        assert!(cached.is(&key, &found));
        assert!(cached.is(&key, &Found { slot: 0, ..found }), "what it is to tell");
        let later = |ticks: u32| Found { since: found.since.wrapping_add(ticks), ..found };
        assert!(cached.is(&key, &later(RECENT - 1)) && !cached.is(&key, &later(RECENT)));
        assert!(!cached.is(&key, &Found { ifindex: 8, ..found }), "another endpoint");
        assert!(!cached.is(&key, &Found { revision: 4, ..found }), "a change since");
        assert!(!cached.is(&key, &Found { epoch: 6, ..found }), "an end since");
        let others = [
            FlowKey4::build(3, 2, (4000, 80), 6, 0),
            FlowKey4::build(1, 3, (4000, 80), 6, 0),
            FlowKey4::build(1, 2, (4001, 80), 6, 0),
            FlowKey4::build(1, 2, (4000, 81), 6, 0),
            FlowKey4::build(1, 2, (4000, 80), 17, 0),
            FlowKey4::build(1, 2, (4000, 80), 6, 1),
        ];
        assert!(others.iter().all(|other| !cached.is(other, &found)));

        let address = |last| Addr6 { words_be: [1, 2, 3, last] };
        let key = FlowKey6::build(address(1), address(2), (4000, 80), 6, 0);
        let cached = CachedFlow { key, found };
        assert!(cached.is(&key, &found));
        for at in 0..4 {
            let mut other = address(1);
            other.words_be[at] ^= 0x100;
            assert!(!cached.is(&FlowKey6::build(other, address(2), (4000, 80), 6, 0), &found));
            let mut other = address(2);
            other.words_be[at] ^= 0x100;
            assert!(!cached.is(&FlowKey6::build(address(1), other, (4000, 80), 6, 0), &found));
        }
    }

    #[test]
    fn what_never_was_remembered_is_no_flow() {
        // Places are zero at first; an endpoint has an interface.
        let key = FlowKey4::default();
        let now = Found { ifindex: 1, ..Found::default() };
        assert!(!CachedFlow::<FlowKey4>::default().is(&key, &now));
    }

    #[test]
    fn a_judgement_is_remembered_for_nothing_else() {
        let judged = VerdictKey {
            local: 1_u32,
            remote: 2,
            port: 80,
            protocol: 6,
            opener: Direction::Egress as u8,
            ifindex: 7,
            revision: 3,
        };
        assert!(judged.equals(&judged.clone()));
        let others = [
            VerdictKey { local: 3, ..judged },
            VerdictKey { remote: 3, ..judged },
            VerdictKey { port: 81, ..judged },
            VerdictKey { protocol: 17, ..judged },
            VerdictKey { opener: Direction::Ingress as u8, ..judged },
            VerdictKey { ifindex: 8, ..judged },
            VerdictKey { revision: 4, ..judged },
        ];
        assert!(others.iter().all(|other| !judged.equals(other)));
        let address = |last| Addr6 { words_be: [1, 2, 3, last] };
        let wide = VerdictKey {
            local: address(1),
            remote: address(2),
            port: 80,
            protocol: 6,
            opener: 1,
            ifindex: 7,
            revision: 3,
        };
        for at in 0..4 {
            let (mut local, mut remote) = (address(1), address(2));
            local.words_be[at] ^= 0x100;
            remote.words_be[at] ^= 0x100;
            assert!(
                !wide.equals(&VerdictKey { local, ..wide }) && !wide.equals(&VerdictKey { remote, ..wide })
            );
        }
    }

    /// How many places are left empty by as many keys as there are; by chance it would be one in e.
    fn empty(places: impl Iterator<Item = usize>) -> usize {
        let taken: std::collections::HashSet<usize> = places.collect();
        FLOWS - taken.len()
    }

    #[test]
    fn flows_are_spread_over_the_places_by_every_part_of_their_keys() {
        let address = |low: u32| u32::from_ne_bytes([10, 244, (low >> 8) as u8, low as u8]);
        let wide = |low: u32| Addr6 { words_be: [0xfd, 0, 0, address(low)] };
        for [local, remote, first, second] in
            [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 0]]
        {
            let all = || 0..FLOWS as u32;
            let ports = |i: u32| (4000 + (first * i) as u16, 80 + (second * i) as u16);
            let v4 =
                |i: u32| FlowKey4::build(address(1 + local * i), address(1 + remote * i), ports(i), 6, 0);
            let v6 = |i: u32| FlowKey6::build(wide(1 + local * i), wide(1 + remote * i), ports(i), 6, 0);
            let left = (empty(all().map(|i| place_of(&v4(i)))), empty(all().map(|i| place_of(&v6(i)))));
            assert!(left.0 < FLOWS / 2 && left.1 < FLOWS / 2, "{local} {remote} {first} {second}: {left:?}");
        }
    }

    #[test]
    fn judgements_about_many_peers_are_spread_over_the_places() {
        let place = |remote: u32| {
            let key = VerdictKey {
                local: 0x0200_000a_u32,
                remote: (remote << 16).swap_bytes() | 0x0a,
                port: 80,
                protocol: 6,
                opener: 1,
                ifindex: 7,
                revision: 3,
            };
            key.place()
        };
        let empty = empty((0..VERDICTS as u32).map(place));
        assert!(empty < VERDICTS / 2, "{empty} of {VERDICTS} places are empty");
    }
}
