//! From ctnetlink messages to connections and back.
//!
//! Invariant: whatever the bytes, nothing here panics or loops, and an entry of which anything that matters is missing or
//! odd is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer, NlasIterator, parse_u8};
use portcullis_common::policy::protocol;

use super::{Connection, Tuple};
use crate::netlink;

// Numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_{common,tcp}.h.
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`
const CT_NEW: u16 = 0x100;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`
const CT_GET: u16 = 0x101;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

/// `TCP_CONNTRACK_SYN_RECV`: what follows the answer to a SYN has not come by.
const HALF_OPEN: u8 = 2;
/// States in which data may still flow, or will: `TCP_CONNTRACK_SYN_RECV`, `_ESTABLISHED`, `_FIN_WAIT`, `_CLOSE_WAIT`.
const LIVE: std::ops::RangeInclusive<u8> = HALF_OPEN..=5;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: set where the tracking began midway, or goes past the tracker.
const BE_LIBERAL: u8 = 0x08;
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_DYING: u32 = 1 << 9;

const NETLINK_HEADER_BYTES: usize = 16;
/// `struct nfgenmsg`: family, version, resource id.
const HEADER_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;

/// The content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A live connection that was tracked from its first packet on.
    Connection(Connection),
    /// The end of a dump, or an answer without content: 0 or an errno.
    End(i32),
    /// Of no interest, or not readable.
    Other,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub sequence: u32,
    pub content: Content,
}

/// The messages of a datagram; ends at the first that has no whole header.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message> {
    netlink::packets(datagram).map(|packet| Message {
        sequence: packet.sequence_number(),
        content: content(packet.message_type(), packet.payload()),
    })
}

fn content(message_type: u16, payload: &[u8]) -> Content {
    if let Some(code) = netlink::end(message_type, payload) {
        return Content::End(code);
    }
    match message_type {
        CT_NEW => connection(payload).map_or(Content::Other, Content::Connection),
        _ => Content::Other,
    }
}

fn connection(payload: &[u8]) -> Option<Connection> {
    let (mut original, mut reply, mut status, mut tcp) = (None, None, None, None);
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..)?) {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = Some(tuple(value)?),
            CTA_TUPLE_REPLY => reply = Some(tuple(value)?),
            CTA_STATUS => status = Some(u32::from_be_bytes(value.try_into().ok()?)),
            CTA_PROTOINFO => tcp = Some(protocol_info(value)?),
            // The same addresses may be somebody else's in another zone.
            CTA_ZONE => return None,
            _ => {}
        }
    }
    let (status, tcp) = (status?, tcp?);
    let answered = status & IPS_SEEN_REPLY != 0 && status & IPS_DYING == 0;
    let half_open = tcp.state == HALF_OPEN;
    (answered && LIVE.contains(&tcp.state) && !tcp.midway).then_some(Connection {
        original: original?,
        reply: reply?,
        half_open,
    })
}

fn tuple(nested: &[u8]) -> Option<Tuple> {
    let (mut addresses, mut ports) = (None, None);
    for attribute in NlasIterator::new(nested) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            CTA_TUPLE_IP => addresses = Some(pair_of(attribute.value())?),
            CTA_TUPLE_PROTO => ports = Some(ports_of(attribute.value())?),
            CTA_TUPLE_ZONE => return None,
            _ => {}
        }
    }
    let ((source, destination), (from, to)) = (addresses?, ports?);
    Tuple::new(SocketAddr::new(source, from), SocketAddr::new(destination, to))
}

fn pair_of(nested: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for attribute in NlasIterator::new(nested) {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = Some(address(value)?),
            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = Some(address(value)?),
            _ => {}
        }
    }
    Some((source?, destination?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

/// The ports, if the protocol is TCP.
fn ports_of(nested: &[u8]) -> Option<(u16, u16)> {
    let (mut proto, mut source, mut destination) = (None, None, None);
    for attribute in NlasIterator::new(nested) {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_PROTO_NUM => proto = Some(parse_u8(value).ok()?),
            CTA_PROTO_SRC_PORT => source = Some(u16::from_be_bytes(value.try_into().ok()?)),
            CTA_PROTO_DST_PORT => destination = Some(u16::from_be_bytes(value.try_into().ok()?)),
            _ => {}
        }
    }
    (proto? == protocol::TCP).then_some((source?, destination?))
}

/// What is told of a TCP connection's life.
struct Life {
    state: u8,
    midway: bool,
}

fn protocol_info(nested: &[u8]) -> Option<Life> {
    let tcp = NlasIterator::new(nested).map_while(Result::ok).find(|a| a.kind() == CTA_PROTOINFO_TCP)?;
    let (mut state, mut original, mut reply) = (None, None, None);
    for attribute in NlasIterator::new(tcp.value()) {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_PROTOINFO_TCP_STATE => state = Some(parse_u8(value).ok()?),
            // Flags, then a mask that is only used when they are set.
            CTA_PROTOINFO_TCP_FLAGS_ORIGINAL => original = Some(*value.first()?),
            CTA_PROTOINFO_TCP_FLAGS_REPLY => reply = Some(*value.first()?),
            _ => {}
        }
    }
    Some(Life { state: state?, midway: (original? | reply?) & BE_LIBERAL != 0 })
}

/// A question to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Every entry of both IP versions.
    All,
    /// The entry with this tuple in either direction.
    One(Tuple),
}

impl Question {
    /// What the question is called in errors.
    pub const fn describe(&self) -> &'static str {
        match self {
            Self::All => "IPCTNL_MSG_CT_GET (dump of all connections)",
            Self::One(_) => "IPCTNL_MSG_CT_GET (one connection)",
        }
    }

    /// Whether the answer is a sequence of messages that an end message closes.
    pub const fn is_dump(&self) -> bool {
        matches!(self, Self::All)
    }

    /// The question as the kernel reads it.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let (family, flags, attributes) = match self {
            Self::All => (libc::AF_UNSPEC, NLM_F_REQUEST | NLM_F_DUMP, Vec::new()),
            Self::One(tuple) if tuple.source.is_ipv4() => (libc::AF_INET, NLM_F_REQUEST, encode_tuple(tuple)),
            Self::One(tuple) => (libc::AF_INET6, NLM_F_REQUEST, encode_tuple(tuple)),
        };
        let length = NETLINK_HEADER_BYTES + HEADER_BYTES + attributes.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(CT_GET.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
        bytes.extend(attributes);
        bytes
    }
}

fn encode_tuple(tuple: &Tuple) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => Ipv6Addr::octets(&address).to_vec(),
    };
    let (source, destination) =
        if tuple.source.is_ipv4() { (CTA_IP_V4_SRC, CTA_IP_V4_DST) } else { (CTA_IP_V6_SRC, CTA_IP_V6_DST) };
    let addresses = [
        attribute(source, &octets(tuple.source.ip())),
        attribute(destination, &octets(tuple.destination.ip())),
    ]
    .concat();
    let ports = [
        attribute(CTA_PROTO_NUM, &[protocol::TCP]),
        attribute(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes()),
    ]
    .concat();
    let inner = [
        attribute(NLA_F_NESTED | CTA_TUPLE_IP, &addresses),
        attribute(NLA_F_NESTED | CTA_TUPLE_PROTO, &ports),
    ];
    attribute(NLA_F_NESTED | CTA_TUPLE_ORIG, &inner.concat())
}

/// An attribute with its header, filled up to a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
