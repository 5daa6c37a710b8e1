//! The addresses that a node's overlay network gives it: what its processes send to pods of other nodes comes from there.
//!
//! The API has no field for them. Network plugins write them to annotations of their Node.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::TUNNEL_ADDRESSES_KEY;

/// Annotations with one address each, of Calico and of Cilium (`annotateK8sNode`); the last of them with several, for every
/// other plugin.
const ADDRESSES: [&str; 8] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
    TUNNEL_ADDRESSES_KEY,
];

/// Annotation by which flannel says how it joins nodes.
const FLANNEL_BACKEND: &str = "flannel.alpha.coreos.com/backend-type";
/// Its backends with an interface of their own, to which flannel gives the address of the node's pod range itself.
const FLANNEL_TUNNELS: [&str; 3] = ["vxlan", "wireguard", "ipip"];

/// The addresses in a node's annotations. What is none says nothing: these are written by others, for themselves.
pub(super) fn addresses(metadata: &ObjectMeta, pod_cidrs: &[IpNet]) -> Vec<IpAddr> {
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let written = ADDRESSES.iter().filter_map(|key| annotation(key)).flat_map(|value| value.split(','));
    let written = written.filter_map(|address| address.trim().parse::<IpAddr>().ok());
    let flannel = annotation(FLANNEL_BACKEND).is_some_and(|backend| FLANNEL_TUNNELS.contains(&backend));
    let ranges = pod_cidrs.iter().filter(|_| flannel).map(IpNet::network);
    let mut found: Vec<IpAddr> = written.chain(ranges).map(|address| address.to_canonical()).collect();
    found.retain(|address| !address.is_unspecified() && !address.is_loopback() && !address.is_multicast());
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)], pod_cidrs: &[&str]) -> Vec<String> {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let metadata = ObjectMeta { annotations: Some(annotations.collect()), ..ObjectMeta::default() };
        let pod_cidrs: Vec<IpNet> = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        addresses(&metadata, &pod_cidrs).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_addresses_that_plugins_write_are_read_and_nothing_else() {
        let calico = [
            ("projectcalico.org/IPv4VXLANTunnelAddr", "10.244.1.64"),
            ("projectcalico.org/IPv6WireguardInterfaceAddr", "fd00:1::5"),
            ("projectcalico.org/IPv4Address", "192.0.2.7/24"),
        ];
        assert_eq!(of(&calico, &["10.244.1.0/24"]), ["10.244.1.64", "fd00:1::5"]);
        assert_eq!(of(&[("network.cilium.io/ipv4-cilium-host", "10.0.1.9")], &[]), ["10.0.1.9"]);
        let ours = [("portcullis.dev/tunnel-addresses", "10.1.0.1, fd00::1,10.1.0.1")];
        assert_eq!(of(&ours, &[]), ["10.1.0.1", "fd00::1"]);
        let none = [("portcullis.dev/tunnel-addresses", "0.0.0.0,127.0.0.1,::ffff:10.1.0.2,all,224.0.0.1,")];
        assert_eq!(of(&none, &[]), ["10.1.0.2"]);
    }

    #[test]
    fn flannel_has_the_address_of_the_pod_range_where_it_has_an_interface() {
        let ranges = ["10.244.1.7/24", "fd00:10:1::/64"];
        for (backend, found) in [("vxlan", 2), ("wireguard", 2), ("host-gw", 0), ("", 0)] {
            let addresses = of(&[("flannel.alpha.coreos.com/backend-type", backend)], &ranges);
            assert_eq!(addresses.len(), found, "{backend}: {addresses:?}");
        }
        let addresses = of(&[("flannel.alpha.coreos.com/backend-type", "vxlan")], &ranges);
        assert_eq!(addresses, ["10.244.1.0", "fd00:10:1::"]);
        assert!(of(&[], &ranges).is_empty());
    }
}
