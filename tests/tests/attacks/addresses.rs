//! A pod that takes the address of another one.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::raw::Tap;
use portcullis_tests::{Network, Node, eventually};
use socket2::{Domain, Socket, Type};

use super::stage::{Family, PRIVATE, PUBLIC, SOON, Stage};

/// Ports that only forged packets have.
const FORGED: [u16; 3] = [20_000, 20_001, 20_002];
/// Data of a forged packet on a flow that is open: more than all that is under way on that flow otherwise.
const LARGE: usize = 1000;

/// What may come from the API only, on new flows and on the one that is open.
fn as_the_api(stage: &Stage<'_>, family: Family) -> Result<Vec<Packet>> {
    let [api, db, intruder] = stage.pods();
    let [from, to] = [api, db].map(|pod| family.of(pod).to_string());
    let packets = [
        Packet::udp(&from, FORGED[0], &to, PRIVATE),
        Packet::tcp(&from, FORGED[1], &to, PRIVATE, flags::SYN),
        Packet::tcp(&from, stage.port(family)?, &to, PRIVATE, flags::ACK).data(LARGE),
        Packet::udp(&from, FORGED[2], &to, PUBLIC),
    ];
    packets.into_iter().map(|packet| stage.on_link(intruder, Some(db), packet)).collect()
}

pub fn a_pod_that_sends_from_a_neighbours_address_reaches_nobody_and_touches_no_flow(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let mut tap = Tap::at(&db.ns, "eth0")?;
    let neighbours = api.ns.mac("eth0")?;
    for family in Family::BOTH {
        let to = family.of(db).to_string();
        let mut packets = as_the_api(stage, family)?;
        // The node may reach every pod.
        let node = Packet::udp(&family.node().to_string(), FORGED[0], &to, PRIVATE);
        packets.push(stage.on_link(intruder, Some(db), node)?);
        let also_their_mac: Vec<Packet> =
            packets.iter().map(|packet| packet.clone().from_mac(neighbours)).collect();
        packets.extend(also_their_mac);
        // Its own address, and a neighbour's MAC address only: a bridge would send there what is for that neighbour.
        let own = Packet::udp(&family.of(intruder).to_string(), FORGED[0], &to, PUBLIC);
        packets.push(stage.on_link(intruder, Some(db), own)?.from_mac(neighbours));
        let frames: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        let before = stage.bytes_of_the_api()?;
        stage.repelled(intruder, &frames, &[("spoofed-source", frames.len() as u64)], &mut tap)?;
        // An acknowledgement of what was said before may have come late.
        let more = stage.bytes_of_the_api()? - before;
        ensure!(more < LARGE as u64, "a forged packet counted as the API's: {more} bytes more");
        ensure!(stage.flows(&FORGED)?.is_empty(), "a flow of the API: {:?}", stage.flows(&FORGED)?);
    }
    stage.goes_on()?;
    for family in Family::BOTH {
        let frames: Vec<Vec<u8>> = as_the_api(stage, family)?.iter().map(Packet::bytes).collect();
        stage.arrives_with_the_switch_off(intruder, &frames, &mut tap)?;
    }
    ensure!(!stage.flows(&FORGED)?.is_empty(), "what the database took would have been a flow");
    Ok(())
}

pub fn a_pod_that_gives_itself_a_neighbours_address_can_neither_send_nor_be_sent_to(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let [api, ..] = stage.pods();
    claim(stage.node)?;
    for family in Family::BOTH {
        sends_nothing(stage, family)?;
        receives_nothing(stage, family)?;
    }
    stage.goes_on()?;
    for family in Family::BOTH {
        ensure!(stage.owners(family.of(api))? == ["shop/api"], "{:?}", stage.owners(family.of(api))?);
    }
    stage.with_the_switch_off(|| {
        for family in Family::BOTH {
            let before = stage.heard();
            eventually("a datagram in the neighbour's name", || {
                say(stage, family).is_ok() && stage.heard() > before
            })?;
        }
        Ok(())
    })?;
    change_claim(stage.node, "del")
}

/// Gives the intruder the API's addresses. By itself it goes on from its own: an address whose time is over is used by who
/// asks for it.
pub fn claim(node: &Node) -> Result<()> {
    change_claim(node, "add")
}

fn change_claim(node: &Node, how: &str) -> Result<()> {
    let (v4, v6) = (node.pods[0].v4, node.pods[0].v6);
    let lines = format!("addr {how} {v4}/32 dev eth0\naddr {how} {v6}/128 dev eth0");
    let lines = if how == "add" { format!("{lines} nodad preferred_lft 0") } else { lines };
    node.pods[2].ns.ip(&lines)
}

/// One datagram of the intruder to the database, from the API's address.
pub fn say(stage: &Stage<'_>, family: Family) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    intruder.ns.run(|| {
        let socket = UdpSocket::bind((family.of(api), 0))?;
        socket.send_to(b"portcullis", (family.of(db), PRIVATE))?;
        Ok(())
    })
}

/// Ordinary sockets with the neighbour's address get nothing out.
fn sends_nothing(stage: &Stage<'_>, family: Family) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let heard = stage.heard();
    let spoofed = || stage.agent.dropped("spoofed-source");
    let before = spoofed()?;
    say(stage, family)?;
    eventually("the datagram to be dropped", || spoofed().is_ok_and(|now| now > before))?;
    let before = spoofed()?;
    let _connecting = intruder.ns.run(|| {
        let from = SocketAddr::new(family.of(api), 0);
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.set_nonblocking(true)?;
        // It is under way.
        let _ = socket.connect(&SocketAddr::new(family.of(db), PRIVATE).into());
        Ok(socket)
    })?;
    eventually("the SYN to be dropped", || spoofed().is_ok_and(|now| now > before))?;
    ensure!(stage.heard() == heard, "the database heard the intruder");
    Ok(())
}

/// What is sent to the address comes to its owner, also when its neighbours ask anew who has it.
pub fn receives_nothing(stage: &Stage<'_>, family: Family) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let at = SocketAddr::new(family.of(api), 7000);
    let (owner, thief) = (api.ns.udp_echo(at)?, intruder.ns.udp_echo(at)?);
    let spoofed = stage.agent.dropped("spoofed-source")?;
    for (round, who) in [&db.ns, &stage.node.ns].into_iter().cycle().take(6).enumerate() {
        who.ip("neigh flush all")?;
        let before = owner.received();
        who.udp_exchange(at, SOON).with_context(|| format!("round {round}: {} at {at}", who.label()))?;
        ensure!(owner.received() > before, "somebody else answered");
    }
    ensure!(thief.received() == 0, "the intruder got what is the API's");
    if stage.network == Network::Bridged {
        // All were asked, and it said that the address is its own.
        let claims = || stage.agent.dropped("spoofed-source");
        eventually("its claims to be dropped", || claims().is_ok_and(|now| now > spoofed))?;
    }
    Ok(())
}
