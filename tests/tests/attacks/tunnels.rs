//! A pod that puts packets in another pod's name into packets to a tunnel of the node.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use portcullis_tests::packets::{HOST_MAC, Packet};
use portcullis_tests::raw::Tap;
use portcullis_tests::{Node, eventually};
use socket2::{Domain, Protocol, Socket, Type};

use super::stage::{Family, PRIVATE, SOON, Stage, send};

/// Tunnels of the node: the port and the number of the network of each family.
const VXLAN: [(u16, u8); 2] = [(4789, 7), (8472, 8)];
/// IPv4 and IPv6 in IP.
const IPV4: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;

/// A network that the node is in besides.
const NETWORK: [(&str, &str); 2] =
    [("198.51.100.1/24", "198.51.100.255"), ("2001:db8:5::1/64", "2001:db8:5::")];

/// Where the node listens besides its own address: everybody's, every node's of the link, every router's of a network.
fn listened(family: Family) -> Vec<IpAddr> {
    let [v4, v6] = NETWORK.map(|(_, every)| every);
    let all = match family {
        Family::V4 => vec!["255.255.255.255", "224.0.0.1", v4],
        Family::V6 => vec!["ff02::1", v6],
    };
    all.iter().filter_map(|address| address.parse().ok()).collect()
}

/// Tunnels at the node's addresses, of which the agent is not told.
pub fn prepare(node: &Node) -> Result<()> {
    node.ns.ip("link add uplink0 type veth peer name far0\nlink set uplink0 up\nlink set far0 up")?;
    for (own, _) in NETWORK {
        node.ns
            .ip(&format!("addr add {own} dev uplink0{}", if own.contains(':') { " nodad" } else { "" }))?;
    }
    for (family, (port, network)) in Family::BOTH.into_iter().zip(VXLAN) {
        let (local, remote) =
            (family.node(), family.pick(([192, 0, 2, 9], [0x2001_u16, 0xdb8, 0, 0, 0, 0, 0, 9])));
        let place = HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        node.ns.ip(&format!(
            "link add vx{network} address {place} type vxlan id {network} dstport {port} local {local} remote {remote}\n\
             link set vx{network} up"
        ))?;
    }
    Ok(())
}

/// What the API may say to the database.
fn inner(stage: &Stage<'_>, family: Family) -> Packet {
    let [api, db, _] = stage.pods();
    Packet::udp(&family.of(api).to_string(), 4000, &family.of(db).to_string(), PRIVATE).checksummed()
}

/// A packet of the intruder to an address of the node.
fn to_node(stage: &Stage<'_>, to: IpAddr, protocol: u8, payload: Vec<u8>) -> Result<Vec<u8>> {
    let [.., intruder] = stage.pods();
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let packet = Packet::new(&family.of(intruder).to_string(), &to.to_string(), protocol, payload);
    Ok(stage.on_link(intruder, None, packet)?.bytes())
}

/// The API's packet in VXLAN (RFC 7348) to a tunnel.
fn vxlan(stage: &Stage<'_>, family: Family, to: IpAddr, (port, network): (u16, u8)) -> Result<Vec<u8>> {
    let mut payload = [4000_u16.to_be_bytes(), port.to_be_bytes()].concat();
    // The length and the checksum are filled in later; then the network.
    payload.extend([0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, network, 0]);
    payload.extend(inner(stage, family).bytes());
    to_node(stage, to, 17, payload)
}

/// The same without a link inside, to each protocol that a node may take packets out of.
fn in_ip(stage: &Stage<'_>, family: Family) -> Result<Vec<Vec<u8>>> {
    let [v4, v6] = Family::BOTH.map(|family| inner(stage, family).ip());
    let in_gre = [&[0, 0, 0x08, 0x00][..], &v4].concat();
    [(IPV4, v4), (IPV6, v6), (GRE, in_gre)]
        .into_iter()
        .map(|(protocol, payload)| to_node(stage, family.node(), protocol, payload))
        .collect()
}

/// Where the node would take these protocols out of IP. A kernel without such tunnels hands them to raw sockets all the same.
struct Ends(Vec<Socket>);

impl Ends {
    fn at(node: &Node, family: Family) -> Result<Self> {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        node.ns.run(|| {
            let open = |protocol: u8| -> Result<Socket> {
                let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            Ok(Self([IPV4, IPV6, GRE].into_iter().map(open).collect::<Result<_>>()?))
        })
    }

    /// How many of them have something now.
    fn reached(&self) -> Result<usize> {
        let mut reached = 0;
        for mut socket in &self.0 {
            match socket.read(&mut [0; 2048]) {
                Ok(_) => reached += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(reached)
    }
}

pub fn nothing_that_a_pod_puts_into_a_tunnel_comes_out_of_it(stage: &mut Stage<'_>) -> Result<()> {
    let [_, db, intruder] = stage.pods();
    let mut tap = Tap::at(&db.ns, "eth0")?;
    for (family, own) in Family::BOTH.into_iter().zip(VXLAN) {
        let ends = Ends::at(stage.node, family)?;
        let mut frames = in_ip(stage, family)?;
        let ways: Vec<IpAddr> = [family.node()].into_iter().chain(listened(family)).collect();
        for to in &ways {
            for tunnel in VXLAN {
                frames.push(vxlan(stage, family, *to, tunnel)?);
            }
        }
        stage.repelled(intruder, &frames, &[("encapsulation", frames.len() as u64)], &mut tap)?;
        let inner = inner(stage, family).bytes();
        ensure!(!tap.saw(&inner)?, "the packet came out of a tunnel");
        ensure!(ends.reached()? == 0, "the node took a packet that holds another");
        // Other ports of the node are the policy's business.
        let server = stage.node.ns.udp_echo(SocketAddr::new(family.node(), 5000))?;
        intruder.ns.udp_exchange(server.address(), SOON)?;
        stage.goes_on()?;

        stage.with_the_switch_off(|| {
            for to in &ways {
                let heard = stage.heard();
                send(intruder, &[vxlan(stage, family, *to, own)?])?;
                eventually(&format!("the packet to {to} to come out of the tunnel"), || {
                    tap.saw(&inner).unwrap_or(false)
                })?;
                eventually("the database to hear it", || stage.heard() > heard)?;
            }
            send(intruder, &in_ip(stage, family)?)?;
            let mut reached = 0;
            eventually("the other packets", || {
                reached += ends.reached().unwrap_or(0);
                reached == 3
            })
        })?;
    }
    Ok(())
}
