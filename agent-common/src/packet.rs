//! The packet parser: from the Ethernet header to ports and flags.
//!
//! Whatever cannot be parsed is an error with a reason, never a guess. Reads go through [`Packet`], which in the kernel
//! is direct access where the linear part reaches far enough and `bpf_skb_load_bytes` otherwise.

use crate::abi::Addr6;
use crate::policy::protocol;
use crate::reason::Reason;

/// Access to the bytes of a packet that starts with an Ethernet header.
pub trait Packet {
    /// Direct access to the first bytes.
    type Head: Head;
    /// Total length in bytes, with the parts that are not linear.
    fn length(&self) -> u32;
    /// Direct access to the first `bytes` bytes, if they are linear. `bytes` is a constant at each call.
    fn head(&self, bytes: usize) -> Option<Self::Head>;
    /// Bytes at any offset; `None` beyond the end of the packet.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

/// Bytes whose presence was checked; offsets are constants below the checked length.
pub trait Head: Copy {
    /// A byte.
    fn u8(&self, offset: usize) -> u8;
    /// Two bytes in network order, as a host number.
    fn u16(&self, offset: usize) -> u16;
    /// Four bytes as they stand (network order kept).
    fn u32_be(&self, offset: usize) -> u32;
    /// Eight bytes as they stand, as two words (network order kept).
    fn words_be(&self, offset: usize) -> [u32; 2];

    /// Two ports, in host order.
    #[inline(always)]
    fn ports(&self, offset: usize) -> (u16, u16) {
        let word = self.u32_be(offset);
        (u16::from_be(word as u16), u16::from_be((word >> 16) as u16))
    }
}

/// `Ethernet` header length.
pub const ETHERNET: u32 = 14;
/// How many IPv6 extension headers are followed.
pub const MAX_EXTENSIONS: u32 = 8;

/// Ethertypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// TCP flags.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Resets a connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// ICMP types.
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable (with "fragmentation needed").
    pub const UNREACHABLE: u8 = 3;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Timestamp.
    pub const TIMESTAMP_REQUEST: u8 = 13;
    /// Timestamp reply.
    pub const TIMESTAMP_REPLY: u8 = 14;
    /// Information request.
    pub const INFORMATION_REQUEST: u8 = 15;
    /// Information reply.
    pub const INFORMATION_REPLY: u8 = 16;
    /// Address mask request.
    pub const ADDRESS_MASK_REQUEST: u8 = 17;
    /// Address mask reply.
    pub const ADDRESS_MASK_REPLY: u8 = 18;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// `ICMPv6` types.
pub mod icmp6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query.
    pub const MLD_QUERY: u8 = 130;
    /// Multicast listener report.
    pub const MLD_REPORT: u8 = 131;
    /// Multicast listener done.
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Node information query (RFC 4620).
    pub const NODE_QUERY: u8 = 139;
    /// Node information reply.
    pub const NODE_REPLY: u8 = 140;
    /// Multicast listener report, version 2.
    pub const MLD2_REPORT: u8 = 143;
}

/// Where a packet stands in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FragmentPart {
    /// The packet is whole.
    Whole = 0,
    /// The first fragment: it has the transport header.
    First = 1,
    /// A later fragment: it has no transport header.
    Later = 2,
}

/// What an ICMP message is to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IcmpRole {
    /// Not ICMP, or an ICMP message that is judged like any protocol without ports.
    Plain = 0,
    /// An echo request, or another query that conntrack tells from others by its id as well (`invmap` in
    /// `nf_conntrack_proto_icmp.c` and `nf_conntrack_proto_icmpv6.c`); the ports hold the id.
    EchoRequest = 1,
    /// An echo reply, or the answer to such a query; the ports hold its id.
    EchoReply = 2,
    /// An error: addresses, ports and protocol are those of the packet inside, turned round, so that they read as a
    /// packet of the flow that goes the way the error goes.
    Error = 3,
    /// Neighbour discovery: whole, and with the hop limit that proves that it was sent on this link (RFC 4861, RFC 6980).
    /// Of an advertisement the source is the address that it is about. What only looks like it is [`IcmpRole::Plain`], and
    /// judged.
    Link = 4,
    /// A message of routers: advertisement or redirect.
    Router = 5,
    /// A report or query of multicast listeners, IGMP or MLD.
    Group = 6,
}

