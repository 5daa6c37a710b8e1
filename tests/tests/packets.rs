//! Packets through the loaded programs: verdict, reason and counters.

use std::net::Ipv6Addr;

use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::datapath::{DatapathError, EndpointSpec, HookState, Reader};
use portcullis_common::abi::{ENDPOINT_PROBES, ENDPOINT_SLOTS, Mode};
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};
use portcullis_tests::eventually;
use portcullis_tests::fixture::{
    API, Fixture, INTRUDER, SUBJECT, WEB, always, endpoint, only, rows, with_fixture,
};
use portcullis_tests::packets::{POD_MAC, Packet, flags};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
const HOST: u32 = Kind::Host as u32;
const WORLD: u32 = Kind::World as u32;

#[test]
fn a_permitted_connection_passes_both_ways_and_counts_for_its_pair() {
    with_fixture(|f| {
        for (pod, web) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
            let before = f.counters(API, WEB, EGRESS);
            assert!(f.sends(&Packet::tcp(pod, 4000, web, 80, flags::SYN)));
            assert!(f.receives(&Packet::tcp(web, 80, pod, 4000, flags::SYN | flags::ACK)));
            assert!(f.sends(&Packet::tcp(pod, 4000, web, 80, flags::ACK)));
            let after = f.counters(API, WEB, EGRESS);
            assert_eq!(after.packets[0] - before.packets[0], 3, "{pod}");
            assert_eq!(after.decisions[0] - before.decisions[0], 1, "{pod}");
            let length = Packet::tcp(pod, 1, web, 1, 0).bytes().len() as u64;
            assert_eq!(after.bytes[0] - before.bytes[0], 3 * length);
            assert_eq!(f.counters(API, WEB, INGRESS).packets, [0; 3]);
        }
    });
}

#[test]
fn a_forbidden_connection_is_dropped_counted_and_leaves_no_flow() {
    with_fixture(|f| {
        for (pod, other) in [("10.0.0.2", "10.0.0.4"), ("fd00::2", "fd00::4")] {
            let before = f.counters(INTRUDER, API, INGRESS);
            assert!(!f.receives(&Packet::tcp(other, 4000, pod, 80, flags::SYN)));
            assert!(!f.receives(&Packet::udp(other, 4000, pod, 80)));
            assert!(!f.receives(&Packet::sctp(other, 4000, pod, 80)));
            assert!(!f.receives(&Packet::echo(other, pod, true, 7)));
            let after = f.counters(INTRUDER, API, INGRESS);
            assert_eq!(after.packets[1] - before.packets[1], 4);
            assert_eq!(after.decisions[1] - before.decisions[1], 4);
            assert_eq!(after.packets[0], 0);
            assert!(
                !f.sends(&Packet::tcp(pod, 80, other, 4000, flags::SYN | flags::ACK)),
                "no flow to answer on"
            );
        }
        assert_eq!(f.drops(Reason::Policy, INGRESS), 8);
        assert_eq!(f.drops(Reason::NoFlow, EGRESS), 2);
    });
}

#[test]
fn ports_are_matched_exactly_by_number_range_and_protocol() {
    with_fixture(|f| {
        let cases = [
            (6, 79, false),
            (6, 80, true),
            (6, 81, false),
            (6, 7999, false),
            (6, 8000, true),
            (6, 8010, true),
            (6, 8011, false),
            (17, 80, true),
            (17, 8000, false),
        ];
        for (protocol, port, allowed) in cases {
            for (pod, web) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
                let packet = if protocol == 6 {
                    Packet::tcp(web, 5000, pod, port, flags::SYN)
                } else {
                    Packet::udp(web, 5000, pod, port)
                };
                assert_eq!(f.receives(&packet), allowed, "protocol {protocol} port {port} {pod}");
            }
        }
        assert!(!f.receives(&Packet::sctp("10.0.0.3", 5000, "10.0.0.2", 80)), "SCTP is not TCP");
        assert!(!f.receives(&Packet::echo("10.0.0.3", "10.0.0.2", true, 1)), "rules with ports have no ICMP");
    });
}

#[test]
fn a_tcp_packet_without_syn_and_without_flow_is_never_guessed() {
    with_fixture(|f| {
        for packet in [flags::ACK, flags::SYN | flags::ACK, flags::RST, flags::FIN | flags::ACK, 0] {
            assert!(!f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, packet)), "flags {packet}");
            assert!(!f.receives(&Packet::tcp("10.0.0.3", 4000, "10.0.0.2", 80, packet)), "flags {packet}");
        }
        assert_eq!((f.drops(Reason::NoFlow, EGRESS), f.drops(Reason::NoFlow, INGRESS)), (5, 5));
    });
}

