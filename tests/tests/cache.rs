//! What processors remember (`portcullis_common::cache`) changes what packets cost, and nothing else.
//!
//! Random packets do the same with and without it: the loaded programs of `differential` and `million` remember verdicts, the
//! walk on the host that they are compared with judges every new flow.

#![allow(clippy::expect_used, reason = "tests: a failure is a panic")]

use std::sync::Arc;

use portcullis::datapath::inspect::{self, AnyKey};
use portcullis::datapath::testrun::ProbeMetadata;
use portcullis_common::abi::{Mode, config};
use portcullis_common::flow::{Flow, FlowKey as _, state};
use portcullis_common::policy::wildcard_of;
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};
use portcullis_tests::fixture::{
    API, Fixture, INTRUDER, SUBJECT, WEB, add_frontend, always, endpoint, rows, with_fixture,
};
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::processors;

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;

const SYN: u8 = flags::SYN;
const ACK: u8 = flags::ACK;
const FIN_ACK: u8 = flags::FIN | flags::ACK;

fn sent(port: u16, flags: u8) -> Packet {
    Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags)
}

fn answer(port: u16, flags: u8) -> Packet {
    Packet::tcp("10.0.0.3", 80, "10.0.0.2", port, flags)
}

/// A connection of the pod that is open, and was used a moment ago.
fn open(f: &mut Fixture, port: u16) {
    assert!(f.sends(&sent(port, SYN)) && f.receives(&answer(port, SYN | ACK)));
    assert!(f.sends(&sent(port, ACK)) && f.receives(&answer(port, ACK)));
}

fn flow(f: &Fixture, local_port: u16) -> Flow {
    let flows = f.flows();
    let is = |key: &AnyKey| matches!(key, AnyKey::V4(key) if key.local_port() == local_port);
    let found = flows.into_iter().find(|(key, _)| is(key));
    found.expect("the flow").1
}

/// Permits everything of the outside in a direction, and nothing else.
fn open_to_the_outside(f: &mut Fixture, direction: Direction) {
    let mut open = (*rows(Verdict::Deny, &always(Verdict::Deny))).clone();
    open.insert((direction, wildcard_of(Kind::World)), always(Verdict::Allow));
    f.desired.subjects.insert(SUBJECT, Arc::new(open));
    f.apply();
}

/// Keeps this thread on the first or the last of the processors that it may use.
fn keep_on(last: bool) {
    let allowed = processors::allowed().expect("the processors");
    let chosen = if last { allowed.last() } else { allowed.first() };
    processors::stay_on(*chosen.expect("a processor")).expect("one that is allowed");
}

/// As [`with_fixture`], on one processor.
fn remembering(test: impl FnOnce(&mut Fixture) + Send + 'static) {
    with_fixture(|f| {
        keep_on(false);
        test(f);
    });
}

/// Does something on the other processor.
fn elsewhere(f: &mut Fixture, run: impl FnOnce(&mut Fixture) + Send) {
    std::thread::scope(|scope| {
        // A thread of the same network namespace.
        let other = scope.spawn(|| {
            keep_on(true);
            run(f);
        });
        other.join().expect("what is done there");
    });
}

#[test]
fn what_follows_an_end_that_another_processor_saw_is_seen_by_the_flow() {
    remembering(|f| {
        for port in 4000..4040 {
            open(f, port);
            let ends = [sent(port, FIN_ACK), answer(port, flags::RST | ACK)];
            elsewhere(f, |f| {
                if port % 2 == 0 {
                    assert!(f.sends(&ends[0]));
                } else {
                    assert!(f.receives(&ends[1]));
                }
            });
            assert!(f.receives(&answer(port, ACK)));
            // The end was not the last of it: its short time-out is over.
            assert_eq!(flow(f, port).state & state::LIFE, state::OPEN, "port {port}");
        }
    });
}

#[test]
fn a_connection_that_is_opened_again_is_opened_by_its_own_handshake() {
    remembering(|f| {
        // Judged each time, and by what was judged before.
        for (port, sample) in [(4000, u32::MAX), (4001, 0)] {
            f.set_config(config::SAMPLE, sample);
            for _ in 0..20 {
                open(f, port);
                assert!(f.sends(&sent(port, SYN)) && f.receives(&answer(port, SYN | ACK)));
                assert_eq!(flow(f, port).state, state::HALF_OPEN);
                assert!(f.sends(&sent(port, ACK)));
                assert_eq!(flow(f, port).state, state::OPEN, "its acknowledgement was seen");
            }
        }
    });
}

#[test]
fn what_begins_or_ends_a_connection_is_never_taken_for_one_of_its_segments() {
    remembering(|f| {
        for port in 4000..4010 {
            open(f, port);
            assert!(f.sends(&sent(port, FIN_ACK)));
            assert_eq!(flow(f, port).state, state::CLOSING | state::FIN_OPENER, "port {port}");
            assert!(f.receives(&answer(port, ACK)) && f.receives(&answer(port, ACK)));
            assert!(f.receives(&answer(port, flags::RST | ACK)));
            assert_eq!(flow(f, port).state & state::LIFE, state::CLOSING, "port {port}");
        }
    });
}