/// Neighbour discovery messages are no longer than this; longer ones would be a way to smuggle data, and are dropped.
const LARGEST_DISCOVERY: u32 = 128;

/// A parsed packet. Addresses are in network order, ports in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source address of the packet itself; differs from `source` in an ICMP error.
    pub outer_source: A,
    /// Identification of a fragment, as on the wire.
    pub fragment_id: u32,
    /// Source port, or the id of an ICMP echo request's sender.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Transport protocol (IANA number); the last header that could be named.
    pub protocol: u8,
    /// TCP flags, `0` for others and for the packet inside an ICMP error.
    pub tcp_flags: u8,
    /// Of an ICMP error: the packet inside is an echo request.
    pub about_request: bool,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// The packet's part of a datagram.
    pub fragment: FragmentPart,
    /// What an ICMP message is.
    pub icmp: IcmpRole,
}

impl<A: Copy> Parsed<A> {
    fn new(source: A, destination: A, proto: u8, hop_limit: u8) -> Self {
        Self {
            source,
            destination,
            outer_source: source,
            fragment_id: 0,
            source_port: 0,
            destination_port: 0,
            protocol: proto,
            tcp_flags: 0,
            about_request: false,
            hop_limit,
            fragment: FragmentPart::Whole,
            icmp: IcmpRole::Plain,
        }
    }
}

/// The address type of a family and how it is read.
pub trait Address: Copy + Eq + core::fmt::Debug {
    /// Reads an address at a constant offset of the checked bytes.
    fn from_head<H: Head>(head: H, offset: usize) -> Self;
    /// Whether both are the same, without a call and without a branch a word.
    fn same(self, other: Self) -> bool;
    /// Its words in one.
    fn mixed(self) -> u32;
}

impl Address for u32 {
    #[inline(always)]
    fn from_head<H: Head>(head: H, offset: usize) -> Self {
        head.u32_be(offset)
    }
    #[inline(always)]
    fn same(self, other: Self) -> bool {
        self == other
    }
    #[inline(always)]
    fn mixed(self) -> u32 {
        self
    }
}