#[test]
fn a_revoked_permission_cuts_a_connection_at_its_next_packet_from_either_side() {
    with_fixture(|f| {
        for port in [4000, 4001] {
            assert!(f.sends(&Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags::SYN)));
            assert!(f.receives(&Packet::tcp("10.0.0.3", 80, "10.0.0.2", port, flags::SYN | flags::ACK)));
        }
        assert!(f.receives(&Packet::udp("10.0.0.3", 5000, "10.0.0.2", 80)));
        let allowed = f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        assert!(!f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK)));
        assert!(!f.receives(&Packet::tcp("10.0.0.3", 80, "10.0.0.2", 4001, flags::ACK)));
        assert!(
            !f.sends(&Packet::udp("10.0.0.2", 80, "10.0.0.3", 5000)),
            "an answer on a flow that was revoked"
        );
        assert_eq!(f.counters(API, WEB, EGRESS).decisions, [2, 2, 0]);
        assert_eq!(f.counters(WEB, API, INGRESS).decisions, [1, 1, 0]);

        f.desired.subjects.insert(SUBJECT, allowed.unwrap());
        f.apply();
        let goes_on = Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK);
        assert!(
            f.sends(&goes_on),
            "its orientation is still known, so it goes on when it is permitted again"
        );
    });
}

#[test]
fn the_node_reaches_its_own_pods_and_what_is_only_masqueraded_to_it_does_not() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        for (pod, host) in [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")] {
            let probe = Packet::tcp(host, 4000, pod, 8080, flags::SYN);
            assert!(f.run(INGRESS, &probe), "a kubelet probe");
            assert!(f.sends(&Packet::tcp(pod, 8080, host, 4000, flags::SYN | flags::ACK)), "and its answer");
            let forwarded = ProbeMetadata { ingress_ifindex: 99, ifindex: 0 };
            let outside = Packet::tcp(host, 4001, pod, 8080, flags::SYN);
            assert!(!f.run_with(INGRESS, &outside.bytes(), forwarded), "came in by an uplink");
            assert!(!f.sends(&Packet::tcp(pod, 4000, host, 22, flags::SYN)), "the way to the node is judged");
        }
        assert_eq!(f.counters(HOST, API, INGRESS).decisions, [2, 0, 0]);
        assert_eq!(f.counters(WORLD, API, INGRESS).decisions, [0, 2, 0]);
        assert_eq!(f.counters(API, HOST, EGRESS).decisions, [0, 2, 0]);
    });
}

#[test]
fn a_pod_that_reaches_itself_through_the_node_is_itself() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        let hairpin = Packet::tcp("10.0.0.1", 4000, "10.0.0.2", 80, flags::SYN);
        let own_interface = ProbeMetadata { ingress_ifindex: 1, ifindex: 0 };
        assert!(f.run_with(INGRESS, &hairpin.bytes(), own_interface));
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.2", 81, flags::SYN)));
    });
}

#[test]
fn the_source_s_egress_policy_holds_at_the_destination_too() {
    with_fixture(|f| {
        // WEB may be received from, but its own egress rows forbid the pod.
        let web = f.desired.ipcache.get_mut(&"10.0.0.3".parse::<std::net::IpAddr>().unwrap()).unwrap();
        web.subject = 2;
        f.desired.subjects.insert(2, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        assert!(!f.receives(&Packet::tcp("10.0.0.3", 4000, "10.0.0.2", 80, flags::SYN)));
        assert_eq!(
            f.counters(WEB, API, EGRESS).decisions,
            [0, 1, 0],
            "counted as the egress decision that it is"
        );
        assert_eq!(f.counters(WEB, API, INGRESS).decisions, [0, 0, 0]);
    });
}

#[test]
fn a_pod_sends_only_from_its_own_addresses() {
    with_fixture(|f| {
        assert!(!f.sends(&Packet::tcp("10.0.0.3", 1, "10.0.0.4", 80, flags::SYN)));
        assert!(!f.sends(&Packet::tcp("fd00::3", 1, "fd00::4", 80, flags::SYN)));
        assert!(
            !f.sends(&Packet::tcp("10.0.0.2", 1, "10.0.0.3", 80, flags::SYN).from_mac([2, 9, 9, 9, 9, 9]))
        );
        assert!(!f.sends(&Packet::udp("10.0.0.2", 1, "127.0.0.1", 80)));
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 4);
        assert!(!f.receives(&Packet::tcp("10.0.0.3", 1, "10.0.0.9", 80, flags::SYN)));
        assert_eq!(f.drops(Reason::NotForPod, INGRESS), 1);
        assert_eq!(f.counters(WEB, INTRUDER, EGRESS).packets, [0; 3]);
    });
}

