//! Flows: one tracked conversation at one endpoint, keyed from the endpoint's point of view, so that one lookup serves
//! both directions.
//!
//! The programs never delete one: a newer flow takes its place ([`crate::table`]).

use core::net::IpAddr;

use crate::abi::{Addr6, map_type};
use crate::packet::{IcmpRole, Parsed, tcp};
use crate::policy::protocol;
use crate::reason::Direction;

/// Key of an IPv4 flow table, in words as the program reads them from the packet, so that it has little to do to make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey4 {
    /// Addresses in network order: the pod's in the low half, the other in the high one.
    pub addresses: u64,
    /// From the lowest bits on: port of the pod and the other port, or twice the id of an ICMP echo, in network order (16
    /// bits each); the transport protocol (8 bits); of an ICMP echo `1 +` the [`Direction`] it was opened in, and `0` for
    /// every other flow. Of a first fragment: the identification of the datagram (32 bits), the protocol, and `3 +` the hook.
    pub rest: u64,
}

map_type!(FlowKey4, 16, rest = 8);

/// Key of an IPv6 flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey6 {
    /// Address of the pod, as it lies in memory.
    pub local: [u64; 2],
    /// The other address.
    pub remote: [u64; 2],
    /// As in [`FlowKey4`].
    pub rest: u64,
}

map_type!(FlowKey6, 40, remote = 16, rest = 32);

/// Where the other side of a flow that it opened came from, if its address does not tell.
pub mod origin {
    /// The address tells.
    pub const ADDRESS: u32 = 0;
    /// The node itself.
    pub const HOST: u32 = 1;
    /// Outside, masqueraded to the node's address.
    pub const WORLD: u32 = 2;
    /// A pod of this node, masqueraded to the node's address: this plus the ifindex of its endpoint.
    pub const ENDPOINT: u32 = 16;
}

/// Life of a flow.
pub mod state {
    /// Seen from the opener only.
    pub const NEW: u8 = 0;
    /// Answered; TCP: the handshake is over.
    pub const OPEN: u8 = 1;
    /// A FIN or RST was seen; a later segment without them clears it unless both sides sent a FIN.
    pub const CLOSING: u8 = 2;
    /// TCP: answered by a SYN, and nobody has sent anything else since: half open.
    pub const HALF_OPEN: u8 = 3;
    /// No flow at all, but what later fragments need of their first one: the entry's `origin` has its ports.
    pub const FRAGMENT: u8 = 4;
    /// Bits of the state byte that hold the life; the others are the FIN bits.
    pub const LIFE: u8 = 0x0f;
    /// The opener sent a FIN.
    pub const FIN_OPENER: u8 = 0x10;
    /// The other side sent a FIN.
    pub const FIN_OTHER: u8 = 0x20;
    /// The opener went on as if it had been answered, and no answer was seen: it came by another way.
    pub const UNHEARD: u8 = 0x40;
    /// It was ended by a FIN or RST before it was answered.
    pub const UNANSWERED: u8 = 0x80;
}

/// What a table holds of a flow beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Flow {
    /// How often its entry was written ([`crate::table::Place::version`]).
    pub version: u32,
    /// The revision read before the flow was judged.
    pub revision: u32,
    /// When it was last used, jiffies; written at most every [`TOUCH_EVERY`].
    pub last_seen: u64,
    /// After how many idle jiffies it counts as absent.
    pub timeout: u32,
    /// Counter slot of the pair.
    pub slot: u32,
    /// [`origin`] of the other side.
    pub origin: u32,
    /// A [`crate::Verdict`]: allow or audit.
    pub verdict: u8,
    /// The [`Direction`] it was opened in.
    pub opener: u8,
    /// [`state`].
    pub state: u8,
    /// Explicit padding, zero.
    pub pad: u8,
}

map_type!(
    Flow,
    32,
    version = 0,
    revision = 4,
    last_seen = 8,
    timeout = 16,
    slot = 20,
    origin = 24,
    verdict = 28
);

