//! What happens to a packet: the walk from its parsed form to pass or drop, with flows, counters and events.
//!
//! Generic over [`Datapath`], so that the kernel programs, host tests and fuzzers run the same walk. What most packets take
//! is in [`crate::known`]; everything else is [`prepare`] and [`decide`].

use crate::abi::{Endpoint, Mode, PairKey, config, endpoint_flags};
use crate::cache::CachedVerdict;
use crate::event::Event;
use crate::flow::{Flow, is_first_answer, key_of, next_state, origin};
use crate::fragment;
use crate::identity::{Identity, Kind};
use crate::judge::{
    Config, Family, Judgement, Maps, Metadata, Question, Serving, V4, ask_entry, find_address, find_origin,
    identify, is_local, judge, needs_opening,
};
use crate::known::{
    begins_anew, known_flow, live_flow, may_replace, opens, permitted_flow, put, remember_verdict,
};
use crate::packet::{FragmentPart, IcmpRole, Parsed};
use crate::policy::Decision;
use crate::reason::{Direction, Reason, Verdict};

/// An entry of a flow table that other CPUs may change, or give to another key, at any time.
pub trait FlowRef<K> {
    /// The value.
    fn load(&self) -> Flow;
    /// As [`FlowRef::load`], without time-out and origin: what most packets need.
    fn glance(&self) -> Flow;
    /// Whether the entry is still of this key; asked after it was read.
    fn is_still(&self, key: &K) -> bool;
    /// Writes `last_seen`.
    fn touch(&self, now: u64);
    /// Writes `timeout` and `state`.
    fn advance(&self, state: u8, timeout: u32);
}

/// Everything that the walk reads and writes.
pub trait Datapath<F: Family>: Maps<F> {
    /// An entry of a flow table.
    type Flow: FlowRef<F::Key>;
    /// Jiffies.
    fn now(&self) -> u64;
    /// The flow of an endpoint, which has this slot.
    fn flow(&self, endpoint: &Endpoint, slot: u32, key: &F::Key) -> Option<Self::Flow>;
    /// What this processor remembers of a judgement at a place.
    fn cached_verdict(&self, place: usize) -> Option<CachedVerdict<F::Address>>;
    /// Remembers a judgement.
    fn cache_verdict(&self, place: usize, verdict: CachedVerdict<F::Address>);
    /// Takes a new flow from the budget of an endpoint and a direction; `false`: it is used up.
    fn spend(&self, slot: u32, opener: Direction, now: u64) -> bool;
    /// Gives back what a flow has taken: it was answered.
    fn refund(&self, slot: u32, opener: Direction);
    /// Writes a flow; `false` if the table did not take it.
    fn insert(&self, endpoint: &Endpoint, slot: u32, key: &F::Key, flow: &Flow) -> bool;
    /// Counts one packet of `bytes` bytes and, if it was evaluated, a decision.
    fn count(&self, slot: u32, verdict: Verdict, bytes: u64, decision: bool);
    /// The counter slot of a pair, assigned when it is first seen.
    fn slot_of(&self, pair: &PairKey) -> u32;
    /// Counts a dropped packet by reason.
    fn count_drop(&self, reason: Reason, direction: Direction);
    /// Whether one more event may be sent now.
    fn may_report(&self, now: u64) -> bool;
    /// Sends an event; its time is filled in.
    fn report(&self, event: &Event);
    /// Whether this allowed new flow is one of the sampled ones, given one in how many is wanted.
    fn sampled(&self, one_in: u32) -> bool;
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on to the next program.
    Pass,
    /// It is dropped.
    Drop,
}

/// A packet on its way through a hook.
#[derive(Clone, Copy, Debug)]
pub struct Transit<F: Family> {
    /// The packet.
    pub packet: Parsed<F::Address>,
    /// The hook: egress is from-pod.
    pub hook: Direction,
    /// Slot of the endpoint.
    pub slot: u32,
    /// Length in bytes.
    pub length: u32,
    /// Where it came from.
    pub metadata: Metadata,
}

