//! TCP segments without data, as frames: what a connection's first packets looked like.

use std::net::{IpAddr, SocketAddr};

use portcullis_common::packet::{ethertype, tcp};
use portcullis_common::policy::protocol::TCP;

/// SYN.
pub const SYN: u8 = tcp::SYN;
/// SYN and ACK.
pub const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
/// ACK alone.
pub const ACK: u8 = tcp::ACK;

const TCP_BYTES: u8 = 20;
const HOPS: u8 = 64;

/// A frame from a MAC address with a segment of these flags; `None` if the addresses are of two IP versions. The checksums
/// are left out: no network sees it, and the programs do not look at them.
pub fn frame(source_mac: [u8; 6], source: SocketAddr, destination: SocketAddr, flags: u8) -> Option<Vec<u8>> {
    let mut frame = vec![0; 6];
    frame.extend(source_mac);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(ethertype::IPV4.to_be_bytes());
            frame.extend([0x45, 0, 0, 20 + TCP_BYTES, 0, 0, 0, 0, HOPS, TCP, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend(ethertype::IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0, 0, TCP_BYTES, TCP, HOPS]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => return None,
    }
    frame.extend(source.port().to_be_bytes());
    frame.extend(destination.port().to_be_bytes());
    // Sequence and acknowledgement numbers, the header's length in words, flags, window, checksum, urgent pointer.
    frame.extend([0; 8]);
    frame.extend([(TCP_BYTES / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::bytes::Bytes;
    use portcullis_common::packet::{Parsed, parse_ipv4, parse_ipv6};

    fn says<A>(parsed: &Parsed<A>) -> (u8, u8, u16, u16) {
        (parsed.protocol, parsed.tcp_flags, parsed.source_port, parsed.destination_port)
    }

    #[test]
    fn the_parser_reads_what_was_meant() {
        let [a, b] = ["10.0.0.2:4000", "10.0.0.3:80"].map(|text| text.parse().unwrap());
        let built = frame([2; 6], a, b, SYN).unwrap();
        let parsed = parse_ipv4(&Bytes::whole(&built)).unwrap();
        assert_eq!(says(&parsed), (6, SYN, 4000, 80));
        assert_eq!(parsed.source.to_ne_bytes(), [10, 0, 0, 2]);
        assert_eq!(parsed.destination.to_ne_bytes(), [10, 0, 0, 3]);
        assert_eq!(built[6..12], [2; 6]);

        let [a6, b6] = ["[fd00::2]:4000", "[fd00::3]:80"].map(|text| text.parse().unwrap());
        let built = frame([2; 6], a6, b6, SYN_ACK).unwrap();
        let parsed = parse_ipv6(&Bytes::whole(&built)).unwrap();
        assert_eq!(says(&parsed), (6, SYN_ACK, 4000, 80));
        assert_eq!((parsed.source.to_bytes()[15], parsed.destination.to_bytes()[15]), (2, 3));
        assert_eq!(frame([2; 6], a, b6, SYN), None);
    }
}
