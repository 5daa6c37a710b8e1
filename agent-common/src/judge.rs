//! The judgement of a new flow (or of a flow whose revision is old): identities, policy of both ends, exemptions.
//!
//! Pure over [`Maps`]: the same procedure runs in the kernel and on the host. It works on flows, not packets: `opener`
//! says which way the flow was opened, whichever way the packet at hand goes.

use crate::abi::{
    Addr6, ENDPOINT_PROBES, ENDPOINT_SLOTS, Endpoint, config, endpoint_flags, service_overflow,
};
use crate::flow::origin;
use crate::identity::{Identity, Kind, identity_flags};
use crate::packet::Address;
use crate::policy::{Decision, PolicyMaps, PortKey, evaluate, protocol};
use crate::reason::{Direction, Reason, Verdict};
use crate::service::{
    EXPOSED, SERVICE_COMPILED, Served, Service, ServiceEntry, ServiceKey, Tally, ask, has_frontends,
};

/// An address family.
pub trait Family: Copy + core::fmt::Debug {
    /// Its address.
    type Address: Address;
    /// Its flow key.
    type Key: crate::flow::FlowKey<Address = Self::Address>;
    /// IP version.
    const VERSION: u8;
    /// The addresses of an endpoint; unused ones are unspecified.
    fn addresses(endpoint: &Endpoint) -> [Self::Address; 2];
    /// Whether it is the unspecified address.
    fn is_unspecified(address: Self::Address) -> bool;
    /// Whether it is a multicast or the limited broadcast address.
    fn is_multicast(address: Self::Address) -> bool;
    /// Whether it is a multicast address that routers do not forward.
    fn is_link_multicast(address: Self::Address) -> bool;
    /// Whether it is a loopback address.
    fn is_loopback(address: Self::Address) -> bool;
    /// Whether it is a link-local unicast address.
    fn is_link_local(address: Self::Address) -> bool;
    /// For events: IPv4 in the first word.
    fn wide(address: Self::Address) -> Addr6;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Address = u32;
    type Key = crate::flow::FlowKey4;
    const VERSION: u8 = 4;
    #[inline(always)]
    fn addresses(endpoint: &Endpoint) -> [u32; 2] {
        endpoint.addr4_be
    }
    #[inline(always)]
    fn is_unspecified(address: u32) -> bool {
        address == 0
    }
    #[inline(always)]
    fn is_multicast(address: u32) -> bool {
        address == u32::MAX || u32::from_be(address) >> 28 == 0xe
    }
    #[inline(always)]
    fn is_link_multicast(address: u32) -> bool {
        u32::from_be(address) >> 8 == 0xe0_00_00
    }
    #[inline(always)]
    fn is_loopback(address: u32) -> bool {
        u32::from_be(address) >> 24 == 127
    }
    #[inline(always)]
    fn is_link_local(_: u32) -> bool {
        // 169.254/16 is used as an ordinary address by some CNI plugins (gateways); it needs no exemption.
        false
    }
    #[inline(always)]
    fn wide(address: u32) -> Addr6 {
        Addr6 { words_be: [address, 0, 0, 0] }
    }
}

impl Family for V6 {
    type Address = Addr6;
    type Key = crate::flow::FlowKey6;
    const VERSION: u8 = 6;
    #[inline(always)]
    fn addresses(endpoint: &Endpoint) -> [Addr6; 2] {
        endpoint.addr6
    }
    #[inline(always)]
    fn is_unspecified(address: Addr6) -> bool {
        address.words_be[0] | address.words_be[1] | address.words_be[2] | address.words_be[3] == 0
    }
    #[inline(always)]
    fn is_multicast(address: Addr6) -> bool {
        u32::from_be(address.words_be[0]) >> 24 == 0xff
    }
    #[inline(always)]
    fn is_link_multicast(address: Addr6) -> bool {
        u32::from_be(address.words_be[0]) >> 16 == 0xff02
    }
    #[inline(always)]
    fn is_loopback(address: Addr6) -> bool {
        address.words_be[0] | address.words_be[1] | address.words_be[2] == 0
            && u32::from_be(address.words_be[3]) == 1
    }
    #[inline(always)]
    fn is_link_local(address: Addr6) -> bool {
        u32::from_be(address.words_be[0]) >> 22 == 0xfe80 >> 6
    }
    #[inline(always)]
    fn wide(address: Addr6) -> Addr6 {
        address
    }
}

