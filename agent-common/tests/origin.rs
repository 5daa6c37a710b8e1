//! Where a packet with this node's address comes from, by all that its metadata can say.

use portcullis_common::abi::{Addr6, Endpoint};
use portcullis_common::flow::origin;
use portcullis_common::judge::{Config, Family, Maps, Metadata, Question, Serving, V4, V6, find_origin};
use portcullis_common::policy::{PolicyMaps, PortStep, Row, RowKey};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::{Direction, Identity, Kind};

const NODE4: u32 = 1;
const NODE6: Addr6 = Addr6 { words_be: [1; 4] };
/// The receiver's bridge, another bridge, and an uplink.
const BRIDGE: u32 = 50;
const OTHER_BRIDGE: u32 = 51;
const UPLINK: u32 = 60;

/// Three endpoints, each in the slot of its index: two ports of the bridge, and one of the other bridge.
struct Node {
    endpoints: [Endpoint; 4],
}

impl Config for Node {
    fn config(&self, _: u32) -> u32 {
        0
    }
}

impl PolicyMaps for Node {
    fn rowset(&self, _: u32) -> u32 {
        0
    }
    fn row(&self, _: &RowKey) -> Option<Row> {
        None
    }
    fn step(&self, _: u32) -> Option<PortStep> {
        None
    }
}

macro_rules! maps {
    ($family:ty, $address:ty, $node:expr) => {
        impl Maps<$family> for Node {
            fn exact(&self, address: $address) -> Option<Identity> {
                (address == $node).then(|| Identity::new(Kind::Host as u32, Kind::Host as u32, Kind::Host))
            }
            fn prefix(&self, _: $address) -> Option<Identity> {
                None
            }
            fn service(&self, _: &ServiceKey, _: &mut Service) -> bool {
                false
            }
            fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
                self.endpoints.get(slot as usize)
            }
        }
    };
}

maps!(V4, u32, NODE4);
maps!(V6, Addr6, NODE6);

fn node() -> Node {
    let port = |ifindex, master| Endpoint { ifindex, master, ..Endpoint::default() };
    Node { endpoints: [Endpoint::default(), port(1, BRIDGE), port(2, BRIDGE), port(3, OTHER_BRIDGE)] }
}

/// The origin of a packet from the node's address to the first endpoint.
fn of<F: Family>(node: &Node, remote: F::Address, local: F::Address, packet: Metadata) -> u32
where
    Node: Maps<F>,
{
    let question = Question {
        local,
        remote,
        local_port: 80,
        remote_port: 4000,
        protocol: 6,
        opener: Direction::Ingress,
        origin: origin::ADDRESS,
    };
    find_origin::<F, Node>(node, &node.endpoints[1], &question, &packet, &mut Serving::default())
}

fn of4(packet: Metadata) -> u32 {
    of::<V4>(&node(), NODE4, 7, packet)
}

/// From an interface, with a stamp.
fn by(ingress_ifindex: u32, tc_index: u32) -> Metadata {
    Metadata { ingress_ifindex, tc_index, ..Metadata::default() }
}

#[test]
fn what_came_by_an_endpoint_is_that_pods_whatever_its_stamp_says() {
    assert_eq!(of4(by(2, 0)), origin::ENDPOINT + 2);
    assert_eq!(of4(by(3, 1 + 2)), origin::ENDPOINT + 3);
}

#[test]
fn what_came_by_the_receivers_bridge_is_of_the_port_whose_stamp_it_has() {
    assert_eq!(of4(by(BRIDGE, 1 + 2)), origin::ENDPOINT + 2);
    // No stamp: it entered by a port that is no endpoint. A free slot, and a port of another bridge: not our stamp.
    for stamp in [0, 1, 1 + 3, 1 + 9] {
        assert_eq!(of4(by(BRIDGE, stamp)), origin::WORLD, "stamp {stamp}");
    }
}

#[test]
fn a_stamp_means_nothing_on_what_came_by_another_way() {
    for interface in [UPLINK, OTHER_BRIDGE] {
        assert_eq!(of4(by(interface, 1 + 2)), origin::WORLD, "interface {interface}");
    }
}

#[test]
fn what_was_made_here_is_the_nodes_but_for_ipv6_fragments_without_a_socket() {
    for (fragment, has_socket) in [(false, false), (false, true), (true, false), (true, true)] {
        let packet = Metadata { fragment, has_socket, ..by(0, 1 + 2) };
        assert_eq!(of4(packet), origin::HOST, "IPv4 {packet:?}");
        let expected = if fragment && !has_socket { origin::WORLD } else { origin::HOST };
        let found = of::<V6>(&node(), NODE6, Addr6 { words_be: [7; 4] }, packet);
        assert_eq!(found, expected, "IPv6 {packet:?}");
    }
}

#[test]
fn a_pods_own_address_from_nowhere_is_the_worlds() {
    let mut node = node();
    node.endpoints[1].addr4_be = [7, 0];
    assert_eq!(of::<V4>(&node, 7, 7, by(0, 0)), origin::WORLD);
    assert_eq!(of::<V4>(&node, 7, 7, by(1, 0)), origin::ENDPOINT + 1, "hairpin: it came from the pod");
}

#[test]
fn an_address_that_is_not_the_nodes_tells_by_itself() {
    for packet in [by(0, 0), by(2, 0), by(BRIDGE, 1 + 2), by(UPLINK, 0)] {
        assert_eq!(of::<V4>(&node(), 9, 7, packet), origin::ADDRESS, "{packet:?}");
    }
}