#[test]
fn arp_and_neighbour_discovery_pass_and_router_messages_of_a_pod_do_not() {
    with_fixture(|f| {
        let arp = arp(POD_MAC, [10, 0, 0, 2]);
        assert!(f.run_with(EGRESS, &arp, ProbeMetadata::default()));
        assert!(f.run_with(INGRESS, &arp, ProbeMetadata::default()));
        for (kind, hops) in [(133, 255), (135, 255), (136, 255), (143, 1)] {
            let packet = Packet::icmp("fe80::1", "ff02::1", kind, 0, [0; 4], &[0; 16]).hop_limit(hops);
            assert!(f.sends(&packet), "ICMPv6 {kind}");
            assert!(f.receives(&packet), "ICMPv6 {kind}");
        }
        let unspecified = Packet::icmp("::", "ff02::1:ff00:2", 135, 0, [0; 4], &[0; 16]);
        assert!(f.sends(&unspecified), "duplicate address detection");
        for kind in [134, 137] {
            assert!(
                !f.sends(&Packet::icmp("fe80::1", "ff02::1", kind, 0, [0; 4], &[0; 16])),
                "ICMPv6 {kind}"
            );
        }
        assert!(!f.sends(&Packet::icmp("10.0.0.2", "10.0.0.3", 5, 0, [0; 4], &[0; 28])), "a redirect");
        assert_eq!(f.drops(Reason::ForbiddenIcmp, EGRESS), 3);
    });
}

/// An ARP request of a sender, for the gateway.
fn arp(mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut arp = vec![0xff; 6];
    arp.extend(POD_MAC);
    arp.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    arp.extend(mac);
    arp.extend(sender);
    arp.extend([0; 6]);
    arp.extend([10, 0, 0, 1]);
    arp
}

#[test]
fn a_pod_tells_its_neighbours_of_its_own_addresses_only() {
    with_fixture(|f| {
        let sends = |f: &mut Fixture, frame: &[u8]| f.run_with(EGRESS, frame, ProbeMetadata::default());
        assert!(
            sends(f, &arp(POD_MAC, [10, 0, 0, 2])) && sends(f, &arp(POD_MAC, [0, 0, 0, 0])),
            "its own, a probe"
        );
        for (mac, sender) in [(POD_MAC, [10, 0, 0, 3]), (POD_MAC, [10, 0, 0, 1]), ([2; 6], [10, 0, 0, 2])] {
            assert!(!sends(f, &arp(mac, sender)), "{sender:?}");
        }
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 3);
        let whole = arp(POD_MAC, [10, 0, 0, 2]);
        for length in 14 + 20..whole.len() {
            assert!(!sends(f, &whole[..length]), "{length} bytes");
        }
        assert_eq!(f.drops(Reason::Truncated, EGRESS), whole.len() as u64 - 34);
        let mut other = whole;
        other[19] = 16; // addresses of another length
        assert!(!sends(f, &other));
        assert_eq!(f.drops(Reason::Malformed, EGRESS), 1);

        // The link-local address of the gateway is the node's.
        f.desired
            .ipcache
            .insert("fe80::1".parse().expect("an address"), Identity::new(HOST, HOST, Kind::Host));
        f.apply();
        let advertises = |source: &str, about: &str| {
            Packet::icmp(
                source,
                "ff02::1",
                136,
                0,
                [0; 4],
                &about.parse::<Ipv6Addr>().expect("an address").octets(),
            )
        };
        assert!(f.sends(&advertises("fd00::2", "fd00::2")));
        assert!(f.sends(&advertises("fe80::2", "fd00::2")) && f.sends(&advertises("fe80::2", "fe80::2")));
        for (source, about) in
            [("fd00::2", "fd00::3"), ("fe80::2", "fd00::3"), ("fd00::2", "fe80::1"), ("fe80::1", "fd00::2")]
        {
            assert!(!f.sends(&advertises(source, about)), "{source} about {about}");
        }
        let asks = Packet::icmp("fe80::1", "ff02::1:ff00:3", 135, 0, [0; 4], &[0; 16]);
        assert!(!f.sends(&asks), "a question tells where its sender is, too");
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 3 + 5);
        assert!(
            !f.sends(&Packet::icmp("fe80::2", "ff02::1", 136, 0, [0; 4], &[0; 15])),
            "it ends in the address"
        );
    });
}