/// Whether the packet may be looked at as this pod's at all: its addresses and its link-level messages.
///
/// `Ok(true)` passes it at once (what the link needs), `Ok(false)` goes on.
#[inline(always)]
pub fn admit<F: Family, M: Maps<F>>(
    maps: &M,
    endpoint: &Endpoint,
    transit: &Transit<F>,
) -> Result<bool, Reason> {
    let packet = &transit.packet;
    match transit.hook {
        Direction::Egress => admit_egress::<F, M>(maps, endpoint, packet),
        Direction::Ingress => admit_ingress::<F, M>(maps, endpoint, packet),
    }
}

/// Until the pod of an interface is known its addresses are not; where it is let through, all of it is.
#[inline(always)]
fn is_strict(endpoint: &Endpoint) -> bool {
    endpoint.flags & endpoint_flags::KNOWN != 0 || endpoint.unknown_verdict == Verdict::Deny as u8
}

/// Whether a multicast listener's message stays on the link: anything else would be a tunnel past every policy.
#[inline(always)]
fn is_group_message<F: Family>(packet: &Parsed<F::Address>) -> bool {
    matches!(packet.icmp, IcmpRole::Group)
        && F::is_multicast(packet.destination)
        && (packet.hop_limit == 1 || F::is_link_multicast(packet.destination))
}

#[inline(always)]
fn admit_egress<F: Family, M: Maps<F>>(
    maps: &M,
    endpoint: &Endpoint,
    packet: &Parsed<F::Address>,
) -> Result<bool, Reason> {
    if matches!(packet.icmp, IcmpRole::Router) {
        return Err(Reason::ForbiddenIcmp);
    }
    let strict = is_strict(endpoint);
    let own = is_local::<F>(endpoint, packet.outer_source);
    let link = matches!(packet.icmp, IcmpRole::Link);
    if link || is_group_message::<F>(packet) {
        // Both tell neighbours where an address is: the sender's, and the one that an advertisement is about.
        if strict
            && !(speaks_for::<F, M>(maps, endpoint, packet.outer_source)
                && speaks_for::<F, M>(maps, endpoint, packet.source))
        {
            return Err(Reason::SpoofedSource);
        }
        if !link || F::is_multicast(packet.destination) || F::is_link_local(packet.destination) {
            return Ok(true);
        }
        // A neighbour is probed by its own address; it is on this node, or what looks like a probe is judged.
        let kind = identify(maps, packet.destination).kind;
        if kind == Kind::Host as u8 || kind == Kind::Pod as u8 || kind == Kind::Unmanaged as u8 {
            return Ok(true);
        }
    }
    if F::is_loopback(packet.destination) || F::is_loopback(packet.outer_source) {
        return Err(Reason::SpoofedSource);
    }
    if strict && !own && !forwards::<F, M>(maps, endpoint, packet.outer_source) {
        return Err(Reason::SpoofedSource);
    }
    Ok(false)
}

/// Whether a pod may tell its neighbours that it has an address: one of its own, the unspecified one of a sender without an
/// address, or a link-local one, which the API does not tell, unless it is this node's.
#[inline(always)]
fn speaks_for<F: Family, M: Maps<F>>(maps: &M, endpoint: &Endpoint, address: F::Address) -> bool {
    is_local::<F>(endpoint, address)
        || F::is_unspecified(address)
        || (F::is_link_local(address) && maps.exact(address).is_none())
        || forwards::<F, M>(maps, endpoint, address)
}

/// The part of an ARP packet for IPv4 over Ethernet, behind the Ethernet header (RFC 826).
pub const ARP_BYTES: usize = 28;

