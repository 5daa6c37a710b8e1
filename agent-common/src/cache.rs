//! What a processor remembers of the last new flows, so that the next of their like cost less: judgements that permitted one.
//!
//! Only what permits is remembered, with the endpoint's revision: whatever may turn an allow into a deny raises that, and
//! what was remembered is forgotten. A place is one of few and belongs to who came last; nothing is lost by that but time.

use crate::abi::{Addr6, map_type};
use crate::flow::spread;
use crate::packet::Address;

/// How many judgements of a version; a power of two.
pub const VERDICTS: usize = 512;

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
        // By chance one place in e is left empty by as many keys as there are places.
        let taken: std::collections::HashSet<usize> = (0..VERDICTS as u32).map(place).collect();
        assert!(taken.len() > VERDICTS / 2, "{} of {VERDICTS} places are taken", taken.len());
    }
}
