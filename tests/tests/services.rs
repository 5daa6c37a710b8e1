//! Flows to services through the loaded programs: what the endpoints behind a frontend decide, and how a change of them
//! gets into the kernel.
#![expect(clippy::unwrap_used, reason = "a helper of a test ends the test when what it needs is not there")]

use std::net::IpAddr;
use std::sync::Arc;

use portcullis::datapath::{Applied, DatapathError, Sizes};
use portcullis::policy::{EndpointSet, row_of_set, service_key};
use portcullis_common::abi::Mode;
use portcullis_common::identity::identity_flags;
use portcullis_common::policy::wildcard_of;
use portcullis_common::service::{EXPOSED, SERVICE_COMPILED, Service, ServiceEntry, ServiceKey};
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};
use portcullis_tests::fixture::{
    API, Backend, Fixture, INTRUDER, SERVICE_PEER, SUBJECT, WEB, add_frontend, always, backend, endpoint,
    only, rows, with_fixture, with_sizes,
};
use portcullis_tests::packets::{Packet, flags};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
const HOST: u32 = Kind::Host as u32;
const NODE: u32 = Kind::Node as u32;
const UNMANAGED: u32 = Kind::Unmanaged as u32;

fn syn(to: &str, port: u16) -> Packet {
    let pod = if to.contains(':') { "fd00::2" } else { "10.0.0.2" };
    Packet::tcp(pod, 4000, to, port, flags::SYN)
}

/// The pairs that were counted, and how often each was allowed, denied and audited; what was there before is left out.
fn decisions(f: &Fixture, destination: u32) -> [u64; 3] {
    f.counters(API, destination, EGRESS).decisions
}

/// Applies, and says whether flows are judged again.
fn apply(f: &mut Fixture) -> Applied {
    f.datapath.apply(&f.desired, &[endpoint()], Mode::Enforce, std::iter::empty()).unwrap()
}

/// A frontend with these endpoints instead of those it had.
fn replace(f: &mut Fixture, backends: &[Backend]) -> Applied {
    add_frontend(&mut f.desired, "10.96.0.1", 6, 80, backends);
    let applied = apply(f);
    assert!(applied.errors.is_empty(), "{:?}", applied.errors);
    applied
}

#[test]
fn a_flow_to_a_service_counts_for_the_endpoint_that_it_was_allowed_or_denied_for() {
    with_fixture(|f| {
        for (port, backends) in [
            (1u16, &[(WEB, 80, false)][..]),
            (2, &[(WEB, 80, false), (INTRUDER, 80, false)]),
            (3, &[(INTRUDER, 80, true), (WEB, 80, true)]),
            (4, &[(INTRUDER, 80, true), (WEB, 80, false)]),
            (5, &[(WEB, 81, false)]),
            (6, &[]),
            (
                7,
                &[
                    (WEB, 80, true),
                    (WEB, 81, true),
                    (WEB, 8000, false),
                    (WEB, 8001, false),
                    (WEB, 8002, false),
                    (WEB, 8003, false),
                    (WEB, 8004, false),
                    (WEB, 8005, false),
                ],
            ),
            (
                8,
                &[
                    (WEB, 80, true),
                    (WEB, 81, true),
                    (WEB, 8000, false),
                    (WEB, 8001, false),
                    (WEB, 8002, false),
                    (WEB, 8003, false),
                    (WEB, 8004, false),
                    (WEB, 8011, false),
                ],
            ),
        ] {
            for address in ["10.96.0.1", "fd96::1"] {
                add_frontend(&mut f.desired, address, 6, port, backends);
            }
        }
        f.apply();
        for address in ["10.96.0.1", "fd96::1"] {
            for (port, allowed, principal) in [
                (1, true, WEB),
                (2, false, INTRUDER),
                (3, true, WEB),
                (4, false, INTRUDER),
                (5, false, WEB),
                (6, true, UNMANAGED),
                (7, true, WEB),
                (8, false, WEB),
                (9, false, UNMANAGED),
            ] {
                let before = decisions(f, principal);
                assert_eq!(f.sends(&syn(address, port)), allowed, "{address} {port}");
                let after = decisions(f, principal);
                let index = usize::from(!allowed);
                assert_eq!(after[index] - before[index], 1, "{address} {port}: counts for {principal}");
            }
            // The conversation goes on, and the answers come from the service's address.
            let pod = if address == "fd96::1" { "fd00::2" } else { "10.0.0.2" };
            assert!(f.receives(&Packet::tcp(address, 1, pod, 4000, flags::SYN | flags::ACK)));
            assert!(f.sends(&Packet::tcp(pod, 4000, address, 1, flags::ACK)));
            assert!(!f.sends(&Packet::udp(pod, 4000, address, 1)), "another protocol is another port");
            assert!(!f.sends(&Packet::echo(pod, address, true, 1)), "no service answers to it");
        }
    });
}

