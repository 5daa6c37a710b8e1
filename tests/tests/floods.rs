//! Floods: what one pod, or who sends to it, can take from others, and where it ends.

#![allow(clippy::expect_used, reason = "tests: a failure is a panic")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::datapath::{EndpointSpec, Reader, Sizes};
use portcullis::policy::PodIdentity;
use portcullis_common::abi::{ENDPOINT_SLOTS, Mode, config};
use portcullis_common::flow::{state, timeout};
use portcullis_common::fragment;
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};
use portcullis_tests::command::run;
use portcullis_tests::fixture::{
    API, FROM_OUTSIDE, Fixture, SUBJECT, WEB, always, endpoint, nine_places, rows, with_fixture, with_sizes,
};
use portcullis_tests::netns::interface_index;
use portcullis_tests::packets::{Packet, flags};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
/// New flows a second in these tests.
const RATE: u32 = 10;
/// Entries of a flow table in these tests.
const ROOM: u32 = 1024;

/// A SYN of the pod to a server that it may talk with, from a port of its own.
fn syn(port: u16) -> Packet {
    Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags::SYN)
}

/// The server's answer to it.
fn syn_ack(port: u16) -> Packet {
    Packet::tcp("10.0.0.3", 80, "10.0.0.2", port, flags::SYN | flags::ACK)
}

/// How many of these pass, and how many may at most by the time that it took.
fn spray(f: &mut Fixture, direction: Direction, packets: impl Iterator<Item = Packet>) -> (u64, u64) {
    let start = Instant::now();
    let passed = packets.filter(|packet| f.run_with(direction, &packet.bytes(), FROM_OUTSIDE)).count() as u64;
    (passed, (start.elapsed().as_secs() + 2) * u64::from(RATE))
}

#[test]
fn new_flows_that_nobody_answers_are_limited_by_direction_and_dropped_with_their_reason() {
    with_fixture(|f| {
        f.set_config(config::NEW_FLOW_RATE, RATE);
        let (passed, most) = spray(f, EGRESS, (0..5000).map(|i| syn(10_000 + i)));
        assert!(passed >= u64::from(RATE) && passed <= most, "{passed} passed, {most} may");
        assert_eq!(f.drops(Reason::FlowBudget, EGRESS), 5000 - passed);
        // They were permitted and are counted as denied, for their pair.
        assert_eq!(f.counters(API, WEB, EGRESS).decisions, [passed, 5000 - passed, 0]);
        let flows = Reader::open(f.folder()).and_then(|reader| reader.flows(1)).expect("the flows");
        assert_eq!(flows.len() as u64, passed, "what is dropped leaves no flow");
        // What others open towards the pod is not touched by that, and has a limit of its own.
        let opened = (0..5000).map(|i| Packet::udp("10.0.0.3", 10_000 + i, "10.0.0.2", 80));
        let (passed, most) = spray(f, INGRESS, opened);
        assert!(passed >= u64::from(RATE) && passed <= most, "{passed} passed, {most} may");
        assert_eq!(f.drops(Reason::FlowBudget, INGRESS), 5000 - passed);
    });
}

#[test]
fn flows_that_are_answered_are_not_limited() {
    with_fixture(|f| {
        f.set_config(config::NEW_FLOW_RATE, RATE);
        for port in 10_000..12_000 {
            assert!(f.sends(&syn(port)) && f.sends(&syn(port)), "also one that is sent again");
            assert!(f.receives(&syn_ack(port)) && f.receives(&syn_ack(port)));
            let question = Packet::udp("10.0.0.2", port, "10.0.0.3", 80);
            assert!(f.sends(&question));
            assert!(f.receives(&Packet::udp("10.0.0.3", 80, "10.0.0.2", port)));
        }
        assert_eq!(f.drops(Reason::FlowBudget, EGRESS), 0);
        // An answer that is sent twice gives back once.
        let (passed, most) = spray(f, EGRESS, (20_000..25_000).map(syn));
        assert!(passed <= most, "{passed} passed, {most} may");
    });
}

#[test]
fn a_pod_that_resets_its_own_connections_gets_nothing_back() {
    with_fixture(|f| {
        f.set_config(config::NEW_FLOW_RATE, RATE);
        let reset = |port| Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags::RST);
        let both = (10_000..12_500).flat_map(|port| [syn(port), reset(port)]);
        let (passed, most) = spray(f, EGRESS, both);
        assert!(passed <= 2 * most, "{passed} passed, {} may", 2 * most);
    });
}

