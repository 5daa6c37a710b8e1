//! The network between nodes: a bridge in a namespace of its own, the hub, where the control plane is too. The machine's
//! own network has no part in it.
//!
//! The outside is a host on the same bridge that is no node. Pod addresses are routed between all of them, without
//! masquerading, so that everyone sees the pods' own addresses; between nodes also through an overlay.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};

use super::names::{
    CONTROL_PLANE, Name, OUTSIDE, OUTSIDE_FURTHER, node, node_addresses, pod_ranges, tunnel_addresses,
};
use super::options::Between;
use crate::command::run;
use crate::netns::Namespace;

/// The part that has the bridge and the control plane.
pub const HUB: &str = "hub";

/// The part that is a client and no node.
pub const CLIENT: &str = "outside";

/// What the overlay's plugin says of its nodes.
pub const OVERLAY_ANNOTATION: &str = "flannel.alpha.coreos.com/backend-type=vxlan";

/// The overlay's interface on a node.
const TUNNEL: &str = "flannel.1";

/// Makes all namespaces of a cluster and joins them.
pub fn create(name: &Name, nodes: usize, between: Between) -> Result<()> {
    let hub = add(name, HUB)?;
    forward(&hub, false)?;
    // Without snooping the bridge never waits for multicast listeners, so neighbour discovery works at once.
    let mut lines = "link add br0 type bridge mcast_snooping 0\nlink set br0 up\n".to_owned();
    let _ = writeln!(
        lines,
        "addr add {}/24 dev br0\naddr add {}/64 dev br0 nodad",
        CONTROL_PLANE.0, CONTROL_PLANE.1
    );
    hub.ip(&(lines + &routes(nodes, None)))?;
    for i in 0..nodes {
        let ns = join(name, &hub, &node(i), node_addresses(i))?;
        forward(&ns, true)?;
        match between {
            Between::Routes => ns.ip(&routes(nodes, Some(i)))?,
            Between::Vxlan => tunnel(&ns, nodes, i)?,
        }
        ns.ip(&outside_routes())?;
    }
    hub.ip(&outside_routes())?;
    let outside = join(name, &hub, CLIENT, OUTSIDE)?;
    let further: String = OUTSIDE_FURTHER.iter().fold(String::new(), |mut lines, address| {
        let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        let _ = writeln!(lines, "addr add {address}/{length} dev lo{nodad}");
        lines
    });
    outside.ip(&(further + &routes(nodes, None)))
}

/// Makes a namespace with the loopback interface up.
fn add(name: &Name, part: &str) -> Result<Namespace> {
    let ns = Namespace::existing(&name.namespace(part), part);
    run(Command::new("ip").args(["netns", "add", ns.name()]))?;
    ns.ip("link set lo up")?;
    Ok(ns)
}

/// Makes a namespace with `eth0` in the hub's bridge.
fn join(name: &Name, hub: &Namespace, part: &str, (v4, v6): Addresses) -> Result<Namespace> {
    let ns = add(name, part)?;
    // No duplicate address detection: the addresses are usable at once.
    ns.sysctl(&[("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv6/conf/all/accept_dad", "0")])?;
    hub.ip(&format!(
        "link add {part} type veth peer name eth0 netns {}\nlink set {part} master br0 up",
        ns.name()
    ))?;
    let (gateway4, gateway6) = CONTROL_PLANE;
    ns.ip(&format!(
        "link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
         route add default via {gateway4}\nroute add default via {gateway6}"
    ))?;
    Ok(ns)
}

type Addresses = (std::net::Ipv4Addr, std::net::Ipv6Addr);

/// Routes to the pods of every node but one's own.
fn routes(nodes: usize, own: Option<usize>) -> String {
    let mut lines = String::new();
    for i in (0..nodes).filter(|i| Some(*i) != own) {
        let ((to4, to6), (via4, via6)) = (pod_ranges(i), node_addresses(i));
        let _ = writeln!(lines, "route add {to4} via {via4}\nroute add {to6} via {via6}");
    }
    lines
}

/// Joins a node to the overlay: its interface, and the way to the pods of every other node, all of which it is told.
fn tunnel(ns: &Namespace, nodes: usize, own: usize) -> Result<()> {
    let place = |i: usize| format!("02:00:00:00:0a:{i:02x}");
    let ((v4, v6), (from, _)) = (tunnel_addresses(own), node_addresses(own));
    let mut lines = format!(
        "link add {TUNNEL} address {} mtu 1450 type vxlan id 1 dstport 8472 local {from} dev eth0 nolearning\n\
         addr add {v4}/32 dev {TUNNEL}\naddr add {v6}/128 dev {TUNNEL} nodad\nlink set {TUNNEL} up\n",
        place(own)
    );
    for i in (0..nodes).filter(|i| *i != own) {
        let ((to4, to6), (via4, via6)) = (pod_ranges(i), tunnel_addresses(i));
        for (to, via) in [(to4, IpAddr::V4(via4)), (to6, IpAddr::V6(via6))] {
            let _ = writeln!(
                lines,
                "neigh add {via} lladdr {} dev {TUNNEL} nud permanent\nroute add {to} via {via} dev {TUNNEL} onlink",
                place(i)
            );
        }
    }
    ns.ip(&lines)?;
    for i in (0..nodes).filter(|i| *i != own) {
        let (at, _) = node_addresses(i);
        run(&mut ns.command("bridge", ["fdb", "append", &place(i), "dev", TUNNEL, "dst", &at.to_string()]))?;
    }
    Ok(())
}

/// Routes to the further addresses of the outside.
fn outside_routes() -> String {
    OUTSIDE_FURTHER.iter().fold(String::new(), |mut lines, address| {
        let via: IpAddr = if address.is_ipv4() { OUTSIDE.0.into() } else { OUTSIDE.1.into() };
        let _ = writeln!(lines, "route add {address} via {via}");
        lines
    })
}

/// Makes a namespace route, and show bridged packets to iptables or not.
fn forward(ns: &Namespace, filter_bridged: bool) -> Result<()> {
    ns.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
    ns.filter_bridged(filter_bridged)
}

/// The network namespaces of all clusters, with their parts.
fn namespaces() -> Vec<(Name, String)> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Name::of_namespace(&name).map(|(name, part)| (name, part.to_owned()))).collect()
}

/// The clusters that have a network namespace, also if nothing else of them is left.
pub fn clusters() -> Vec<Name> {
    namespaces().into_iter().map(|(name, _)| name).collect()
}

/// Deletes the namespaces of a cluster; none is fine.
pub fn destroy(name: &Name) -> Result<()> {
    for (_, part) in namespaces().into_iter().filter(|(cluster, _)| cluster == name) {
        let namespace = name.namespace(&part);
        run(Command::new("ip").args(["netns", "delete", &namespace]))
            .with_context(|| format!("deleting the network namespace {namespace}"))?;
    }
    Ok(())
}