#[test]
fn udp_and_audited_services() {
    with_fixture(|f| {
        let mut set = (*rows(Verdict::Deny, &only(&[(17, 53, 53)]))).clone();
        set.insert((EGRESS, INTRUDER), always(Verdict::Audit));
        f.desired.subjects.insert(SUBJECT, Arc::new(set));
        add_frontend(&mut f.desired, "10.96.0.1", 17, 5353, &[(WEB, 53, false)]);
        add_frontend(&mut f.desired, "10.96.0.1", 17, 5354, &[(WEB, 53, false), (INTRUDER, 53, false)]);
        add_frontend(&mut f.desired, "10.96.0.1", 17, 5355, &[(WEB, 54, false), (INTRUDER, 53, false)]);
        add_frontend(&mut f.desired, "10.96.0.1", 17, 5356, &[(WEB, 53, true), (INTRUDER, 53, true)]);
        f.apply();
        for (port, passes) in [(5353, true), (5354, true), (5355, false), (5356, true)] {
            assert_eq!(f.sends(&Packet::udp("10.0.0.2", 4000, "10.96.0.1", port)), passes, "{port}");
        }
        assert_eq!(decisions(f, INTRUDER), [0, 0, 1]);
        assert_eq!(decisions(f, WEB), [2, 1, 0]);
    });
}

#[test]
fn node_ports_and_addresses_of_nodes() {
    with_fixture(|f| {
        add_frontend(&mut f.desired, "0.0.0.0", 6, 30080, &[(WEB, 80, false)]);
        add_frontend(&mut f.desired, "10.0.9.1", 6, 30080, &[(INTRUDER, 80, false)]);
        f.apply();
        assert!(f.sends(&syn("10.0.0.1", 30080)));
        assert!(!f.sends(&syn("10.0.9.1", 30080)), "the exact address comes first");
        assert!(!f.sends(&syn("10.0.0.1", 30081)));
        assert!(!f.sends(&syn("8.8.8.8", 30080)), "not a node");
        assert!(!f.sends(&syn("fd00::1", 30080)), "not this family");
        assert_eq!((decisions(f, WEB), decisions(f, INTRUDER)), ([1, 0, 0], [0, 1, 0]));
        assert_eq!((decisions(f, HOST), decisions(f, NODE)), ([0, 2, 0], [0, 0, 0]));
    });
}

#[test]
fn a_borrowed_address_is_what_it_is_on_other_ports_and_as_a_source() {
    with_fixture(|f| {
        let mut set = (*rows(Verdict::Deny, &only(&[(6, 80, 80)]))).clone();
        for &direction in Direction::ALL {
            set.insert((direction, wildcard_of(Kind::World)), always(Verdict::Allow));
        }
        f.desired.subjects.insert(SUBJECT, Arc::new(set));
        for address in ["192.0.2.7", "192.0.2.8"] {
            add_frontend(&mut f.desired, address, 6, 443, &[(INTRUDER, 80, false)]);
        }
        f.desired.ipcache.get_mut(&"192.0.2.7".parse::<IpAddr>().unwrap()).unwrap().flags =
            identity_flags::BORROWED;
        f.apply();
        for (address, otherwise) in [("192.0.2.7", true), ("192.0.2.8", false)] {
            assert!(!f.sends(&syn(address, 443)), "{address}");
            assert_eq!(f.sends(&syn(address, 80)), otherwise, "{address}");
            assert_eq!(f.sends(&Packet::echo("10.0.0.2", address, true, 1)), otherwise, "{address}");
            let inwards = Packet::tcp(address, 443, "10.0.0.2", 80, flags::SYN);
            assert_eq!(f.receives(&inwards), otherwise, "{address}");
        }
    });
}

