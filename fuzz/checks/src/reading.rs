//! A second parser, for the model: slow and plain, and without a line of the first one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP packet up to its transport header.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Time to live, hop limit.
    pub hops: u8,
    /// The last header that has a number.
    pub protocol: u8,
    /// Identification and offset in bytes, of a fragment.
    pub fragment: Option<(u32, u32)>,
    /// What is behind the headers, up to the length that the IP header tells; of a packet inside an ICMP error what is
    /// there of it.
    pub body: Vec<u8>,
}

fn take<'a>(from: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(bytes)?;
    *from = rest;
    Some(taken)
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |all, byte| all << 8 | u32::from(*byte))
}

/// Reads what is behind an Ethernet header; nothing, if it is no whole packet. `inside` of an ICMP error only the
/// beginning of the packet is needed.
pub fn read(version: u8, bytes: &[u8], inside: bool) -> Option<Ip> {
    if bytes.first()? >> 4 != version {
        return None;
    }
    match version {
        4 => read4(bytes, inside),
        _ => read6(bytes, inside),
    }
}

fn read4(bytes: &[u8], inside: bool) -> Option<Ip> {
    let mut rest = bytes;
    let fixed = take(&mut rest, 20)?;
    let header = usize::from(fixed[0] & 15) * 4;
    let total = number(&fixed[2..4]) as usize;
    if header < 20 || (!inside && (total < header || total > bytes.len())) {
        return None;
    }
    let field = number(&fixed[6..8]);
    let (offset, more) = ((field & 0x1fff) * 8, field & 0x2000 != 0);
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&fixed[at..at + 4]).unwrap());
    Some(Ip {
        source: address(12),
        destination: address(16),
        hops: fixed[8],
        protocol: fixed[9],
        fragment: (offset > 0 || more).then(|| (number(&fixed[4..6]), offset)),
        body: bytes.get(header..if inside { bytes.len() } else { total })?.to_vec(),
    })
}

fn read6(bytes: &[u8], inside: bool) -> Option<Ip> {
    let mut rest = bytes;
    let fixed = take(&mut rest, 40)?;
    let payload = number(&fixed[4..6]) as usize;
    if !inside && payload > 0 {
        rest = rest.get(..payload)?;
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).unwrap());
    let mut ip = Ip {
        source: address(8),
        destination: address(24),
        hops: fixed[7],
        protocol: fixed[6],
        fragment: None,
        body: Vec::new(),
    };
    // A packet inside an error that has such headers belongs to no flow that is looked for.
    loop {
        let size = match ip.protocol {
            _ if inside => break,
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(*rest.get(1)?) + 1) * 8,
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            44 => 8,
            _ => break,
        };
        let header = take(&mut rest, size)?;
        if ip.protocol == 44 {
            let field = number(&header[2..4]);
            if ip.fragment.is_some() {
                return None;
            }
            if field & !6 != 0 {
                ip.fragment = Some((number(&header[4..8]), field & !7));
            }
        }
        ip.protocol = header[0];
        if ip.fragment.is_some_and(|(_, offset)| offset > 0) {
            break;
        }
    }
    ip.body = rest.to_vec();
    Some(ip)
}

/// Whether an address is multicast, or the limited broadcast.
pub fn is_multicast(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether it is an IPv6 link-local address.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether a group is not routed.
pub fn is_of_the_link(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.octets()[..3] == [224, 0, 0],
        IpAddr::V6(group) => Ipv6Addr::segments(&group)[0] == 0xff02,
    }
}
