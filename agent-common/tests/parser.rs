//! The parser on the host: what it reads, what it refuses, and that both of its ways read the same.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests: a failure is a panic")]
#![allow(clippy::cast_possible_truncation, reason = "bytes of headers")]

use portcullis_common::abi::Addr6;
use portcullis_common::bytes::Bytes;
use portcullis_common::packet::{
    FragmentPart, IcmpRole, Parsed, parse_ipv4, parse_ipv4_direct, parse_ipv6, parse_ipv6_direct,
};
use portcullis_common::reason::Reason;

fn whole(bytes: &[u8]) -> Bytes<'_> {
    Bytes::whole(bytes)
}

fn ethernet(kind: [u8; 2]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(kind);
    frame
}

fn ipv4(protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet([8, 0]);
    let header = 20 + options;
    let mut ip = vec![0u8; header];
    ip[0] = 0x40 | u8::try_from(header / 4).unwrap();
    ip[2..4].copy_from_slice(&u16::try_from(header + payload.len()).unwrap().to_be_bytes());
    ip[4..6].copy_from_slice(&[0x12, 0x34]);
    ip[6..8].copy_from_slice(&fragment.to_be_bytes());
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&[10, 0, 0, 2]);
    ip[16..20].copy_from_slice(&[10, 0, 0, 3]);
    frame.extend(ip);
    frame.extend(payload);
    frame
}

/// Extension headers: type and content from the third byte on; padded to eight bytes.
fn ipv6(extensions: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, (kind, rest)) in extensions.iter().enumerate() {
        let next = extensions.get(index + 1).map_or(protocol, |(next, _)| *next);
        let mut header = vec![next, 0];
        header.extend(*rest);
        header.resize(header.len().next_multiple_of(8), 0);
        header[1] = match kind {
            44 => 0,
            51 => u8::try_from(header.len() / 4 - 2).unwrap(),
            _ => u8::try_from(header.len() / 8 - 1).unwrap(),
        };
        body.extend(header);
    }
    body.extend(payload);
    let mut frame = ethernet([0x86, 0xdd]);
    let mut ip = vec![0u8; 40];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    ip[6] = extensions.first().map_or(protocol, |(kind, _)| *kind);
    ip[8] = 0xfd;
    ip[23] = 2;
    ip[24] = 0xfd;
    ip[39] = 3;
    frame.extend(ip);
    frame.extend(body);
    frame
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0u8; 20];
    header[..4].copy_from_slice(&[0x0f, 0xa0, 0, 80]);
    header[12] = 0x50;
    header[13] = flags;
    header
}

const UDP: [u8; 8] = [0x0f, 0xa0, 0, 53, 0, 8, 0, 0];

#[test]
fn addresses_ports_and_flags_are_read_with_and_without_options() {
    for options in [0, 4, 40] {
        let packet = parse_ipv4(&whole(&ipv4(6, options, 0, &tcp(0x12)))).unwrap();
        assert_eq!(packet.source.to_ne_bytes(), [10, 0, 0, 2]);
        assert_eq!(packet.destination.to_ne_bytes(), [10, 0, 0, 3]);
        assert_eq!((packet.source_port, packet.destination_port, packet.tcp_flags), (4000, 80, 0x12));
        assert_eq!((packet.protocol, packet.fragment), (6, FragmentPart::Whole));
    }
    let packet = parse_ipv6(&whole(&ipv6(&[], 17, &UDP))).unwrap();
    assert_eq!((packet.source_port, packet.destination_port), (4000, 53));
    assert_eq!(packet.source.to_bytes()[15], 2);
}

#[test]
fn extension_headers_are_followed_up_to_the_bound_and_not_beyond() {
    let chain = |count| vec![(60u8, &[0u8; 6][..]); count];
    for count in 0..=8 {
        let packet = parse_ipv6(&whole(&ipv6(&chain(count), 17, &UDP))).unwrap();
        assert_eq!(packet.destination_port, 53, "{count} headers");
    }
    assert_eq!(parse_ipv6(&whole(&ipv6(&chain(9), 17, &UDP))), Err(Reason::TooManyHeaders));
    let mixed: [(u8, &[u8]); 4] = [(0, &[0; 14]), (43, &[0; 6]), (51, &[0; 22]), (135, &[0; 6])];
    assert_eq!(parse_ipv6(&whole(&ipv6(&mixed, 6, &tcp(2)))).unwrap().destination_port, 80);
    let lying: [(u8, &[u8]); 1] = [(60, &[0; 6])];
    let mut frame = ipv6(&lying, 17, &UDP);
    frame[14 + 41] = 200; // the header claims to be longer than the packet
    assert_eq!(parse_ipv6(&whole(&frame)), Err(Reason::Truncated));
}

#[test]
fn fragments_are_told_apart_and_tiny_or_overlapping_ones_refused() {
    let first = parse_ipv4(&whole(&ipv4(17, 0, 0x2000, &UDP))).unwrap();
    assert_eq!(
        (first.fragment, first.fragment_id, first.destination_port),
        (FragmentPart::First, 0x1234, 53)
    );
    let later = parse_ipv4(&whole(&ipv4(17, 0, 0x0010, &[0; 8]))).unwrap();
    assert_eq!((later.fragment, later.destination_port), (FragmentPart::Later, 0));
    assert_eq!(parse_ipv4(&whole(&ipv4(6, 0, 0x2000, &tcp(2)[..16]))), Err(Reason::FragmentTiny));
    assert_eq!(parse_ipv4(&whole(&ipv4(6, 0, 0x0001, &[0; 32]))), Err(Reason::FragmentTiny));
    let at = |offset: u16, more: u8| [(44u8, [(offset >> 5) as u8, (offset << 3) as u8 | more, 0, 0, 0, 7])];
    for (offset, more, part) in
        [(0, 1, FragmentPart::First), (9, 0, FragmentPart::Later), (0, 0, FragmentPart::Whole)]
    {
        let header = at(offset, more);
        let packet = parse_ipv6(&whole(&ipv6(&[(44, &header[0].1)], 17, &UDP))).unwrap();
        assert_eq!(packet.fragment, part, "offset {offset}, more {more}");
    }
}