#[test]
fn a_range_of_services_is_denied_where_no_frontend_is() {
    with_fixture(|f| {
        let range = Identity::new(Kind::Service.principal(), SERVICE_PEER, Kind::Service);
        f.desired.cidrs.insert("10.96.0.0/16".parse().unwrap(), range);
        let mut set = (*rows(Verdict::Deny, &always(Verdict::Allow))).clone();
        set.insert((EGRESS, wildcard_of(Kind::World)), always(Verdict::Allow));
        f.desired.subjects.insert(SUBJECT, Arc::new(set));
        f.apply();
        assert!(!f.sends(&syn("10.96.0.9", 80)));
        assert!(f.sends(&syn("10.97.0.9", 80)));
        assert_eq!(decisions(f, UNMANAGED), [0, 1, 0]);
    });
}

/// Makes `10.96.0.1:80` a frontend with more endpoints than fit.
fn compiled(f: &mut Fixture, peer: u32, entries: Vec<ServiceEntry>) {
    let key = service_key("10.96.0.1".parse().unwrap(), 6, 80);
    let mut service = Service { tag: key.tag(), count: SERVICE_COMPILED, ..Service::default() };
    service.entries[0] =
        ServiceEntry { peer, principal: WEB, kind: Kind::Service as u8, ..ServiceEntry::default() };
    let set = EndpointSet { protocol: 6, entries };
    let mut with_row = (*f.desired.subjects[&SUBJECT]).clone();
    with_row.insert((EGRESS, peer), Arc::new(row_of_set(&with_row, &set)));
    add_frontend(&mut f.desired, "10.96.0.1", 6, 80, &[]);
    f.desired.subjects.insert(SUBJECT, Arc::new(with_row));
    f.desired.services.insert(key, service);
    f.desired.sets = [(peer, Arc::new(set))].into();
}

#[test]
fn more_endpoints_than_fit_have_a_row_of_their_own() {
    with_fixture(|f| {
        let many = |last: Backend| -> Vec<ServiceEntry> {
            (8000..=8010).map(|port| backend((WEB, port, false))).chain([backend(last)]).collect()
        };
        compiled(f, 40, many((WEB, 80, true)));
        f.apply();
        assert!(f.sends(&syn("10.96.0.1", 80)));
        compiled(f, 41, many((INTRUDER, 80, false)));
        f.apply();
        assert!(!f.sends(&syn("10.96.0.1", 80)));
        assert_eq!(decisions(f, WEB), [1, 1, 0]);
        f.reopen();
        assert!(!f.sends(&syn("10.96.0.1", 80)), "the next agent keeps it");
        f.apply();
        assert!(!f.sends(&syn("10.96.0.1", 80)));
    });
}

#[test]
fn an_endpoint_that_leaves_revokes_nothing_and_one_that_comes_and_is_not_judged_again_does() {
    with_fixture(|f| {
        assert!(replace(f, &[(WEB, 80, true), (WEB, 81, true)]).revised, "a new frontend");
        for (backends, revised) in [
            (&[(WEB, 80, true)][..], false),
            (&[(WEB, 80, true), (INTRUDER, 80, true)], false),
            (&[(INTRUDER, 80, true)], false),
            (&[(WEB, 80, false), (INTRUDER, 80, true)], true),
            (&[(WEB, 80, false)], false),
            (&[(WEB, 80, true)], false),
            (&[(WEB, 80, false)], true),
            (&[], false),
            (&[], false),
        ] {
            let applied = replace(f, backends);
            assert_eq!(applied.revised, revised, "{backends:?}: {applied:?}");
        }
        f.desired.services.clear();
        assert!(apply(f).revised, "a frontend that is gone");
    });
}

#[test]
fn a_connection_outlives_its_endpoint_and_not_one_that_is_denied_and_nobody_judges() {
    with_fixture(|f| {
        replace(f, &[(WEB, 80, true), (INTRUDER, 80, true)]);
        let goes_on = Packet::tcp("10.0.0.2", 4000, "10.96.0.1", 80, flags::ACK);
        assert!(f.sends(&syn("10.96.0.1", 80)));
        replace(f, &[(INTRUDER, 80, true)]);
        assert!(f.sends(&goes_on));
        assert!(!f.sends(&Packet::tcp("10.0.0.2", 4001, "10.96.0.1", 80, flags::SYN)), "a new one");
        replace(f, &[(WEB, 80, true)]);
        assert!(f.sends(&goes_on));
        replace(f, &[(WEB, 80, true), (INTRUDER, 80, false)]);
        assert!(!f.sends(&goes_on));
    });
}