/// Whether a pod may send an ARP packet: it must be for IPv4 over Ethernet, and speak for the pod's own MAC address and one of
/// its own addresses, or for none (a probe, RFC 5227).
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn admit_arp<M: Maps<V4>>(maps: &M, endpoint: &Endpoint, arp: &[u8; ARP_BYTES]) -> Result<(), Reason> {
    // Ethernet, IPv4, and the lengths of their addresses.
    if u64::from_ne_bytes([arp[0], arp[1], arp[2], arp[3], arp[4], arp[5], 0, 0])
        != u64::from_ne_bytes([0, 1, 8, 0, 6, 4, 0, 0])
    {
        return Err(Reason::Malformed);
    }
    if !is_strict(endpoint) {
        return Ok(());
    }
    let mac = [arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]];
    let own_mac = endpoint.flags & endpoint_flags::CHECK_MAC == 0 || mac == endpoint.mac;
    let sender = u32::from_ne_bytes([arp[14], arp[15], arp[16], arp[17]]);
    if own_mac && speaks_for::<V4, M>(maps, endpoint, sender) { Ok(()) } else { Err(Reason::SpoofedSource) }
}

/// Whether a pod that routes may send from an address, or be sent to at it: one outside of the cluster, which is nobody's
/// identity. A pod, a node, a service, or an address of the pod range it can never speak for.
#[inline(always)]
fn forwards<F: Family, M: Maps<F>>(maps: &M, endpoint: &Endpoint, address: F::Address) -> bool {
    endpoint.flags & endpoint_flags::ROUTES != 0
        && !F::is_multicast(address)
        && !F::is_link_local(address)
        && !F::is_unspecified(address)
        && identify(maps, address).kind == Kind::World as u8
}

#[inline(always)]
fn admit_ingress<F: Family, M: Maps<F>>(
    maps: &M,
    endpoint: &Endpoint,
    packet: &Parsed<F::Address>,
) -> Result<bool, Reason> {
    let own = is_local::<F>(endpoint, packet.destination);
    let multicast = F::is_multicast(packet.destination);
    match packet.icmp {
        // RFC 4861, 6.1.2 and 8.1: routers send these from a link-local address, and not over a router.
        IcmpRole::Router => {
            return if F::is_link_local(packet.outer_source) && packet.hop_limit == 255 {
                Ok(true)
            } else {
                Err(Reason::ForbiddenIcmp)
            };
        }
        IcmpRole::Link if own || multicast || F::is_link_local(packet.destination) => return Ok(true),
        IcmpRole::Group if is_group_message::<F>(packet) => return Ok(true),
        _ => {}
    }
    if is_strict(endpoint) && !own && !multicast && !forwards::<F, M>(maps, endpoint, packet.destination) {
        return Err(Reason::NotForPod);
    }
    Ok(false)
}

/// What the walk has found out about a packet that is not simply one of a known flow. In the kernel it lives in a
/// per-CPU map: the stack of a program is 512 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Work<F: Family> {
    /// The packet.
    pub transit: Transit<F>,
    /// Key of its flow.
    pub key: F::Key,
    /// The flow that is to be judged.
    pub question: Question<F>,
    /// Whose the other address is.
    pub remote: Identity,
    /// The frontend of a service that it is, if it is one.
    pub serving: Serving,
    /// What policy says.
    pub judgement: Judgement,
    /// The flow as the table has it, if `has_known`.
    pub known: Flow,
    /// Whether the table has a live flow.
    pub has_known: bool,
    /// The revision read before the evaluation: a change that comes in between makes the flow old, never new with an
    /// old verdict.
    pub revision: u32,
    /// When the packet came, jiffies.
    pub now: u64,
}

impl<F: Family> Work<F> {
    /// Work on a packet of which only the transit is known.
    #[inline(always)]
    pub fn new(transit: Transit<F>) -> Self {
        let packet = &transit.packet;
        let question = Question {
            local: packet.source,
            remote: packet.destination,
            local_port: packet.source_port,
            remote_port: packet.destination_port,
            protocol: packet.protocol,
            opener: Direction::Egress,
            origin: origin::ADDRESS,
        };
        let key = key_of(packet, transit.hook);
        Self {
            transit,
            key,
            question,
            remote: Identity::WORLD,
            serving: Serving::default(),
            judgement: Judgement {
                decision: Decision::new(Verdict::Deny, Reason::NoPolicy),
                source: 0,
                destination: 0,
                direction: Direction::Egress,
            },
            known: Flow::default(),
            has_known: false,
            revision: 0,
            now: 0,
        }
    }
}

