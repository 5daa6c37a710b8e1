//! Packets through the loaded programs, where more happens than a sequence of packets: changes of policy, mode and endpoints.
//! Single packets are in the golden table (`tests/data/packets.yaml`).

use std::net::Ipv6Addr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::MapData;
use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::datapath::{DatapathError, EndpointSpec, HookState, Pins, Reader, sys};
use portcullis_common::abi::{ENDPOINT_PROBES, ENDPOINT_SLOTS, Mode, names};
use portcullis_common::flow::timeout;
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};
use portcullis_tests::eventually_within;
use portcullis_tests::fixture::{
    API, Fixture, INTRUDER, SUBJECT, WEB, always, endpoint, only, rows, with_fixture,
};
use portcullis_tests::packets::{POD_MAC, Packet, arp, flags};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
const HOST: u32 = Kind::Host as u32;

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
fn a_flow_that_was_idle_for_longer_than_its_time_out_counts_as_absent() {
    with_fixture(|f| {
        for (pod, web) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
            let sent = |flags| Packet::tcp(pod, 4000, web, 80, flags);
            let answer = |flags| Packet::tcp(web, 80, pod, 4000, flags);
            let asked = Packet::udp(pod, 4000, web, 80);
            let answered = Packet::udp(web, 80, pod, 4000);
            let open = |f: &mut Fixture| {
                assert!(f.sends(&sent(flags::SYN)) && f.receives(&answer(flags::SYN | flags::ACK)));
                assert!(f.sends(&sent(flags::ACK)) && f.sends(&asked) && f.receives(&answered));
            };
            open(f);
            // A minute less than each has.
            f.age(timeout::UDP - 60);
            assert!(f.receives(&answered), "{web}");
            f.age(timeout::TCP - timeout::UDP);
            assert!(f.receives(&answer(flags::ACK)), "{web}");
            assert!(!f.receives(&answered), "{web}");

            let dropped = |f: &Fixture| [EGRESS, INGRESS].map(|hook| f.drops(Reason::NoFlow, hook));
            let before = dropped(f);
            f.age(timeout::TCP + 1);
            assert!(!f.sends(&sent(flags::ACK)) && !f.receives(&answer(flags::ACK)), "{web}");
            assert_eq!(dropped(f), before.map(|count| count + 1), "{web}");
            // What was forbidden meanwhile, too: there is nothing that could be judged the way it was opened.
            open(f);
            f.age(timeout::TCP + 1);
            f.revise();
            assert!(!f.receives(&answer(flags::ACK)), "{web}");
            assert_eq!(dropped(f)[1], before[1] + 2, "{web}");
        }
    });
}

#[test]
fn an_entry_that_another_key_owns_by_now_is_not_used() {
    with_fixture(|f| {
        for (pod, web) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
            let sent = |flags| Packet::tcp(pod, 4000, web, 80, flags);
            let part = |offset, more| Packet::udp(pod, 4000, web, 80).data(32).fragment(offset, more, 7);
            assert!(f.sends(&sent(flags::SYN)) && f.sends(&sent(flags::ACK)), "{web}");
            assert!(f.sends(&part(0, true)) && f.sends(&part(5, false)), "{web}");
            let dropped =
                |f: &Fixture| [Reason::NoFlow, Reason::FragmentUnknown].map(|reason| f.drops(reason, EGRESS));
            let before = dropped(f);
            f.reuse_entries();
            assert!(!f.sends(&sent(flags::ACK)) && !f.sends(&part(5, false)), "{web}");
            assert_eq!(dropped(f), before.map(|count| count + 1), "{web}");
        }
    });
}

#[test]
fn a_conversation_that_is_forbidden_now_is_no_obstacle_to_one_that_the_other_side_may_open() {
    with_fixture(|f| {
        let sent = Packet::udp("10.0.0.2", 80, "10.0.0.3", 80);
        let heard = Packet::udp("10.0.0.3", 80, "10.0.0.2", 80);
        assert!(f.sends(&sent) && f.receives(&heard));
        // From now on only the other side may begin.
        let mut others = (*rows(Verdict::Deny, &always(Verdict::Allow))).clone();
        others.insert((EGRESS, WEB), always(Verdict::Deny));
        f.desired.subjects.insert(SUBJECT, others.into());
        f.apply();
        assert!(!f.receives(&heard), "it belongs to what the pod began");
        assert_eq!(f.counters(API, WEB, EGRESS).decisions, [1, 1, 0]);
        // Long before the old one would be forgotten for its silence.
        let anew = eventually_within(Duration::from_secs(20), "the clock to tick", || f.receives(&heard));
        anew.expect("a new conversation");
        assert_eq!(f.counters(WEB, API, INGRESS).decisions[0], 1);
        assert!(f.sends(&sent), "an answer");
    });
}

