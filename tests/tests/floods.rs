//! Floods: what one pod, or who sends to it, can take from others, and where it ends.

#![allow(clippy::expect_used, reason = "tests: a failure is a panic")]

use std::net::IpAddr;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use portcullis::datapath::inspect::{self, AnyKey};
use portcullis::datapath::testrun::{self, ProbeMetadata};
use portcullis::datapath::{EndpointSpec, Pins, Reader, Sizes};
use portcullis::policy::PodIdentity;
use portcullis_common::abi::{ENDPOINT_SLOTS, Mode, config};
use portcullis_common::flow::{FlowKey as _, state, timeout};
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};
use portcullis_tests::command::run;
use portcullis_tests::fixture::{
    API, Fixture, SUBJECT, WEB, always, endpoint, rows, with_fixture, with_sizes,
};
use portcullis_tests::netns::interface_index;
use portcullis_tests::packets::{Packet, flags};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
/// New flows a second in these tests.
const RATE: u32 = 10;
/// How often a flow is looked at by one call of the kernel, and how many others are stored meanwhile.
const READS: u32 = 1000;
const STORES: usize = 200_000;
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
    let metadata = ProbeMetadata { ingress_ifindex: 99, ifindex: 0 };
    let passed = packets.filter(|packet| f.run_with(direction, &packet.bytes(), metadata)).count() as u64;
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
        let at_other = ProbeMetadata { ingress_ifindex: 99, ifindex: other };
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

/// A connection of the pod, idle from here on.
fn open(f: &mut Fixture, port: u16) {
    let ack = Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags::ACK);
    assert!(f.sends(&syn(port)) && f.receives(&syn_ack(port)) && f.sends(&ack));
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
    // Nine places.
    with_sizes(Sizes { flows_size: 1, ..Sizes::default() }, |f| {
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

#[test]
fn processors_that_fight_for_the_places_of_a_table_never_mix_two_flows() {
    // Nine places for a hundred flows.
    with_sizes(Sizes { flows_size: 1, ..Sizes::default() }, |f| {
        let hertz = inspect::config_word(f.maps(), config::HZ).expect("a word");
        // What the pod opens by TCP, and what is opened to it by UDP, differ in every field.
        let packets = |direction, port| {
            ["10.0.0.", "fd00::"].map(|prefix| {
                let [pod, web] = [2, 3].map(|end| format!("{prefix}{end}"));
                match direction {
                    EGRESS => Packet::tcp(&pod, port, &web, 80, flags::SYN),
                    INGRESS => Packet::udp(&web, port, &pod, 80),
                }
            })
        };
        let begin = Barrier::new(3);
        let running = AtomicUsize::new(2);
        let passed = std::thread::scope(|scope| {
            let senders = [EGRESS, INGRESS].map(|direction| {
                let program = f.datapath.program(direction).expect("the program");
                let (begin, running) = (&begin, &running);
                scope.spawn(move || {
                    let all: Vec<Vec<u8>> =
                        (0..50).flat_map(|port| packets(direction, 1000 + port)).map(|p| p.bytes()).collect();
                    let metadata = ProbeMetadata { ingress_ifindex: 99, ifindex: 0 };
                    begin.wait();
                    let pass = |at: usize| {
                        testrun::run(program, &all[at % all.len()], metadata, 1).expect("a run").passed
                    };
                    let passed = (0..100_000).filter(|at| pass(*at)).count();
                    running.fetch_sub(1, Ordering::SeqCst);
                    passed
                })
            });
            begin.wait();
            let mut looks = 0;
            while running.load(Ordering::SeqCst) > 0 {
                looks += whole_flows(f, hertz);
            }
            assert!(looks > 1000, "only {looks} flows were looked at");
            senders.map(|sender| sender.join().expect("a sender"))
        });
        // One that finds all places being written may be refused.
        assert!(passed.iter().all(|passed| *passed > 99_000), "{passed:?} of 100,000 passed");
        // Each for its own pair, also where the other took the place of its flow while that was read.
        let counted = [f.counters(API, WEB, EGRESS), f.counters(WEB, API, INGRESS)];
        let counted = counted.map(|counters| counters.packets[Verdict::Allow as usize]);
        assert_eq!(counted.map(usize::try_from).map(Result::unwrap_or_default), passed);
        assert_eq!(whole_flows(f, hertz), 9 + 9);
    });
}

#[test]
fn what_is_read_of_a_flow_while_another_takes_its_place_decides_for_neither() {
    for prefix in ["10.0.0.", "fd00::"] {
        with_sizes(Sizes { flows_size: 1, ..Sizes::default() }, move |f| {
            let [pod, web] = [2, 3].map(|end| format!("{prefix}{end}"));
            // One processor reads a flow again and again; of all flows it would be absent first, so that each new one that the
            // other processor stores takes its place. Either of them stores it again.
            let known = Packet::udp(&web, 5000, &pod, 80).bytes();
            let new = |port| Packet::tcp(&pod, port, &web, 80, flags::SYN).bytes();
            let new: Vec<Vec<u8>> = (0..50).map(|port| new(1000 + port)).collect();
            let (f, done) = (&*f, &AtomicBool::new(false));
            let [ingress, egress] =
                [INGRESS, EGRESS].map(|way| f.datapath.program(way).expect("the program"));
            let metadata = ProbeMetadata { ingress_ifindex: 99, ifindex: 0 };
            let known = &known;
            let read = std::thread::scope(|scope| {
                let reader = scope.spawn(move || {
                    let mut read = 0;
                    while !done.load(Ordering::SeqCst) {
                        testrun::run(ingress, known, metadata, READS).expect("a run");
                        read += u64::from(READS);
                    }
                    read
                });
                for round in 0..STORES {
                    testrun::run(egress, &new[round % new.len()], metadata, 1).expect("a run");
                    testrun::run(ingress, known, metadata, 1).expect("a run");
                }
                done.store(true, Ordering::SeqCst);
                reader.join().expect("the reader")
            });
            // Each for its own pair, or for none because all places were being written.
            let counted = [(WEB, API, INGRESS, read + STORES as u64), (API, WEB, EGRESS, STORES as u64)];
            for (source, destination, direction, sent) in counted {
                let counters = f.counters(source, destination, direction);
                let refused = f.drops(Reason::FlowTable, direction);
                assert_eq!(
                    counters.packets[Verdict::Allow as usize] + refused,
                    sent,
                    "{direction}: {counters:?}"
                );
                let new = counters.decisions[Verdict::Allow as usize];
                assert!(new > 1000, "only {new} times the flow was stored");
            }
        });
    }
}

/// Looks at the flows of the pod that nobody writes meanwhile: each has everything of TCP from the pod, or of UDP to it. How
/// many there were.
fn whole_flows(f: &Fixture, hertz: u32) -> usize {
    let flows = inspect::flows(&Pins::new(f.folder()), 1).expect("the flows");
    for (key, flow) in &flows {
        let protocol = match key {
            AnyKey::V4(key) => key.protocol(),
            AnyKey::V6(key) => key.protocol(),
        };
        let found = (protocol, flow.opener, flow.timeout / hertz);
        let tcp = (6, EGRESS as u8, timeout::TCP_NEW);
        let udp = (17, INGRESS as u8, timeout::UDP_NEW);
        assert!(found == tcp || found == udp, "{key:?}: {flow:?}");
    }
    flows.len()
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
