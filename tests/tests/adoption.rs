//! What a restart takes over, and what packets meet while a change is on its way.
#![expect(clippy::unwrap_used, reason = "a helper of a test ends the test when what it needs is not there")]

use std::net::Ipv4Addr;
use std::sync::Arc;

use portcullis::datapath::{Reader, Sizes, sys};
use portcullis_common::abi::{Mode, config};
use portcullis_common::policy::wildcard_of;
use portcullis_common::{Direction, Identity, Kind, Verdict};
use portcullis_tests::fixture::{
    API, Fixture, INTRUDER, SUBJECT, WEB, always, endpoint, only, rows, with_fixture, with_sizes,
};
use portcullis_tests::meanwhile::probed_meanwhile;
use portcullis_tests::packets::{Packet, flags};

fn syn(port: u16) -> Packet {
    Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags::SYN)
}

#[test]
fn what_an_earlier_agent_enforced_holds_before_the_first_apply_also_after_a_collection() {
    with_fixture(|f| {
        assert!(f.sends(&syn(4000)));
        f.reopen();
        assert_eq!(f.datapath.collect().unwrap(), 0, "rows in force are not retired");
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK)));
        assert!(f.receives(&Packet::tcp("10.0.0.3", 80, "10.0.0.2", 4000, flags::SYN | flags::ACK)));
        assert!(f.sends(&syn(4001)), "a new connection");
        assert!(!f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.4", 80, flags::SYN)));
    });
}

#[test]
fn an_unchanged_restart_writes_nothing_and_a_changed_one_leaves_nothing_behind() {
    with_fixture(|f| {
        let before = f.datapath.port_usage();
        f.reopen();
        let applied = f.datapath.apply(&f.desired, &[endpoint()], Mode::Enforce, std::iter::empty()).unwrap();
        assert_eq!(applied.errors.len(), 0, "{:?}", applied.errors);
        // The programs of the next agent are attached in the place of the former's; nothing else changes.
        assert!(!applied.revised, "{} writes", applied.writes);
        assert_eq!(f.datapath.port_usage(), before);
        f.reopen();
        f.desired.subjects.clear();
        f.apply();
        assert!(!f.sends(&syn(4000)), "a subject class that nobody has any more has no rows");
        while f.datapath.has_retired() {
            f.datapath.collect().unwrap();
        }
        assert_eq!(f.datapath.port_usage().0, 0);
    });
}

#[test]
fn an_endpoint_that_a_dying_agent_left_behind_the_revision_is_brought_up_to_it() {
    let decisions = |f: &Fixture| f.counters(API, WEB, Direction::Egress).decisions[0];
    let ack = Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK);
    with_fixture(move |f| {
        assert!(f.sends(&syn(4000)) && f.sends(&ack));
        assert_eq!(decisions(f), 1, "the second packet is of a known flow");
        // It wrote the number and died before it wrote the endpoints.
        let revision = Reader::open(f.folder()).unwrap().revision().unwrap();
        f.set_config(config::REVISION, revision + 1);
        f.reopen();
        f.apply();
        let written = f.endpoint().unwrap().revision;
        assert_eq!(written, Reader::open(f.folder()).unwrap().revision().unwrap());
        assert!(written > revision, "{written} after {revision}");
        assert!(f.sends(&ack));
        assert_eq!(decisions(f), 2, "judged again");
    });
}

#[test]
fn a_restart_works_when_more_than_half_of_the_port_tables_is_in_use() {
    let sizes = Sizes { ports_size: 100, ..Sizes::default() };
    with_sizes(sizes, |f| {
        let ports: Vec<_> = (0..35).map(|i| (6, 80 + 2 * i, 80 + 2 * i)).collect();
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &only(&ports)));
        while f.datapath.has_retired() {
            f.datapath.collect().unwrap();
        }
        f.apply();
        while f.datapath.has_retired() {
            f.datapath.collect().unwrap();
        }
        let used = f.datapath.port_usage().0;
        assert!(used > 50, "{used} of 100 steps");
        f.reopen();
        f.apply();
        assert_eq!(f.datapath.port_usage().0, used);
        assert!(f.sends(&syn(4000)));
    });
}

#[test]
fn a_row_that_goes_and_comes_back_before_a_collection_stays() {
    with_fixture(|f| {
        let with = f.desired.subjects[&SUBJECT].clone();
        let mut without = (*with).clone();
        without.remove(&(Direction::Egress, WEB));
        f.desired.subjects.insert(SUBJECT, Arc::new(without));
        f.apply();
        assert!(!f.sends(&syn(4000)), "at once, not when it is collected");
        f.desired.subjects.insert(SUBJECT, with);
        f.apply();
        while f.datapath.has_retired() {
            f.datapath.collect().unwrap();
        }
        assert!(f.sends(&syn(4001)));
    });
}

#[test]
fn a_grace_period_is_had_without_membarrier_too() {
    sys::grace_period_by_map().unwrap();
}

/// From rows with `default` for all and `before` for the intruder to rows with `split` for a class that it is moved to, with five thousand addresses on the way.
fn split_off(before: Verdict, default: Verdict, split: Verdict) -> (u64, u64) {
    let (sender, receiver) = std::sync::mpsc::channel();
    with_fixture(move |f| {
        // The intruder's own row differs from that of its kind, before and after: neither order of writing alone is right.
        let mut first = (*rows(default, &always(before))).clone();
        for &direction in Direction::ALL {
            first.insert((direction, INTRUDER), always(before));
        }
        f.desired.subjects.insert(SUBJECT, Arc::new(first));
        f.apply();
        for i in 0..5000u32 {
            let address = Ipv4Addr::from(0x0100_0000 + i).into();
            f.desired.ipcache.insert(address, Identity::new(WEB, WEB, Kind::Pod));
        }
        let class = Identity::new(INTRUDER, 30, Kind::Pod);
        f.desired.ipcache.insert("10.0.0.4".parse().unwrap(), class);
        let mut next = (*rows(default, &always(default))).clone();
        for &direction in Direction::ALL {
            next.insert((direction, 30), always(split));
            assert!(next.contains_key(&(direction, wildcard_of(Kind::Pod))));
        }
        f.desired.subjects.insert(SUBJECT, Arc::new(next));
        sender.send(probed_meanwhile(|| f.apply())).unwrap();
    });
    receiver.recv().unwrap()
}

#[test]
fn a_class_that_stays_forbidden_is_never_let_through_while_addresses_move() {
    let (passed, dropped) = split_off(Verdict::Deny, Verdict::Allow, Verdict::Deny);
    assert!(dropped >= 2000);
    assert_eq!(passed, 0, "of {dropped}");
}

#[test]
fn a_class_that_stays_permitted_is_never_dropped_while_addresses_move() {
    let (passed, dropped) = split_off(Verdict::Allow, Verdict::Deny, Verdict::Allow);
    assert!(passed >= 2000);
    assert_eq!(dropped, 0, "of {passed}");
}