#[test]
fn a_port_that_answers_by_resets_buys_a_pod_no_more_flows() {
    with_fixture(|f| {
        f.set_config(config::NEW_FLOW_RATE, RATE);
        let start = Instant::now();
        let mut opened = 0;
        for port in 10_000..12_500 {
            opened += u64::from(f.sends(&syn(port)));
            // Over one and the same flow, which is over and begins anew each time.
            f.sends(&syn(4000));
            f.receives(&Packet::tcp("10.0.0.3", 80, "10.0.0.2", 4000, flags::RST | flags::ACK));
        }
        let most = (start.elapsed().as_secs() + 2) * u64::from(RATE);
        assert!(opened >= u64::from(RATE) / 2 && opened <= most, "{opened} opened, {most} may");
    });
}

#[test]
fn what_a_pod_sends_to_itself_by_its_interface_is_limited_as_what_it_sends_to_others() {
    with_fixture(|f| {
        f.set_config(config::NEW_FLOW_RATE, RATE);
        let to_itself =
            (10_000..12_500).map(|port| Packet::tcp("10.0.0.2", port, "10.0.0.2", 80, flags::SYN));
        let (passed, most) = spray(f, EGRESS, to_itself);
        assert!(passed >= u64::from(RATE) && passed <= most, "{passed} passed, {most} may");
        // What came back to it was counted when it left.
        let own = ProbeMetadata { ingress_ifindex: 1, ifindex: 0 };
        for port in 20_000..20_100 {
            let back = Packet::tcp("10.0.0.2", port, "10.0.0.2", 81, flags::SYN);
            assert!(f.run_with(INGRESS, &back.bytes(), own), "port {port}");
        }
    });
}

#[test]
fn every_query_that_conntrack_has_an_entry_of_is_a_flow_of_its_own() {
    with_fixture(|f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Allow, &always(Verdict::Allow)));
        f.apply();
        f.set_config(config::NEW_FLOW_RATE, RATE);
        let (v4, v6) = (("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3"));
        for ((pod, web), kind) in [(v4, 13), (v4, 15), (v4, 17), (v6, 139)] {
            let query = |id: u16| {
                let [high, low] = id.to_be_bytes();
                Packet::icmp(pod, web, kind, 0, [high, low, 0, 0], &[0; 16])
            };
            let (passed, most) = spray(f, EGRESS, (0..2500).map(query));
            assert!(passed <= most, "type {kind}: {passed} passed, {most} may");
        }
        let lite = |port: u16| {
            let [high, low] = port.to_be_bytes();
            Packet::new("10.0.0.2", "10.0.0.3", 136, vec![high, low, 0, 80, 0, 8, 0, 0])
        };
        let (passed, most) = spray(f, EGRESS, (0..2500).map(lite));
        assert!(passed <= most, "UDP-Lite: {passed} passed, {most} may");
    });
}

#[test]
fn the_node_s_probes_and_what_is_only_audited_are_not_limited() {
    with_fixture(|f| {
        f.set_config(config::NEW_FLOW_RATE, RATE);
        for port in 10_000..11_000 {
            let probe = Packet::tcp("10.0.0.1", port, "10.0.0.2", 8080, flags::SYN);
            assert!(f.run(INGRESS, &probe), "probe {port}");
        }
        f.apply_with(&[endpoint()], Mode::Audit);
        let (passed, _) = spray(f, EGRESS, (10_000..11_000).map(syn));
        assert_eq!(passed, 1000, "Audit drops nothing");
        let counted = f.counters(API, WEB, EGRESS).decisions;
        assert!(
            counted[2] > 0 && counted[1] == 0,
            "what would be dropped is counted as audited: {counted:?}"
        );
        assert_eq!(f.drops(Reason::FlowBudget, EGRESS), 0);
    });
}

#[test]
fn a_handshake_that_is_not_finished_is_half_open_and_soon_forgotten() {
    with_fixture(|f| {
        let seconds = |f: &Fixture| {
            let reader = Reader::open(f.folder()).expect("the maps");
            let ticks = reader.ticks_per_second().expect("a word");
            let (_, flow) = reader.flows(1).expect("the flows").pop().expect("one flow");
            (flow.state & state::LIFE, flow.timeout / ticks)
        };
        assert!(f.sends(&syn(4000)));
        assert_eq!(seconds(f), (state::NEW, timeout::TCP_NEW));
        assert!(f.receives(&syn_ack(4000)));
        assert_eq!(seconds(f), (state::HALF_OPEN, timeout::TCP_NEW));
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK)));
        assert_eq!(seconds(f), (state::OPEN, timeout::TCP));
    });
}

