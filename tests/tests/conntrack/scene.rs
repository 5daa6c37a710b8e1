//! The node of these tests, and what is done to it: rules that make conntrack work, and flows that get lost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use portcullis::datapath::Reader;
use portcullis_common::flow::{FlowKey4, FlowKey6};
use portcullis_tests::node::{NODE, OUTSIDE};
use portcullis_tests::shop::DB_OPEN_TO_API;
use portcullis_tests::tables::empty;
use portcullis_tests::{Agent, Manifests, Namespace, Network, Node, Pod, PodObject};

/// Addresses of a service in front of the database.
pub const VIP: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 96, 0, 1), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1));
/// As [`VIP`], and the node puts its own address in place of the client's.
pub const MASQUERADED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);

/// The hermit opens no connection, and takes any.
const HERMIT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: hermit, namespace: elsewhere}
spec: {podSelector: {matchLabels: {app: hermit}}, policyTypes: [Egress]}
";

/// The database takes connections of the API only, and the hermit opens none.
pub fn policies() -> String {
    format!("{DB_OPEN_TO_API}---{HERMIT}")
}

/// A node with the pods api, db, intruder and hermit, and the manifests that say so.
pub struct Shop {
    pub node: Node,
    pub manifests: Manifests,
}

impl Shop {
    /// Without conntrack at work.
    pub fn new(network: Network) -> Result<Self> {
        let node = Node::with(network).pods(4).outside().build()?;
        let manifests = Manifests::new()?;
        let object = |namespace, name, index: usize| PodObject::of(namespace, name, &node.pods[index]);
        manifests.pods(
            "pods.yaml",
            &[
                object("shop", "api", 0),
                object("shop", "db", 1),
                object("elsewhere", "intruder", 2),
                object("elsewhere", "hermit", 3),
            ],
        )?;
        manifests.write("policies.yaml", &policies())?;
        Ok(Self { node, manifests })
    }

    /// With conntrack at work in the node's namespace, and the service in front of the database.
    pub fn tracked(network: Network) -> Result<Self> {
        let shop = Self::new(network)?;
        let ns = &shop.node.ns;
        track(ns)?;
        let db = &shop.node.pods[1];
        let to_db = |tool, vip: IpAddr| {
            let endpoint = if vip.is_ipv4() { db.v4.to_string() } else { format!("[{}]", db.v6) };
            let rule = "-t nat -A PREROUTING -p tcp --dport 80";
            ns.firewall(tool, &format!("{rule} -d {vip} -j DNAT --to-destination {endpoint}:5432"))
        };
        to_db("iptables", VIP.0.into())?;
        to_db("iptables", MASQUERADED.into())?;
        to_db("ip6tables", VIP.1.into())?;
        let masquerade = "-t nat -A POSTROUTING -m conntrack --ctorigdst";
        ns.firewall("iptables", &format!("{masquerade} {MASQUERADED} -j SNAT --to-source {}", NODE.0))?;
        Ok(shop)
    }

    pub fn pods(&self) -> [&Pod; 4] {
        [0, 1, 2, 3].map(|index| &self.node.pods[index])
    }

    pub fn outside(&self) -> Result<&Namespace> {
        self.node.outside.as_ref().context("an outside")
    }

    pub fn agent<'a>(&'a self, args: &[&str]) -> Result<Agent<'a>> {
        Agent::on(&self.node.ns).manifests(self.manifests.path()).args(args.iter().copied()).start()
    }
}

/// Conntrack works in a namespace once a rule asks for its result.
fn track(ns: &Namespace) -> Result<()> {
    for tool in ["iptables", "ip6tables"] {
        ns.firewall(tool, "-A FORWARD -m conntrack --ctstate INVALID -j DROP")?;
        ns.firewall(tool, "-A OUTPUT -m conntrack --ctstate INVALID -j DROP")?;
    }
    Ok(())
}

pub fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(pod.v4.into(), port), SocketAddr::new(pod.v6.into(), port)]
}

pub fn outside_at(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(OUTSIDE.0.into(), port), SocketAddr::new(OUTSIDE.1.into(), port)]
}

/// Takes every flow out of the pinned tables, as if newer ones had taken their places.
pub fn forget_flows(agent: &Agent<'_>, pod: &Pod) -> Result<()> {
    let local_be = u32::from_ne_bytes(pod.v4.octets());
    let found = Reader::open(agent.bpffs())?.endpoints()?;
    let slot =
        found.iter().find(|(_, endpoint)| endpoint.addr4_be.contains(&local_be)).map(|(slot, _)| *slot);
    let slot = slot.with_context(|| format!("no endpoint has {}", pod.v4))?;
    let folder = agent.bpffs().join(format!("v{}", portcullis_common::abi::ABI)).join("flows");
    let forgotten = empty::<FlowKey4>(&folder.join(format!("{slot}-4")))?
        + empty::<FlowKey6>(&folder.join(format!("{slot}-6")))?;
    ensure!(forgotten > 0, "there was no flow to forget at {}", pod.veth);
    Ok(())
}