/// The configuration words.
pub trait Config {
    /// The word at an index of [`config`]; `0` if there is none.
    fn config(&self, word: u32) -> u32;
}

/// The maps that a judgement reads.
pub trait Maps<F: Family>: PolicyMaps + Config {
    /// Who has exactly this address.
    fn exact(&self, address: F::Address) -> Option<Identity>;
    /// Whose longest prefix contains the address; asked only when there is no exact entry.
    fn prefix(&self, address: F::Address) -> Option<Identity>;
    /// Copies a frontend of a service; `false` if there is none, and then nothing was copied. The tag is copied last.
    fn service(&self, key: &ServiceKey, into: &mut Service) -> bool;
    /// The endpoint in a slot, also a free one (`ifindex == 0`).
    fn endpoint(&self, slot: u32) -> Option<&Endpoint>;
}

/// Who is behind an address; what no map knows is the world.
///
/// While an address had no room in the maps, one that is not found may be it: it gets an identity of no kind, for which
/// there are no rows, and so is denied.
#[inline(always)]
pub fn identify<F: Family, M: Maps<F>>(maps: &M, address: F::Address) -> Identity {
    match maps.exact(address) {
        Some(identity) => identity,
        None => around(maps, address),
    }
}

/// Who is behind an address that has no entry of its own.
#[inline(always)]
fn around<F: Family, M: Maps<F>>(maps: &M, address: F::Address) -> Identity {
    let identity = maps.prefix(address).unwrap_or(Identity::WORLD);
    if maps.config(config::OVERFLOW) != 0 { nobody(identity) } else { identity }
}

/// An identity of no kind: there are no rows for it.
#[inline(always)]
const fn nobody(identity: Identity) -> Identity {
    Identity { peer: 0, kind: 0, ..identity }
}

/// What an address is where it does not stand for a service: as a source, or on a port that no service has.
#[inline(always)]
pub fn without_service<F: Family, M: Maps<F>>(maps: &M, address: F::Address, identity: Identity) -> Identity {
    let borrowed = identity.flags & identity_flags::BORROWED != 0;
    if identity.kind == Kind::Service as u8 && borrowed { around(maps, address) } else { identity }
}

/// Whether a flow that a pod opens may be one to a frontend of a service.
#[inline(always)]
const fn may_be_served(endpoint: &Endpoint, remote: &Identity, proto: u8) -> bool {
    let kind = remote.kind;
    let frontend = kind == Kind::Service as u8 || kind == Kind::Host as u8 || kind == Kind::Node as u8;
    frontend && has_frontends(proto) && endpoint.flags & endpoint_flags::KNOWN != 0
}

/// A flow to a frontend while it is being judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serving {
    /// The frontend's endpoints.
    pub service: Service,
    /// What they say.
    pub tally: Tally,
    /// Whether there is a frontend at all.
    pub found: bool,
}

/// Looks for the frontend that a flow goes to. Returns how many entries are to be asked with [`ask_entry`]; without a
/// frontend `remote` becomes what the address is otherwise.
///
/// Only what a pod opens can go to a frontend: a service opens nothing, so as a source its address is what it is
/// without the service.
#[inline(always)]
pub fn find_address<F: Family, M: Maps<F>>(
    maps: &M,
    endpoint: &Endpoint,
    question: &Question<F>,
    remote: &mut Identity,
    serving: &mut Serving,
) -> u32 {
    serving.found = false;
    let outwards = matches!(question.opener, Direction::Egress);
    if outwards && may_be_served(endpoint, remote, question.protocol) {
        return find_service(maps, question, remote, serving);
    }
    *remote = without_service(maps, question.remote, *remote);
    0
}