#[test]
fn one_endpoint_pushes_out_no_flow_of_another() {
    with_sizes(Sizes { flows_size: ROOM, ..Sizes::default() }, |f| {
        let other = other_endpoint(f);
        let at_other = ProbeMetadata { ifindex: other, ..FROM_OUTSIDE };
        // Idle from here on.
        for port in 1000..1200 {
            let syn = Packet::tcp("10.0.0.3", port, "10.0.0.4", 80, flags::SYN).bytes();
            assert!(f.run_with(EGRESS, &syn, at_other));
        }
        let before = idle_flows(f, other);
        assert!(before.len() == 200, "{} flows", before.len());
        // The pod fills its own tables many times over, from both sides.
        for port in 1000..30_000 {
            assert!(f.sends(&syn(port)));
            assert!(f.receives(&Packet::udp("10.0.0.3", port, "10.0.0.2", 80)));
        }
        assert_eq!(idle_flows(f, other), before);
    });
}

/// A first fragment that the pod sends, and the end of the same datagram.
fn fragments(source: &str, destination: &str, id: u32) -> [Packet; 2] {
    let part = |offset, more| Packet::udp(source, 4000, destination, 80).data(32).fragment(offset, more, id);
    [part(0, true), part(5, false)]
}

#[test]
fn first_fragments_push_out_no_fragment_of_another_endpoint() {
    with_sizes(Sizes { flows_size: ROOM, ..Sizes::default() }, |f| {
        let other = other_endpoint(f);
        let at_other = ProbeMetadata { ifindex: other, ..FROM_OUTSIDE };
        let [first, end] = fragments("10.0.0.3", "10.0.0.4", 7);
        assert!(f.run_with(EGRESS, &first.bytes(), at_other));
        for id in 1..30_000 {
            f.sends(&fragments("10.0.0.2", "10.0.0.3", id)[0]);
            f.receives(&fragments("10.0.0.3", "10.0.0.2", id)[0]);
        }
        assert!(f.run_with(EGRESS, &end.bytes(), at_other), "its first fragment was pushed out");
    });
}

#[test]
fn first_fragments_push_out_no_flow_of_their_own_endpoint_and_flows_push_out_them() {
    with_sizes(nine_places(), |f| {
        let [question, answer] = [("10.0.0.2", "10.0.0.3"), ("10.0.0.3", "10.0.0.2")];
        let ask = |port| Packet::udp(question.0, port, question.1, 80);
        let hear = |port| Packet::udp(answer.0, 80, answer.1, port);
        // Until there is no place left: those that were pushed out, others did.
        (5000..5100).for_each(|port| assert!(f.sends(&ask(port)) && f.receives(&hear(port))));
        let before = idle_flows(f, 1);
        for (id, peer) in (0..500).flat_map(|id| [(id, "10.0.0.3"), (id, "10.0.0.9")]) {
            f.sends(&fragments("10.0.0.2", peer, id)[0]);
            f.receives(&fragments(peer, "10.0.0.2", id)[0]);
        }
        // The datagrams to the peer that is allowed have one flow, which took the place of one.
        let after = idle_flows(f, 1);
        assert!(after.len() == before.len() && before.len() >= 8, "{} and {}", before.len(), after.len());
        let gone = before.iter().filter(|flow| !after.contains(flow)).count();
        assert!(gone <= 2, "{gone} of {} flows were pushed out", before.len());
        // Where nothing goes on any more there is room again, for a minute.
        f.age(timeout::UDP + 1);
        let [first, end] = fragments("10.0.0.2", "10.0.0.3", 7);
        assert!(f.sends(&first) && f.sends(&end));
        f.age(fragment::LIFE + 1);
        let unknown = f.drops(Reason::FragmentUnknown, EGRESS);
        assert!(!f.sends(&end), "its first fragment is too old");
        assert_eq!(f.drops(Reason::FragmentUnknown, EGRESS), unknown + 1);
        // A new flow has the place of a fragment as soon as it needs one.
        f.sends(&first);
        (6000..6100).for_each(|port| assert!(f.sends(&ask(port)) && f.receives(&hear(port))));
        assert!(!f.sends(&end), "its place was needed");
    });
}