#[test]
fn a_pod_that_routes_forwards_for_the_outside_and_speaks_for_nobody_in_the_cluster() {
    with_fixture(|f| {
        let web = only(&[(6, 80, 80)]);
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Allow, &web));
        f.desired.pods.get_mut("api").expect("the pod").routes = true;
        f.apply();
        let out = |source: &str| Packet::tcp(source, 4000, "10.0.0.3", 80, flags::SYN);
        let back = |to: &str| Packet::tcp("10.0.0.3", 80, to, 4000, flags::SYN | flags::ACK);
        assert!(f.sends(&out("8.8.8.8")) && f.receives(&back("8.8.8.8")), "a client of its network");
        assert!(!f.sends(&Packet::tcp("8.8.8.8", 4000, "10.0.0.3", 81, flags::SYN)), "judged as the pod");
        assert_eq!(f.counters(API, WEB, EGRESS).decisions, [1, 1, 0]);
        assert!(f.receives(&Packet::udp("10.0.0.4", 1, "8.8.4.4", 53)), "what is routed to it");
        f.desired.cidrs.insert("10.0.0.0/24".parse().expect("the pod range"), unmanaged());
        f.apply();
        for source in ["10.0.0.3", "10.0.0.1", "10.0.9.1", "10.0.0.77", "127.0.0.1", "0.0.0.0", "224.0.0.1"] {
            assert!(!f.sends(&out(source)), "{source}");
        }
        assert!(!f.sends(&out("8.8.8.8").from_mac([2; 6])));
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 8);
        assert!(!f.receives(&Packet::udp("10.0.0.4", 1, "10.0.0.3", 53)));
        assert_eq!(f.drops(Reason::NotForPod, INGRESS), 1);
        // Taken back: the flows that it had opened for others end.
        let goes_on = Packet::tcp("8.8.8.8", 4000, "10.0.0.3", 80, flags::ACK);
        assert!(f.sends(&goes_on));
        f.desired.pods.get_mut("api").expect("the pod").routes = false;
        f.apply();
        assert!(!f.sends(&goes_on));
    });
}

/// An address of the pod range that nobody claims.
fn unmanaged() -> Identity {
    Identity::new(Kind::Unmanaged.principal(), 90, Kind::Unmanaged)
}

#[test]
fn what_cannot_be_parsed_is_dropped_with_its_reason_at_every_length() {
    with_fixture(|f| {
        for packet in [
            Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::SYN),
            Packet::udp("10.0.0.2", 4000, "10.0.0.3", 80),
            Packet::tcp("fd00::2", 4000, "fd00::3", 80, flags::SYN),
            Packet::udp("fd00::2", 4000, "fd00::3", 80),
        ] {
            let bytes = packet.bytes();
            assert!(f.run_with(EGRESS, &bytes, ProbeMetadata::default()));
            let before = f.drops(Reason::Truncated, EGRESS);
            // The kernel's test run wants the whole IP header; shorter ones are tried on the host.
            let least = if bytes[12] == 0x08 { 34 } else { 54 };
            for length in least..bytes.len() {
                assert!(!f.run_with(EGRESS, &bytes[..length], ProbeMetadata::default()), "{length} bytes");
            }
            assert_eq!(f.drops(Reason::Truncated, EGRESS) - before, (bytes.len() - least) as u64);
        }
        let mut strange = Packet::udp("10.0.0.2", 1, "10.0.0.3", 80).bytes();
        strange[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert!(!f.run_with(EGRESS, &strange, ProbeMetadata::default()));
        assert_eq!(f.drops(Reason::UnknownEthertype, EGRESS), 1);
        let mut bad = Packet::udp("10.0.0.2", 1, "10.0.0.3", 80).bytes();
        bad[14] = 0x43;
        assert!(!f.run_with(EGRESS, &bad, ProbeMetadata::default()));
        bad[14] = 0x65;
        assert!(!f.run_with(EGRESS, &bad, ProbeMetadata::default()));
        assert_eq!(f.drops(Reason::Malformed, EGRESS), 2);
    });
}

#[test]
fn options_and_extension_headers_do_not_hide_the_ports() {
    with_fixture(|f| {
        let options = [1u8; 8];
        assert!(f.sends(&Packet::udp("10.0.0.2", 1, "10.0.0.3", 80).options(&options)));
        assert!(!f.sends(&Packet::udp("10.0.0.2", 1, "10.0.0.3", 81).options(&options)));
        let v6 =
            |port| Packet::udp("fd00::2", 1, "fd00::3", port).extension(0, &[0; 6]).extension(60, &[0; 22]);
        assert!(f.sends(&v6(80)));
        assert!(!f.sends(&v6(81)));
        let mut many = Packet::udp("fd00::2", 1, "fd00::3", 80);
        for _ in 0..9 {
            many = many.extension(60, &[0; 6]);
        }
        assert!(!f.sends(&many));
        assert_eq!(f.drops(Reason::TooManyHeaders, EGRESS), 1);
    });
}

