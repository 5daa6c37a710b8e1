//! Addresses for pods that have none, because a folder that was never in a cluster cannot say them. Only `ipBlock` looks at
//! addresses, so what is needed is one that is in the range of pods and that nobody else has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Pod, World};

/// The range of pods where nothing says it, for IPv4 and IPv6.
const USUAL: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/64"];

/// What was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// How many pods got addresses.
    pub pods: usize,
    /// From where.
    pub ranges: Vec<IpNet>,
    /// Pods for which there was no room, as `namespace/name`.
    pub without: Vec<String>,
}

/// Gives every pod without an address one of each IP version that the cluster has.
///
/// The ranges are those that were asked for, else those of the Nodes, else usual ones for the IP versions that other pods
/// have; IPv4 if there are none.
pub(super) fn give(world: &mut World, asked: &[IpNet]) -> Given {
    let needs = |pod: &Pod| pod.addresses.is_empty() && !pod.host_network && !pod.finished;
    if !world.pods.values().any(needs) {
        return Given::default();
    }
    let mut used = used(world);
    let ranges = ranges(world, asked);
    let mut given = Given { ranges: ranges.clone(), ..Given::default() };
    let mut families: Vec<_> = [true, false]
        .map(|is4| ranges.iter().filter(|net| net.addr().is_ipv4() == is4).copied().collect::<Vec<_>>())
        .into_iter()
        .filter(|nets| !nets.is_empty())
        .map(|nets| nets.into_iter().flat_map(hosts))
        .collect();
    for pod in world.pods.values_mut().filter(|pod| needs(pod)) {
        let mut next = Vec::new();
        for hosts in &mut families {
            next.extend(hosts.find(|address| used.insert(*address)));
        }
        if next.len() < families.len() {
            given.without.push(format!("{}/{}", pod.namespace, pod.name));
            continue;
        }
        pod.addresses = next;
        given.pods += 1;
    }
    given
}

/// The addresses of a range, without that of the range and the first one, which is often a gateway's.
fn hosts(net: IpNet) -> impl Iterator<Item = IpAddr> {
    // Those of IPv6 begin with the range's own.
    net.hosts().skip(if net.addr().is_ipv4() { 1 } else { 2 })
}

fn used(world: &World) -> BTreeSet<IpAddr> {
    let pods = world.pods.values().flat_map(|pod| &pod.addresses);
    let nodes = world.nodes.values().flat_map(|node| node.addresses.iter().chain(&node.tunnel_addresses));
    let services = world.services.values();
    let services =
        services.flat_map(|service| service.cluster_addresses.iter().chain(&service.external_addresses));
    pods.chain(nodes).chain(services).copied().collect()
}

fn ranges(world: &World, asked: &[IpNet]) -> Vec<IpNet> {
    if !asked.is_empty() {
        return asked.iter().map(IpNet::trunc).collect();
    }
    let of_nodes: BTreeSet<IpNet> = world.nodes.values().flat_map(|node| &node.pod_cidrs).copied().collect();
    if !of_nodes.is_empty() {
        return of_nodes.into_iter().collect();
    }
    let has = |is4: bool| world.pods.values().flat_map(|pod| &pod.addresses).any(|a| a.is_ipv4() == is4);
    let usual = USUAL.iter().filter_map(|text| text.parse::<IpNet>().ok());
    let wanted: Vec<IpNet> = usual.clone().filter(|net| has(net.addr().is_ipv4())).collect();
    if wanted.is_empty() { usual.take(1).collect() } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Node, Object};

    fn world(addresses: &[&[&str]]) -> World {
        let mut world = World::default();
        for (i, addresses) in addresses.iter().enumerate() {
            world.apply(Object::Pod(Pod {
                namespace: "a".into(),
                name: format!("p{i}"),
                uid: format!("p{i}"),
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                ..Pod::default()
            }));
        }
        world
    }

    fn texts(world: &World) -> Vec<String> {
        world.pods.values().flat_map(|pod| &pod.addresses).map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_without_an_address_gets_one_that_nobody_has() {
        let mut bare = world(&[&[], &["10.244.0.2"], &[]]);
        assert_eq!(give(&mut bare, &[]).pods, 2);
        assert_eq!(texts(&bare), ["10.244.0.3", "10.244.0.2", "10.244.0.4"]);
        let mut dual = world(&[&["10.1.0.1", "fd00::1"], &[]]);
        give(&mut dual, &[]);
        assert_eq!(texts(&dual)[2..], ["10.244.0.2", "fd00:10:244::2"]);
    }

    #[test]
    fn the_ranges_of_nodes_count_and_those_that_are_asked_for_more() {
        let node =
            Node { name: "n".into(), pod_cidrs: vec!["10.7.0.0/30".parse().unwrap()], ..Node::default() };
        let mut small = world(&[&[], &[]]);
        small.apply(Object::Node(node));
        let mut asked = small.clone();
        let given = give(&mut small, &[]);
        assert_eq!((texts(&small), given.without), (vec!["10.7.0.2".to_owned()], vec!["a/p1".to_owned()]));
        give(&mut asked, &["fd07::/64".parse().unwrap()]);
        assert_eq!(texts(&asked), ["fd07::2", "fd07::3"]);
    }

    #[test]
    fn nothing_is_given_where_nothing_is_missing() {
        let mut full = world(&[&["10.0.0.1"]]);
        let before = full.clone();
        assert_eq!(give(&mut full, &[]).pods, 0);
        assert_eq!(full, before);
    }
}
