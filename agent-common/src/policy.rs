//! Compiled policy: rows and port tables.
//!
//! For a subject class, a direction and a peer class the compiled policy is one finished function from protocol and
//! port to a verdict. A row holds it: either a constant, or a run of sorted steps in the `PORTS` array, of which the
//! last one that starts at or below the wanted key decides. Tiers, priorities, Deny and Pass are resolved when the
//! function is compiled; any number of ports and ranges costs a binary search.

use crate::abi::map_type;
use crate::identity::Kind;
use crate::reason::{Reason, Verdict};

/// Protocol numbers of IANA that policies or the datapath treat by name.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP; policy knows no ports of it.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite; policy knows no ports of it.
    pub const UDP_LITE: u8 = 136;
}

/// What a policy function is asked: a protocol that has ports with its destination port, or any other protocol.
///
/// Ordered: TCP 0..=65535, UDP, SCTP, then one value for every protocol without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey(pub u32);

impl PortKey {
    /// The lowest key: TCP port 0.
    pub const FIRST: Self = Self(0);
    /// Every protocol without ports (ICMP, GRE, unknown ones).
    pub const OTHER: Self = Self(3 << 16);
    /// One more than the highest key.
    pub const END: u32 = (3 << 16) + 1;

    /// The key of a protocol and a destination port in host order; the port of a protocol without ports is ignored.
    #[inline(always)]
    pub const fn new(proto: u8, port: u16) -> Self {
        match proto {
            protocol::TCP => Self(port as u32),
            protocol::UDP => Self(1 << 16 | port as u32),
            protocol::SCTP => Self(2 << 16 | port as u32),
            _ => Self::OTHER,
        }
    }
}

/// Key of `ROWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RowKey {
    /// The rows in force of a subject class, from `SUBJECTS`.
    pub rowset: u32,
    /// A peer class, or [`wildcard`] of a kind.
    pub peer: u32,
    /// A [`crate::Direction`].
    pub direction: u32,
}

map_type!(RowKey, 12);

/// The peer of a row that holds for every address of a kind that has no row of its own.
#[inline(always)]
pub const fn wildcard(kind: u8) -> u32 {
    0x8000_0000 | kind as u32
}

/// [`wildcard`] of a [`Kind`].
pub const fn wildcard_of(kind: Kind) -> u32 {
    wildcard(kind as u8)
}

/// Value of `ROWS`: a verdict for every protocol and port, or where the steps of the function are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[repr(C)]
pub struct Row {
    /// First step in `PORTS`.
    pub steps_at: u32,
    /// Number of steps; `0`: `decision` holds for every protocol and port.
    pub steps: u32,
    /// The constant decision.
    pub decision: PortStep,
}

map_type!(Row, 16, steps_at = 0, steps = 4, decision = 8);

/// Value of `PORTS`: from a [`PortKey`] on (up to the next step) this is the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[repr(C)]
pub struct PortStep {
    /// Bits 0..20 the [`PortKey`], bits 24..28 the verdict, bits 28..32 the reason.
    packed: u32,
    /// Number of the rule that decided; `0`: none.
    pub rule: u32,
}

map_type!(PortStep, 8, rule = 4);

impl PortStep {
    /// A step that starts at `from`.
    ///
    /// Only [`Reason::Policy`] and [`Reason::Default`] occur in compiled policy.
    #[inline(always)]
    pub const fn new(from: PortKey, decision: Decision) -> Self {
        Self {
            packed: (from.0 & 0xf_ffff)
                | (decision.verdict as u32) << 24
                | (decision.reason as u32 & 0xf) << 28,
            rule: decision.rule,
        }
    }

    /// The key from which the step holds.
    #[inline(always)]
    pub const fn from(self) -> u32 {
        self.packed & 0xf_ffff
    }