impl Flow {
    /// Less than so many jiffies must one have left whose place it takes. A fragment does not cost a flow that goes on.
    #[inline(always)]
    pub const fn displaces(&self) -> i64 {
        if self.state == state::FRAGMENT { self.timeout as i64 + 1 } else { i64::MAX }
    }
}

/// Jiffies between two writes of `last_seen` at the least; about a second or less at every kernel's HZ.
pub const TOUCH_EVERY: u64 = 100;

/// Idle time-outs in seconds (design, section 6).
pub mod timeout {
    /// TCP, answered.
    pub const TCP: u32 = 24 * 3600;
    /// TCP, half open.
    pub const TCP_NEW: u32 = 60;
    /// TCP after FIN or RST.
    pub const TCP_CLOSING: u32 = 10;
    /// UDP and other protocols, answered.
    pub const UDP: u32 = 180;
    /// UDP and other protocols, not answered.
    pub const UDP_NEW: u32 = 30;
    /// ICMP.
    pub const ICMP: u32 = 30;
}

/// Idle time-out in seconds of a protocol in a state.
#[inline(always)]
pub const fn timeout_of(proto: u8, life: u8) -> u32 {
    match (proto, life & state::LIFE) {
        (protocol::TCP, state::NEW | state::HALF_OPEN) => timeout::TCP_NEW,
        (protocol::TCP, state::OPEN) => timeout::TCP,
        (protocol::TCP, _) => timeout::TCP_CLOSING,
        (protocol::ICMP | protocol::ICMPV6, _) => timeout::ICMP,
        (_, state::NEW) => timeout::UDP_NEW,
        _ => timeout::UDP,
    }
}

/// The state after a packet. `from_opener`: the packet goes the way the flow was opened.
#[inline(always)]
pub const fn next_state(before: u8, from_opener: bool, flags: u8) -> u8 {
    let ends = flags & (tcp::RST | tcp::FIN) != 0;
    let before = if ends && before & state::LIFE == state::NEW { before | state::UNANSWERED } else { before };
    if flags & tcp::RST != 0 {
        return before & !state::LIFE | state::CLOSING;
    }
    let before = if from_opener { before } else { before & !(state::UNHEARD | state::UNANSWERED) };
    if flags & tcp::FIN != 0 {
        let fin = if from_opener { state::FIN_OPENER } else { state::FIN_OTHER };
        return before & !state::LIFE | fin | state::CLOSING;
    }
    match before & state::LIFE {
        state::NEW if !from_opener => {
            before | if flags & tcp::SYN != 0 { state::HALF_OPEN } else { state::OPEN }
        }
        // A segment without any flag is no part of a handshake: nobody would answer it by a reset.
        state::HALF_OPEN if flags & (tcp::SYN | tcp::ACK) == tcp::ACK => before & !state::LIFE | state::OPEN,
        state::NEW if flags & (tcp::SYN | tcp::ACK) == tcp::ACK => before | state::UNHEARD,
        // Alone it does not go on with what nobody has answered.
        state::CLOSING if before & state::UNANSWERED != 0 => before,
        // Both sides have said FIN: this is the last acknowledgement.
        state::CLOSING
            if before & (state::FIN_OPENER | state::FIN_OTHER) != state::FIN_OPENER | state::FIN_OTHER =>
        {
            // The answer to a SYN may have been on its way when the opener took that back.
            let life = if flags & tcp::SYN != 0 { state::HALF_OPEN } else { state::OPEN };
            before & !state::LIFE | life
        }
        _ => before,
    }
}

/// Whether this packet is the first answer to what opened the flow.
#[inline(always)]
pub const fn is_first_answer(before: u8, from_opener: bool) -> bool {
    !from_opener && before & state::LIFE == state::NEW
}

/// Whether a flow of this age counts as absent.
#[inline(always)]
pub const fn expired(flow: &Flow, now: u64) -> bool {
    now.wrapping_sub(flow.last_seen) as i64 > flow.timeout as i64
}