#[test]
fn what_was_permitted_before_is_not_when_the_policy_or_the_peer_is_another() {
    remembering(|f| {
        let allowed = |f: &Fixture| f.counters(API, WEB, EGRESS).decisions;
        assert!(f.sends(&sent(4000, SYN)) && f.sends(&sent(4001, SYN)));
        assert_eq!(allowed(f), [2, 0, 0], "each new flow is a decision");
        assert_eq!(f.counters(API, WEB, EGRESS).packets, [2, 0, 0]);

        let policy = f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &always(Verdict::Deny)));
        f.apply();
        assert!(!f.sends(&sent(4002, SYN)), "revoked");
        assert_eq!(allowed(f), [2, 1, 0]);
        f.desired.subjects.insert(SUBJECT, policy.expect("the policy"));
        f.apply();
        assert!(f.sends(&sent(4003, SYN)) && f.sends(&sent(4004, SYN)));
        assert_eq!(allowed(f), [4, 1, 0]);

        let web = "10.0.0.3".parse().expect("an address");
        f.desired.ipcache.insert(web, Identity::new(INTRUDER, INTRUDER, Kind::Pod));
        f.apply();
        assert!(!f.sends(&sent(4005, SYN)), "the address is another's");
        assert_eq!(f.counters(API, INTRUDER, EGRESS).decisions, [0, 1, 0]);
        // Permitted both: it counts for whom it is now.
        f.desired.ipcache.insert(web, Identity::new(INTRUDER, WEB, Kind::Pod));
        f.apply();
        assert!(f.sends(&sent(4006, SYN)) && f.sends(&sent(4007, SYN)));
        assert_eq!(f.counters(API, INTRUDER, EGRESS).decisions, [2, 1, 0]);
        assert_eq!(allowed(f), [4, 1, 0]);
    });
}

#[test]
fn what_was_permitted_for_one_is_not_for_others() {
    remembering(|f| {
        // The node's own probe, and what comes from outside with the node's address.
        let probe = |port| Packet::tcp("10.0.0.1", port, "10.0.0.2", 80, SYN).bytes();
        let from = |ingress_ifindex| ProbeMetadata { ingress_ifindex, ifindex: 0 };
        for port in [4000, 4001] {
            assert!(f.run_with(INGRESS, &probe(port), from(0)));
            assert!(!f.run_with(INGRESS, &probe(port + 10), from(99)), "masqueraded to the node's address");
        }
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 8000, SYN)));
        // Its own address, and one that it has not.
        for port in [4000, 4001] {
            assert!(f.sends(&sent(port, SYN)));
            assert!(!f.sends(&Packet::tcp("10.0.0.77", port, "10.0.0.3", 80, SYN)));
            assert!(!f.sends(&Packet::tcp("10.0.0.2", port, "10.0.0.4", 80, SYN)), "another peer");
            assert!(!f.sends(&Packet::tcp("10.0.0.2", port, "10.0.0.3", 81, SYN)), "another port");
            assert!(!f.sends(&Packet::udp("10.0.0.2", port, "10.0.0.3", 8000)), "another protocol");
            assert!(!f.receives(&Packet::tcp("10.0.0.4", port, "10.0.0.2", 80, SYN)));
            assert!(!f.sends(&sent(port + 100, ACK)), "what opens nothing needs its flow");
        }
        assert_eq!(f.drops(Reason::SpoofedSource, EGRESS), 2);
        assert_eq!(f.drops(Reason::NoFlow, EGRESS), 2);
    });
}

#[test]
fn what_the_outside_may_with_the_node_s_address_counts_for_the_outside_only() {
    remembering(|f| {
        open_to_the_outside(f, INGRESS);
        let syn = |port| Packet::tcp("10.0.0.1", port, "10.0.0.2", 80, SYN).bytes();
        for port in 4000..4002 {
            for ingress_ifindex in [99, 0] {
                let metadata = ProbeMetadata { ingress_ifindex, ifindex: 0 };
                assert!(f.run_with(INGRESS, &syn(port + 10 * u16::from(ingress_ifindex == 0)), metadata));
            }
        }
        for principal in [Kind::World as u32, Kind::Host as u32] {
            assert_eq!(f.counters(principal, API, INGRESS).decisions, [2, 0, 0], "{principal}");
        }
    });
}