    /// The whole step in a number, which is not zero: no reason of a step is.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        (self.rule as u64) << 32 | self.packed as u64
    }

    /// The step of [`PortStep::to_bits`]; `None` of zero.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits == 0 { None } else { Some(Self { packed: bits as u32, rule: (bits >> 32) as u32 }) }
    }

    /// The decision of the step. A verdict number that this version does not know denies.
    #[inline(always)]
    pub const fn decision(self) -> Decision {
        let verdict = match self.packed >> 24 & 0xf {
            0 => Verdict::Allow,
            2 => Verdict::Audit,
            _ => Verdict::Deny,
        };
        let reason = match self.packed >> 28 {
            2 => Reason::Default,
            _ => Reason::Policy,
        };
        Decision { verdict, reason, rule: self.rule }
    }
}

/// A verdict with its reason and the rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decision {
    /// What is done.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Number of the rule that decided; `0`: none.
    pub rule: u32,
}

impl Decision {
    /// A decision that no rule made.
    #[inline(always)]
    pub const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self { verdict, reason, rule: 0 }
    }
}

/// The policy maps, as the kernel or a host-side copy provides them.
pub trait PolicyMaps {
    /// The number of the rows in force for a subject class; `0`: none are.
    fn rowset(&self, subject: u32) -> u32;
    /// The row with this key.
    fn row(&self, key: &RowKey) -> Option<Row>;
    /// The step at this index.
    fn step(&self, index: u32) -> Option<PortStep>;
    /// The same number. In the kernel the verifier must not know more about it than that it is one: what it knows of
    /// the bounds of a search differs on every way through it, and each would be followed by itself. `_any` is a number
    /// of which it knows nothing.
    #[inline(always)]
    fn opaque(&self, number: u32, _any: u32) -> u32 {
        number
    }
    /// What [`decisive_step`] finds. The kernel has one function for it, which all ways to a verdict call.
    #[inline(always)]
    fn decisive(
        &self,
        subject: u32,
        direction: crate::Direction,
        peer: u32,
        kind: u8,
        key: PortKey,
    ) -> Option<PortStep>
    where
        Self: Sized,
    {
        decisive_step(self, subject, direction as u32, peer, kind, key)
    }
}

/// The verdict of `subject`'s policies in a direction about a peer, protocol and port. What is not in the maps denies with
/// [`Reason::NoPolicy`].
#[inline(always)]
pub fn evaluate<M: PolicyMaps>(
    maps: &M,
    subject: u32,
    direction: crate::Direction,
    peer: u32,
    kind: u8,
    key: PortKey,
) -> Decision {
    match maps.decisive(subject, direction, peer, kind, key) {
        Some(step) => step.decision(),
        None => Decision::new(Verdict::Deny, Reason::NoPolicy),
    }
}

