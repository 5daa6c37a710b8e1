//! The short ways of the walk: the packet of a known flow, and the first packet of a flow whose like was judged before.

use crate::abi::{Endpoint, config};
use crate::cache::{CachedVerdict, VerdictKey};
use crate::flow::{Flow, TOUCH_EVERY, expired, is_first_answer, next_state, origin, state, timeout_of};
use crate::judge::{Family, needs_opening};
use crate::packet::{IcmpRole, Parsed, tcp};
use crate::policy::{Decision, protocol};
use crate::process::{Datapath, FlowRef, Transit, Work};
use crate::reason::{Direction, Reason, Verdict};

/// Whether the packet opens a connection: SYN without ACK.
#[inline(always)]
pub fn opens<A>(packet: &Parsed<A>) -> bool {
    packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Passes a packet of a known flow, if it is one: the flow's revision is in force, it is not idle for too long, and the
/// packet does not try to open it again.
///
/// The pod's address need not be compared with the endpoint's before: a flow is only stored after
/// [`crate::process::admit`], under the address that was admitted, and a change of the endpoint's addresses raises the
/// revision.
#[inline(always)]
pub fn known_flow<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    transit: &Transit<F>,
    key: &F::Key,
) -> bool {
    if opens(&transit.packet) {
        return false;
    }
    let Some(entry) = path.flow(endpoint, transit.slot, key) else { return false };
    let flow = entry.glance();
    if flow.revision != endpoint.revision || !entry.is_still(key) {
        return false;
    }
    let now = path.now();
    let length = u64::from(transit.length);
    let ends = transit.packet.tcp_flags & (tcp::FIN | tcp::RST) != 0;
    let allowed = flow.verdict == Verdict::Allow as u8;
    // As most packets are: of an open flow that was seen a moment ago (no time-out is that short), and not its end.
    if allowed && flow.state == state::OPEN && !ends && now.wrapping_sub(flow.last_seen) < TOUCH_EVERY {
        path.count(flow.slot, Verdict::Allow, length, false);
        return true;
    }
    let flow = entry.load();
    if !entry.is_still(key) || expired(&flow, now) {
        return false;
    }
    if !matches!(transit.packet.icmp, IcmpRole::Error) {
        advance(path, &entry, &flow, transit);
        if now.wrapping_sub(flow.last_seen) >= TOUCH_EVERY {
            entry.touch(now);
        }
    }
    path.count(flow.slot, if allowed { Verdict::Allow } else { Verdict::Audit }, length, false);
    true
}

/// The flow of a key in the table of an endpoint, if there is one that does not count as absent.
#[inline(always)]
pub fn live_flow<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    slot: u32,
    key: &F::Key,
    now: u64,
) -> Option<Flow> {
    let entry = path.flow(endpoint, slot, key)?;
    let flow = entry.load();
    (entry.is_still(key) && !expired(&flow, now)).then_some(flow)
}

/// What a packet does to the state of its flow.
#[inline(always)]
fn advance<F: Family, D: Datapath<F>>(path: &D, entry: &D::Flow, flow: &Flow, transit: &Transit<F>) {
    let from_opener = flow.opener == transit.hook as u8;
    let next = next_state(flow.state, from_opener, transit.packet.tcp_flags);
    if next != flow.state {
        if is_first_answer(flow.state, from_opener) {
            path.refund(transit.slot, transit.hook.opposite());
        }
        let seconds = patience(transit.packet.protocol, next, flow.origin);
        entry.advance(next, seconds.wrapping_mul(path.config(config::HZ)));
    }
}

/// The time-out in seconds. A flow whose origin is not its address must be gone before the kernel's conntrack gives the
/// masqueraded ports to somebody else. It forgets UDP that was answered and then silent after 30 s, unless it went on for two
/// seconds (`nf_conntrack_udp_packet`), ICMP after 30 s, and SCTP 3 s after a shutdown (`sctp_timeouts`); our clock is a
/// second behind at most. What goes on later is judged again, by where it comes from then. TCP needs no such bound: a new
/// connection begins with a SYN, which is always judged.
#[inline(always)]
fn patience(proto: u8, life: u8, from: u32) -> u32 {
    let seconds = timeout_of(proto, life);
    if from == origin::ADDRESS || proto == protocol::TCP {
        return seconds;
    }
    let most = if proto == protocol::SCTP { 2 } else { 28 };
    if seconds < most { seconds } else { most }
}