#[test]
fn a_flow_that_finds_no_table_is_denied_with_its_reason() {
    with_fixture(|f| {
        let syn = Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::SYN);
        let syn6 = Packet::tcp("fd00::2", 4000, "fd00::3", 80, flags::SYN);
        assert!(f.sends(&syn) && f.sends(&syn6));
        for name in [names::FLOWS4, names::FLOWS6] {
            let outer = MapData::from_pin(Pins::new(f.folder()).map(name)).expect("the map of tables");
            sys::delete_element(outer.fd().as_fd(), 1).expect("the endpoint's table");
        }
        assert!(!f.sends(&syn) && !f.sends(&syn6));
        assert_eq!(f.drops(Reason::FlowTable, EGRESS), 2);
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
        // No endpoint any more, whether it has a slot or not: the programs go, and at once. They would drop everything.
        assert!(apply(f, &[]).is_empty());
        for direction in [INGRESS, EGRESS] {
            assert_eq!(f.datapath.hook_state(1, direction), HookState::Missing);
        }
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

#[test]
fn a_pod_puts_nothing_into_a_tunnel_of_the_nodes() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Allow, &always(Verdict::Allow)));
        f.apply();
        // This node, another one, and where nodes listen as well.
        let to_nodes = |port| {
            let v4 = ["10.0.0.1", "10.0.9.1", "255.255.255.255", "224.0.0.1", "10.0.0.255"];
            let v6 = ["fd00::1", "ff02::1", "fd00::"];
            let v4 = v4.map(|node| Packet::udp("10.0.0.2", 4000, node, port));
            v4.into_iter().chain(v6.map(|node| Packet::udp("fd00::2", 4000, node, port))).collect::<Vec<_>>()
        };
        let passing = |f: &mut Fixture, port| to_nodes(port).iter().filter(|packet| f.sends(packet)).count();
        assert_eq!((passing(f, 8472), passing(f, 4789)), (8, 8), "nobody has a tunnel there");
        f.datapath.set_tunnels(&[4789, 8472].into());
        f.apply();
        assert_eq!((passing(f, 8472), passing(f, 4789)), (0, 0), "also where a flow was open");
        assert_eq!(f.drops(Reason::Encapsulation, EGRESS), 16);
        assert_eq!(f.counters(API, HOST, EGRESS).decisions[1], 4);
        assert_eq!(passing(f, 8473), 8);
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.1", 8472, flags::SYN)), "TCP carries none");
        assert!(f.sends(&Packet::udp("10.0.0.2", 4000, "10.0.0.3", 8472)), "a pod is no node");
        // More than fit: any port may be one.
        f.datapath.set_tunnels(&(1..=9).collect());
        f.apply();
        assert_eq!(passing(f, 8473), 0);
        f.datapath.set_tunnels(&[].into());
        f.apply();
        assert_eq!(passing(f, 8472), 8);
    });
}

#[test]
fn a_pod_tells_its_neighbours_of_its_own_addresses_only() {
    with_fixture(|f| {
        let sends = |f: &mut Fixture, frame: &[u8]| f.run_with(EGRESS, frame, ProbeMetadata::default());
        assert!(
            sends(f, &arp(POD_MAC, [10, 0, 0, 2].into())) && sends(f, &arp(POD_MAC, [0, 0, 0, 0].into())),
            "its own, a probe"
        );
        for (mac, sender) in [(POD_MAC, [10, 0, 0, 3]), (POD_MAC, [10, 0, 0, 1]), ([2; 6], [10, 0, 0, 2])] {
            assert!(!sends(f, &arp(mac, sender.into())), "{sender:?}");
        }
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 3);
        let whole = arp(POD_MAC, [10, 0, 0, 2].into());
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