#[test]
fn a_forged_syn_turns_no_flow_round_also_where_its_like_is_permitted() {
    remembering(|f| {
        let inwards = |flags| Packet::tcp("10.0.0.3", 8001, "10.0.0.2", 8000, flags);
        let outwards = |port, flags| Packet::tcp("10.0.0.2", port, "10.0.0.3", 8001, flags);
        assert!(f.sends(&outwards(4000, SYN)) && f.sends(&outwards(4001, SYN)));
        assert!(
            f.receives(&inwards(SYN)) && f.sends(&outwards(8000, SYN | ACK)) && f.receives(&inwards(ACK))
        );
        assert!(f.sends(&outwards(8000, SYN)));
        let known = flow(f, 8000);
        assert_eq!((known.opener, known.state), (INGRESS as u8, state::OPEN));
    });
}

#[test]
fn a_flow_to_a_frontend_is_judged_by_the_endpoints_that_it_has_now() {
    remembering(|f| {
        let frontend = |f: &mut Fixture, backends: &[(u32, u16, bool)]| {
            add_frontend(&mut f.desired, "10.96.0.5", 6, 80, backends);
            f.apply();
            f.endpoint().expect("the endpoint").revision
        };
        let syn = |port| Packet::tcp("10.0.0.2", port, "10.96.0.5", 80, SYN);
        let before = frontend(f, &[(WEB, 80, true), (INTRUDER, 80, true)]);
        assert!(f.sends(&syn(4000)) && f.sends(&syn(4001)), "to one of them it may go");
        let after = frontend(f, &[(INTRUDER, 80, true)]);
        assert_eq!(before, after, "no flow is judged again for an endpoint that leaves");
        assert!(!f.sends(&syn(4002)));
    });
}

#[test]
fn an_answer_that_is_judged_again_permits_nothing_in_its_own_direction() {
    remembering(|f| {
        assert!(f.receives(&Packet::tcp("10.0.0.3", 4000, "10.0.0.2", 80, SYN)));
        f.revise();
        assert!(f.sends(&Packet::tcp("10.0.0.2", 80, "10.0.0.3", 4000, SYN | ACK)));
        for port in 5000..5002 {
            assert!(!f.sends(&Packet::tcp("10.0.0.2", port, "10.0.0.3", 4000, SYN)));
        }
    });
}

#[test]
fn groups_have_no_flows_however_often() {
    remembering(|f| {
        open_to_the_outside(f, EGRESS);
        for port in 4000..4003 {
            assert!(f.sends(&Packet::udp("10.0.0.2", port, "239.1.1.1", 5000)));
        }
        assert!(f.flows().is_empty());
    });
}

#[test]
fn a_flow_that_is_judged_again_stays_as_it_was_also_where_its_like_is_permitted() {
    remembering(|f| {
        let asks = |port| Packet::udp("10.0.0.2", port, "10.0.0.3", 80);
        assert!(f.sends(&asks(4000)) && f.receives(&Packet::udp("10.0.0.3", 80, "10.0.0.2", 4000)));
        f.revise();
        assert!(f.sends(&asks(4001)) && f.sends(&asks(4000)));
        assert_eq!(flow(f, 4000).state, state::OPEN, "it was answered");
    });
}

#[test]
fn a_syn_that_is_sent_again_is_charged_once() {
    remembering(|f| {
        f.set_config(config::NEW_FLOW_RATE, 3);
        assert!(f.sends(&sent(4000, SYN)) && f.sends(&sent(4001, SYN)));
        for _ in 0..5 {
            assert!(f.sends(&sent(4001, SYN)));
        }
        assert!(f.sends(&sent(4002, SYN)));
        assert_eq!(f.drops(Reason::FlowBudget, EGRESS), 0);
    });
}

#[test]
fn what_is_only_audited_is_counted_as_such_with_every_packet() {
    remembering(|f| {
        f.apply_with(&[endpoint()], Mode::Audit);
        let asks = Packet::tcp("10.0.0.2", 4000, "10.0.0.4", 80, ACK);
        let answers = |flags| Packet::tcp("10.0.0.4", 80, "10.0.0.2", 4000, flags);
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.4", 80, SYN)));
        assert!(f.receives(&answers(SYN | ACK)) && f.sends(&asks));
        assert!(f.sends(&asks) && f.sends(&asks) && f.receives(&answers(ACK)));
        assert_eq!(f.counters(API, INTRUDER, EGRESS).packets, [0, 0, 6]);
    });
}

#[test]
fn what_is_remembered_is_used() {
    remembering(|f| {
        open(f, 4000);
        assert!(f.sends(&sent(4001, SYN)));
        // Behind the back of the agent: nothing says that the policy is gone.
        let mut maps = inspect::open(f.folder()).expect("the maps");
        maps.subjects.set(SUBJECT, 0, 0).expect("a write");
        for port in [4002, 4001, 4000] {
            assert!(f.sends(&sent(port, SYN)), "port {port}");
        }
        f.set_config(config::SAMPLE, u32::MAX);
        assert!(!f.sends(&sent(4003, SYN)), "whoever samples judges each");
    });
}
