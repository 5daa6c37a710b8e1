//! Packets as bytes, and the loaded programs to run them through.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

/// MAC address of the pod's side in the packets built here.
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of the host's side.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// TCP flags.
pub mod flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// A packet under construction: addresses and a transport payload.
#[derive(Clone, Debug)]
pub struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: Vec<u8>,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4 fragment field, or the IPv6 fragment header's offset and flag field.
    fragment: Option<(u16, u32)>,
    hop_limit: Option<u8>,
    /// Whether a kernel shall take it.
    checksummed: bool,
}

/// An ARP question of the pod for the gateway, from a MAC and an IPv4 address that need not be its own.
pub fn arp(mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    arp_packet(1, (POD_MAC, [0xff; 6]), (mac, sender), ([0; 6], Ipv4Addr::new(10, 0, 0, 1)))
}

/// An ARP question (`1`) or answer (`2`) from a MAC address to another one, with the addresses that it is about (RFC 826).
pub fn arp_packet(
    operation: u8,
    (from, to): ([u8; 6], [u8; 6]),
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}

impl Packet {
    /// Any protocol.
    pub fn new(source: &str, destination: &str, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source: source.parse().unwrap_or_else(|_| panic!("address {source}")),
            destination: destination.parse().unwrap_or_else(|_| panic!("address {destination}")),
            protocol,
            payload,
            source_mac: POD_MAC,
            destination_mac: HOST_MAC,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            hop_limit: None,
            checksummed: false,
        }
    }

    /// TCP with these flags and no data.
    pub fn tcp(source: &str, source_port: u16, destination: &str, destination_port: u16, flags: u8) -> Self {
        let mut tcp = vec![0u8; 20];
        tcp[0..2].copy_from_slice(&source_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&destination_port.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = flags;
        Self::new(source, destination, 6, tcp)
    }

    /// UDP with four bytes of data.
    pub fn udp(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Self {
        let mut udp = vec![0u8; 12];
        udp[0..2].copy_from_slice(&source_port.to_be_bytes());
        udp[2..4].copy_from_slice(&destination_port.to_be_bytes());
        udp[4..6].copy_from_slice(&12u16.to_be_bytes());
        Self::new(source, destination, 17, udp)
    }

    /// SCTP: the common header.
    pub fn sctp(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Self {
        let mut sctp = vec![0u8; 12];
        sctp[0..2].copy_from_slice(&source_port.to_be_bytes());
        sctp[2..4].copy_from_slice(&destination_port.to_be_bytes());
        Self::new(source, destination, 132, sctp)
    }

    /// An ICMP or `ICMPv6` message (by the family) with four bytes of rest of header and then `body`.
    pub fn icmp(source: &str, destination: &str, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Self {
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend(rest);
        icmp.extend(body);
        let protocol = if source.contains(':') { 58 } else { 1 };
        Self::new(source, destination, protocol, icmp)
    }

    /// An echo request or reply with an id.
    pub fn echo(source: &str, destination: &str, request: bool, id: u16) -> Self {
        let kind = match (source.contains(':'), request) {
            (false, true) => 8,
            (false, false) => 0,
            (true, true) => 128,
            (true, false) => 129,
        };
        let [a, b] = id.to_be_bytes();
        Self::icmp(source, destination, kind, 0, [a, b, 0, 1], &[0; 8])
    }

    /// With this time to live or hop limit; 64 and 255 if not given.
    #[must_use]
    pub const fn hop_limit(mut self, hops: u8) -> Self {
        self.hop_limit = Some(hops);
        self
    }

    /// From another MAC address.
    #[must_use]
    pub const fn from_mac(mut self, mac: [u8; 6]) -> Self {
        self.source_mac = mac;
        self
    }

    /// To another MAC address.
    #[must_use]
    pub const fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.destination_mac = mac;
        self
    }

    /// TCP with these numbers of the first byte that it has and of the next one that it waits for.
    #[must_use]
    pub fn sequence(mut self, first: u32, awaited: u32) -> Self {
        self.payload[4..8].copy_from_slice(&first.to_be_bytes());
        self.payload[8..12].copy_from_slice(&awaited.to_be_bytes());
        self
    }

    /// With IPv4 options (a multiple of four bytes).
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With an IPv6 extension header of this type: its bytes from the third on.
    #[must_use]
    pub fn extension(mut self, kind: u8, rest: &[u8]) -> Self {
        self.extensions.push((kind, rest.to_vec()));
        self
    }

    /// With this many bytes of data more behind the transport header.
    #[must_use]
    pub fn data(mut self, bytes: usize) -> Self {
        self.payload.resize(self.payload.len() + bytes, 0);
        self
    }

    /// As a fragment: offset in units of eight bytes, whether more follow, identification.
    #[must_use]
    pub const fn fragment(mut self, offset: u16, more: bool, id: u32) -> Self {
        let field = match self.source {
            IpAddr::V4(_) => offset | if more { 0x2000 } else { 0 },
            IpAddr::V6(_) => offset << 3 | more as u16,
        };
        self.fragment = Some((field, id));
        self
    }

    /// As a fragment that has these bytes of the payload, which begin at a multiple of eight.
    #[must_use]
    pub fn piece(&self, bytes: Range<usize>, id: u32) -> Self {
        let offset = u16::try_from(bytes.start / 8).expect("an offset");
        let more = bytes.end < self.payload.len();
        Self { payload: self.payload[bytes].to_vec(), ..self.clone() }.fragment(offset, more, id)
    }

    /// With the checksums, and the length of UDP, without which no kernel takes a packet; the payload has to be whole.
    #[must_use]
    pub fn checksummed(mut self) -> Self {
        self.checksummed = true;
        let length = u32::try_from(self.payload.len()).expect("a length");
        let at = match self.protocol {
            1 | 58 => 2,
            6 => 16,
            17 => {
                self.payload[4..6].copy_from_slice(&length.to_be_bytes()[2..]);
                6
            }
            _ => return self,
        };
        self.payload[at..at + 2].fill(0);
        let mut covered = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            _ => panic!("addresses of two families"),
        };
        covered.extend(length.to_be_bytes());
        covered.extend([0, 0, 0, self.protocol]);
        if self.protocol == 1 {
            covered.clear();
        }
        covered.extend(&self.payload);
        let sum = match checksum(&covered) {
            // UDP writes "none" so.
            [0, 0] => [0xff, 0xff],
            sum => sum,
        };
        self.payload[at..at + 2].copy_from_slice(&sum);
        self
    }

    /// The IP packet, without the Ethernet header.
    pub fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = 20 + self.options.len();
                let mut ip = vec![0u8; header];
                ip[0] = 0x40 | u8::try_from(header / 4).unwrap_or(15);
                ip[2..4]
                    .copy_from_slice(&u16::try_from(header + self.payload.len()).unwrap_or(0).to_be_bytes());
                if let Some((field, id)) = self.fragment {
                    ip[4..6].copy_from_slice(&id.to_be_bytes()[2..]);
                    ip[6..8].copy_from_slice(&field.to_be_bytes());
                }
                ip[8] = self.hop_limit.unwrap_or(64);
                ip[9] = self.protocol;
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                ip[20..].copy_from_slice(&self.options);
                if self.checksummed {
                    let sum = checksum(&ip);
                    ip[10..12].copy_from_slice(&sum);
                }
                ip.extend(&self.payload);
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = self.extensions.clone();
                if let Some((field, id)) = self.fragment {
                    let mut rest = field.to_be_bytes().to_vec();
                    rest.extend(id.to_be_bytes());
                    extensions.push((44, rest));
                }
                let mut body = Vec::new();
                for (index, (kind, rest)) in extensions.iter().enumerate() {
                    let next = extensions.get(index + 1).map_or(self.protocol, |(next, _)| *next);
                    let mut header = vec![next, 0];
                    header.extend(rest);
                    header.resize(header.len().div_ceil(8) * 8, 0);
                    header[1] = match kind {
                        44 => 0,
                        51 => u8::try_from(header.len() / 4 - 2).unwrap_or(0),
                        _ => u8::try_from(header.len() / 8 - 1).unwrap_or(0),
                    };
                    body.extend(header);
                }
                body.extend(&self.payload);
                let mut ip = vec![0u8; 40];
                ip[0] = 0x60;
                ip[4..6].copy_from_slice(&u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
                ip[6] = extensions.first().map_or(self.protocol, |(kind, _)| *kind);
                ip[7] = self.hop_limit.unwrap_or(255);
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
                ip.extend(body);
                ip
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = self.destination_mac.to_vec();
        frame.extend(self.source_mac);
        frame.extend(if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(self.ip());
        frame
    }
}

/// The checksum of IP and of what it carries (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}
