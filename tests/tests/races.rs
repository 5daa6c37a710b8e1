//! Processors that read and write the same places of a flow table at once.

#![allow(clippy::expect_used, reason = "tests: a failure is a panic")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use portcullis::datapath::inspect::{self, AnyKey};
use portcullis::datapath::testrun;
use portcullis_common::abi::config;
use portcullis_common::flow::{FlowKey as _, state, timeout};
use portcullis_common::{Direction, Reason, Verdict};
use portcullis_tests::fixture::{API, FROM_OUTSIDE, Fixture, WEB, nine_places, with_sizes};
use portcullis_tests::packets::{Packet, flags};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
/// How often a flow is looked at by one call of the kernel, and how many others are stored meanwhile.
const READS: u32 = 1000;
const STORES: usize = 200_000;
/// New flows of each processor that fights.
const FIGHTS: usize = 100_000;

/// A hundred flows in each direction: what the pod opens by TCP, and what is opened to it by UDP, differ in every field.
fn flows_of(direction: Direction) -> Vec<Vec<u8>> {
    let packets = |port| {
        ["10.0.0.", "fd00::"].map(|prefix| {
            let [pod, web] = [2, 3].map(|end| format!("{prefix}{end}"));
            match direction {
                EGRESS => Packet::tcp(&pod, port, &web, 80, flags::SYN),
                INGRESS => Packet::udp(&web, port, &pod, 80),
            }
        })
    };
    (0..50).flat_map(|port| packets(1000 + port)).map(|packet| packet.bytes()).collect()
}

/// Sends the flows of each direction in turn, both at the same time; how many packets passed.
fn fight(f: &Fixture, mut meanwhile: impl FnMut()) -> [u64; 2] {
    let begin = Barrier::new(3);
    let running = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        let senders = [EGRESS, INGRESS].map(|direction| {
            let program = f.datapath.program(direction).expect("the program");
            let (begin, running) = (&begin, &running);
            scope.spawn(move || {
                let all = flows_of(direction);
                begin.wait();
                let run =
                    |at: usize| testrun::run(program, &all[at % all.len()], FROM_OUTSIDE, 1).expect("a run");
                let passed = (0..FIGHTS).filter(|at| run(*at).passed).count();
                running.fetch_sub(1, Ordering::SeqCst);
                passed as u64
            })
        });
        begin.wait();
        while running.load(Ordering::SeqCst) > 0 {
            meanwhile();
        }
        senders.map(|sender| sender.join().expect("a sender"))
    })
}

#[test]
fn processors_that_fight_for_the_places_of_a_table_never_mix_two_flows() {
    with_sizes(nine_places(), |f| {
        let hertz = inspect::config_word(f.maps(), config::HZ).expect("a word");
        let mut looks = 0;
        let passed = fight(f, || looks += whole_flows(f, hertz));
        assert!(looks > 1000, "only {looks} flows were looked at");
        // One that finds its place being written twice is refused.
        assert!(passed.iter().all(|passed| *passed > 99_000), "{passed:?} of {FIGHTS} passed");
        // Each for its own pair, also where the other took the place of its flow while that was read.
        let counted = [f.counters(API, WEB, EGRESS), f.counters(WEB, API, INGRESS)];
        assert_eq!(counted.map(|counters| counters.packets[Verdict::Allow as usize]), passed);
        let refused = [EGRESS, INGRESS].map(|direction| f.drops(Reason::FlowTable, direction));
        assert_eq!(refused, passed.map(|passed| FIGHTS as u64 - passed));
        assert_eq!(whole_flows(f, hertz), 9 + 9);
    });
}

#[test]
fn processors_that_fight_for_a_place_take_none_of_an_open_connection() {
    with_sizes(nine_places(), |f| {
        for port in 4000..4040 {
            for prefix in ["10.0.0.", "fd00::"] {
                let [pod, web] = [2, 3].map(|end| format!("{prefix}{end}"));
                assert!(f.connects(&pod, port, &web));
            }
        }
        // One after the other they take a place or two, which are those that they fight for.
        for direction in [EGRESS, INGRESS] {
            for packet in flows_of(direction) {
                let _ = f.run_with(direction, &packet, FROM_OUTSIDE);
            }
        }
        let before = open(f);
        assert!(before.len() >= 7 + 7, "{before:?}");
        let passed = fight(f, std::thread::yield_now);
        assert!(passed.iter().all(|passed| *passed > 99_000), "{passed:?} of {FIGHTS} passed");
        assert_eq!(open(f), before);
    });
}

/// The keys of the open connections, in order.
fn open(f: &Fixture) -> Vec<String> {
    let flows = f.flows();
    let open = flows.iter().filter(|(_, flow)| flow.state == state::OPEN);
    let mut keys: Vec<String> = open.map(|(key, _)| format!("{key:?}")).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn what_is_read_of_a_flow_while_another_takes_its_place_decides_for_neither() {
    for prefix in ["10.0.0.", "fd00::"] {
        with_sizes(nine_places(), move |f| {
            let [pod, web] = [2, 3].map(|end| format!("{prefix}{end}"));
            // One processor reads a flow again and again; of all flows it would be absent first, so that each new one that the
            // other processor stores takes its place. Either of them stores it again.
            let known = Packet::udp(&web, 5000, &pod, 80).bytes();
            let new = |port| Packet::tcp(&pod, port, &web, 80, flags::SYN).bytes();
            let new: Vec<Vec<u8>> = (0..50).map(|port| new(1000 + port)).collect();
            let (f, done) = (&*f, &AtomicBool::new(false));
            let [ingress, egress] =
                [INGRESS, EGRESS].map(|way| f.datapath.program(way).expect("the program"));
            let known = &known;
            let read = std::thread::scope(|scope| {
                let reader = scope.spawn(move || {
                    let mut read = 0;
                    while !done.load(Ordering::SeqCst) {
                        testrun::run(ingress, known, FROM_OUTSIDE, READS).expect("a run");
                        read += u64::from(READS);
                    }
                    read
                });
                for round in 0..STORES {
                    testrun::run(egress, &new[round % new.len()], FROM_OUTSIDE, 1).expect("a run");
                    testrun::run(ingress, known, FROM_OUTSIDE, 1).expect("a run");
                }
                done.store(true, Ordering::SeqCst);
                reader.join().expect("the reader")
            });
            // Each for its own pair, or for none because its place was being written.
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
    let flows = f.flows();
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