#[test]
fn later_fragments_follow_their_first_one() {
    with_fixture(|f| {
        for (pod, web) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
            let later = |id| Packet::new(pod, web, 17, vec![0; 32]).fragment(185, false, id);
            assert!(!f.sends(&later(1)), "its first fragment was never seen");
            assert!(f.sends(&Packet::udp(pod, 9, web, 80).fragment(0, true, 2)));
            assert!(f.sends(&later(2)));
            assert!(!f.sends(&Packet::udp(pod, 9, web, 81).fragment(0, true, 3)));
            assert!(!f.sends(&later(3)), "its first fragment was denied");
        }
        let tiny = Packet::new("10.0.0.2", "10.0.0.3", 6, vec![0; 16]).fragment(0, true, 4);
        assert!(!f.sends(&tiny));
        let overlapping = Packet::new("10.0.0.2", "10.0.0.3", 6, vec![0; 16]).fragment(1, true, 5);
        assert!(!f.sends(&overlapping));
        assert_eq!(f.drops(Reason::FragmentTiny, EGRESS), 2);
    });
}

#[test]
fn icmp_errors_pass_only_about_flows_that_exist() {
    with_fixture(|f| {
        let sent = Packet::udp("10.0.0.2", 4000, "10.0.0.3", 80);
        let too_big =
            |inner: &Packet| Packet::icmp("10.0.9.9", "10.0.0.2", 3, 4, [0, 0, 5, 0], &inner.ip()[..28]);
        assert!(!f.receives(&too_big(&sent)), "nothing was sent yet");
        assert!(f.sends(&sent));
        assert!(f.receives(&too_big(&sent)));
        assert!(!f.receives(&too_big(&Packet::udp("10.0.0.2", 4000, "10.0.0.3", 81))));
        let forged = Packet::icmp(
            "10.0.9.9",
            "10.0.0.2",
            3,
            4,
            [0; 4],
            &Packet::udp("10.0.0.9", 1, "10.0.0.3", 80).ip()[..28],
        );
        assert!(!f.receives(&forged), "about a packet of somebody else");

        let sent = Packet::tcp("fd00::2", 4000, "fd00::3", 80, flags::SYN);
        let too_big = Packet::icmp("fd09::9", "fd00::2", 2, 0, [0, 0, 5, 0], &sent.ip());
        assert!(!f.receives(&too_big));
        assert!(f.sends(&sent));
        assert!(f.receives(&too_big));
        assert_eq!(f.drops(Reason::ForbiddenIcmp, INGRESS), 4);
    });
}

#[test]
fn an_echo_is_answered_to_who_asked_and_not_the_other_way() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Allow)));
        f.apply();
        for (pod, web) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
            assert!(!f.receives(&Packet::echo(web, pod, false, 5)), "an answer to nothing");
            assert!(f.sends(&Packet::echo(pod, web, true, 5)));
            assert!(f.receives(&Packet::echo(web, pod, false, 5)));
            assert!(!f.receives(&Packet::echo(web, pod, false, 6)), "another id");
            assert!(!f.sends(&Packet::echo(pod, web, false, 5)), "nobody asked the pod");
        }
    });
}

#[test]
fn audit_passes_and_counts_apart() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Audit, &only(&[(6, 80, 80)])));
        f.apply();
        assert!(f.receives(&Packet::tcp("10.0.0.4", 4000, "10.0.0.2", 80, flags::SYN)));
        assert!(f.sends(&Packet::tcp("10.0.0.2", 80, "10.0.0.4", 4000, flags::SYN | flags::ACK)));
        let counters = f.counters(INTRUDER, API, INGRESS);
        assert_eq!((counters.decisions, counters.packets), ([0, 0, 1], [0, 0, 2]));
    });
}

#[test]
fn the_modes_soften_verdicts_and_a_return_to_enforce_cuts_what_they_let_through() {
    with_fixture(|f| {
        let syn = |port| Packet::tcp("10.0.0.4", port, "10.0.0.2", 80, flags::SYN);
        let ack = |port| Packet::tcp("10.0.0.4", port, "10.0.0.2", 80, flags::ACK);
        assert!(!f.receives(&syn(1)));
        f.apply_with(&[endpoint()], Mode::Audit);
        assert!(f.receives(&syn(2)));
        assert!(f.receives(&ack(2)));
        assert_eq!(f.counters(INTRUDER, API, INGRESS).decisions, [0, 1, 1]);
        f.apply_with(&[endpoint()], Mode::Off);
        assert!(f.receives(&syn(3)));
        f.apply_with(&[endpoint()], Mode::Enforce);
        assert!(!f.receives(&ack(2)));
        assert!(!f.receives(&ack(3)));

        let folder = f.folder().to_owned();
        portcullis::datapath::set_override(&folder, Some(Mode::Off)).unwrap();
        assert!(f.receives(&syn(4)));
        assert!(f.receives(&ack(4)));
        assert!(f.sends(&Packet::tcp("10.0.0.9", 1, "10.0.0.4", 80, flags::SYN)), "off is off");
        assert_eq!(portcullis::datapath::set_override(&folder, None).unwrap(), Some(Mode::Off));
        assert!(!f.receives(&ack(4)), "what the override let through is judged again");
    });
}

