//! The short ways of the walk: the packet of a known flow, and the first packet of a flow whose like was judged before.

use crate::abi::{Endpoint, config};
use crate::cache::{CachedVerdict, Found, VerdictKey, place_of};
use crate::flow::{
    Flow, FlowKey, TOUCH_EVERY, expired, is_first_answer, next_state, origin, state, timeout_of,
};
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
    let place = place_of(key);
    let now = path.now();
    let length = u64::from(transit.length);
    let ends = transit.packet.tcp_flags & (tcp::FIN | tcp::RST) != 0;
    let found = Found {
        ifindex: endpoint.ifindex,
        revision: endpoint.revision,
        since: now as u32,
        // Before the entry is looked at: what changes it meanwhile begins another epoch.
        epoch: path.epoch(place),
        ..Found::default()
    };
    if !ends
        && let Some(cached) = path.cached_flow(place)
        && cached.is(key, &found)
    {
        path.count(cached.found.slot, Verdict::Allow, length, false);
        return true;
    }
    let Some(entry) = path.flow(transit.slot, key) else { return false };
    let (flow, tag) = (entry.glance(), key.tag());
    if flow.revision != endpoint.revision || flow.tag != tag {
        return false;
    }
    // That of the judgement: the endpoint's may be another one by now.
    let found = Found { slot: flow.slot, revision: flow.revision, ..found };
    let allowed = flow.verdict == Verdict::Allow as u8;
    // As most packets are: of an open flow that was seen a moment ago (no time-out is that short), and not its end.
    if allowed && flow.state == state::OPEN && !ends && now.wrapping_sub(flow.last_seen) < TOUCH_EVERY {
        path.cache_flow(place, key, found);
        path.count(flow.slot, Verdict::Allow, length, false);
        return true;
    }
    let flow = entry.load();
    if flow.tag != tag || expired(&flow, now) {
        return false;
    }
    if !matches!(transit.packet.icmp, IcmpRole::Error) {
        let next = advance(path, &entry, &flow, transit);
        if ends {
            path.next_epoch(place);
        } else if allowed && next == state::OPEN {
            path.cache_flow(place, key, found);
        }
        if now.wrapping_sub(flow.last_seen) >= TOUCH_EVERY {
            entry.touch(now);
        }
    }
    path.count(flow.slot, if allowed { Verdict::Allow } else { Verdict::Audit }, length, false);
    true
}

/// What a packet does to the state of its flow, and the state then.
#[inline(always)]
fn advance<F: Family, D: Datapath<F>>(path: &D, entry: &D::Flow, flow: &Flow, transit: &Transit<F>) -> u8 {
    let from_opener = flow.opener == transit.hook as u8;
    let next = next_state(flow.state, from_opener, transit.packet.tcp_flags);
    if next != flow.state {
        if is_first_answer(flow.state, from_opener) {
            path.refund(transit.slot, transit.hook.opposite());
        }
        let seconds = patience(transit.packet.protocol, next, flow.origin);
        entry.advance(next, seconds.wrapping_mul(path.config(config::HZ)));
    }
    next
}

/// The time-out in seconds. A flow whose origin is not its address must be gone before the kernel's conntrack gives the
/// masqueraded ports to somebody else (120 s for an answered UDP flow, `nf_conntrack_udp_timeout_stream`). TCP needs no
/// such bound: a new connection begins with a SYN, which is always judged.
#[inline(always)]
fn patience(proto: u8, life: u8, from: u32) -> u32 {
    let seconds = timeout_of(proto, life);
    if from != origin::ADDRESS && proto != protocol::TCP && seconds > 100 { 100 } else { seconds }
}

/// Writes a flow, with its tag and the time-out of its state, in place of what may be remembered of its key; `false` if the
/// table did not take it.
#[inline(always)]
pub fn put<F: Family, D: Datapath<F>>(path: &D, transit: &Transit<F>, key: &F::Key, flow: Flow) -> bool {
    let seconds = patience(transit.packet.protocol, flow.state, flow.origin);
    let timeout = seconds.wrapping_mul(path.config(config::HZ));
    let stored = path.insert(transit.slot, key, &Flow { tag: key.tag(), timeout, ..flow });
    if stored {
        path.next_epoch(place_of(key));
    }
    stored
}

/// Whether a SYN that passes this hook makes a live flow a new one. A flow of the other side it does not: the SYN may be
/// forged.
#[inline(always)]
pub const fn may_replace(known: &Flow, hook: Direction) -> bool {
    known.opener == hook as u8 || known.state & state::LIFE == state::CLOSING
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
    let mut charged = true;
    if let Some(entry) = path.flow(transit.slot, key) {
        let known = entry.load();
        if known.tag == key.tag() && !expired(&known, now) {
            if !opens || !may_replace(&known, transit.hook) {
                return false;
            }
            charged = false;
        }
    }
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
    if !put(path, transit, key, flow) {
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
