//! The flow tables of endpoints, over restarts and where they cannot be made: what is permitted finds a table, and nobody
//! believes in one that is not there.

#![allow(clippy::expect_used, reason = "tests: a failure is a panic")]

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::maps::MapData;
use portcullis::datapath::{OBJECT, Pins, Sizes, inspect, load_object};
use portcullis_common::abi::{Endpoint, Mode, config, names};
use portcullis_common::table::homes;
use portcullis_common::{Direction, Reason};
use portcullis_tests::fixture::{Fixture, SLOT, endpoint, nine_places, with_fixture, with_sizes};
use portcullis_tests::packets::{Packet, flags};

/// Opens a connection in each IP version.
fn talk(f: &mut Fixture, port: u16) {
    for [pod, web] in [["10.0.0.2", "10.0.0.3"], ["fd00::2", "fd00::3"]] {
        assert!(f.connects(pod, port, web), "{pod}");
    }
}

fn written(f: &Fixture) -> Endpoint {
    f.endpoint().expect("the endpoint")
}

#[test]
fn a_restart_keeps_tables_and_secrets_and_a_new_endpoint_has_new_ones() {
    with_fixture(|f| {
        talk(f, 4000);
        let first = written(f);
        assert!(first.flow_seed != 0 && first.flow_homes == homes(Sizes::default().flows_size));
        f.reopen();
        f.apply();
        assert_eq!((written(f).flow_seed, f.flows().len()), (first.flow_seed, 2));
        assert!(f.receives(&Packet::tcp("10.0.0.3", 80, "10.0.0.2", 4000, flags::ACK)));
        assert!(f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK)));
        f.apply_with(&[], Mode::Enforce);
        f.apply();
        assert_eq!(f.flows().len(), 0);
        assert_ne!(written(f).flow_seed, first.flow_seed, "who knew what meets does not know it any more");
        talk(f, 4001);
    });
}

#[test]
fn after_a_restart_with_another_size_there_are_tables_of_that_size() {
    with_fixture(|f| {
        let other = Sizes { flows_size: 512, ..Sizes::default() };
        for sizes in [other, Sizes::default()] {
            talk(f, 4000);
            f.reopen_as(sizes, |_| ());
            f.apply();
            assert_eq!(written(f).flow_homes, homes(sizes.flows_size));
            assert_eq!(f.flows().len(), 0);
            talk(f, 4000);
            assert_eq!(f.flows().len(), 2);
        }
    });
}

#[test]
fn what_is_missing_of_the_tables_is_made_again() {
    // As of an agent that died between two steps, or somebody who took a pin away.
    let missing: [fn(&Pins, u8) -> std::path::PathBuf; 2] = [
        |pins, version| pins.map(if version == 4 { names::FLOWS4 } else { names::FLOWS6 }),
        |pins, version| pins.flow(SLOT, version),
    ];
    for missing in missing {
        for version in [4, 6] {
            with_fixture(move |f| {
                talk(f, 4000);
                f.reopen_as(Sizes::default(), |pins| Pins::remove(&missing(pins, version)).expect("a pin"));
                f.apply();
                talk(f, 4001);
                assert_eq!(f.flows().len(), 2, "in the tables that the programs use");
            });
        }
    }
}

#[test]
fn an_endpoint_that_a_dying_agent_did_not_write_for_its_new_tables_gets_new_ones() {
    with_fixture(|f| {
        talk(f, 4000);
        // The tables are there, and the endpoint is still written for those of an agent with another size.
        let mut maps = inspect::open(f.folder()).expect("the maps");
        let other = Endpoint { flow_homes: homes(4 * Sizes::default().flows_size), ..written(f) };
        maps.endpoints.set(SLOT, other, 0).expect("a write");
        f.reopen();
        f.apply();
        assert_eq!(written(f).flow_homes, homes(Sizes::default().flows_size));
        for port in 4001..4020 {
            talk(f, port);
        }
    });
}

#[test]
fn maps_of_an_unknown_size_are_made_again() {
    with_sizes(Sizes { flows_size: 512, ..Sizes::default() }, |f| {
        let words = &f.maps().config;
        // An agent with another size cannot take the old map's place.
        let pins = Pins::new(f.folder());
        let pin = pins.map(names::FLOWS4);
        Pins::remove(&pin).expect("the pin");
        fs::create_dir(&pin).expect("a folder");
        let failed =
            load_object(OBJECT, &pins, &Sizes::default()).map(|_| ()).expect_err("no place for a map");
        assert!(failed.to_string().contains("FLOWS4"), "{failed}");
        // It ends there, and the next one is as the one before: nobody knows any more what the maps are for.
        assert_eq!(words.get(&config::FLOW_HOMES, 0).expect("the word"), 0);
        fs::remove_dir(&pin).expect("the folder");
        f.reopen_as(Sizes { flows_size: 512, ..Sizes::default() }, |_| ());
        f.apply();
        talk(f, 4000);
    });
}

/// From now on the kernel takes no change of a map from outside of programs.
fn freeze(pin: &Path) {
    let map = MapData::from_pin(pin).expect("the map");
    // The first field of `union bpf_attr` for `BPF_MAP_FREEZE`.
    let descriptor = map.fd().as_fd().as_raw_fd();
    // SAFETY: the kernel reads the four bytes that it is told of.
    let done = unsafe { libc::syscall(libc::SYS_bpf, 22, &raw const descriptor, size_of_val(&descriptor)) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_table_that_the_programs_do_not_find_is_not_taken_for_one() {
    with_fixture(|f| {
        f.apply_with(&[], Mode::Enforce);
        let pins = Pins::new(f.folder());
        freeze(&pins.map(names::FLOWS6));
        let applied = f.datapath.apply(&f.desired, &[endpoint()], Mode::Enforce, std::iter::empty());
        let applied = applied.expect("the rest is applied");
        assert!(format!("{:?}", applied.errors).contains("FLOWS6"), "{:?}", applied.errors);
        assert!(!f.sends(&Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::SYN)));
        assert_eq!(f.drops(Reason::NoEndpoint, Direction::Egress), 1);
        for version in [4, 6] {
            assert!(
                !pins.flow(SLOT, version).exists(),
                "the next agent would believe that IPv{version} has its table"
            );
        }
    });
}

#[test]
fn flows_that_differ_in_one_word_are_told_apart_in_the_same_places() {
    // Nine places: whatever is looked for is looked for among the flows of the others.
    with_sizes(nine_places(), |f| {
        let ports = 4000..4006;
        let answer =
            |web: &str, from: u16, pod: &str, port: u16| Packet::tcp(web, from, pod, port, flags::ACK);
        // An IPv6 address has four words of 32 bits.
        let others = [
            ("10.0.0.2", "10.0.0.3", &["10.0.0.4", "10.1.0.3"][..]),
            ("fd00::2", "fd00::3", &["fd01::3", "fd00:0:0:1::3", "fd00::1:0:3", "fd00::4"]),
        ];
        for (pod, web, others) in others {
            assert!(ports.clone().all(|port| f.connects(pod, port, web)));
            for port in ports.clone() {
                for other in others {
                    assert!(!f.receives(&answer(other, 80, pod, port)), "{other} to {port}");
                }
                assert!(!f.receives(&answer(web, 81, pod, port)), "from another port to {port}");
                assert!(!f.receives(&answer(web, 80, pod, port + 6)), "to {}", port + 6);
                assert!(f.receives(&answer(web, 80, pod, port)), "{port}");
            }
        }
    });
}
