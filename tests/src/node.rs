//! A node with its pods, as network namespaces joined by veths in the two ways that CNIs do it.
//!
//! Pod number `i` (from 0) has the addresses `10.77.0.<i+2>` and `fd77::<i+2>`, and its host side is `veth<i>`. The
//! node has `192.0.2.1` and `2001:db8::1`, the outside `192.0.2.2` and `2001:db8::2`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::command::run;
use crate::netns::Namespace;
use crate::poll::eventually;

/// The node's own addresses.
pub const NODE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// The addresses of the outside, when there is one.
pub const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 2), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

/// How pods are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A route to each pod's veth, and a link-local gateway.
    Routed,
    /// All veths in the bridge `cni0`, which is the gateway (`10.77.0.1`, `fd77::1`).
    Bridged,
}

/// A pod: a namespace with `eth0`, whose peer is in the node.
#[derive(Debug)]
pub struct Pod {
    /// The pod's network namespace.
    pub ns: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Name of the host side of its veth.
    pub veth: String,
}

/// A node, its pods and, if asked for, a host outside. Everything goes when it is dropped.
#[derive(Debug)]
pub struct Node {
    /// The pods, by number; first in the struct, so that they go before the node.
    pub pods: Vec<Pod>,
    /// A host behind the node's uplink.
    pub outside: Option<Namespace>,
    /// The node's network namespace, where the agent runs; shared, so that pods may come and go while an agent has it.
    pub ns: Arc<Namespace>,
    network: Network,
    /// How many veths were made: a name is not used twice.
    veths: usize,
}

/// Says what a [`Node`] shall have.
#[derive(Debug, Clone, Copy)]
pub struct NodeBuilder {
    network: Network,
    pods: usize,
    outside: bool,
}

impl NodeBuilder {
    /// With this many pods.
    #[must_use]
    pub fn pods(mut self, count: usize) -> Self {
        self.pods = count;
        self
    }

    /// With a host outside, behind the interface `uplink`.
    #[must_use]
    pub fn outside(mut self) -> Self {
        self.outside = true;
        self
    }

    /// Makes the namespaces and joins them.
    pub fn build(self) -> Result<Node> {
        let ns = Namespace::new("node")?;
        quiet(&ns)?;
        ns.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let outside = if self.outside { Some(outside(&ns)?) } else { None };
        if outside.is_none() {
            let (v4, v6) = NODE;
            ns.ip(&format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"))?;
        }
        if self.network == Network::Bridged {
            // Without snooping the bridge never waits for multicast listeners, so neighbour discovery works at once.
            ns.ip("link add cni0 type bridge mcast_snooping 0\nlink set cni0 up\n\
                   addr add 10.77.0.1/24 dev cni0\naddr add fd77::1/64 dev cni0 nodad")?;
        }
        let mut node = Node { pods: Vec::new(), outside, ns: Arc::new(ns), network: self.network, veths: 0 };
        for _ in 0..self.pods {
            node.add_pod()?;
        }
        Ok(node)
    }
}

impl Node {
    /// A node that routes to its pods.
    pub fn routed() -> NodeBuilder {
        Self::with(Network::Routed)
    }

    /// A node with a bridge.
    pub fn bridged() -> NodeBuilder {
        Self::with(Network::Bridged)
    }

    /// A node of either kind.
    pub fn with(network: Network) -> NodeBuilder {
        NodeBuilder { network, pods: 0, outside: false }
    }

    /// Adds a pod with the addresses of its number.
    pub fn add_pod(&mut self) -> Result<&Pod> {
        let number = u16::try_from(self.veths + 2).context("too many pods for one node")?;
        let low = u8::try_from(number).context("too many pods for one node")?;
        self.add_pod_with(Ipv4Addr::new(10, 77, 0, low), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number))
    }

    /// Adds a pod with given addresses of the node's pod range, which a removed pod may have had before.
    pub fn add_pod_with(&mut self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<&Pod> {
        let veth = format!("veth{}", self.veths);
        self.veths += 1;
        let ns = Namespace::new(&format!("pod {v4}"))?;
        quiet(&ns)?;
        // Addresses first, then up: nothing is sent from an interface that is not ready.
        self.ns.ip(&format!("link add {veth} type veth peer name eth0 netns {}", ns.name()))?;
        match self.network {
            Network::Routed => {
                self.ns.ip(&format!(
                    "addr add 169.254.1.1/32 dev {veth}\naddr add fe80::1/64 dev {veth} nodad\nlink set {veth} up\n\
                     route add {v4}/32 dev {veth} src {}\nroute add {v6}/128 dev {veth} src {}",
                    NODE.0, NODE.1
                ))?;
                ns.ip(&format!(
                    "addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
                     route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0 src {v4}\n\
                     route add default via fe80::1 dev eth0 src {v6}"
                ))?;
            }
            Network::Bridged => {
                self.ns.ip(&format!("link set {veth} master cni0 up"))?;
                ns.ip(&format!(
                    "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
                     route add default via 10.77.0.1\nroute add default via fd77::1"
                ))?;
                self.announce(&ns, &veth)?;
            }
        }
        self.pods.push(Pod { ns, v4, v6, veth });
        self.pods.last().context("the pod that was just added")
    }

    /// Tells the bridge's other ports where the pod's addresses are now, as CNI plugins do, once the bridge forwards.
    fn announce(&self, pod: &Namespace, veth: &str) -> Result<()> {
        eventually(&format!("the bridge to forward for {veth}"), || {
            let shown =
                run(Command::new("ip").args(["-n", self.ns.name(), "-d", "link", "show", "dev", veth]));
            shown.is_ok_and(|text| text.contains("state forwarding"))
        })?;
        let address = pod.hardware_address("eth0")?;
        // Setting the address that it has makes the kernel send a gratuitous ARP and an unsolicited advertisement.
        pod.ip(&format!("link set eth0 address {address}"))
    }

    /// Removes the pod at this place of [`Self::pods`]: its interface at once, then its namespace.
    pub fn remove_pod(&mut self, index: usize) -> Result<()> {
        anyhow::ensure!(index < self.pods.len(), "there is no pod {index}");
        let pod = self.pods.remove(index);
        self.ns.ip(&format!("link delete {}", pod.veth))
    }
}

/// No duplicate address detection, no reverse path filter, ping sockets for everyone, and changed hardware addresses
/// announced: nothing that takes time or drops packets on its own account.
fn quiet(ns: &Namespace) -> Result<()> {
    ns.sysctl(&[
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
        ("net/ipv6/conf/default/ndisc_notify", "1"),
        ("net/ipv4/conf/default/arp_notify", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ])
}

/// A host behind the node's interface `uplink`, with routes to the pods.
fn outside(node: &Namespace) -> Result<Namespace> {
    let ns = Namespace::new("outside")?;
    quiet(&ns)?;
    node.ip(&format!(
        "link add uplink type veth peer name eth0 netns {}\naddr add {}/24 dev uplink\n\
         addr add {}/64 dev uplink nodad\nlink set uplink up\nroute add default via {}\nroute add default via {}",
        ns.name(), NODE.0, NODE.1, OUTSIDE.0, OUTSIDE.1
    ))?;
    ns.ip(&format!(
        "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add 10.77.0.0/24 via {}\nroute add fd77::/64 via {}",
        OUTSIDE.0, OUTSIDE.1, NODE.0, NODE.1
    ))?;
    Ok(ns)
}