/// The whole walk of a parsed packet.
#[inline(always)]
pub fn walk<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &mut Work<F>) -> Action {
    if goes_first(&work.transit.packet)
        && (known_flow(path, endpoint, &work.transit, &work.key)
            || permitted_flow(path, endpoint, &work.transit, &work.key))
    {
        return Action::Pass;
    }
    match prepare(path, endpoint, work) {
        Step::Done(action) => action,
        Step::Refuse(reason) => refuse(path, work, reason),
        Step::Judge => {
            for index in 0..address(path, endpoint, work) {
                consult(path, endpoint, work, index);
            }
            consider(path, endpoint, work);
            decide(path, endpoint, work)
        }
    }
}

/// Whether the flow may be looked for before anything else: the key has the packet's own addresses and ports. A later
/// fragment has no ports yet, and an ICMP error is about another packet than its own, whose source is still to be
/// compared. What is a message of the link or of routers is looked at as such first: it has no ports, and would pass on the
/// flow of any other message between the same two.
#[inline(always)]
pub fn goes_first<A>(packet: &Parsed<A>) -> bool {
    let of_flows = matches!(packet.icmp, IcmpRole::Plain | IcmpRole::EchoRequest | IcmpRole::EchoReply);
    packet.fragment as u8 == FragmentPart::Whole as u8 && of_flows
}

/// What [`prepare`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The packet is done with.
    Done(Action),
    /// It is refused without a judgement.
    Refuse(Reason),
    /// The flow in the work is to be judged: [`address`], [`consult`], [`consider`], [`decide`].
    Judge,
}

/// Everything before the judgement of a packet that is not simply one of a known flow: what the link needs, fragments,
/// the orientation of the flow and where it comes from.
#[inline(always)]
pub fn prepare<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &mut Work<F>) -> Step {
    work.now = path.now();
    // Before the addresses are looked at: what was admitted under older ones has an older revision.
    work.revision = endpoint.revision;
    match admit(path, endpoint, &work.transit) {
        Ok(true) => return Step::Done(Action::Pass),
        Ok(false) => {}
        Err(reason) => return Step::Refuse(reason),
    }
    let hook = work.transit.hook;
    if work.transit.packet.fragment as u8 != FragmentPart::Whole as u8 {
        // Before the verdict: later fragments are judged by the same ports, so nothing is gained by it.
        if !fragment::settle(path, endpoint, &mut work.transit, work.now) {
            return Step::Refuse(Reason::FragmentUnknown);
        }
        work.key = key_of(&work.transit.packet, hook);
    }
    if !goes_first(&work.transit.packet) && known_flow(path, endpoint, &work.transit, &work.key) {
        return Step::Done(Action::Pass);
    }
    orient(path, endpoint, work)
}

/// Which way the flow was opened, and from where.
#[inline(always)]
fn orient<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &mut Work<F>) -> Step {
    let packet = &work.transit.packet;
    let hook = work.transit.hook;
    let opens = opens(packet);
    let related = matches!(packet.icmp, IcmpRole::Error);

    let known = live_flow(path, endpoint, work.transit.slot, &work.key, work.now);
    work.has_known = known.is_some();
    if let Some(known) = known {
        work.known = known;
    }
    work.question.protocol = packet.protocol;
    work.question.opener = hook;
    work.question.origin = origin::ADDRESS;
    match hook {
        Direction::Egress => {
            work.question.local = packet.source;
            work.question.remote = packet.destination;
            work.question.local_port = packet.source_port;
            work.question.remote_port = packet.destination_port;
        }
        Direction::Ingress => {
            work.question.local = packet.destination;
            work.question.remote = packet.source;
            work.question.local_port = packet.destination_port;
            work.question.remote_port = packet.source_port;
        }
    }
    if work.has_known && !opens {
        // Judged again the way it was opened, whichever way this packet goes.
        let outwards = work.known.opener == Direction::Egress as u8;
        work.question.opener = if outwards { Direction::Egress } else { Direction::Ingress };
        work.question.origin = work.known.origin;
        return Step::Judge;
    }
    let without_flow =
        related || matches!(packet.icmp, IcmpRole::EchoReply) || (needs_opening(packet.protocol) && !opens);
    if without_flow {
        // Of a pod that is not known yet, and let through until then, even connections that are older than we.
        if !is_strict(endpoint) {
            return Step::Done(Action::Pass);
        }
        return Step::Refuse(if related { Reason::ForbiddenIcmp } else { Reason::NoFlow });
    }
    if matches!(hook, Direction::Ingress) {
        work.question.origin =
            find_origin(path, endpoint, &work.question, &work.transit.metadata, &mut work.serving);
    }
    Step::Judge
}