#[inline(always)]
fn find_service<F: Family, M: Maps<F>>(
    maps: &M,
    question: &Question<F>,
    remote: &mut Identity,
    serving: &mut Serving,
) -> u32 {
    serving.tally.clear();
    let mut key = ServiceKey {
        address: F::wide(question.remote),
        port: question.remote_port,
        protocol: question.protocol,
        family: F::VERSION,
    };
    let mut found = maps.service(&key, &mut serving.service);
    if !found && remote.kind != Kind::Service as u8 {
        key.address = Addr6::default();
        found = maps.service(&key, &mut serving.service);
    }
    if found {
        if serving.service.tag != key.tag() {
            // Replaced while it was copied: who opens a connection tries again.
            *remote = nobody(*remote);
            return 0;
        }
        serving.found = true;
        return if serving.service.count == SERVICE_COMPILED { 1 } else { serving.service.count };
    }
    let missing = maps.config(config::SERVICES_OVERFLOW);
    let of_service = remote.kind == Kind::Service as u8;
    let may_be_missing =
        if of_service { missing != service_overflow::NONE } else { missing >= service_overflow::NODES };
    *remote = if may_be_missing { nobody(*remote) } else { without_service(maps, question.remote, *remote) };
    0
}

/// Asks the rows of a pod about one entry of the frontend that [`find_address`] found.
#[inline(always)]
pub fn ask_entry<M: PolicyMaps>(maps: &M, subject: u32, proto: u8, index: u32, serving: &mut Serving) {
    if let Some(entry) = serving.service.entries.get(index as usize) {
        let entry: ServiceEntry = *entry;
        ask(maps, subject, proto, &entry, &mut serving.tally);
    }
}

/// The slot and the endpoint of an interface.
#[inline(always)]
pub fn endpoint_of<F: Family, M: Maps<F>>(maps: &M, ifindex: u32) -> Option<(u32, &Endpoint)> {
    for probe in 0..ENDPOINT_PROBES {
        let slot = ifindex.wrapping_add(probe) % ENDPOINT_SLOTS;
        if let Some(endpoint) = maps.endpoint(slot)
            && endpoint.ifindex == ifindex
        {
            return Some((slot, endpoint));
        }
    }
    None
}

/// Where a packet came into the node, as its metadata tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Interface that it came in by; `0`: generated here.
    pub ingress_ifindex: u32,
    /// What from-pod stamped: `1 +` the slot of the sending endpoint.
    pub tc_index: u32,
    /// Whether a socket of this node is attached to it.
    pub has_socket: bool,
    /// Whether it is a fragment.
    pub fragment: bool,
}

/// Where a flow into a pod comes from: its source address says so, but for the addresses of this node, of the pod itself,
/// and of nodes that masquerade to the pod.
#[inline(always)]
pub fn find_origin<F: Family, M: Maps<F>>(
    maps: &M,
    endpoint: &Endpoint,
    question: &Question<F>,
    metadata: &Metadata,
    serving: &mut Serving,
) -> u32 {
    let own = is_local::<F>(endpoint, question.remote);
    let kind = identify(maps, question.remote).kind;
    if own || kind == Kind::Host as u8 {
        return origin_of(maps, endpoint, metadata, own);
    }
    if kind == Kind::Node as u8 && is_exposed(maps, question, serving) {
        return origin::WORLD;
    }
    origin::ADDRESS
}

/// The [`origin`] of a packet towards a pod whose source address is one of this node's, or the pod's own.
///
/// A node's address alone proves nothing: traffic that is only masqueraded to it was forwarded, and the interface it
/// came in by says from where.
#[inline(always)]
fn origin_of<F: Family, M: Maps<F>>(
    maps: &M,
    receiver: &Endpoint,
    packet: &Metadata,
    own_address: bool,
) -> u32 {
    if packet.ingress_ifindex == 0 {
        if own_address {
            return origin::WORLD;
        }
        // Refragmentation of IPv6 loses the interface, and a pod can force it; a socket cannot be forged.
        let forgeable = F::VERSION == 6 && packet.fragment && !packet.has_socket;
        return if forgeable { origin::WORLD } else { origin::HOST };
    }
    if endpoint_of(maps, packet.ingress_ifindex).is_some() {
        return origin::ENDPOINT + packet.ingress_ifindex;
    }
    // Behind a bridge without br_netfilter the interface is the bridge; the stamp says which port.
    if receiver.master != 0
        && packet.ingress_ifindex == receiver.master
        && packet.tc_index != 0
        && let Some(sender) = maps.endpoint((packet.tc_index - 1) % ENDPOINT_SLOTS)
        && sender.ifindex != 0
        && sender.master == receiver.master
    {
        return origin::ENDPOINT + sender.ifindex;
    }
    origin::WORLD
}