#[test]
fn an_unknown_pod_gets_the_verdict_that_was_chosen() {
    with_fixture(|f| {
        let unknown = |verdict| portcullis::datapath::EndpointSpec {
            pod: None,
            addresses: vec!["10.0.0.2".parse().unwrap()],
            unknown: verdict,
            ..endpoint()
        };
        let syn = |port| Packet::tcp("10.0.0.3", port, "10.0.0.2", 80, flags::SYN);
        f.apply_with(&[unknown(Verdict::Deny)], Mode::Enforce);
        assert!(!f.receives(&syn(1)));
        assert!(f.run(INGRESS, &Packet::tcp("10.0.0.1", 1, "10.0.0.2", 80, flags::SYN)), "probes still work");
        assert_eq!(f.drops(Reason::UnknownEndpoint, INGRESS), 1);
        f.apply_with(&[unknown(Verdict::Audit)], Mode::Enforce);
        assert!(f.receives(&syn(2)));
        f.apply();
        assert!(
            f.sends(&Packet::tcp("10.0.0.2", 80, "10.0.0.3", 2, flags::SYN | flags::ACK)),
            "it was tracked"
        );
    });
}

#[test]
fn an_interface_without_an_entry_passes_nothing() {
    with_fixture(|f| {
        f.apply_with(&[], Mode::Enforce);
        assert!(!f.receives(&Packet::tcp("10.0.0.3", 1, "10.0.0.2", 80, flags::SYN)));
        assert_eq!(f.drops(Reason::NoEndpoint, INGRESS), 1);
    });
}

#[test]
fn an_interface_that_finds_no_slot_has_its_programs_and_passes_nothing() {
    with_fixture(|f| {
        let syn = Packet::tcp("10.0.0.3", 1, "10.0.0.2", 80, flags::SYN);
        f.apply_with(&[], Mode::Enforce);
        // Their indexes fall on the same slots, all that the interface may have.
        let mut crowd: Vec<_> = (1..=ENDPOINT_PROBES)
            .map(|i| EndpointSpec { ifindex: 1 + i * ENDPOINT_SLOTS, name: format!("gone{i}"), ..endpoint() })
            .collect();
        crowd.push(endpoint());
        let apply = |f: &mut Fixture, endpoints: &[EndpointSpec]| {
            let applied = f.datapath.apply(&f.desired, endpoints, Mode::Enforce, std::iter::empty());
            applied.expect("the state is applied").errors
        };
        let errors = apply(f, &crowd);
        assert!(matches!(errors[..], [DatapathError::NoSlot { ifindex: 1, .. }]), "{errors:?}");
        for direction in [INGRESS, EGRESS] {
            assert_eq!(f.datapath.hook_state(1, direction), HookState::Attached);
        }
        assert!(!f.receives(&syn));
        assert_eq!(f.drops(Reason::NoEndpoint, INGRESS), 1);
        // The last slot that is tried becomes free.
        crowd.swap_remove(ENDPOINT_PROBES as usize - 1);
        assert!(apply(f, &crowd).is_empty());
        assert!(f.receives(&syn));
        // No endpoint any more, whether it has a slot or not: the programs go.
        assert!(apply(f, &[]).is_empty());
        for direction in [INGRESS, EGRESS] {
            // The kernel lets go of a link a moment after its last pin.
            let off = || f.datapath.hook_state(1, direction) == HookState::Missing;
            eventually("the program to be off", off).expect("it goes");
        }
    });
}

#[test]
fn a_subject_without_rows_is_denied() {
    with_fixture(|f| {
        f.desired.subjects.clear();
        f.apply();
        assert!(!f.receives(&Packet::tcp("10.0.0.3", 1, "10.0.0.2", 80, flags::SYN)));
        assert_eq!(f.drops(Reason::NoPolicy, INGRESS), 1);
    });
}