/// Finds out whose the other address of the flow in the work is, and whether it is a frontend of a service; returns how
/// many entries [`consult`] is to be called for.
#[inline(always)]
pub fn address<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &mut Work<F>) -> u32 {
    work.remote = identify(path, work.question.remote);
    find_address(path, endpoint, &work.question, &mut work.remote, &mut work.serving)
}

/// Asks the endpoint's policy about one entry of the frontend.
#[inline(always)]
pub fn consult<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &mut Work<F>, index: u32) {
    ask_entry(path, endpoint.subject, work.question.protocol, index, &mut work.serving);
}

/// Judges the flow in the work.
#[inline(always)]
pub fn consider<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &mut Work<F>) {
    work.judgement = judge(path, endpoint, &work.question, &work.remote, &work.serving);
}

/// Does what follows from the judgement: stores the flow, counts, reports.
#[inline(always)]
pub fn decide<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &Work<F>) -> Action {
    let judgement = &work.judgement;
    let mut decision = judgement.decision;
    let mut revision = work.revision;
    if !matches!(decision.verdict, Verdict::Allow) {
        let (softened, forced) = soften(path, decision.verdict);
        decision.verdict = softened;
        if forced {
            revision = 0; // judged again at every packet until the override is cleared
        }
    }
    let pair = PairKey {
        source: judgement.source,
        destination: judgement.destination,
        direction: judgement.direction as u32,
    };
    let slot = path.slot_of(&pair);
    if !matches!(decision.verdict, Verdict::Deny)
        && let Err(reason) = store(path, endpoint, work, &decision, revision, slot)
    {
        // Without a flow there are no answers; where nothing is enforced, those pass all the same.
        let (verdict, _) = soften(path, Verdict::Deny);
        decision = Decision::new(verdict, reason);
    }
    if matches!(judgement.decision.verdict, Verdict::Allow) {
        remember_verdict(path, endpoint, work, &judgement.decision, slot);
    }
    path.count(slot, decision.verdict, u64::from(work.transit.length), true);
    let denied = matches!(decision.verdict, Verdict::Deny);
    if denied {
        path.count_drop(decision.reason, work.transit.hook);
        forget(path, endpoint, work);
    }
    let wanted = match decision.verdict {
        Verdict::Allow => {
            let one_in = path.config(config::SAMPLE);
            !work.has_known && one_in != 0 && path.sampled(one_in)
        }
        Verdict::Deny => true,
        // One event a flow, not one a packet.
        Verdict::Audit => !work.has_known,
    };
    if wanted {
        let reply = work.question.opener as u8 != work.transit.hook as u8;
        report(path, work, &decision, &pair, reply);
    }
    if denied { Action::Drop } else { Action::Pass }
}

/// Makes a flow that is forbidden now count as absent, so that the next packet is judged the way it goes itself: what the
/// other side opens may be permitted. Not of TCP, where a packet that opens nothing is judged by nothing but its flow.
#[inline(always)]
fn forget<F: Family, D: Datapath<F>>(path: &D, endpoint: &Endpoint, work: &Work<F>) {
    if !work.has_known || needs_opening(work.transit.packet.protocol) {
        return;
    }
    if let Some(entry) = path.flow(endpoint, work.transit.slot, &work.key)
        && entry.is_still(&work.key)
    {
        entry.advance(work.known.state, 0);
    }
}