/// An odd number without a pattern: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A word of a key times its own odd number made of a secret. The upper bits of the sum over a key's words are those of another
/// key by chance only (after Dietzfelbinger and others, 1997, whose numbers are independent).
#[inline(always)]
const fn weigh(word: u64, seed: u64, place: u32) -> u64 {
    // Two upper bits that are turned round would make up for each other, whatever the secret.
    (word ^ word >> 32).wrapping_mul(seed.rotate_left(place * 13) | 1)
}

/// The upper bits of a product say something of every lower bit of the word, so both halves go into those.
#[inline(always)]
pub(crate) const fn spread(word: u64, bits: u32) -> usize {
    ((word ^ word >> 32).wrapping_mul(SPREAD) >> (u64::BITS - bits)) as usize
}

/// A flow key: how it is built, its hash and its parts.
pub trait FlowKey: Copy + core::fmt::Debug {
    /// The address type.
    type Address: crate::packet::Address;
    /// Builds a key; ports in host order.
    fn build(
        local: Self::Address,
        remote: Self::Address,
        ports: (u16, u16),
        proto: u8,
        echo_opener: u8,
    ) -> Self;
    /// A hash that depends on a secret; its upper bits are the good ones.
    fn hash(&self, seed: u64) -> u64;
    /// Address of the pod.
    fn local(&self) -> IpAddr;
    /// The other address.
    fn remote(&self) -> IpAddr;
    /// The last word, see [`FlowKey4`].
    fn rest(&self) -> u64;

    /// Port of the pod, or the id of an ICMP echo, in host order.
    fn local_port(&self) -> u16 {
        u16::from_be(self.rest() as u16)
    }
    /// The other port, in host order.
    fn remote_port(&self) -> u16 {
        u16::from_be((self.rest() >> 16) as u16)
    }
    /// Transport protocol.
    fn protocol(&self) -> u8 {
        (self.rest() >> 32) as u8
    }
    /// Of an ICMP echo: `1 +` the [`Direction`] it was opened in.
    fn echo_opener(&self) -> u8 {
        (self.rest() >> 40) as u8
    }
}

/// Two 32-bit words as they lie in memory.
#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// The last word of a key.
#[inline(always)]
const fn rest(ports: (u16, u16), proto: u8, echo_opener: u8) -> u64 {
    let ports = ports.0.to_be() as u32 | (ports.1.to_be() as u32) << 16;
    pair(ports, proto as u32 | (echo_opener as u32) << 8)
}

impl FlowKey for FlowKey4 {
    type Address = u32;
    #[inline(always)]
    fn build(local: u32, remote: u32, ports: (u16, u16), proto: u8, echo_opener: u8) -> Self {
        Self { addresses: pair(local, remote), rest: rest(ports, proto, echo_opener) }
    }
    #[inline(always)]
    fn hash(&self, seed: u64) -> u64 {
        weigh(self.addresses, seed, 0).wrapping_add(weigh(self.rest, seed, 1))
    }
    fn local(&self) -> IpAddr {
        IpAddr::from((self.addresses as u32).to_ne_bytes())
    }
    fn remote(&self) -> IpAddr {
        IpAddr::from(((self.addresses >> 32) as u32).to_ne_bytes())
    }
    fn rest(&self) -> u64 {
        self.rest
    }
}

/// An address in the words of a key.
#[inline(always)]
const fn wide(address: Addr6) -> [u64; 2] {
    let [a, b, c, d] = address.words_be;
    [pair(a, b), pair(c, d)]
}

/// The address in two words of a key.
fn narrow([first, second]: [u64; 2]) -> IpAddr {
    let words_be = [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32];
    IpAddr::from(Addr6 { words_be }.to_bytes())
}