#[test]
fn an_interface_that_sees_one_direction_only_is_told_from_others() {
    with_fixture(|f| {
        let one_sided = |f: &Fixture| -> Vec<u32> {
            let reader = Reader::open(f.folder()).expect("the maps are there");
            reader.one_sided().expect("the flows are read").into_iter().collect()
        };
        let syn = Packet::tcp("10.0.0.2", 80, "10.0.0.3", 8000, flags::SYN);
        let ack = Packet::tcp("10.0.0.2", 80, "10.0.0.3", 8000, flags::ACK);
        assert!(f.sends(&syn) && f.sends(&syn));
        assert_eq!(one_sided(f), [0; 0], "nobody has answered yet, and nobody pretends so");
        // The answer went past us.
        assert!(f.sends(&ack));
        assert_eq!(one_sided(f), [1]);
        assert!(f.receives(&Packet::tcp("10.0.0.3", 8000, "10.0.0.2", 80, flags::SYN | flags::ACK)));
        assert_eq!(one_sided(f), [0; 0], "it was only late");
    });
}

#[test]
fn a_syn_is_judged_whatever_flow_exists() {
    with_fixture(|f| {
        assert!(f.sends(&Packet::tcp("10.0.0.2", 80, "10.0.0.3", 8000, flags::SYN)));
        assert!(f.receives(&Packet::tcp("10.0.0.3", 8000, "10.0.0.2", 80, flags::SYN | flags::ACK)));
        let before = f.counters(WEB, API, INGRESS).decisions[0];
        assert!(f.receives(&Packet::tcp("10.0.0.3", 8000, "10.0.0.2", 80, flags::SYN)));
        assert_eq!(f.counters(WEB, API, INGRESS).decisions[0], before + 1);
        // And one that is not permitted is dropped although the ports are those of an open flow.
        assert!(f.sends(&Packet::tcp("10.0.0.2", 5000, "10.0.0.3", 8000, flags::SYN)));
        assert!(!f.receives(&Packet::tcp("10.0.0.3", 8000, "10.0.0.2", 5000, flags::SYN)));
        assert!(f.receives(&Packet::tcp("10.0.0.3", 8000, "10.0.0.2", 5000, flags::SYN | flags::ACK)));
    });
}

#[test]
fn a_pod_puts_nothing_into_a_tunnel_of_the_nodes() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Allow, &always(Verdict::Allow)));
        f.apply();
        let to_nodes = |port| {
            [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1"), ("10.0.0.2", "10.0.9.1")]
                .map(|(pod, node)| Packet::udp(pod, 4000, node, port))
        };
        let passing = |f: &mut Fixture, port| to_nodes(port).iter().filter(|packet| f.sends(packet)).count();
        assert_eq!((passing(f, 8472), passing(f, 4789)), (3, 3), "nobody has a tunnel there");
        f.datapath.set_tunnels(&[4789, 8472].into());
        f.apply();
        assert_eq!((passing(f, 8472), passing(f, 4789)), (0, 0), "also where a flow was open");
        assert_eq!(f.drops(Reason::Encapsulation, EGRESS), 6);
        assert_eq!(f.counters(API, HOST, EGRESS).decisions[1], 4);
        assert_eq!(passing(f, 8473), 3);
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.1", 8472, flags::SYN)), "TCP carries none");
        assert!(f.sends(&Packet::udp("10.0.0.2", 4000, "10.0.0.3", 8472)), "a pod is no node");
        // More than fit: any port may be one.
        f.datapath.set_tunnels(&(1..=9).collect());
        f.apply();
        assert_eq!(passing(f, 8473), 0);
        f.datapath.set_tunnels(&[].into());
        f.apply();
        assert_eq!(passing(f, 8472), 3);
    });
}

