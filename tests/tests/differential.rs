//! The loaded programs against the same walk on the host: packets of every kind, mutated, in both directions, with the
//! flows that the former ones left. Not one may pass here and be dropped there.

#![allow(clippy::unwrap_used, reason = "tests: a failure is a panic")]

use std::net::IpAddr;

use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::policy::Desired;
use portcullis_checks::random::Random;
use portcullis_common::identity::identity_flags;
use portcullis_common::{Direction, Identity, Kind, Reason};
use portcullis_tests::fixture::{INTRUDER, SERVICE_PEER, WEB, add_frontend, with_fixture};
use portcullis_tests::host::host;
use portcullis_tests::packets::{Packet, flags};

const ADDRESSES4: &[&str] = &[
    "10.0.0.2",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.1",
    "10.0.9.1",
    "8.8.8.8",
    "224.0.0.22",
    "10.96.0.1",
    "10.96.0.2",
    "192.0.2.7",
];
const ADDRESSES6: &[&str] = &[
    "fd00::2",
    "fd00::2",
    "fd00::3",
    "fd00::4",
    "fd00::1",
    "2001:db8::1",
    "fe80::1",
    "ff02::1",
    "fd96::1",
    "fd96::2",
];
const PORTS: &[u16] = &[80, 81, 4000, 8000, 8010, 8011];

/// Services with endpoints of every sort, drawn by chance.
fn add_services(desired: &mut Desired, random: &mut Random) {
    for address in ["10.96.0.1", "10.96.0.2", "192.0.2.7", "fd96::1", "fd96::2", "0.0.0.0", "::", "10.0.0.1"]
    {
        for &port in PORTS {
            for protocol in [6, 17, 132] {
                if random.one_in(3) {
                    continue;
                }
                let backends: Vec<_> = (0..random.below(9))
                    .map(|_| {
                        let principal = [WEB, WEB, WEB, INTRUDER, Kind::World as u32, Kind::Host as u32];
                        let principal = random.of(&principal);
                        (principal, random.of(PORTS), random.one_in(2))
                    })
                    .collect();
                add_frontend(desired, address, protocol, port, &backends);
            }
        }
    }
    for address in ["192.0.2.7", "fd96::2"] {
        let identity = desired.ipcache.get_mut(&address.parse::<IpAddr>().unwrap()).unwrap();
        identity.flags = identity_flags::BORROWED;
    }
    let range = Identity::new(Kind::Service.principal(), SERVICE_PEER, Kind::Service);
    desired.cidrs.insert("10.96.0.0/16".parse().unwrap(), range);
}

fn packet(random: &mut Random, hook: Direction) -> Packet {
    let addresses = if random.one_in(2) { ADDRESSES4 } else { ADDRESSES6 };
    let (mut from, mut to) = (random.of(addresses), random.of(addresses));
    // Mostly packets that may be this pod's; the first address is its.
    if !random.one_in(8) {
        *if hook == Direction::Egress { &mut from } else { &mut to } = addresses[0];
    }
    let (sport, dport) = (random.of(PORTS), random.of(PORTS));
    let flag_sets = [flags::SYN, flags::SYN | flags::ACK, flags::ACK, flags::FIN | flags::ACK, flags::RST];
    let packet = match random.below(8) {
        0..=2 => Packet::tcp(from, sport, to, dport, random.of(&flag_sets)),
        3 | 4 => Packet::udp(from, sport, to, dport),
        5 => Packet::sctp(from, sport, to, dport),
        6 => Packet::echo(from, to, random.one_in(2), 7),
        _ => {
            let kinds = [1, 2, 3, 5, 11, 130, 133, 134, 135, 136, 137, 143];
            let inner = Packet::udp(to, dport, from, sport).ip();
            Packet::icmp(from, to, random.of(&kinds), 0, [0; 4], &inner)
        }
    };
    let hops = [1, 64, 254, 255];
    let packet = packet.hop_limit(random.of(&hops));
    match random.below(8) {
        0 => packet.options(&[1; 8]).extension(60, &[0; 6]),
        1 => packet.fragment(0, true, 5),
        2 => packet.fragment(40, false, 5),
        _ => packet,
    }
}

/// How many packets; an emulated machine may be told to take fewer.
fn rounds() -> u32 {
    std::env::var("PORTCULLIS_TEST_ROUNDS").map_or(200_000, |rounds| rounds.parse().unwrap())
}

#[test]
fn the_loaded_programs_do_what_the_walk_on_the_host_does() {
    with_fixture(|f| {
        let mut random = Random::new(0);
        add_services(&mut f.desired, &mut random);
        f.apply();
        let host = host(f);
        let (mut passed, mut refused, rounds) = (0u32, 0u32, rounds());
        for round in 0..rounds {
            let hook = if random.one_in(2) { Direction::Egress } else { Direction::Ingress };
            let mut frame = packet(&mut random, hook).bytes();
            let least = if frame[12] == 0x08 { 34 } else { 54 };
            for _ in 0..random.below(8).saturating_sub(5) {
                // Not the ethertype: the kernel's test run wants a whole IP header behind it.
                let at = 14 + random.below(frame.len() - 14);
                frame[at] = random.byte();
            }
            if random.one_in(8) {
                frame.truncate(least + random.below(frame.len() - least + 1));
            }
            let ingress_ifindex = random.of(&[0, 1, 99]);
            let metadata = ProbeMetadata { ingress_ifindex, ifindex: 0 };
            let by_kernel = f.run_with(hook, &frame, metadata);
            let by_host = host.run(hook, &frame, ingress_ifindex);
            assert_eq!(
                by_kernel, by_host,
                "round {round}, {hook}, from interface {ingress_ifindex}: {frame:02x?}"
            );
            if by_kernel { passed += 1 } else { refused += 1 }
        }
        println!("{rounds} packets: {passed} passed, {refused} refused");
        assert!(passed > rounds / 10 && refused > rounds / 10, "{passed} passed, {refused} refused");
        for &reason in Reason::ALL {
            for &direction in Direction::ALL {
                assert_eq!(f.drops(reason, direction), host.drops(reason, direction), "{reason} {direction}");
            }
        }
    });
}
