//! Which links are endpoints: a pure function, so that every case is a unit test.
//!
//! Invariant: a veth into another namespace is never taken for a pod's by its name, only by its address.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Link, LinkKind, names_a_pod};

/// What a link is to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Classification {
    /// The host side of a pod's veth: it gets programs.
    Endpoint,
    /// A veth into another namespace that has no address yet: a pod that is being set up, perhaps.
    Pending,
    /// Left alone, and why, for people to read.
    Ignored(String),
    /// An interface of a pod on which our hooks do not see all of the pod's packets.
    Bypassed(LinkKind),
}

/// Says what a link is. `claimed` tells whether a known pod (API or CNI cache) has an address; `pod_ranges` are the
/// node's.
pub fn classify(link: &Link, claimed: impl Fn(IpAddr) -> bool, pod_ranges: &[IpNet]) -> Classification {
    let kind = &link.kind;
    let is_pair = matches!(kind, LinkKind::Veth | LinkKind::Netkit);
    if !is_pair && !matches!(kind, LinkKind::Ipvlan | LinkKind::Macvlan) {
        return Classification::Ignored(format!("a {kind}, not a veth into another network namespace"));
    }
    let Some(peer) = &link.peer else {
        let reason = if is_pair {
            format!("the other end of this {kind} is in the node's own network namespace")
        } else {
            format!("a {kind} of the node itself")
        };
        return Classification::Ignored(reason);
    };
    let mut addresses = peer.addresses.iter().copied().filter(names_a_pod).peekable();
    if addresses.peek().is_none() {
        return match kind {
            LinkKind::Veth => Classification::Pending,
            _ => {
                Classification::Ignored(format!("a {kind} into another network namespace without an address"))
            }
        };
    }
    let is_of_a_pod = addresses.any(|a| claimed(a) || pod_ranges.iter().any(|range| range.contains(&a)));
    match (kind, is_of_a_pod) {
        (LinkKind::Veth, true) => Classification::Endpoint,
        (_, true) => Classification::Bypassed(kind.clone()),
        (_, false) => {
            let found: Vec<String> =
                peer.addresses.iter().filter(|a| names_a_pod(a)).map(IpAddr::to_string).collect();
            Classification::Ignored(format!(
                "no known pod and no pod range has its {} {}",
                if found.len() == 1 { "address" } else { "addresses" },
                found.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::PeerLink;
    use super::*;

    fn mk_link(kind: LinkKind, peer_addresses: Option<&[&str]>) -> Link {
        Link {
            ifindex: 7,
            name: "x".to_owned(),
            kind,
            master: None,
            up: true,
            mac: None,
            peer: peer_addresses.map(|addresses| PeerLink {
                netns_id: 0,
                ifindex: 2,
                mac: None,
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            }),
            appeared: Instant::now(),
        }
    }

    fn judge(link: &Link) -> Classification {
        let known: IpAddr = "192.0.2.9".parse().unwrap();
        let ranges: Vec<IpNet> = ["10.1.0.0/24", "fd00:1::/64"].iter().map(|r| r.parse().unwrap()).collect();
        classify(link, |a| a == known, &ranges)
    }

    #[test]
    fn a_veth_is_an_endpoint_by_its_address_alone() {
        use Classification::{Endpoint, Pending};
        let cases: &[(&[&str], Classification)] = &[
            (&["10.1.0.5"], Endpoint),
            (&["fd00:1::5"], Endpoint),
            (&["192.0.2.9"], Endpoint),
            (&["fe80::1", "10.1.0.5"], Endpoint),
            (&["192.0.2.8", "192.0.2.9"], Endpoint),
            (&[], Pending),
            (&["fe80::1"], Pending),
            (
                &["10.2.0.5"],
                Classification::Ignored("no known pod and no pod range has its address 10.2.0.5".to_owned()),
            ),
            (
                &["10.2.0.5", "fe80::1", "fd00:2::5"],
                Classification::Ignored(
                    "no known pod and no pod range has its addresses 10.2.0.5, fd00:2::5".to_owned(),
                ),
            ),
        ];
        for (addresses, expected) in cases {
            assert_eq!(&judge(&mk_link(LinkKind::Veth, Some(addresses))), expected, "{addresses:?}");
        }
    }

    #[test]
    fn a_pod_behind_another_kind_of_link_is_reported_as_bypassed() {
        for kind in [LinkKind::Netkit, LinkKind::Ipvlan, LinkKind::Macvlan] {
            let of_a_pod = judge(&mk_link(kind.clone(), Some(&["10.1.0.5"])));
            assert_eq!(of_a_pod, Classification::Bypassed(kind.clone()));
            for other in [Some(&[][..]), Some(&["10.2.0.5"][..]), None] {
                let judged = judge(&mk_link(kind.clone(), other));
                assert!(matches!(judged, Classification::Ignored(_)), "{kind} {other:?}: {judged:?}");
            }
        }
    }

    #[test]
    fn every_other_interface_is_ignored_with_a_reason_that_names_its_kind() {
        let reason = |link| match judge(&link) {
            Classification::Ignored(reason) => reason,
            other => panic!("not ignored: {other:?}"),
        };
        assert!(reason(mk_link(LinkKind::Bridge, None)).contains("bridge"));
        assert!(reason(mk_link(LinkKind::Other("vxlan".to_owned()), None)).contains("vxlan"));
        assert!(reason(mk_link(LinkKind::Other(String::new()), None)).contains("device"));
        assert!(reason(mk_link(LinkKind::Veth, None)).contains("own network namespace"));
        // A vxlan can have its lower device in another namespace; that makes it no pod's.
        assert!(reason(mk_link(LinkKind::Other("vxlan".to_owned()), Some(&["10.1.0.5"]))).contains("vxlan"));
    }
}
