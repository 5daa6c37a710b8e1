//! From netlink messages to records and back.
//!
//! Of a link only the attributes that matter are read, one by one: an attribute that a newer kernel shapes differently
//! must not hide an interface. Invariant: whatever the bytes, nothing here panics or loops.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NlaBuffer, NlasIterator, Parseable,
    parse_i32, parse_string, parse_u32,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{LinkKind, Mac};
use crate::netlink;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER_CHANGES: u16 = 35;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_GENEVE_PORT: u16 = 5;
const IFLA_BAREUDP_PORT: u16 = 1;

const LINK_HEADER_BYTES: usize = 16;

/// A link as one message describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkRecord {
    pub ifindex: u32,
    pub name: String,
    pub kind: LinkKind,
    pub master: Option<u32>,
    pub up: bool,
    pub mac: Option<Mac>,
    /// `IFLA_LINK`: index of the other end or of the lower device, in the namespace of `netns_id`.
    pub linked_to: Option<u32>,
    /// `IFLA_LINK_NETNSID`; absent when that is this namespace.
    pub netns_id: Option<i32>,
    /// Rises over a link's life.
    pub carrier_changes: u32,
    /// The UDP port that a tunnel takes encapsulated packets at.
    pub tunnel_port: Option<u16>,
}

/// An address as one message describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressRecord {
    pub ifindex: u32,
    pub address: IpAddr,
    /// The same address can stand on an interface with two prefix lengths.
    pub prefix: u8,
    /// Addresses of its network that the node listens at as well, see [`listened`].
    pub also: [Option<IpAddr>; 2],
}

impl AddressRecord {
    /// Every address that the node listens at because of it.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.address).chain(self.also.into_iter().flatten())
    }
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Link(LinkRecord),
    LinkGone(u32),
    Address(AddressRecord),
    AddressGone(AddressRecord),
    /// The end of a dump, or an answer without content: 0 or an errno.
    End(i32),
    /// Of no interest, or not readable.
    Nothing,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub sequence: u32,
    /// The dump that it belongs to was cut by a change.
    pub interrupted: bool,
    pub content: Content,
}

/// The messages of a datagram; ends at the first that has no whole header.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message> {
    netlink::packets(datagram).map(|packet| Message {
        sequence: packet.sequence_number(),
        interrupted: packet.flags() & NLM_F_DUMP_INTR != 0,
        content: content(packet.message_type(), packet.payload()),
    })
}

fn content(message_type: u16, payload: &[u8]) -> Content {
    if let Some(code) = netlink::end(message_type, payload) {
        return Content::End(code);
    }
    let parsed = match message_type {
        RTM_NEWLINK => link(payload).map(Content::Link),
        RTM_DELLINK => link(payload).map(|record| Content::LinkGone(record.ifindex)),
        RTM_NEWADDR => address(payload).map(Content::Address),
        RTM_DELADDR => address(payload).map(Content::AddressGone),
        _ => None,
    };
    parsed.unwrap_or(Content::Nothing)
}

fn link(payload: &[u8]) -> Option<LinkRecord> {
    let header = LinkHeader::parse(payload).ok()?;
    // A bridge reports its ports to the same group with its own family: that one has left it is no deletion.
    if header.interface_family != AddressFamily::Unspec || header.index == 0 {
        return None;
    }
    let mut record = LinkRecord {
        ifindex: header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        master: None,
        up: header.flags.contains(LinkFlags::Up),
        mac: None,
        linked_to: None,
        netns_id: None,
        carrier_changes: 0,
        tunnel_port: None,
    };
    for attribute in NlasIterator::new(payload.get(LINK_HEADER_BYTES..)?) {
        let Ok(attribute) = attribute else { break };
        let value = attribute.value();
        match attribute.kind() {
            IFLA_ADDRESS => record.mac = value.try_into().ok(),
            IFLA_IFNAME => record.name = parse_string(value).unwrap_or_default(),
            IFLA_LINK => record.linked_to = parse_u32(value).ok(),
            IFLA_MASTER => record.master = parse_u32(value).ok(),
            IFLA_LINKINFO => {
                record.kind = kind(value);
                record.tunnel_port = tunnel_port(&record.kind, value);
            }
            IFLA_CARRIER_CHANGES => record.carrier_changes = parse_u32(value).unwrap_or(0),
            IFLA_LINK_NETNSID => record.netns_id = parse_i32(value).ok(),
            _ => {}
        }
    }
    Some(record)
}

/// The value of the first attribute of a kind.
fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
    attributes.find(|a: &NlaBuffer<&[u8]>| a.kind() == kind).map(|a| a.value().to_vec())
}