#[test]
fn what_only_looks_like_a_message_of_the_link_is_judged() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        let icmp6 =
            |from: &str, to: &str, kind, body: usize| Packet::icmp(from, to, kind, 0, [0; 4], &vec![0; body]);
        let igmp = |from: &str, to: &str| Packet::new(from, to, 2, vec![0; 1000]);
        let outwards = [
            igmp("10.0.0.2", "8.8.8.8"),
            igmp("10.0.0.2", "239.1.1.1"), // would be routed
            icmp6("fd00::2", "2001:db8::1", 135, 16),
            icmp6("fd00::2", "ff02::1", 135, 900),
            icmp6("fd00::2", "ff02::1", 135, 16).hop_limit(64),
            icmp6("fd00::2", "fd00::3", 143, 16).hop_limit(1),
            icmp6("fd00::2", "ff02::16", 143, 16).hop_limit(64),
            icmp6("fd00::2", "ff02::1", 135, 16).fragment(0, true, 9),
        ];
        for (index, packet) in outwards.iter().enumerate() {
            assert!(!f.sends(packet), "outwards {index}");
        }
        let inwards = [
            igmp("8.8.8.8", "10.0.0.2"),
            icmp6("2001:db8::1", "fd00::2", 135, 16).hop_limit(64),
            icmp6("fd00::4", "fd00::2", 143, 16).hop_limit(1),
        ];
        for (index, packet) in inwards.iter().enumerate() {
            assert!(!f.receives(packet), "inwards {index}");
        }
        // Redirects and advertisements that no router of this link can have sent.
        let redirect = Packet::icmp("10.0.0.4", "10.0.0.2", 5, 1, [10, 0, 0, 4], &[0; 28]);
        assert!(!f.receives(&redirect));
        assert!(!f.receives(&icmp6("fd00::4", "fd00::2", 137, 32)));
        assert!(!f.receives(&icmp6("fe80::4", "fd00::2", 134, 16).hop_limit(254)));
        assert_eq!(f.drops(Reason::ForbiddenIcmp, INGRESS), 3);
        // What the link needs goes on under the same policy.
        assert!(f.sends(&icmp6("fd00::2", "fd00::1", 135, 16)), "a probe of the gateway's own address");
        let about = "fd00::2".parse::<Ipv6Addr>().expect("an address").octets();
        let answer = Packet::icmp("fd00::2", "fd00::3", 136, 0, [0; 4], &about);
        assert!(f.sends(&answer), "an answer to a neighbour");
        assert!(f.receives(&icmp6("fd00::1", "fd00::2", 136, 16)));
        assert!(f.receives(&icmp6("fe80::1", "ff02::1", 134, 16)));
        assert!(f.sends(&Packet::new("10.0.0.2", "224.0.0.22", 2, vec![0; 16]).hop_limit(1)));
    });
}

#[test]
fn a_packet_with_the_pods_own_source_from_elsewhere_is_not_the_pods() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        for pod in ["10.0.0.2", "fd00::2"] {
            assert!(!f.receives(&Packet::udp(pod, 9, pod, 80)), "by an uplink");
            assert!(!f.run(INGRESS, &Packet::udp(pod, 9, pod, 80)), "made by the node");
            let own_interface = ProbeMetadata { ingress_ifindex: 1, ifindex: 0 };
            assert!(f.run_with(INGRESS, &Packet::udp(pod, 9, pod, 81).bytes(), own_interface), "a hairpin");
        }
        assert_eq!(f.counters(WORLD, API, INGRESS).decisions, [0, 4, 0]);
    });
}

#[test]
fn an_icmp_error_of_a_pod_comes_from_its_own_address() {
    with_fixture(|f| {
        let received = Packet::udp("10.0.0.3", 5000, "10.0.0.2", 80);
        assert!(f.receives(&received));
        let error = |from| Packet::icmp(from, "10.0.0.3", 3, 3, [0; 4], &received.ip()[..28]);
        assert!(f.sends(&error("10.0.0.2")), "port unreachable");
        assert!(!f.sends(&error("99.9.9.9")));
        assert!(!f.sends(&error("127.0.0.1")));
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 2);
    });
}

#[test]
fn fragments_of_an_echo_follow_their_first_one_in_the_direction_of_the_question() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Allow)));
        // WEB may be asked, and may not ask.
        let mut set = (*f.desired.subjects[&SUBJECT]).clone();
        set.insert((INGRESS, WEB), always(Verdict::Deny));
        f.desired.subjects.insert(SUBJECT, std::sync::Arc::new(set));
        f.apply();
        for (pod, web, protocol) in [("10.0.0.2", "10.0.0.3", 1), ("fd00::2", "fd00::3", 58)] {
            let later = |from, to, id| Packet::new(from, to, protocol, vec![0; 64]).fragment(185, false, id);
            assert!(f.sends(&Packet::echo(pod, web, true, 7).fragment(0, true, 1)));
            assert!(f.sends(&later(pod, web, 1)));
            assert!(f.receives(&Packet::echo(web, pod, false, 7).fragment(0, true, 2)));
            assert!(f.receives(&later(web, pod, 2)), "the rest of a large answer");
            assert!(
                !f.receives(&Packet::echo(web, pod, true, 7).fragment(0, true, 3)),
                "a question from there"
            );
            assert!(!f.receives(&later(web, pod, 3)), "and its rest");
        }
    });
}

#[test]
fn connections_older_than_we_go_on_at_a_pod_that_is_audited_until_it_is_known() {
    with_fixture(|f| {
        let unknown = portcullis::datapath::EndpointSpec { pod: None, unknown: Verdict::Audit, ..endpoint() };
        f.apply_with(&[unknown], Mode::Enforce);
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK)));
        assert!(f.receives(&Packet::tcp("10.0.0.3", 80, "10.0.0.2", 4000, flags::ACK)));
        f.apply();
        assert!(
            !f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK)),
            "its orientation is unknown"
        );
    });
}