impl Address for Addr6 {
    #[inline(always)]
    fn from_head<H: Head>(head: H, offset: usize) -> Self {
        let ([a, b], [c, d]) = (head.words_be(offset), head.words_be(offset + 8));
        Self { words_be: [a, b, c, d] }
    }
    #[inline(always)]
    fn same(self, other: Self) -> bool {
        let (a, b) = (self.words_be, other.words_be);
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
    #[inline(always)]
    fn mixed(self) -> u32 {
        let [a, b, c, d] = self.words_be;
        a ^ b.rotate_left(9) ^ c.rotate_left(18) ^ d
    }
}

#[inline(always)]
const fn u16_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

#[inline(always)]
const fn u32_be_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u32 {
    u32::from_ne_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

/// The TCP flags of a packet whose transport header lies at `at`, straight behind an IP header of constant length, in the
/// linear part (of TCP without its options); `0` for UDP, `None` if there is none such. Of `length` bytes that the IP header
/// names, `before` are not the transport's.
#[inline(always)]
fn direct_flags<P: Packet>(packet: &P, proto: u8, at: usize, (before, length): (u32, u32)) -> Option<u8> {
    match proto {
        protocol::TCP => {
            let head = packet.head(at + 20)?;
            // Almost every segment has options (timestamps); here only their place counts.
            let header = u32::from(head.u8(at + 12) >> 4) * 4;
            (header >= 20 && before + header <= length).then(|| head.u8(at + 13))
        }
        protocol::UDP => (before + 8 <= length).then_some(0),
        _ => None,
    }
}

/// An IPv4 packet without options, not fragmented, TCP or UDP with the header in the linear part (of TCP without its
/// options); `None` sends the packet to [`parse_ipv4`].
#[inline(always)]
pub fn parse_ipv4_direct<P: Packet>(packet: &P) -> Option<Parsed<u32>> {
    const IP: usize = ETHERNET as usize;
    let head = packet.head(IP + 28)?;
    let total = u32::from(head.u16(IP + 2));
    // Neither a fragment nor one to come; `total length` within the packet.
    if head.u8(IP) != 0x45 || head.u16(IP + 6) & 0x3fff != 0 || total > packet.length() - ETHERNET {
        return None;
    }
    let proto = head.u8(IP + 9);
    let tcp_flags = direct_flags(packet, proto, IP + 20, (20, total))?;
    // Addresses and ports last: so they go from the packet into the key, and take no registers meanwhile.
    let [source, destination] = head.words_be(IP + 12);
    let (source_port, destination_port) = head.ports(IP + 20);
    let parsed = Parsed::new(source, destination, proto, head.u8(IP + 8));
    Some(Parsed { source_port, destination_port, tcp_flags, ..parsed })
}

/// An IPv6 packet without extension headers, TCP or UDP in the linear part; `None` sends it to [`parse_ipv6`].
#[inline(always)]
pub fn parse_ipv6_direct<P: Packet>(packet: &P) -> Option<Parsed<Addr6>> {
    const IP: usize = ETHERNET as usize;
    let head = packet.head(IP + 48)?;
    let payload = u32::from(head.u16(IP + 4));
    if head.u8(IP) >> 4 != 6 || payload + 40 > packet.length() - ETHERNET {
        return None;
    }
    let proto = head.u8(IP + 6);
    let tcp_flags = direct_flags(packet, proto, IP + 40, (0, payload))?;
    // As for IPv4.
    let (source, destination) = (Addr6::from_head(head, IP + 8), Addr6::from_head(head, IP + 24));
    let (source_port, destination_port) = head.ports(IP + 40);
    let parsed = Parsed::new(source, destination, proto, head.u8(IP + 7));
    Some(Parsed { source_port, destination_port, tcp_flags, ..parsed })
}

/// Any IPv4 packet.
///
/// # Errors
/// The reason why it cannot be parsed.
#[inline(always)]
pub fn parse_ipv4<P: Packet>(packet: &P) -> Result<Parsed<u32>, Reason> {
    let Some(ip) = packet.load::<20>(ETHERNET) else { return Err(Reason::Truncated) };
    let header = u32::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header < 20 {
        return Err(Reason::Malformed);
    }
    let available = packet.length() - ETHERNET;
    let mut total = u32::from(u16_at(&ip, 2));
    if total == 0 && available > 0xffff {
        total = available; // "BIG TCP": the length of an aggregate beyond 64 KiB is only in the packet's metadata
    }
    if total > available {
        return Err(Reason::Truncated);
    }
    if total < header {
        return Err(Reason::Malformed);
    }
    let mut parsed = Parsed::new(u32_be_at(&ip, 12), u32_be_at(&ip, 16), ip[9], ip[8]);
    let fragment = u16_at(&ip, 6);
    let offset = fragment & 0x1fff;
    if fragment & 0x3fff != 0 {
        parsed.fragment_id = u32::from(u16_at(&ip, 4));
        parsed.fragment = if offset == 0 { FragmentPart::First } else { FragmentPart::Later };
    }
    if offset != 0 {
        return later_fragment(parsed, offset);
    }
    transport(packet, &mut parsed, ETHERNET + header, ETHERNET + total, 4)?;
    if parsed.icmp == IcmpRole::Error {
        related_ipv4(packet, &mut parsed, ETHERNET + header + 8, ETHERNET + total)?;
    }
    Ok(parsed)
}

/// RFC 1858: a later TCP fragment that begins inside the header could rewrite what the first one was judged by.
#[inline(always)]
fn later_fragment<A>(parsed: Parsed<A>, offset_in_8: u16) -> Result<Parsed<A>, Reason> {
    if parsed.protocol == protocol::TCP && offset_in_8 < 3 { Err(Reason::FragmentTiny) } else { Ok(parsed) }
}

/// Any IPv6 packet.
///
/// # Errors
/// The reason why it cannot be parsed.
#[inline(always)]
pub fn parse_ipv6<P: Packet>(packet: &P) -> Result<Parsed<Addr6>, Reason> {
    let Some(ip) = packet.load::<40>(ETHERNET) else { return Err(Reason::Truncated) };
    if ip[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let payload = u32::from(u16_at(&ip, 4));
    let available = packet.length() - ETHERNET;
    if payload + 40 > available {
        return Err(Reason::Truncated);
    }
    // A payload length of 0 is a jumbogram or an aggregate beyond 64 KiB.
    let end = ETHERNET + if payload == 0 { available } else { payload + 40 };
    let source =
        Addr6 { words_be: [u32_be_at(&ip, 8), u32_be_at(&ip, 12), u32_be_at(&ip, 16), u32_be_at(&ip, 20)] };
    let destination =
        Addr6 { words_be: [u32_be_at(&ip, 24), u32_be_at(&ip, 28), u32_be_at(&ip, 32), u32_be_at(&ip, 36)] };
    let mut parsed = Parsed::new(source, destination, ip[6], ip[7]);
    let mut at = ETHERNET + 40;
    for _ in 0..=MAX_EXTENSIONS {
        match parsed.protocol {
            // Hop-by-hop, routing, destination options, mobility, HIP, Shim6: length in units of 8, without the first.
            0 | 43 | 60 | 135 | 139 | 140 => {
                let Some(extension) = packet.load::<2>(at) else { return Err(Reason::Truncated) };
                parsed.protocol = extension[0];
                at += (u32::from(extension[1]) + 1) * 8;
            }
            // Authentication: units of 4, without the first two.
            51 => {
                let Some(extension) = packet.load::<2>(at) else { return Err(Reason::Truncated) };
                parsed.protocol = extension[0];
                at += (u32::from(extension[1]) + 2) * 4;
            }
            44 => {
                let Some(extension) = packet.load::<8>(at) else { return Err(Reason::Truncated) };
                if parsed.fragment != FragmentPart::Whole {
                    return Err(Reason::Malformed);
                }
                parsed.protocol = extension[0];
                at += 8;
                // What is behind the packet is padding, also where it looks like a header.
                if at > end {
                    return Err(Reason::Truncated);
                }
                let field = u16_at(&extension, 2);
                // An "atomic" fragment (offset 0, no more to come) is a whole packet.
                if field & 0xfff9 != 0 {
                    parsed.fragment_id = u32_be_at(&extension, 4);
                    parsed.fragment = if field >> 3 == 0 { FragmentPart::First } else { FragmentPart::Later };
                }
                if field >> 3 != 0 {
                    return later_fragment(parsed, field >> 3);
                }
            }
            _ => {
                if at > end {
                    return Err(Reason::Truncated);
                }
                transport(packet, &mut parsed, at, end, 6)?;
                if parsed.icmp == IcmpRole::Error {
                    related_ipv6(packet, &mut parsed, at + 8, end)?;
                }
                if parsed.icmp == IcmpRole::Link {
                    advertised(packet, &mut parsed, at, end)?;
                }
                return Ok(parsed);
            }
        }
        if at > end {
            return Err(Reason::Truncated);
        }
    }
    Err(Reason::TooManyHeaders)
}

/// Ports, flags and ICMP types of the transport header at `at`; the packet ends at `end`.
///
/// ICMP and IGMP are protocols of one IP version. In the other one their numbers mean nothing, and what only looks like a
/// message that the link needs is judged like any protocol without ports.
#[inline(always)]
fn transport<P: Packet, A>(
    packet: &P,
    parsed: &mut Parsed<A>,
    at: u32,
    end: u32,
    version: u8,
) -> Result<(), Reason> {
    let short = if parsed.fragment == FragmentPart::First { Reason::FragmentTiny } else { Reason::Truncated };
    let room = end - at;
    match parsed.protocol {
        protocol::TCP => {
            let Some(header) = packet.load::<14>(at) else { return Err(short) };
            if room < 20 {
                return Err(short);
            }
            let length = u32::from(header[12] >> 4) * 4;
            if length < 20 {
                return Err(Reason::Malformed);
            }
            if length > room {
                return Err(short);
            }
            parsed.source_port = u16_at(&header, 0);
            parsed.destination_port = u16_at(&header, 2);
            parsed.tcp_flags = header[13];
        }
        // Of the last two conntrack has entries by port, so we have flows by port.
        protocol::UDP | protocol::SCTP | protocol::UDP_LITE | protocol::DCCP => {
            let least = if matches!(parsed.protocol, protocol::UDP | protocol::UDP_LITE) { 8 } else { 12 };
            let Some(header) = packet.load::<4>(at) else { return Err(short) };
            if room < least {
                return Err(short);
            }
            parsed.source_port = u16_at(&header, 0);
            parsed.destination_port = u16_at(&header, 2);
        }
        proto if proto == if version == 4 { protocol::ICMP } else { protocol::ICMPV6 } => {
            let Some(header) = packet.load::<8>(at) else { return Err(short) };
            if room < 8 {
                return Err(short);
            }
            parsed.icmp = if version == 4 {
                role4(header[0])
            } else {
                role6(header[0], header[1], parsed.hop_limit, matches!(parsed.fragment, FragmentPart::Whole))
            };
            // A neighbour would believe it, however much follows.
            if matches!(parsed.icmp, IcmpRole::Link) && room > LARGEST_DISCOVERY {
                return Err(Reason::ForbiddenIcmp);
            }
            if matches!(parsed.icmp, IcmpRole::EchoRequest | IcmpRole::EchoReply) {
                // Both ports, so that the key reads the same from either side.
                parsed.source_port = u16_at(&header, 4);
                parsed.destination_port = parsed.source_port;
            }
        }
        protocol::IGMP if version == 4 && matches!(parsed.fragment, FragmentPart::Whole) => {
            parsed.icmp = IcmpRole::Group;
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
const fn role4(kind: u8) -> IcmpRole {
    match kind {
        icmp::ECHO_REQUEST
        | icmp::TIMESTAMP_REQUEST
        | icmp::INFORMATION_REQUEST
        | icmp::ADDRESS_MASK_REQUEST => IcmpRole::EchoRequest,
        icmp::ECHO_REPLY | icmp::TIMESTAMP_REPLY | icmp::INFORMATION_REPLY | icmp::ADDRESS_MASK_REPLY => {
            IcmpRole::EchoReply
        }
        icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM => IcmpRole::Error,
        icmp::REDIRECT | icmp::ROUTER_ADVERTISEMENT => IcmpRole::Router,
        _ => IcmpRole::Plain,
    }
}

#[inline(always)]
const fn role6(kind: u8, code: u8, hop_limit: u8, whole: bool) -> IcmpRole {
    match kind {
        icmp6::ECHO_REQUEST | icmp6::NODE_QUERY => IcmpRole::EchoRequest,
        icmp6::ECHO_REPLY | icmp6::NODE_REPLY => IcmpRole::EchoReply,
        icmp6::UNREACHABLE | icmp6::TOO_BIG | icmp6::TIME_EXCEEDED | icmp6::PARAMETER_PROBLEM => {
            IcmpRole::Error
        }
        // RFC 4861, 6.1 and 7.1: a hop limit of 255 and code 0.
        icmp6::ROUTER_SOLICITATION | icmp6::NEIGHBOUR_SOLICITATION | icmp6::NEIGHBOUR_ADVERTISEMENT
            if hop_limit == 255 && code == 0 && whole =>
        {
            IcmpRole::Link
        }
        // RFC 3810, 5: a hop limit of 1.
        icmp6::MLD_QUERY | icmp6::MLD_REPORT | icmp6::MLD_DONE | icmp6::MLD2_REPORT if hop_limit == 1 => {
            IcmpRole::Group
        }
        icmp6::ROUTER_ADVERTISEMENT | icmp6::REDIRECT => IcmpRole::Router,
        _ => IcmpRole::Plain,
    }
}

/// Takes the address that a neighbour advertisement is about for its source: that is whom it speaks for (RFC 4861, 4.4).
#[inline(always)]
fn advertised<P: Packet>(packet: &P, parsed: &mut Parsed<Addr6>, at: u32, end: u32) -> Result<(), Reason> {
    let Some(kind) = packet.load::<1>(at) else { return Err(Reason::Truncated) };
    if kind[0] != icmp6::NEIGHBOUR_ADVERTISEMENT {
        return Ok(());
    }
    if at + 24 > end {
        return Err(Reason::Truncated);
    }
    let Some(body) = packet.load::<24>(at) else { return Err(Reason::Truncated) };
    parsed.source = Addr6 {
        words_be: [u32_be_at(&body, 8), u32_be_at(&body, 12), u32_be_at(&body, 16), u32_be_at(&body, 20)],
    };
    Ok(())
}

/// Replaces addresses and ports by those of the packet inside an ICMP error, turned round.
#[inline(always)]
fn related_ipv4<P: Packet>(packet: &P, parsed: &mut Parsed<u32>, at: u32, end: u32) -> Result<(), Reason> {
    if at + 20 > end {
        return Err(Reason::Truncated);
    }
    let Some(ip) = packet.load::<20>(at) else { return Err(Reason::Truncated) };
    let header = u32::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header < 20 {
        return Err(Reason::Malformed);
    }
    // The error goes to the sender of the packet inside; anything else is forged. Errors about later fragments carry no
    // ports (RFC 1122 asks for none to be sent).
    if u32_be_at(&ip, 12) != parsed.destination || u16_at(&ip, 6) & 0x1fff != 0 {
        return Err(Reason::ForbiddenIcmp);
    }
    parsed.source = u32_be_at(&ip, 16);
    parsed.protocol = ip[9];
    inner_ports(packet, parsed, at + header, end, protocol::ICMP, icmp::ECHO_REQUEST, icmp::ECHO_REPLY)
}

/// As [`related_ipv4`]; a packet inside with extension headers belongs to no flow that could be found cheaply.
#[inline(always)]
fn related_ipv6<P: Packet>(packet: &P, parsed: &mut Parsed<Addr6>, at: u32, end: u32) -> Result<(), Reason> {
    if at + 40 > end {
        return Err(Reason::Truncated);
    }
    let Some(ip) = packet.load::<40>(at) else { return Err(Reason::Truncated) };
    if ip[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let source =
        Addr6 { words_be: [u32_be_at(&ip, 8), u32_be_at(&ip, 12), u32_be_at(&ip, 16), u32_be_at(&ip, 20)] };
    if source != parsed.destination {
        return Err(Reason::ForbiddenIcmp);
    }
    parsed.source =
        Addr6 { words_be: [u32_be_at(&ip, 24), u32_be_at(&ip, 28), u32_be_at(&ip, 32), u32_be_at(&ip, 36)] };
    parsed.protocol = ip[6];
    inner_ports(packet, parsed, at + 40, end, protocol::ICMPV6, icmp6::ECHO_REQUEST, icmp6::ECHO_REPLY)
}

#[inline(always)]
fn inner_ports<P: Packet, A>(
    packet: &P,
    parsed: &mut Parsed<A>,
    at: u32,
    end: u32,
    icmp_protocol: u8,
    request: u8,
    reply: u8,
) -> Result<(), Reason> {
    match parsed.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP | protocol::UDP_LITE | protocol::DCCP => {
            if at + 4 > end {
                return Err(Reason::Truncated);
            }
            let Some(header) = packet.load::<4>(at) else { return Err(Reason::Truncated) };
            parsed.source_port = u16_at(&header, 2);
            parsed.destination_port = u16_at(&header, 0);
        }
        proto if proto == icmp_protocol => {
            if at + 8 > end {
                return Err(Reason::Truncated);
            }
            let Some(header) = packet.load::<8>(at) else { return Err(Reason::Truncated) };
            // Errors are sent about echo messages only, never about errors (RFC 1122, 3.2.2; RFC 4443, 2.4).
            if header[0] != request && header[0] != reply {
                return Err(Reason::ForbiddenIcmp);
            }
            parsed.source_port = u16_at(&header, 4);
            parsed.destination_port = parsed.source_port;
            // The flow's key knows who asked: a request inside an error to us was asked by us.
            parsed.about_request = header[0] == request;
        }
        _ => {}
    }
    Ok(())
}
