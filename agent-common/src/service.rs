//! Services: what stands behind a frontend, and the verdict about a flow to it.
//!
//! At the pod's interface the destination is still the service's address; which endpoint it will be is decided later,
//! by the node's proxy. So the flow is judged by all of them at once.

use crate::abi::{Addr6, map_type};
use crate::identity::Kind;
use crate::policy::{Decision, PolicyMaps, PortKey, evaluate, protocol};
use crate::reason::{Direction, Reason, Verdict};

/// Key of `SERVICES`: a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey {
    /// Its address, IPv4 in the first word; unspecified: any address of a node.
    pub address: Addr6,
    /// Its port, host order.
    pub port: u16,
    /// Transport protocol.
    pub protocol: u8,
    /// IP version, 4 or 6.
    pub family: u8,
}

map_type!(ServiceKey, 20, port = 16, protocol = 18, family = 19);

impl ServiceKey {
    /// A tag of the key. Elements of a hash are reused while a program may still read them, and are written from their
    /// start on: a reader that finds the tag after it has copied the value has copied this frontend's.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        let a = self.address.words_be;
        let words = a[0] ^ a[1].rotate_left(7) ^ a[2].rotate_left(13) ^ a[3].rotate_left(19);
        let rest = (self.port as u32) << 16 | (self.protocol as u32) << 8 | self.family as u32;
        words.wrapping_mul(0x9e37_79b1) ^ rest.wrapping_mul(0x85eb_ca6b)
    }
}

/// Bit of [`ServiceKey::family`]: not a frontend, but a pod's own address and port, to which nodes forward what comes from
/// outside with their own address in place of the client's.
pub const EXPOSED: u8 = 0x80;

impl ServiceKey {
    /// Whether it is a pod's address and port that nodes masquerade to.
    #[inline(always)]
    pub const fn is_exposed(&self) -> bool {
        self.family & EXPOSED != 0
    }
}

/// How many distinct endpoints a frontend lists; more of them have a compiled row.
pub const SERVICE_ENTRIES: usize = 8;
/// Value of [`Service::count`] where the first entry stands for all endpoints: rows of its peer class say what follows
/// from them.
pub const SERVICE_COMPILED: u32 = u32::MAX;

/// Bits of [`ServiceEntry::flags`].
pub mod entry_flags {
    /// The node of the endpoint judges the flow again, with the pod's own address as the source.
    pub const JUDGED_AGAIN: u8 = 1;
}

/// Endpoints of a frontend that policies cannot tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceEntry {
    /// Their peer class.
    pub peer: u32,
    /// Their principal.
    pub principal: u32,
    /// The port that the proxy sends to, host order.
    pub port: u16,
    /// A [`Kind`].
    pub kind: u8,
    /// [`entry_flags`].
    pub flags: u8,
}

map_type!(ServiceEntry, 12, principal = 4, port = 8, kind = 10, flags = 11);

impl ServiceEntry {
    /// Whether the endpoint's node judges again.
    #[inline(always)]
    pub const fn is_judged_again(&self) -> bool {
        self.flags & entry_flags::JUDGED_AGAIN != 0
    }
}

/// Value of `SERVICES`: the endpoints of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[repr(C, align(8))]
pub struct Service {
    /// [`ServiceKey::tag`]. First: see there.
    pub tag: u32,
    /// How many of the entries are used, or [`SERVICE_COMPILED`].
    pub count: u32,
    /// The entries.
    pub entries: [ServiceEntry; SERVICE_ENTRIES],
}

map_type!(Service, 104, count = 4, entries = 8);

/// What a frontend's endpoints say, one after the other.
///
/// Of those that nobody judges again the strictest verdict counts, of the others the mildest; the stricter of these two
/// is the verdict. So every endpoint that is not judged again must be allowed, and, where some are, at least one of
/// them; what is enforced and what is audited come out as if each had been asked alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Tally {
    /// Endpoints that nobody judges again.
    final_say: Part,
    /// Endpoints that are judged again.
    judged_again: Part,
}

/// The verdict of some endpoints. Plain words: in the kernel it lives in a map, where the verifier does not follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
struct Part {
    /// `1 +` the rank of the verdict; `0`: there are none.
    rank: u32,
    principal: u32,
    rule: u32,
    reason: u32,
}

/// From mild to strict, from 1 on.
#[inline(always)]
const fn rank(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Allow => 1,
        Verdict::Audit => 2,
        Verdict::Deny => 3,
    }
}

impl Part {
    #[inline(always)]
    fn decision(&self) -> Decision {
        let verdict = match self.rank {
            1 => Verdict::Allow,
            2 => Verdict::Audit,
            _ => Verdict::Deny,
        };
        let reason = match self.reason {
            reason if reason == Reason::Policy as u32 => Reason::Policy,
            reason if reason == Reason::Default as u32 => Reason::Default,
            _ => Reason::NoPolicy,
        };
        Decision { verdict, reason, rule: self.rule }
    }
}

impl Tally {
    /// Forgets what was added.
    #[inline(always)]
    pub const fn clear(&mut self) {
        self.final_say.rank = 0;
        self.judged_again.rank = 0;
    }

