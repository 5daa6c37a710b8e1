//! What the fuzzers run, and what is replayed of what they found.

use std::cell::RefCell;

use portcullis_common::Direction;
use portcullis_common::bytes::Bytes;
use portcullis_common::packet::{
    FragmentPart, Parsed, parse_ipv4, parse_ipv4_direct, parse_ipv6, parse_ipv6_direct,
};

use crate::model::Model;
use crate::reading::read;
use crate::{Host, shop};

/// Shortest frame.
const ETHERNET: usize = 14;

/// A target by its name.
pub fn named(name: &str) -> fn(&[u8]) {
    match name {
        "parser" => parser,
        "walk" => walk,
        _ => panic!("no target is called `{name}`"),
    }
}

/// The names of the targets.
pub const NAMES: [&str; 2] = ["parser", "walk"];

/// A byte that says how much of the packet is linear, and the packet. Both ways of parsing agree, however much is linear,
/// and what is parsed is what the second parser reads.
pub fn parser(data: &[u8]) {
    let Some((&linear, frame)) = data.split_first() else { return };
    if frame.len() < ETHERNET {
        return;
    }
    let whole = Bytes::whole(frame);
    let linear = if linear == 0 { frame.len() } else { usize::from(linear).min(frame.len()) };
    let packet = Bytes { bytes: frame, linear };
    let [v4, v6] = [parse_ipv4(&packet).map(of), parse_ipv6(&packet).map(of)];
    assert_eq!(v4, parse_ipv4(&whole).map(of), "what is linear plays no part");
    assert_eq!(v6, parse_ipv6(&whole).map(of), "what is linear plays no part");
    if let Some(direct) = parse_ipv4_direct(&packet) {
        assert_eq!(Ok(of(direct)), v4);
    }
    if let Some(direct) = parse_ipv6_direct(&packet) {
        assert_eq!(Ok(of(direct)), v6);
    }
    for (version, parsed) in [(4, v4), (6, v6)] {
        let Ok(parsed) = parsed else { continue };
        let Some(ip) = read(version, &frame[ETHERNET..], false) else { panic!("parsed, and is no packet") };
        assert_eq!(parsed.fragment == FragmentPart::Later, ip.fragment.is_some_and(|(_, offset)| offset > 0));
        assert_eq!(parsed.fragment == FragmentPart::Whole, ip.fragment.is_none());
    }
}

/// The parts of a parsed packet that can be compared across versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    fragment: FragmentPart,
    fragment_id: u32,
    ports: (u16, u16),
    protocol: u8,
    tcp_flags: u8,
    icmp: u8,
}

fn of<A: Copy>(packet: Parsed<A>) -> Found {
    Found {
        fragment: packet.fragment,
        fragment_id: packet.fragment_id,
        ports: (packet.source_port, packet.destination_port),
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        icmp: packet.icmp as u8,
    }
}

/// Packets one after the other, each behind a byte that says the hook and the interface that it came in by, one that says
/// how much of it is linear, and one with its length. None panics; what is refused leaves no flow and is counted once;
/// what passes may pass by the model's rules.
pub fn walk(data: &[u8]) {
    SUBJECT.with_borrow_mut(|(host, model)| {
        host.forget();
        model.forget();
        for (how, linear, frame) in packets(data) {
            let hook = if how & 1 == 0 { Direction::Egress } else { Direction::Ingress };
            let ingress = [99, 0, 1, 99][usize::from(how >> 1 & 3)];
            let linear = if linear == 0 { frame.len() } else { usize::from(linear).min(frame.len()) };
            let (flows, dropped) = (host.flow_count(), host.dropped());
            let passed = host.run_bytes(hook, &Bytes { bytes: frame, linear }, ingress);
            assert_eq!(host.dropped() - dropped, u64::from(!passed));
            assert!(passed || host.flow_count() == flows, "refused, and left a flow");
            assert!(model.may_pass(hook, frame, ingress, passed) || !passed, "passed and must not");
        }
    });
}

thread_local! {
    /// Made once: an input takes less time than the maps.
    static SUBJECT: RefCell<(Host, Model)> =
        RefCell::new((Host::new(shop::tables(), Some(shop::endpoint())), Model::new(shop::rules())));
}

/// The packets of an input of [`walk`].
fn packets(mut data: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    std::iter::from_fn(move || {
        let ([how, linear, length], rest) = data.split_first_chunk()?;
        let (frame, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        (frame.len() >= ETHERNET).then_some((*how, *linear, frame))
    })
}

/// Adds a packet to an input of [`walk`]; `false` if it is too long for one.
pub fn append(input: &mut Vec<u8>, hook: Direction, frame: &[u8]) -> bool {
    let Ok(length) = u8::try_from(frame.len()) else { return false };
    input.extend([u8::from(hook == Direction::Ingress), 0, length]);
    input.extend(frame);
    true
}
