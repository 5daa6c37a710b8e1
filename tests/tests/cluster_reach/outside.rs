//! What comes from outside by way of a node: node ports, load balancers, external IPs, host ports; and pods that come to
//! themselves through a service.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use portcullis_tests::cluster::Cluster;
use portcullis_tests::cluster_probe::{Check, Protocol, Source};
use serde_json::{Value, json};

use crate::objects::{
    World, accept, accounts, at, blocks, checks, checks_from_outside, checks_of, from_pod, node, outside,
    policy, server, service,
};

/// The namespace.
pub const EDGE: &str = "edge";
/// Where the servers listen. All of them are on the first node.
const PORT: u16 = 8080;
const HOME: usize = 0;
/// The host port of the first server; the others follow.
const HOST_PORT: u16 = 18_080;

/// Who is let in by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// The outside.
    World,
    /// Processes of nodes.
    Nodes,
    /// The address of the client outside.
    Client,
    /// Nobody.
    Nobody,
}

const SERVERS: [(&str, For); 4] =
    [("world", For::World), ("nodes", For::Nodes), ("client", For::Client), ("nobody", For::Nobody)];

impl For {
    fn peers(self) -> Value {
        match self {
            Self::World => json!([{"entities": ["world"]}]),
            Self::Nodes => json!([{"entities": ["host", "node"]}]),
            Self::Client => blocks(&outside()),
            Self::Nobody => json!([{"serviceAccounts": {"names": ["nobody-at-all"]}}]),
        }
    }

    /// Whether a client outside is let in, whose address is on the packet, or the node's in its place.
    fn lets_in(self, address: Address) -> bool {
        match self {
            Self::World => true,
            Self::Client => address == Address::Own,
            Self::Nodes | Self::Nobody => false,
        }
    }
}

/// The source address of what comes from outside, when it comes to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    Own,
    Masqueraded,
}

/// Addresses of the services that the outside routes to a node.
fn external(kind: u8, i: usize) -> [IpAddr; 2] {
    let i = u8::try_from(i).unwrap_or(u8::MAX);
    [[198, 18, kind, 10 + i].into(), [0xfd18, 0, 0, kind.into(), 0, 0, 0, 0x10 + u16::from(i)].into()]
}

const EXTERNAL_IPS: u8 = 0;
const LOAD_BALANCERS: u8 = 1;
const LOCAL_LOAD_BALANCERS: u8 = 2;
/// These the outside routes to the second node, where no backend is.
const LOAD_BALANCERS_AWAY: u8 = 3;
const LOCAL_LOAD_BALANCERS_AWAY: u8 = 4;
/// Where the servers listen for UDP that comes by a node port. (Their other UDP port has none.)
const UDP_PORT: u16 = 8082;

/// Everything but policies.
pub fn workloads() -> Vec<Value> {
    let mut objects = accounts(EDGE, &SERVERS.map(|(account, _)| account));
    for (i, (account, _)) in SERVERS.iter().enumerate() {
        let mut server = server(EDGE, account, account, HOME, PORT);
        server["spec"]["containers"][0]["ports"] = json!([
            {"containerPort": PORT, "hostPort": host_port(i)},
        ]);
        let mut udp = server["spec"]["containers"][0].clone();
        udp["name"] = "udp".into();
        udp["args"] = json!(["netexec", "--http-port=8083", format!("--udp-port={UDP_PORT}")]);
        udp["ports"] = json!([]);
        udp["readinessProbe"]["httpGet"]["port"] = 8083.into();
        server["spec"]["containers"] = json!([server["spec"]["containers"][0], udp]);
        objects.push(server);
        for (kind, what) in [("Cluster", "cluster"), ("Local", "local")] {
            let mut service = service(EDGE, &format!("{account}-{what}"), &json!({"app": account}), PORT);
            service["spec"]["type"] = "LoadBalancer".into();
            service["spec"]["externalTrafficPolicy"] = kind.into();
            service["spec"]["ports"] = json!([
                {"name": "tcp", "port": PORT, "targetPort": PORT},
                {"name": "udp", "port": UDP_PORT, "targetPort": UDP_PORT, "protocol": "UDP"},
            ]);
            if kind == "Cluster" {
                service["spec"]["externalIPs"] = json!(external(EXTERNAL_IPS, i));
            }
            objects.push(service);
        }
    }
    objects
}

fn host_port(i: usize) -> u16 {
    HOST_PORT + u16::try_from(i).unwrap_or_default()
}

/// The policies.
pub fn policies() -> Vec<Value> {
    SERVERS.map(|(account, who)| policy(EDGE, account, "ingress", &accept("ingress", &who.peers()))).into()
}

/// The namespaces and names of the policies.
pub fn policy_names() -> Vec<(String, String)> {
    SERVERS.map(|(account, _)| (EDGE.to_owned(), account.to_owned())).into()
}