fn kind(info: &[u8]) -> LinkKind {
    let name = attribute(info, IFLA_INFO_KIND).and_then(|value| parse_string(&value).ok());
    LinkKind::from_kernel(&name.unwrap_or_default())
}

/// The port of a tunnel over UDP whose packets carry others (`include/uapi/linux/if_link.h`).
fn tunnel_port(kind: &LinkKind, info: &[u8]) -> Option<u16> {
    let LinkKind::Other(name) = kind else { return None };
    let port = match name.as_str() {
        "vxlan" => IFLA_VXLAN_PORT,
        "geneve" => IFLA_GENEVE_PORT,
        "bareudp" => IFLA_BAREUDP_PORT,
        _ => return None,
    };
    let value = attribute(&attribute(info, IFLA_INFO_DATA)?, port)?;
    value.try_into().ok().map(u16::from_be_bytes)
}

fn address(payload: &[u8]) -> Option<AddressRecord> {
    let message = AddressMessage::parse(payload).ok()?;
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let prefix = message.header.prefix_len;
    let (mut own, mut of_network, mut broadcast) = (None, None, None);
    for attribute in message.attributes {
        match attribute {
            // On a point-to-point interface IFA_ADDRESS is the other end, and IFA_LOCAL is ours.
            AddressAttribute::Local(local) => own = Some(local),
            AddressAttribute::Address(address) => of_network = Some(address),
            AddressAttribute::Broadcast(address) => broadcast = Some(IpAddr::V4(address)),
            _ => {}
        }
    }
    let address = own.or(of_network)?;
    let also = [listened(of_network.unwrap_or(address), prefix), broadcast];
    Some(AddressRecord { ifindex: message.header.index, address, prefix, also })
}

/// The address of a network at which every router in it listens: the directed broadcast address, which Linux has for
/// networks of four addresses and more (`fib_add_ifaddr`), or the subnet-router anycast address (RFC 4291, section 2.6.1),
/// which it has with a prefix of up to 126 bits (`addrconf_join_anycast`).
fn listened(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) if prefix <= 30 => Some(IpNet::new(address, prefix).ok()?.broadcast()),
        IpAddr::V6(_) if prefix <= 126 => Some(IpNet::new(address, prefix).ok()?.network()),
        _ => None,
    }
}

/// A question to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// All links of this namespace.
    Links,
    /// One link, of this or another namespace.
    Link { ifindex: u32, netns_id: Option<i32> },
    /// All addresses of a family in this namespace.
    Addresses { family: AddressFamily },
    /// The addresses of one link in another namespace.
    PeerAddresses { family: AddressFamily, netns_id: i32, ifindex: u32 },
}

impl Question {
    /// What the question is called in errors.
    pub fn describe(&self) -> String {
        match self {
            Self::Links => "RTM_GETLINK (dump of all links)".to_owned(),
            Self::Link { ifindex, netns_id: None } => format!("RTM_GETLINK (link {ifindex})"),
            Self::Link { ifindex, netns_id: Some(id) } => {
                format!("RTM_GETLINK (link {ifindex} of the namespace with id {id})")
            }
            Self::Addresses { family } => format!("RTM_GETADDR (dump of all {family:?} addresses)"),
            Self::PeerAddresses { family, netns_id, ifindex } => {
                format!(
                    "RTM_GETADDR ({family:?} addresses of link {ifindex} of the namespace with id {netns_id})"
                )
            }
        }
    }

    /// Whether the answer is a sequence of messages that an end message closes.
    pub fn is_dump(&self) -> bool {
        !matches!(self, Self::Link { .. })
    }

    /// The question as the kernel reads it.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let message = match *self {
            Self::Links => RouteNetlinkMessage::GetLink(get_link(0, None)),
            Self::Link { ifindex, netns_id } => RouteNetlinkMessage::GetLink(get_link(ifindex, netns_id)),
            Self::Addresses { family } => RouteNetlinkMessage::GetAddress(get_address(family, 0, None)),
            Self::PeerAddresses { family, netns_id, ifindex } => {
                RouteNetlinkMessage::GetAddress(get_address(family, ifindex, Some(netns_id)))
            }
        };
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | if self.is_dump() { NLM_F_DUMP } else { 0 };
        message.header.sequence_number = sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}

fn get_link(ifindex: u32, netns_id: Option<i32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message.attributes.extend(netns_id.map(LinkAttribute::IfNetnsId));
    message
}

fn get_address(family: AddressFamily, ifindex: u32, netns_id: Option<i32>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family;
    message.header.index = ifindex;
    message.attributes.extend(netns_id.map(AddressAttribute::TargetNetNsId));
    message
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