/// Whether other nodes send to this port of the pod what comes from outside, with their own address in place of the
/// client's. What such a node says itself looks the same, so neither may be taken for the node.
#[inline(always)]
fn is_exposed<F: Family, M: Maps<F>>(maps: &M, question: &Question<F>, serving: &mut Serving) -> bool {
    let key = ServiceKey {
        address: F::wide(question.local),
        port: question.local_port,
        protocol: question.protocol,
        family: F::VERSION | EXPOSED,
    };
    maps.service(&key, &mut serving.service)
        // It may be one of those that found no room.
        || maps.config(config::SERVICES_OVERFLOW) != service_overflow::NONE
}

/// A flow that is to be judged, from the endpoint's point of view. Ports in host order.
#[derive(Clone, Copy, Debug)]
pub struct Question<F: Family> {
    /// Address of the pod.
    pub local: F::Address,
    /// The other address.
    pub remote: F::Address,
    /// Port of the pod.
    pub local_port: u16,
    /// The other port.
    pub remote_port: u16,
    /// Transport protocol.
    pub protocol: u8,
    /// Which way it was opened.
    pub opener: Direction,
    /// [`origin`] of the other side.
    pub origin: u32,
}

/// What was decided about a flow, and for which pair it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The decision.
    pub decision: Decision,
    /// Principal that opened the flow.
    pub source: u32,
    /// Principal that it is opened to.
    pub destination: u32,
    /// The direction that the decision was made for: egress on the way into a pod, where the source's policy denies.
    pub direction: Direction,
}

/// Judges a flow at an endpoint. `identity` is whose the other address is, `serving` the frontend that it is, if
/// [`find_address`] found one.
#[inline(always)]
pub fn judge<F: Family, M: Maps<F>>(
    maps: &M,
    endpoint: &Endpoint,
    question: &Question<F>,
    identity: &Identity,
    serving: &Serving,
) -> Judgement {
    let mut remote = *identity;
    // Towards the pod an address proves nothing: who comes from the pod's own address must come from its interface.
    let mut same = matches!(question.opener, Direction::Egress) && is_local::<F>(endpoint, question.remote);
    // Only what was opened towards the pod can have come from somewhere else than its address says.
    let mut from_host = false;
    if matches!(question.opener, Direction::Ingress) {
        match question.origin {
            origin::ADDRESS => {}
            origin::HOST => from_host = true,
            origin::WORLD => remote = Identity::WORLD,
            other => {
                let ifindex = other - origin::ENDPOINT;
                same = ifindex == endpoint.ifindex;
                // The sender may be gone by now: then nothing is known about it.
                remote = match endpoint_of(maps, ifindex) {
                    Some((_, sender)) => endpoint_identity(maps, sender),
                    None => Identity::WORLD,
                };
            }
        }
    }

    let (source, destination) = match question.opener {
        Direction::Ingress => (remote.principal, endpoint.principal),
        Direction::Egress => (endpoint.principal, remote.principal),
    };
    let mut judgement = Judgement {
        decision: Decision::new(Verdict::Allow, Reason::Host),
        source,
        destination,
        direction: question.opener,
    };
    if from_host {
        return judgement;
    }
    if same {
        judgement.decision.reason = Reason::SelfTraffic;
        return judgement;
    }
    if endpoint.flags & endpoint_flags::KNOWN == 0 {
        let verdict = match Verdict::from_number(endpoint.unknown_verdict) {
            Some(verdict) => verdict,
            None => Verdict::Deny,
        };
        judgement.decision = Decision::new(verdict, Reason::UnknownEndpoint);
        return judgement;
    }
    // A pod could put packets of another address inside packets to a node's tunnel.
    if matches!(question.opener, Direction::Egress)
        && reaches_nodes::<F>(question.remote, remote.kind)
        && encapsulates(maps, question.protocol, question.remote_port)
    {
        judgement.decision = Decision::new(Verdict::Deny, Reason::Encapsulation);
        return judgement;
    }

    if serving.found {
        let Served { decision, principal } = serving.tally.outcome();
        judgement.decision = decision;
        judgement.destination = principal;
        return judgement;
    }

    let port = match question.opener {
        Direction::Ingress => question.local_port,
        Direction::Egress => question.remote_port,
    };
    let key = PortKey::new(question.protocol, port);
    judgement.decision = evaluate(maps, endpoint.subject, question.opener, remote.peer, remote.kind, key);

    // The source's egress rules hold even where its own node could not see the real destination.
    if matches!(question.opener, Direction::Ingress)
        && remote.subject != 0
        && !matches!(judgement.decision.verdict, Verdict::Deny)
    {
        // Who sends to a group sends to this pod.
        let [own, _] = F::addresses(endpoint);
        let local = identify(maps, if F::is_multicast(question.local) { own } else { question.local });
        let egress = evaluate(maps, remote.subject, Direction::Egress, local.peer, local.kind, key);
        // An audited one was counted by the source's own node.
        if matches!(egress.verdict, Verdict::Deny) {
            judgement.decision = egress;
            judgement.direction = Direction::Egress;
        }
    }
    judgement
}