impl FlowKey for FlowKey6 {
    type Address = Addr6;
    #[inline(always)]
    fn build(local: Addr6, remote: Addr6, ports: (u16, u16), proto: u8, echo_opener: u8) -> Self {
        Self { local: wide(local), remote: wide(remote), rest: rest(ports, proto, echo_opener) }
    }
    #[inline(always)]
    fn hash(&self, seed: u64) -> u64 {
        weigh(self.local[0], seed, 4)
            .wrapping_add(weigh(self.local[1], seed, 3))
            .wrapping_add(weigh(self.remote[0], seed, 2))
            .wrapping_add(weigh(self.remote[1], seed, 0))
            .wrapping_add(weigh(self.rest, seed, 1))
    }
    fn local(&self) -> IpAddr {
        narrow(self.local)
    }
    fn remote(&self) -> IpAddr {
        narrow(self.remote)
    }
    fn rest(&self) -> u64 {
        self.rest
    }
}

/// The key of a packet at an endpoint.
#[inline(always)]
pub fn key_of<K: FlowKey>(packet: &Parsed<K::Address>, hook: Direction) -> K {
    let echo_opener = match packet.icmp {
        IcmpRole::EchoRequest => 1 + hook as u8,
        IcmpRole::EchoReply => 1 + hook.opposite() as u8,
        IcmpRole::Error if packet.protocol == protocol::ICMP || packet.protocol == protocol::ICMPV6 => {
            // The packet inside went the other way.
            1 + if packet.about_request { hook.opposite() as u8 } else { hook as u8 }
        }
        _ => 0,
    };
    match hook {
        Direction::Egress => K::build(
            packet.source,
            packet.destination,
            (packet.source_port, packet.destination_port),
            packet.protocol,
            echo_opener,
        ),
        Direction::Ingress => K::build(
            packet.destination,
            packet.source,
            (packet.destination_port, packet.source_port),
            packet.protocol,
            echo_opener,
        ),
    }
}