/// The step that decides, of the subject's rows in a direction, a `Direction` as a number; `None`: it is not in the maps.
///
/// Two row lookups at most: the exact peer class, then its kind.
#[inline(always)]
pub fn decisive_step<M: PolicyMaps>(
    maps: &M,
    subject: u32,
    direction: u32,
    peer: u32,
    kind: u8,
    key: PortKey,
) -> Option<PortStep> {
    let rowset = maps.rowset(subject);
    if rowset == 0 {
        return None;
    }
    let mut row_key = RowKey { rowset, peer, direction };
    let row = match maps.row(&row_key) {
        Some(row) => row,
        None => {
            row_key.peer = wildcard(kind);
            maps.row(&row_key)?
        }
    };
    if row.steps == 0 {
        return Some(row.decision);
    }
    // The last step that starts at or below the key; the first one starts at 0.
    let mut low = row.steps_at;
    let mut high = row.steps_at.wrapping_add(row.steps);
    let mut found = row.decision;
    // 2^18 is more than the number of keys, so this is every step that a function can have.
    for _ in 0..18 {
        low = maps.opaque(low, row.steps_at);
        high = maps.opaque(high, row.steps_at);
        if low >= high {
            break;
        }
        let middle = low.wrapping_add(high.wrapping_sub(low) >> 1);
        let step = maps.step(middle)?;
        if step.from() <= key.0 {
            found = step;
            low = middle.wrapping_add(1);
        } else {
            high = middle;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Direction;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Maps {
        rows: HashMap<RowKey, Row>,
        steps: Vec<PortStep>,
    }
    impl PolicyMaps for Maps {
        fn rowset(&self, subject: u32) -> u32 {
            if subject == 7 { 70 } else { 0 }
        }
        fn row(&self, key: &RowKey) -> Option<Row> {
            self.rows.get(key).copied()
        }
        fn step(&self, index: u32) -> Option<PortStep> {
            self.steps.get(index as usize).copied()
        }
    }

    fn decision(verdict: Verdict, rule: u32) -> Decision {
        Decision { verdict, reason: Reason::Policy, rule }
    }

    #[test]
    fn the_last_step_at_or_below_the_key_decides_at_every_boundary() {
        let mut maps = Maps::default();
        let starts: Vec<u32> = (0..1000).map(|i| if i == 0 { 0 } else { i * 60 + 1 }).collect();
        maps.steps.push(PortStep::new(PortKey(0), decision(Verdict::Allow, 999))); // of another table
        for (i, &start) in starts.iter().enumerate() {
            let verdict = if i % 2 == 0 { Verdict::Deny } else { Verdict::Allow };
            maps.steps.push(PortStep::new(PortKey(start), decision(verdict, i as u32)));
        }
        let key = RowKey { rowset: 70, peer: wildcard_of(Kind::Pod), direction: 0 };
        maps.rows.insert(key, Row { steps_at: 1, steps: 1000, decision: PortStep::default() });
        for port in 0..=65535u16 {
            let wanted = starts.iter().rposition(|&s| s <= u32::from(port)).unwrap();
            let got = evaluate(
                &maps,
                7,
                Direction::Ingress,
                50,
                Kind::Pod as u8,
                PortKey::new(protocol::TCP, port),
            );
            assert_eq!(got.rule as usize, wanted, "port {port}");
            assert_eq!(got.verdict, if wanted % 2 == 0 { Verdict::Deny } else { Verdict::Allow });
        }
    }

    #[test]
    fn what_is_not_in_the_maps_is_denied() {
        let mut maps = Maps::default();
        let missing = Decision::new(Verdict::Deny, Reason::NoPolicy);
        let ask = |maps: &Maps, subject| {
            evaluate(maps, subject, Direction::Egress, 50, Kind::World as u8, PortKey::OTHER)
        };
        assert_eq!(ask(&maps, 3), missing, "no rows for the subject");
        assert_eq!(ask(&maps, 7), missing, "no row for the kind");
        let key = RowKey { rowset: 70, peer: wildcard_of(Kind::World), direction: 1 };
        maps.rows.insert(key, Row { steps_at: 5, steps: 3, decision: PortStep::default() });
        assert_eq!(ask(&maps, 7), missing, "steps that are not there");
    }

    #[test]
    fn the_exact_peer_wins_over_its_kind() {
        let mut maps = Maps::default();
        let row = |v| Row { decision: PortStep::new(PortKey(0), decision(v, 1)), ..Row::default() };
        maps.rows
            .insert(RowKey { rowset: 70, peer: wildcard_of(Kind::Pod), direction: 0 }, row(Verdict::Deny));
        maps.rows.insert(RowKey { rowset: 70, peer: 50, direction: 0 }, row(Verdict::Audit));
        let ask =
            |peer| evaluate(&maps, 7, Direction::Ingress, peer, Kind::Pod as u8, PortKey::OTHER).verdict;
        assert_eq!(ask(50), Verdict::Audit);
        assert_eq!(ask(51), Verdict::Deny);
    }

    #[test]
    fn a_step_keeps_its_key_verdict_reason_and_rule() {
        for verdict in [Verdict::Allow, Verdict::Deny, Verdict::Audit] {
            for reason in [Reason::Policy, Reason::Default] {
                let d = Decision { verdict, reason, rule: u32::MAX };
                let step = PortStep::new(PortKey::OTHER, d);
                assert_eq!((step.from(), step.decision()), (PortKey::OTHER.0, d));
                assert_eq!(PortStep::from_bits(step.to_bits()), Some(step));
                let least = PortStep::new(PortKey::FIRST, Decision { rule: 0, ..d });
                assert_eq!(PortStep::from_bits(least.to_bits()), Some(least));
            }
        }
    }
}
