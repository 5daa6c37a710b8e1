//! Packets as the golden table writes them, and their bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_common::packet;
use serde::Deserialize;

use crate::packets::{POD_MAC, Packet, arp, flags};

/// Length of the Ethernet header.
pub const ETHERNET: usize = packet::ETHERNET as usize;

/// IP version that a case is tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A packet by its fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketSpec {
    /// `tcp syn ack`, `udp`, `sctp`, `echo-request 7`, `unreachable`, `icmp 13 0`, `protocol 47`, `arp`, ..
    is: String,
    /// Name or address of the sender, with its port.
    #[serde(default)]
    from: String,
    /// As `from`.
    #[serde(default)]
    to: String,
    /// Bytes behind the transport header, on top of what the packet has anyway.
    #[serde(default)]
    data: usize,
    /// Time to live, hop limit.
    hops: Option<u8>,
    /// IPv4: bytes of options.
    #[serde(default)]
    options: usize,
    /// IPv6: extension headers, each as `type/length in bytes`.
    #[serde(default)]
    extensions: Vec<String>,
    fragment: Option<Fragment>,
    /// The packet inside an ICMP error.
    about: Option<Box<PacketSpec>>,
    /// From a MAC address that is not the pod's.
    #[serde(default)]
    foreign_mac: bool,
    ethertype: Option<u16>,
    /// Bytes of the frame to write over, by their place.
    #[serde(default)]
    set: BTreeMap<usize, u8>,
    /// Cut to this many bytes.
    cut: Option<usize>,
}

/// Where a fragment stands.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fragment {
    id: u32,
    /// In units of eight bytes.
    #[serde(default)]
    at: u16,
    /// Whether it is the last one.
    #[serde(default)]
    last: bool,
}

/// Who has which addresses; `ADDRESSES` of the fixture says who they are to the maps.
const NAMES: &[(&str, &str, &str)] = &[
    ("pod", "10.0.0.2", "fd00::2"),
    ("web", "10.0.0.3", "fd00::3"),
    ("intruder", "10.0.0.4", "fd00::4"),
    ("nobody", "10.0.0.9", "fd00::9"),
    ("host", "10.0.0.1", "fd00::1"),
    ("node", "10.0.9.1", "fd00:9::1"),
    ("unmanaged", "10.0.0.255", "fd00::"),
    ("world", "8.8.8.8", "2001:db8::1"),
    ("loopback", "127.0.0.1", "::1"),
    ("unspecified", "0.0.0.0", "::"),
    ("link-local", "169.254.0.9", "fe80::1"),
    ("group", "239.1.1.1", "ff0e::1"),
    ("link-group", "224.0.0.22", "ff02::16"),
    ("all-nodes", "224.0.0.1", "ff02::1"),
    ("broadcast", "255.255.255.255", "ff02::1"),
    ("solicited", "224.0.0.1", "ff02::1:ff00:2"),
    ("service", "10.96.0.1", "fd96::1"),
    ("mixed-service", "10.96.0.2", "fd96::2"),
    ("empty-service", "10.96.0.3", "fd96::3"),
    ("guarded-service", "10.96.0.4", "fd96::4"),
];

/// Name or address, and port.
fn place(text: &str, version: Version) -> (String, u16) {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, port.parse().expect("a port")),
        _ => (text, 0),
    };
    let found = NAMES.iter().find(|(known, ..)| *known == name);
    let address = found.map_or_else(
        || name.parse::<IpAddr>().unwrap_or_else(|_| panic!("`{name}` is nobody")).to_string(),
        |(_, v4, v6)| (if version == Version::V4 { *v4 } else { *v6 }).to_owned(),
    );
    (address, port)
}