/// The key under which a fragmented datagram lies beside the flows of an endpoint. No packet has it.
#[inline(always)]
pub fn fragment_key_of<K: FlowKey>(packet: &Parsed<K::Address>, hook: Direction) -> K {
    let id = (packet.fragment_id as u16, (packet.fragment_id >> 16) as u16);
    let (local, remote) = match hook {
        Direction::Egress => (packet.source, packet.destination),
        Direction::Ingress => (packet.destination, packet.source),
    };
    K::build(local, remote, id, packet.protocol, 3 + hook as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state after a handshake.
    fn opened() -> u8 {
        let half = next_state(state::NEW, false, tcp::SYN | tcp::ACK);
        next_state(half, true, tcp::ACK)
    }

    #[test]
    fn a_connection_is_half_open_until_something_follows_the_handshakes_second_packet() {
        let half = next_state(state::NEW, false, tcp::SYN | tcp::ACK);
        assert_eq!((half, timeout_of(protocol::TCP, half)), (state::HALF_OPEN, timeout::TCP_NEW));
        assert_eq!(next_state(half, false, tcp::SYN | tcp::ACK), half, "sent again");
        assert_eq!(next_state(half, true, tcp::ACK), state::OPEN);
        assert_eq!(next_state(half, false, tcp::ACK), state::OPEN, "the acknowledgement went another way");
        assert_eq!(next_state(half, false, tcp::RST | tcp::ACK) & state::LIFE, state::CLOSING);
        assert_eq!(next_state(state::NEW, false, 0), state::OPEN, "UDP has no handshake");
        assert!(is_first_answer(state::NEW, false) && is_first_answer(state::UNHEARD, false));
        assert!(!is_first_answer(state::NEW, true) && !is_first_answer(half, false));
    }

    #[test]
    fn a_close_is_final_only_when_both_sides_said_fin() {
        let open = opened();
        assert_eq!(open, state::OPEN);
        let alone = next_state(state::NEW, true, tcp::ACK);
        assert_eq!(alone & state::LIFE, state::NEW, "the opener alone does not open");
        let half = next_state(open, true, tcp::FIN | tcp::ACK);
        assert_eq!(half & state::LIFE, state::CLOSING);
        let acked = next_state(half, false, tcp::ACK);
        assert_eq!(acked & state::LIFE, state::OPEN, "half closed connections may live on");
        let both = next_state(acked, false, tcp::FIN | tcp::ACK);
        assert_eq!(next_state(both, true, tcp::ACK) & state::LIFE, state::CLOSING);
    }

    #[test]
    fn an_opener_that_goes_on_without_an_answer_is_marked_until_one_is_seen() {
        let syn = next_state(state::NEW, true, tcp::SYN);
        assert_eq!(syn, state::NEW, "sent again");
        let alone = next_state(syn, true, tcp::ACK);
        assert_eq!(alone & state::UNHEARD, state::UNHEARD);
        let over = next_state(alone, true, tcp::FIN | tcp::ACK);
        assert_eq!(over & state::UNHEARD, state::UNHEARD, "it was never heard");
        assert_eq!(over & state::LIFE, state::CLOSING);
        let closed = next_state(over, false, tcp::FIN | tcp::ACK);
        assert_eq!(next_state(closed, true, tcp::ACK) & state::LIFE, state::CLOSING, "both have said FIN");
        assert_eq!(next_state(alone, false, tcp::ACK), state::OPEN, "the answer was late");
        assert_eq!(next_state(over, false, tcp::FIN | tcp::ACK) & state::UNHEARD, 0);
        assert_eq!(next_state(opened(), true, tcp::ACK), state::OPEN);
        assert_eq!(next_state(state::NEW, true, 0), state::NEW, "UDP tells nothing");
    }

    #[test]
    fn who_opens_a_connection_cannot_make_it_look_answered() {
        for first in [tcp::RST, tcp::RST | tcp::ACK, tcp::FIN, tcp::FIN | tcp::ACK, tcp::ACK, 0] {
            for second in [tcp::ACK, 0, tcp::FIN, tcp::RST, tcp::SYN] {
                let alone = next_state(next_state(state::NEW, true, first), true, second);
                assert!(
                    matches!(alone & state::LIFE, state::NEW | state::CLOSING),
                    "{first:#x}, {second:#x}"
                );
                let answered = next_state(alone, false, tcp::SYN | tcp::ACK);
                assert_eq!(answered & state::LIFE, state::HALF_OPEN, "{first:#x}, {second:#x}");
                assert_eq!(answered & state::UNANSWERED, 0);
            }
        }
        let reset = next_state(state::NEW, false, tcp::RST | tcp::ACK);
        assert_eq!(next_state(reset, true, tcp::ACK) & state::LIFE, state::CLOSING, "the port was closed");
        let half = next_state(state::NEW, false, tcp::SYN | tcp::ACK);
        assert_eq!(next_state(half, true, 0), half, "a segment that says nothing finishes no handshake");
        assert_eq!(next_state(half, true, tcp::SYN | tcp::ACK), half);
    }

    #[test]
    fn a_forged_reset_is_cleared_by_the_next_segment() {
        let reset = next_state(state::OPEN, false, tcp::RST);
        assert_eq!(reset & state::LIFE, state::CLOSING);
        assert_eq!(next_state(reset, true, tcp::ACK) & state::LIFE, state::OPEN);
    }

    #[test]
    fn both_directions_share_a_key() {
        let packet = |source, destination, source_port, destination_port| Parsed {
            source,
            destination,
            outer_source: source,
            fragment_id: 0,
            source_port,
            destination_port,
            protocol: protocol::TCP,
            tcp_flags: 0,
            about_request: false,
            hop_limit: 64,
            fragment: crate::packet::FragmentPart::Whole,
            icmp: IcmpRole::Plain,
        };
        let out: FlowKey4 = key_of(&packet(1, 2, 1000, 80), Direction::Egress);
        let back: FlowKey4 = key_of(&packet(2, 1, 80, 1000), Direction::Ingress);
        assert_eq!(out, back);
        assert_ne!(out, FlowKey4 { rest: rest((1000, 81), protocol::TCP, 0), ..out });
    }

    #[test]
    fn an_entry_counts_as_absent_after_its_time_out() {
        let flow = Flow { last_seen: 1000, timeout: 50, ..Flow::default() };
        assert!(!expired(&flow, 1050));
        assert!(expired(&flow, 1051));
        assert!(!expired(&flow, 999), "another CPU may be a tick ahead");
    }
}