    /// Adds what an endpoint's row says on its port.
    #[inline(always)]
    pub fn add(&mut self, entry: &ServiceEntry, decision: Decision) {
        let rank = rank(decision.verdict);
        let again = entry.is_judged_again();
        let part = if again { &mut self.judged_again } else { &mut self.final_say };
        let better = if again { rank < part.rank } else { rank > part.rank };
        if part.rank == 0 || better {
            *part = Part {
                rank,
                principal: entry.principal,
                rule: decision.rule,
                reason: decision.reason as u32,
            };
        }
    }

    /// The verdict, and the principal that it is about. Without endpoints the flow is allowed: the proxy rejects it.
    #[inline(always)]
    pub fn outcome(&self) -> Served {
        let (must, may) = (&self.final_say, &self.judged_again);
        if must.rank == 0 && may.rank == 0 {
            return Served {
                decision: Decision::new(Verdict::Allow, Reason::NoBackend),
                principal: Kind::Unmanaged as u32,
            };
        }
        // Of two that are equally strict the one that nobody corrects is named; an allowed flow most likely goes to one
        // that judges again, or was not asked about any other.
        let strict = may.rank == 0 || must.rank > may.rank || (must.rank == may.rank && must.rank > 1);
        let part = if strict { must } else { may };
        Served { decision: part.decision(), principal: part.principal }
    }
}

/// The verdict about a flow to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The decision.
    pub decision: Decision,
    /// The principal that the flow was allowed, or denied, for.
    pub principal: u32,
}

/// Adds an entry of a frontend to the tally.
#[inline(always)]
pub fn ask<M: PolicyMaps>(maps: &M, subject: u32, proto: u8, entry: &ServiceEntry, tally: &mut Tally) {
    let key = PortKey::new(proto, entry.port);
    let decision = evaluate(maps, subject, Direction::Egress, entry.peer, entry.kind, key);
    tally.add(entry, decision);
}

/// Whether a protocol can have frontends.
#[inline(always)]
pub const fn has_frontends(proto: u8) -> bool {
    matches!(proto, protocol::TCP | protocol::UDP | protocol::SCTP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Allow, Audit, Deny};

    fn entry(principal: u32, again: bool) -> ServiceEntry {
        ServiceEntry { principal, flags: u8::from(again), ..ServiceEntry::default() }
    }

    /// The verdict and principal of endpoints `(verdict, judged again)`, whose principals count from 1.
    fn outcome(endpoints: &[(Verdict, bool)]) -> (Verdict, u32) {
        let mut tally = Tally::default();
        for (number, (verdict, again)) in (1..).zip(endpoints) {
            tally.add(&entry(number, *again), Decision::new(*verdict, Reason::Policy));
        }
        let served = tally.outcome();
        (served.decision.verdict, served.principal)
    }

    #[test]
    fn every_final_endpoint_and_one_of_the_others_must_be_allowed() {
        for (endpoints, wanted) in [
            (&[][..], (Allow, Kind::Unmanaged as u32)),
            (&[(Allow, false)], (Allow, 1)),
            (&[(Allow, false), (Deny, false)], (Deny, 2)),
            (&[(Deny, true), (Allow, true)], (Allow, 2)),
            (&[(Deny, true), (Deny, true)], (Deny, 1)),
            (&[(Allow, false), (Deny, true)], (Deny, 2)),
            (&[(Allow, false), (Allow, true)], (Allow, 2)),
            (&[(Deny, false), (Allow, true)], (Deny, 1)),
            (&[(Audit, false), (Allow, true)], (Audit, 1)),
            (&[(Allow, false), (Audit, true), (Deny, true)], (Audit, 2)),
            (&[(Audit, true), (Audit, false)], (Audit, 2)),
        ] {
            assert_eq!(outcome(endpoints), wanted, "{endpoints:?}");
        }
    }

    #[test]
    fn the_tally_is_what_enforced_and_audited_policies_say_each_for_themselves() {
        let enforced = |v: Verdict| v != Deny;
        let audited = |v: Verdict| v == Allow;
        let choices = [Allow, Audit, Deny];
        for code in 0..7776 {
            let mut rest = code;
            let mut endpoints = Vec::new();
            for _ in 0..5 {
                endpoints.push((choices[rest % 3], rest / 3 % 2 == 1));
                rest /= 6;
            }
            let permitted = |says: &dyn Fn(Verdict) -> bool| {
                let must = endpoints.iter().filter(|e| !e.1).all(|e| says(e.0));
                let mut may = endpoints.iter().filter(|e| e.1).peekable();
                must && (may.peek().is_none() || may.any(|e| says(e.0)))
            };
            let wanted = match (permitted(&enforced), permitted(&audited)) {
                (false, _) => Deny,
                (true, false) => Audit,
                (true, true) => Allow,
            };
            let (verdict, principal) = outcome(&endpoints);
            assert_eq!(verdict, wanted, "{endpoints:?}");
            let named = endpoints[principal as usize - 1];
            assert_eq!(named.0, wanted, "{endpoints:?}: the endpoint that is named has the verdict");
        }
    }

    #[test]
    fn the_tag_tells_frontends_apart() {
        let key = ServiceKey { port: 80, protocol: 6, family: 4, ..ServiceKey::default() };
        let others = [
            ServiceKey { port: 81, ..key },
            ServiceKey { protocol: 17, ..key },
            ServiceKey { family: 6, ..key },
            ServiceKey { address: Addr6 { words_be: [1, 0, 0, 0] }, ..key },
            ServiceKey { address: Addr6 { words_be: [0, 0, 0, 1] }, ..key },
        ];
        assert!(others.iter().all(|other| other.tag() != key.tag()));
    }
}
