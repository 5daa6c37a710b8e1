//! Fragments of a datagram: the later ones are judged by the ports of the first, which the endpoint's own flow table keeps.
//! So one pod's fragments push out nothing of another's; and of its own only what would be absent as soon as they.

use crate::abi::{Endpoint, config};
use crate::flow::{Flow, expired, fragment_key_of, state};
use crate::judge::Family;
use crate::packet::{FragmentPart, IcmpRole, Parsed};
use crate::policy::protocol;
use crate::process::{Datapath, FlowRef, Transit};

/// How long later fragments may come after the first one, in seconds: what IPv6 has for it (RFC 8200, section 4.5). Linux
/// forgets IPv4 datagrams after 30 s (`net.ipv4.ipfrag_time`).
pub const LIFE: u32 = 60;
/// For how long the place of a first fragment is kept from flows that would be absent later, in seconds.
const KEPT: u32 = 1;

/// Keeps what later fragments need of a first one, or gives a later one that; `false`: its first one is not known.
#[inline(always)]
pub fn settle<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    transit: &mut Transit<F>,
    now: u64,
) -> bool {
    let key: F::Key = fragment_key_of(&transit.packet, transit.hook);
    if transit.packet.fragment as u8 == FragmentPart::Later as u8 {
        let Some(entry) = path.flow(endpoint, transit.slot, &key) else { return false };
        let first = entry.load();
        let timeout = LIFE.wrapping_mul(path.config(config::HZ));
        if !entry.is_still(&key) || expired(&Flow { timeout, ..first }, now) {
            return false;
        }
        recall(&mut transit.packet, first.origin);
    } else if !matches!(transit.packet.icmp, IcmpRole::Error) {
        // Not of an ICMP error, whose addresses and ports are those of another packet.
        let first = Flow {
            last_seen: now,
            timeout: KEPT.wrapping_mul(path.config(config::HZ)),
            origin: memory(&transit.packet),
            state: state::FRAGMENT,
            ..Flow::default()
        };
        // Where it finds no room, the later fragments are dropped with a reason.
        let _ = path.insert(endpoint, transit.slot, &key, &first);
    }
    true
}

/// What later fragments need of the first one, source before destination: the ports, or the id of an echo and whether it is a
/// request.
#[inline(always)]
const fn memory<A>(packet: &Parsed<A>) -> u32 {
    let destination_port = match packet.icmp {
        IcmpRole::EchoRequest | IcmpRole::EchoReply => packet.icmp as u16,
        _ => packet.destination_port,
    };
    (packet.source_port as u32) << 16 | destination_port as u32
}

/// Gives a later fragment what [`memory`] kept.
#[inline(always)]
fn recall<A>(packet: &mut Parsed<A>, first: u32) {
    packet.source_port = (first >> 16) as u16;
    packet.destination_port = first as u16;
    if matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6) {
        let request = packet.destination_port == IcmpRole::EchoRequest as u16;
        let reply = packet.destination_port == IcmpRole::EchoReply as u16;
        if request || reply {
            packet.icmp = if request { IcmpRole::EchoRequest } else { IcmpRole::EchoReply };
            packet.destination_port = packet.source_port;
        }
    }
}