/// Writes the flow; the error says why it is not. Multicast has no flows: there are no replies to find.
#[inline(always)]
fn store<F: Family, D: Datapath<F>>(
    path: &D,
    endpoint: &Endpoint,
    work: &Work<F>,
    decision: &Decision,
    revision: u32,
    slot: u32,
) -> Result<(), Reason> {
    let packet = &work.transit.packet;
    if F::is_multicast(packet.destination) {
        return Ok(());
    }
    let hook = work.transit.hook;
    let mut flow;
    if work.has_known && !opens(packet) {
        flow = work.known;
        if !matches!(packet.icmp, IcmpRole::Error) {
            let from_opener = flow.opener == hook as u8;
            if is_first_answer(flow.state, from_opener) {
                path.refund(work.transit.slot, hook.opposite());
            }
            flow.state = next_state(flow.state, from_opener, packet.tcp_flags);
            flow.last_seen = work.now;
        }
    } else if work.has_known && !may_replace(&work.known, hook) {
        return Ok(());
    } else {
        // What is sent again has its flow already. The node, and the pod at its own door, are not kept waiting by others.
        let exempt =
            matches!((decision.reason, hook), (Reason::Host, _) | (Reason::SelfTraffic, Direction::Ingress));
        let charged = !exempt && (!work.has_known || begins_anew(&work.known));
        if charged && !path.spend(work.transit.slot, hook, work.now) {
            return Err(Reason::FlowBudget);
        }
        flow =
            Flow { last_seen: work.now, opener: hook as u8, origin: work.question.origin, ..Flow::default() };
    }
    flow.revision = revision;
    flow.slot = slot;
    flow.verdict = decision.verdict as u8;
    if put(path, endpoint, &work.transit, &work.key, flow) { Ok(()) } else { Err(Reason::FlowTable) }
}

/// The verdict under the modes in force, and whether only the override made it milder.
#[inline(always)]
fn soften<C: Config>(path: &C, verdict: Verdict) -> (Verdict, bool) {
    let mode = path.config(config::MODE);
    let forced = path.config(config::OVERRIDE);
    let by_mode = apply(verdict, mode);
    let by_both = apply(by_mode, forced);
    (by_both, by_both as u8 != by_mode as u8)
}

#[inline(always)]
const fn apply(verdict: Verdict, mode: u32) -> Verdict {
    if mode == Mode::Off as u32 {
        Verdict::Allow
    } else if mode == Mode::Audit as u32 && matches!(verdict, Verdict::Deny) {
        Verdict::Audit
    } else {
        verdict
    }
}

/// Drops a packet that no pair is charged for, unless the mode lets it pass.
#[inline(always)]
pub fn refuse<F: Family, D: Datapath<F>>(path: &D, work: &Work<F>, reason: Reason) -> Action {
    let (verdict, _) = soften(path, Verdict::Deny);
    if !matches!(verdict, Verdict::Deny) {
        return Action::Pass;
    }
    path.count_drop(reason, work.transit.hook);
    let pair = PairKey { source: 0, destination: 0, direction: work.transit.hook as u32 };
    report(path, work, &Decision::new(Verdict::Deny, reason), &pair, false);
    Action::Drop
}

/// Sends an event about the packet, as it is on the wire, if the budget allows.
#[inline(always)]
fn report<F: Family, D: Datapath<F>>(
    path: &D,
    work: &Work<F>,
    decision: &Decision,
    pair: &PairKey,
    reply: bool,
) {
    if !path.may_report(path.now()) {
        return;
    }
    let packet = &work.transit.packet;
    path.report(&Event {
        time_ns: 0,
        ifindex: 0,
        rule: decision.rule,
        source_principal: pair.source,
        destination_principal: pair.destination,
        source: F::wide(packet.source),
        destination: F::wide(packet.destination),
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        length: work.transit.length,
        protocol: packet.protocol,
        family: F::VERSION,
        direction: pair.direction as u8,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        tcp_flags: packet.tcp_flags,
        reply: u8::from(reply),
        pad: 0,
    });
}