#[test]
fn services_survive_a_restart_and_an_unchanged_one_writes_nothing() {
    with_fixture(|f| {
        replace(f, &[(WEB, 80, true)]);
        add_frontend(&mut f.desired, "fd96::1", 17, 53, &[(WEB, 80, false)]);
        f.apply();
        f.reopen();
        assert!(f.sends(&syn("10.96.0.1", 80)));
        assert!(f.sends(&Packet::udp("fd00::2", 4000, "fd96::1", 53)));
        let applied = apply(f);
        assert!(applied.errors.is_empty() && !applied.revised, "{applied:?}");
        f.reopen();
        f.desired.services.remove(&service_key("fd96::1".parse().unwrap(), 17, 53));
        assert!(apply(f).revised);
        assert!(!f.sends(&Packet::udp("fd00::2", 4000, "fd96::1", 53)), "what is gone is swept");
    });
}

#[test]
fn a_frontend_without_room_is_denied_and_gets_the_room_of_what_is_gone() {
    let sizes = Sizes { services_size: 3, ..Sizes::default() };
    with_sizes(sizes, |f| {
        f.desired.subjects.insert(SUBJECT, rows(Verdict::Allow, &always(Verdict::Allow)));
        for port in 1..=4 {
            add_frontend(&mut f.desired, "10.96.0.1", 6, port, &[(WEB, 80, false)]);
        }
        let applied = apply(f);
        assert!(
            matches!(&applied.errors[..], [DatapathError::Full { flag: "--services-size", .. }]),
            "{applied:?}"
        );
        let allowed = |f: &mut Fixture| (1..=4).filter(|port| f.sends(&syn("10.96.0.1", *port))).count();
        assert_eq!(allowed(f), 3, "although everything is allowed");
        assert_eq!(f.drops(Reason::NoPolicy, EGRESS), 1);
        assert!(f.sends(&syn("10.0.0.1", 22)), "no port of the nodes is missing");
        // What has its room keeps it. With a port of the nodes missing every port of a node may be one.
        for port in [30000, 30001, 30002, 30003] {
            add_frontend(&mut f.desired, "0.0.0.0", 6, port, &[(WEB, 80, false)]);
        }
        assert_eq!(apply(f).errors.len(), 5);
        assert_eq!(allowed(f), 3);
        assert!(!f.sends(&syn("10.0.0.1", 22)));
        assert!(f.sends(&syn("8.8.8.8", 22)));
        f.desired.services.retain(|key, _| key.port < 4);
        assert!(apply(f).errors.is_empty());
        assert_eq!(allowed(f), 4, "port 4 is none of the service's, and nothing is isolated");
        assert!(f.sends(&syn("10.0.0.1", 22)));
    });
}

/// Lets only peers of one kind in.
fn only_for(f: &mut Fixture, kind: Kind) {
    let mut set = (*rows(Verdict::Deny, &always(Verdict::Deny))).clone();
    set.insert((INGRESS, wildcard_of(kind)), always(Verdict::Allow));
    f.desired.subjects.insert(SUBJECT, Arc::new(set));
    f.apply();
}

#[test]
fn another_node_is_taken_for_the_outside_on_a_port_that_nodes_masquerade_to() {
    const NODES: [(&str, &str); 2] = [("10.0.9.1", "10.0.0.2"), ("fd00:9::1", "fd00::2")];
    with_fixture(|f| {
        f.desired.ipcache.insert("fd00:9::1".parse().unwrap(), Identity::new(NODE, NODE, Kind::Node));
        for (_, pod) in NODES {
            let key = service_key(pod.parse().unwrap(), 6, 80);
            let key = ServiceKey { family: key.family | EXPOSED, ..key };
            f.desired.services.insert(key, Service { tag: key.tag(), ..Service::default() });
        }
        let world = Kind::World as u32;
        for (kind, port, allowed, counted) in [
            (Kind::Node, 80, false, world),
            (Kind::Node, 81, true, NODE),
            (Kind::World, 80, true, world),
            (Kind::World, 81, false, NODE),
        ] {
            only_for(f, kind);
            for (node, pod) in NODES {
                let count = |f: &Fixture| f.counters(counted, API, INGRESS).decisions[usize::from(!allowed)];
                let before = count(f);
                let syn = Packet::tcp(node, 5000, pod, port, flags::SYN);
                assert_eq!(f.receives(&syn), allowed, "{node} to port {port}, for {kind:?}");
                assert_eq!(count(f) - before, 1, "{node} to port {port}, for {kind:?}");
            }
        }
        // Over UDP nothing comes from outside.
        only_for(f, Kind::Node);
        for (node, pod) in NODES {
            assert!(f.receives(&Packet::udp(node, 5000, pod, 80)));
        }
    });
}