/// Does what a load balancer does: gives the services their addresses, and the outside the way to them.
pub fn balance(cluster: &Cluster) -> Result<()> {
    let (v4, v6) = cluster.node_addresses(HOME);
    cluster.outside.ip(&format!("route replace 198.18.0.0/15 via {v4}\nroute replace fd18::/16 via {v6}"))?;
    let (v4, v6) = cluster.node_addresses(1);
    for kind in [LOAD_BALANCERS_AWAY, LOCAL_LOAD_BALANCERS_AWAY] {
        cluster.outside.ip(&format!(
            "route replace 198.18.{kind}.0/24 via {v4}\nroute replace fd18:0:0:{kind}::/64 via {v6}"
        ))?;
    }
    for (i, (account, _)) in SERVERS.iter().enumerate() {
        for (kinds, what) in [
            ([LOAD_BALANCERS, LOAD_BALANCERS_AWAY], "cluster"),
            ([LOCAL_LOAD_BALANCERS, LOCAL_LOAD_BALANCERS_AWAY], "local"),
        ] {
            let ips = kinds.into_iter().flat_map(|kind| external(kind, i));
            let ingress: Vec<Value> = ips.map(|ip| json!({"ip": ip})).collect();
            let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
            let service = format!("service/{account}-{what}");
            cluster.kubectl([
                "--namespace",
                EDGE,
                "patch",
                &service,
                "--subresource=status",
                "--type=merge",
                "--patch",
                &patch,
            ])?;
        }
    }
    Ok(())
}

/// The outside by every way to every server.
pub fn reach(world: &World) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    for (i, (account, who)) in SERVERS.into_iter().enumerate() {
        let mut add_by = |protocol, targets: &[SocketAddr], address, what: &str| {
            let what = format!("{what}, for {who:?}");
            all.extend(checks_from_outside(protocol, targets, who.lets_in(address), &what));
        };
        let udp = |service: &str| world.node_port(EDGE, service, 1);
        let (udp_cluster, udp_local) =
            (udp(&format!("{account}-cluster"))?, udp(&format!("{account}-local"))?);
        let (own, masqueraded) = (Address::Own, Address::Masqueraded);
        add_by(
            Protocol::Udp,
            &at(&node(HOME), udp_cluster),
            masqueraded,
            "UDP NodePort, Cluster, node with the backend",
        );
        add_by(
            Protocol::Udp,
            &at(&node(1), udp_cluster),
            masqueraded,
            "UDP NodePort, Cluster, node without a backend",
        );
        add_by(Protocol::Udp, &at(&node(HOME), udp_local), own, "UDP NodePort, Local, node with the backend");
        let mut add =
            |targets: &[SocketAddr], address, what: &str| add_by(Protocol::Tcp, targets, address, what);
        let pod = at(&world.pod(EDGE, account)?, PORT);
        let cluster = world.node_port(EDGE, &format!("{account}-cluster"), 0)?;
        let local = world.node_port(EDGE, &format!("{account}-local"), 0)?;
        add(&pod, Address::Own, "the pod's address");
        add(&at(&node(HOME), cluster), Address::Masqueraded, "NodePort, Cluster, node with the backend");
        add(&at(&node(1), cluster), Address::Masqueraded, "NodePort, Cluster, node without a backend");
        add(&at(&node(HOME), local), Address::Own, "NodePort, Local, node with the backend");
        add(&at(&external(EXTERNAL_IPS, i), PORT), Address::Masqueraded, "external IP");
        add(&at(&external(LOAD_BALANCERS, i), PORT), Address::Masqueraded, "load balancer, Cluster");
        add(&at(&external(LOCAL_LOAD_BALANCERS, i), PORT), Address::Own, "load balancer, Local");
        add(&at(&node(HOME), host_port(i)), Address::Own, "host port");
        let away = at(&external(LOAD_BALANCERS_AWAY, i), PORT);
        add(&away, Address::Masqueraded, "load balancer, Cluster, by a node without a backend");
        // Nobody is there, whatever the policy.
        let away = at(&external(LOCAL_LOAD_BALANCERS_AWAY, i), PORT);
        for (protocol, to, what) in [
            (Protocol::Tcp, at(&node(1), local), "NodePort, Local"),
            (Protocol::Udp, at(&node(1), udp_local), "UDP NodePort, Local"),
            (Protocol::Tcp, away, "load balancer, Local"),
        ] {
            let what = format!("{what}, node without a backend: kube-proxy drops it");
            all.extend(checks_from_outside(protocol, &to, false, &what));
        }
        // The TCP port has a node port, and what comes from another node there may come from outside. The UDP port has none.
        let process = |protocol, node, answered, what: &str| {
            let what = format!("a process of {what}, for {who:?}");
            checks_of(protocol, &Source::Node(node), &pod, answered, &what)
        };
        all.extend(process(Protocol::Tcp, HOME, true, "the pod's node"));
        all.extend(process(Protocol::Udp, HOME, true, "the pod's node"));
        all.extend(process(Protocol::Tcp, 1, who == For::World, "another node, to a port with a node port"));
        all.extend(process(Protocol::Udp, 1, who == For::Nodes, "another node"));
        // To itself.
        let itself = world.service(EDGE, &format!("{account}-cluster"))?;
        all.extend(checks(&from_pod(EDGE, account), &itself, true, "to itself through its own service"));
    }
    Ok(all)
}