#[test]
fn icmp_errors_read_as_a_packet_of_the_flow_that_goes_their_way() {
    // 10.0.0.3 had sent UDP 53 -> 4000 to 10.0.0.9; a router at 10.0.0.2 answers to it.
    let mut inner = ipv4(17, 0, 0, &[0, 53, 0x0f, 0xa0, 0, 8, 0, 0])[14..].to_vec();
    inner[12..16].copy_from_slice(&[10, 0, 0, 3]);
    inner[16..20].copy_from_slice(&[10, 0, 0, 9]);
    let error = |inner: &[u8]| [&[3, 4, 0, 0, 0, 0, 5, 0][..], inner].concat();
    let packet = parse_ipv4(&whole(&ipv4(1, 0, 0, &error(&inner)))).unwrap();
    assert_eq!(packet.icmp, IcmpRole::Error);
    assert_eq!(packet.source.to_ne_bytes(), [10, 0, 0, 9], "from the other end of the flow");
    assert_eq!((packet.source_port, packet.destination_port, packet.protocol), (4000, 53, 17));
    inner[12..16].copy_from_slice(&[10, 0, 0, 8]);
    assert_eq!(
        parse_ipv4(&whole(&ipv4(1, 0, 0, &error(&inner)))),
        Err(Reason::ForbiddenIcmp),
        "about somebody else"
    );
}

#[test]
fn a_packet_cut_at_any_length_is_refused() {
    let full =
        [ipv4(6, 8, 0, &tcp(2)), ipv4(17, 0, 0, &UDP), ipv4(132, 0, 0, &[0; 12]), ipv4(1, 0, 0, &[8; 8])];
    for frame in full {
        assert!(parse_ipv4(&whole(&frame)).is_ok());
        for length in 14..frame.len() {
            assert_eq!(parse_ipv4(&whole(&frame[..length])), Err(Reason::Truncated), "{length} bytes");
            assert_eq!(parse_ipv4_direct(&whole(&frame[..length])), None, "{length} bytes");
        }
    }
    let frame = ipv6(&[(60, &[0; 6])], 6, &tcp(2));
    for length in 14..frame.len() {
        assert_eq!(parse_ipv6(&whole(&frame[..length])), Err(Reason::Truncated), "{length} bytes");
    }
    let short = ipv4(6, 0, 0, &tcp(2)[..18]);
    assert_eq!(parse_ipv4(&whole(&short)), Err(Reason::Truncated), "whole, and still no TCP header");
}

/// xorshift64*: the same packets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap()
    }
}

/// Direct access may give up, but where it reads a packet it reads what the full parser reads.
fn agree<A: PartialEq + std::fmt::Debug>(
    direct: Option<Parsed<A>>,
    full: &Result<Parsed<A>, Reason>,
    frame: &[u8],
) {
    if let Some(direct) = direct {
        assert_eq!(&Ok(direct), full, "{frame:02x?}");
    }
}

#[test]
fn both_ways_of_parsing_agree_on_mutated_packets_and_neither_panics() {
    let seeds = [
        ipv4(6, 0, 0, &tcp(0x10)),
        ipv4(17, 0, 0, &UDP),
        ipv4(6, 12, 0, &tcp(2)),
        ipv4(17, 0, 0x2000, &UDP),
        ipv4(1, 0, 0, &[&[3, 1, 0, 0, 0, 0, 0, 0][..], &ipv4(17, 0, 0, &UDP)[14..]].concat()),
        ipv6(&[], 6, &tcp(0x10)),
        ipv6(&[], 17, &UDP),
        ipv6(&[(0, &[0; 6]), (44, &[0, 1, 0, 0, 0, 9]), (60, &[0; 14])], 17, &UDP),
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut direct_ones = 0;
    for _ in 0..300_000 {
        let mut frame = seeds[random.next() % seeds.len()].clone();
        for _ in 0..random.next() % 4 {
            let at = 14 + random.next() % (frame.len() - 14);
            frame[at] = u8::try_from(random.next() % 256).unwrap();
        }
        if random.next().is_multiple_of(4) {
            frame.truncate(14 + random.next() % (frame.len() - 13));
        }
        let linear =
            if random.next().is_multiple_of(3) { random.next() % (frame.len() + 1) } else { frame.len() };
        let packet = Bytes { bytes: &frame, linear };
        let v4: Option<Parsed<u32>> = parse_ipv4_direct(&packet);
        let v6: Option<Parsed<Addr6>> = parse_ipv6_direct(&packet);
        direct_ones += u32::from(v4.is_some()) + u32::from(v6.is_some());
        agree(v4, &parse_ipv4(&packet), &frame);
        agree(v6, &parse_ipv6(&packet), &frame);
    }
    assert!(direct_ones > 50_000, "only {direct_ones} packets were read directly");
}
