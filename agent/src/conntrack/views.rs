//! How the hooks of this node's endpoints see a connection.
//!
//! from-pod sees packets before the node translates their addresses, to-pod sees them after it. So what a pod opened is
//! known there by the original addresses, and what was opened towards it by those of the answers.

use std::net::{IpAddr, SocketAddr};

use portcullis_common::Direction;

use super::Connection;

/// Any interface that is no endpoint stands for an uplink: the loopback interface has this index in every namespace.
const UPLINK: u32 = 1;

/// A connection as one endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Interface of the endpoint.
    pub ifindex: u32,
    /// The pod's side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// Egress: the pod opened it.
    pub opener: Direction,
    /// Interface that the opener's packets came into the node by; `0`: they are the node's own.
    pub ingress_ifindex: u32,
    /// As in [`Connection`].
    pub half_open: bool,
}

/// Which addresses are where on this node.
pub trait Places {
    /// The endpoints that have an address; the one that it belongs to for sure comes first.
    fn endpoints(&self, address: IpAddr) -> &[u32];
    /// Whether the address is the node's own.
    fn is_node(&self, address: IpAddr) -> bool;
}

/// The views of a connection at all endpoints of this node.
pub fn views(connection: &Connection, places: &impl Places) -> Vec<View> {
    let Connection { original, reply, half_open } = *connection;
    let opened = places.endpoints(original.sender()).iter().map(|&ifindex| View {
        ifindex,
        local: original.source,
        remote: original.destination,
        opener: Direction::Egress,
        ingress_ifindex: 0,
        half_open,
    });
    let ingress_ifindex = if places.is_node(original.sender()) {
        0
    } else {
        places.endpoints(original.sender()).first().copied().unwrap_or(UPLINK)
    };
    let accepted = places.endpoints(reply.sender()).iter().map(|&ifindex| View {
        ifindex,
        local: reply.source,
        remote: reply.destination,
        opener: Direction::Ingress,
        ingress_ifindex,
        half_open,
    });
    opened.chain(accepted).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Tuple;
    use super::*;

    struct Node;

    impl Places for Node {
        fn endpoints(&self, address: IpAddr) -> &[u32] {
            match address.to_string().as_str() {
                "10.0.0.2" => &[12],
                "10.0.0.3" | "fd00::3" => &[13],
                _ => &[],
            }
        }
        fn is_node(&self, address: IpAddr) -> bool {
            address.to_string() == "192.0.2.1"
        }
    }

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    fn seen(original: (&str, &str), reply: (&str, &str)) -> Vec<String> {
        let connection = Connection {
            original: tuple(original.0, original.1),
            reply: tuple(reply.0, reply.1),
            half_open: false,
        };
        let say =
            |v: View| format!("{} {} {} {} {}", v.ifindex, v.opener, v.local, v.remote, v.ingress_ifindex);
        views(&connection, &Node).into_iter().map(say).collect()
    }

    #[test]
    fn a_connection_between_two_pods_is_seen_at_both() {
        assert_eq!(
            seen(("10.0.0.2:4000", "10.0.0.3:80"), ("10.0.0.3:80", "10.0.0.2:4000")),
            ["12 egress 10.0.0.2:4000 10.0.0.3:80 0", "13 ingress 10.0.0.3:80 10.0.0.2:4000 12"]
        );
    }

    #[test]
    fn a_service_address_is_what_the_opener_sees_and_its_endpoint_sees_itself() {
        assert_eq!(
            seen(("10.0.0.2:4000", "10.96.0.1:80"), ("10.0.0.3:8080", "192.0.2.1:61000")),
            ["12 egress 10.0.0.2:4000 10.96.0.1:80 0", "13 ingress 10.0.0.3:8080 192.0.2.1:61000 12"],
            "masqueraded to the node's address, and still from the pod's interface"
        );
        let hairpin = seen(("10.0.0.2:4000", "10.96.0.1:80"), ("10.0.0.2:8080", "192.0.2.1:61000"));
        assert_eq!(
            hairpin,
            ["12 egress 10.0.0.2:4000 10.96.0.1:80 0", "12 ingress 10.0.0.2:8080 192.0.2.1:61000 12"]
        );
    }

    #[test]
    fn where_it_came_in_is_the_node_itself_only_for_the_nodes_own_address() {
        let to_pod = |source: &str| seen((source, "10.0.0.3:80"), ("10.0.0.3:80", source));
        assert_eq!(to_pod("192.0.2.1:50000"), ["13 ingress 10.0.0.3:80 192.0.2.1:50000 0"]);
        assert_eq!(to_pod("203.0.113.9:50000"), ["13 ingress 10.0.0.3:80 203.0.113.9:50000 1"]);
        assert_eq!(
            seen(("203.0.113.9:50000", "192.0.2.1:30080"), ("10.0.0.3:80", "192.0.2.1:61000")),
            ["13 ingress 10.0.0.3:80 192.0.2.1:61000 1"],
            "a node port with masquerading is the outside"
        );
    }

    #[test]
    fn what_touches_no_pod_of_this_node_is_seen_nowhere() {
        assert!(seen(("192.0.2.1:1", "203.0.113.9:2"), ("203.0.113.9:2", "192.0.2.1:1")).is_empty());
        assert_eq!(
            seen(("[fd00::3]:1", "[2001:db8::9]:2"), ("[2001:db8::9]:2", "[fd00::3]:1")),
            ["13 egress [fd00::3]:1 [2001:db8::9]:2 0"]
        );
    }
}