/// Writes a flow, with the time-out of its state; `false` if the table did not take it.
#[inline(always)]
pub fn put<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    transit: &Transit<F>,
    key: &F::Key,
    flow: Flow,
) -> bool {
    let seconds = patience(transit.packet.protocol, flow.state, flow.origin);
    let timeout = seconds.wrapping_mul(path.config(config::HZ));
    path.insert(endpoint, transit.slot, key, &Flow { timeout, ..flow })
}

/// Whether a SYN that passes this hook makes a live flow a new one. A flow of the other side it does not: the SYN may be
/// forged.
#[inline(always)]
pub const fn may_replace(known: &Flow, hook: Direction) -> bool {
    known.opener == hook as u8 || known.state & state::LIFE == state::CLOSING
}

/// Whether a SYN that takes the place of a live flow waits for an answer that the flow did not wait for. One that is sent
/// again does not.
#[inline(always)]
pub const fn begins_anew(known: &Flow) -> bool {
    known.state & state::LIFE != state::NEW
}

/// Stores a new flow and passes its packet, if one of its like was judged before and permitted.
///
/// Everything that a judgement of these flows depends on is in the key, or raises the endpoint's revision. It is left to
/// the judgement where allowed flows are reported, and where a packet without SYN may belong to a flow that is there.
#[inline(always)]
pub fn permitted_flow<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    transit: &Transit<F>,
    key: &F::Key,
) -> bool {
    let packet = &transit.packet;
    let opens = opens(packet);
    if needs_opening(packet.protocol) && !opens {
        return false;
    }
    let judged = verdict_key(endpoint.ifindex, endpoint.revision, transit);
    let Some(cached) = path.cached_verdict(judged.place()) else { return false };
    if !cached.key.equals(&judged) || path.config(config::SAMPLE) != 0 {
        return false;
    }
    let now = path.now();
    let known = live_flow(path, endpoint, transit.slot, key, now);
    if let Some(known) = &known
        && (!opens || !may_replace(known, transit.hook))
    {
        return false;
    }
    let charged = known.as_ref().is_none_or(begins_anew);
    if charged && !path.spend(transit.slot, transit.hook, now) {
        return false;
    }
    let flow = Flow {
        // That of the judgement: the endpoint's may be another one by now.
        revision: cached.key.revision,
        last_seen: now,
        slot: cached.slot,
        opener: transit.hook as u8,
        ..Flow::default()
    };
    if !put(path, endpoint, transit, key, flow) {
        return false;
    }
    path.count(cached.slot, Verdict::Allow, u64::from(transit.length), true);
    true
}

/// Remembers a judgement that permitted the flow in the work, for [`permitted_flow`]: of a flow that its addresses and ports
/// tell from others, that is stored, and that is charged to the budget of new flows as anybody's.
#[inline(always)]
pub fn remember_verdict<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    work: &Work<F>,
    decision: &Decision,
    slot: u32,
) {
    let packet = &work.transit.packet;
    let plain = matches!(packet.protocol, protocol::TCP | protocol::UDP)
        && work.question.origin == origin::ADDRESS
        && !F::is_multicast(packet.destination);
    // The endpoints of a service may become fewer without a new revision, and another pair be charged then.
    if plain
        && !work.has_known
        && !work.serving.found
        && matches!(decision.reason, Reason::Policy | Reason::Default)
    {
        let key = verdict_key(endpoint.ifindex, work.revision, &work.transit);
        path.cache_verdict(key.place(), CachedVerdict { key, slot });
    }
}

/// What the judgement of the flow that a packet opens is remembered by.
#[inline(always)]
fn verdict_key<F: Family>(ifindex: u32, revision: u32, transit: &Transit<F>) -> VerdictKey<F::Address> {
    let packet = &transit.packet;
    let (local, remote) = match transit.hook {
        Direction::Egress => (packet.source, packet.destination),
        Direction::Ingress => (packet.destination, packet.source),
    };
    VerdictKey {
        local,
        remote,
        port: packet.destination_port,
        protocol: packet.protocol,
        opener: transit.hook as u8,
        ifindex,
        revision,
    }
}