/// Whether a node may be among those that take a packet to this address: a tunnel takes what comes to any address that its
/// node listens at, and a node listens at every broadcast address of its networks (another node's is in the pod range and
/// nobody's) and at some groups.
#[inline(always)]
fn reaches_nodes<F: Family>(address: F::Address, kind: u8) -> bool {
    kind == Kind::Host as u8
        || kind == Kind::Node as u8
        || kind == Kind::Unmanaged as u8
        || F::is_multicast(address)
}

/// Whether a node may take what such packets carry for packets of their own: IP in IP, IPv6 in IP, GRE, and UDP to the port
/// of a tunnel.
#[inline(always)]
fn encapsulates<C: Config>(maps: &C, proto: u8, port: u16) -> bool {
    if matches!(proto, 4 | 41 | 47) {
        return true;
    }
    if proto != protocol::UDP {
        return false;
    }
    let mut found = false;
    for word in 0..config::TUNNEL_WORDS {
        let ports = maps.config(config::TUNNELS + word);
        for tunnel in [ports as u16, (ports >> 16) as u16] {
            found |= tunnel != 0 && (tunnel == port || tunnel == config::TUNNEL_ANY);
        }
    }
    found
}

/// The whole judgement of a flow, on the host: the kernel takes its steps in functions of their own.
pub fn judge_flow<F: Family, M: Maps<F>>(maps: &M, endpoint: &Endpoint, question: &Question<F>) -> Judgement {
    let mut serving = Serving::default();
    let mut identity = identify(maps, question.remote);
    for index in 0..find_address(maps, endpoint, question, &mut identity, &mut serving) {
        ask_entry(maps, endpoint.subject, question.protocol, index, &mut serving);
    }
    judge(maps, endpoint, question, &identity, &serving)
}

/// The identity of an endpoint of this node, by one of its addresses.
#[inline(always)]
fn endpoint_identity<F: Family, M: Maps<F>>(maps: &M, endpoint: &Endpoint) -> Identity {
    let address = F::addresses(endpoint)[0];
    if F::is_unspecified(address) {
        return Identity {
            principal: endpoint.principal,
            subject: endpoint.subject,
            ..Identity::new(Kind::Unmanaged as u32, crate::identity::PEER_UNKNOWN, Kind::Unmanaged)
        };
    }
    identify(maps, address)
}

/// Whether an address is one of the endpoint's.
#[inline(always)]
pub fn is_local<F: Family>(endpoint: &Endpoint, address: F::Address) -> bool {
    let [first, second] = F::addresses(endpoint);
    (address == first || address == second) && !F::is_unspecified(address)
}

/// Whether the protocol's first packet needs to say so: a TCP packet without SYN that has no flow is never judged by
/// what policy would permit in either orientation.
#[inline(always)]
pub const fn needs_opening(proto: u8) -> bool {
    proto == protocol::TCP
}