/// Types of ICMP messages in both versions, with their code.
fn message(name: &str, version: Version) -> Option<(u8, u8)> {
    let (v4, v6) = match name {
        "unreachable" => ((3, 3), (1, 4)),
        "too-big" => ((3, 4), (2, 0)),
        "time-exceeded" => ((11, 0), (3, 0)),
        "parameter-problem" => ((12, 0), (4, 0)),
        "redirect" => ((5, 1), (137, 0)),
        "router-advertisement" => ((9, 0), (134, 0)),
        "router-solicitation" => ((10, 0), (133, 0)),
        "neighbour-solicitation" => ((255, 0), (135, 0)),
        "neighbour-advertisement" => ((255, 0), (136, 0)),
        "listener-query" => ((255, 0), (130, 0)),
        "listener-report" => ((255, 0), (143, 0)),
        _ => return None,
    };
    Some(if version == Version::V4 { v4 } else { v6 })
}

/// The number of a transport protocol.
fn transport(name: &str, version: Version) -> u8 {
    match (name, version) {
        ("tcp", _) => 6,
        ("udp", _) => 17,
        ("sctp", _) => 132,
        ("icmp", Version::V4) => 1,
        ("icmp", Version::V6) => 58,
        ("destination-options", _) => 60,
        _ => panic!("`{name}` is no transport"),
    }
}

impl PacketSpec {
    /// Whether it is about another packet.
    pub fn is_error(&self) -> bool {
        self.about.is_some()
    }

    /// The frame.
    pub fn frame(&self, version: Version) -> Vec<u8> {
        let mut frame = if self.is == "arp" {
            arp(POD_MAC, place(&self.from, Version::V4).0.parse().expect("an address"))
        } else {
            self.packet(version).bytes()
        };
        if let Some(ethertype) = self.ethertype {
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        }
        for (&at, &byte) in &self.set {
            frame[at] = byte;
        }
        frame.truncate(self.cut.unwrap_or(usize::MAX));
        frame
    }

    fn packet(&self, version: Version) -> Packet {
        let mut words = self.is.split(' ');
        let kind = words.next().unwrap_or_default();
        let ((from, sport), (to, dport)) = (place(&self.from, version), place(&self.to, version));
        let mut number = || words.next().and_then(|word| word.parse::<u16>().ok()).expect("a number");
        let byte = |number: u16| u8::try_from(number).expect("a byte");
        let mut packet = match kind {
            "tcp" => {
                let bits = words.map(|word| match word {
                    "fin" => flags::FIN,
                    "syn" => flags::SYN,
                    "rst" => flags::RST,
                    "ack" => flags::ACK,
                    other => panic!("`{other}` is no flag"),
                });
                Packet::tcp(&from, sport, &to, dport, bits.fold(0, |all, bit| all | bit))
            }
            "udp" => Packet::udp(&from, sport, &to, dport),
            "sctp" => Packet::sctp(&from, sport, &to, dport),
            "protocol" => Packet::new(&from, &to, byte(number()), vec![0; 8]),
            // What is behind the headers: a later fragment.
            "rest" => {
                Packet::new(&from, &to, transport(words.next().expect("a protocol"), version), vec![0; 32])
            }
            "echo-request" | "echo-reply" => Packet::echo(&from, &to, kind == "echo-request", number()),
            name => {
                let (kind, code) = if name == "icmp" {
                    (byte(number()), byte(number()))
                } else {
                    message(name, version).unwrap_or_else(|| panic!("`{name}` is no packet"))
                };
                let inner = self.about.as_ref().map_or(vec![0; 16], |about| about.packet(version).ip());
                Packet::icmp(&from, &to, kind, code, [0; 4], &inner)
            }
        };
        packet = packet.data(self.data);
        if self.options > 0 {
            packet = packet.options(&vec![1; self.options]);
        }
        for extension in &self.extensions {
            let (kind, length) = extension.split_once('/').expect("type/length");
            let length: usize = length.parse().expect("a length");
            let rest = length.checked_sub(2).expect("two bytes at least");
            packet = packet.extension(kind.parse().expect("a type"), &vec![0; rest]);
        }
        if let Some(Fragment { id, at, last }) = self.fragment {
            packet = packet.fragment(at, !last, id);
        }
        if let Some(hops) = self.hops {
            packet = packet.hop_limit(hops);
        }
        if self.foreign_mac { packet.from_mac([2, 9, 9, 9, 9, 9]) } else { packet }
    }
}