/// A connection of the pod, idle from here on.
fn open(f: &mut Fixture, port: u16) {
    assert!(f.connects("10.0.0.2", port, "10.0.0.3"));
}

#[test]
fn connections_that_are_idle_stay_while_the_pod_s_own_table_is_flooded() {
    with_sizes(Sizes { flows_size: ROOM, ..Sizes::default() }, |f| {
        let ports = 4000..4200;
        ports.clone().for_each(|port| open(f, port));
        for i in 0..60_000_u32 {
            let [.., a, b] = i.to_be_bytes();
            let source = format!("10.{}.{a}.{b}", 1 + i / 65_536);
            f.desired
                .ipcache
                .entry(source.parse().expect("an address"))
                .or_insert_with(|| Identity::new(WEB, WEB, Kind::Pod));
            let _ = f.receives(&Packet::udp(&source, 5000, "10.0.0.2", 80));
            if i % 4 == 0 {
                let port = u16::try_from(10_000 + i / 4).expect("a port");
                // Half open, and closed at once.
                let reset = Packet::tcp("10.0.0.3", 80, "10.0.0.2", port, flags::RST | flags::ACK);
                assert!(f.sends(&syn(port)) && (i % 8 == 0 || f.receives(&reset)));
            }
        }
        let flows = Reader::open(f.folder()).and_then(|reader| reader.flows(1)).expect("the flows");
        assert!(flows.len() > ROOM as usize, "the table is full: {}", flows.len());
        for port in ports {
            let goes_on = Packet::tcp("10.0.0.3", 80, "10.0.0.2", port, flags::ACK);
            assert!(f.receives(&goes_on), "the connection of port {port} was pushed out");
        }
    });
}

#[test]
fn an_open_connection_that_was_idle_for_too_long_gives_way_before_a_new_one() {
    with_sizes(nine_places(), |f| {
        (4000..4040).for_each(|port| open(f, port));
        f.age(timeout::TCP + 1);
        let ports = 5000..5007;
        assert!(ports.clone().all(|port| f.sends(&syn(port))));
        for port in ports {
            assert!(f.receives(&syn_ack(port)), "{port} gave way");
        }
    });
}

#[test]
fn a_table_holds_as_many_open_connections_as_it_is_for() {
    with_sizes(Sizes { flows_size: ROOM, ..Sizes::default() }, |f| {
        let ports = 4000..4000 + u16::try_from(ROOM).expect("a number of ports");
        ports.clone().for_each(|port| open(f, port));
        let lost = ports.filter(|port| {
            let goes_on = Packet::tcp("10.0.0.3", 80, "10.0.0.2", *port, flags::ACK);
            !f.receives(&goes_on)
        });
        // Where more keys meet than have room in their places, one gives way: five of a thousand, by chance up to fifteen.
        let lost = lost.count();
        assert!(lost <= 30, "{lost} of {ROOM} connections gave way");
    });
}

/// A second endpoint, of the server.
fn other_endpoint(f: &mut Fixture) -> u32 {
    run(Command::new("ip").args(["link", "add", "other", "type", "veth", "peer", "name", "peer"]))
        .expect("an interface");
    let index = interface_index("other").expect("its index");
    let addresses: Vec<IpAddr> = vec!["10.0.0.3".parse().expect("an address")];
    let subject = SUBJECT + 1;
    let pod = PodIdentity { name: "shop/web".to_owned(), principal: WEB, subject, addresses, routes: false };
    f.desired.pods.insert("web".to_owned(), pod);
    f.desired.subjects.insert(subject, rows(Verdict::Allow, &always(Verdict::Allow)));
    let spec = EndpointSpec { ifindex: index, name: "other".into(), pod: Some("web".into()), ..endpoint() };
    f.apply_with(&[endpoint(), spec], Mode::Enforce);
    index
}

/// The flows of an endpoint, in order.
fn idle_flows(f: &Fixture, ifindex: u32) -> Vec<String> {
    let reader = Reader::open(f.folder()).expect("the maps");
    let flows = reader.flows(ifindex % ENDPOINT_SLOTS).expect("the flows");
    let mut flows: Vec<String> = flows.iter().map(|flow| format!("{flow:?}")).collect();
    flows.sort_unstable();
    flows
}
