//! A pod that sends to all of its link to reach one that it may not talk with.

use std::slice::from_ref;

use anyhow::{Result, ensure};
use portcullis_tests::eventually;
use portcullis_tests::packets::Packet;
use portcullis_tests::raw::Tap;

use super::stage::{ALL_NODES, EVERYBODY, Family, PRIVATE, PUBLIC, Stage, send};

/// Where everybody listens.
const EVERYWHERE: u16 = 7000;

/// A datagram of the intruder to everybody on the link.
fn to_all(stage: &Stage<'_>, family: Family, port: u16) -> Result<Vec<u8>> {
    let [_, db, intruder] = stage.pods();
    let (group, place) =
        if family == Family::V4 { ("255.255.255.255", EVERYBODY) } else { ("ff02::1", ALL_NODES) };
    let packet = Packet::udp(&family.of(intruder).to_string(), 4000, group, port);
    Ok(stage.on_link(intruder, Some(db), packet)?.to_mac(place).bytes())
}

pub fn a_broadcast_reaches_only_those_that_the_pod_may_talk_with(stage: &mut Stage<'_>) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let everywhere = "[::]:7000".parse()?;
    let (open, isolated) = (api.ns.udp_echo(everywhere)?, db.ns.udp_echo(everywhere)?);
    let mut taps = [Tap::at(&api.ns, "eth0")?, Tap::at(&db.ns, "eth0")?];
    for family in Family::BOTH {
        let [at_api, at_db] = &mut taps;
        let before = open.received();
        let frame = to_all(stage, family, EVERYWHERE)?;
        stage.repelled(intruder, from_ref(&frame), &[("policy", 1)], at_db)?;
        eventually("the API, which nobody is kept from", || open.received() > before)?;
        ensure!(at_api.saw(&frame)? && isolated.received() == 0, "the database heard the intruder");

        // Where the database is open to everybody it is so to everybody at once, too.
        let public = to_all(stage, family, PUBLIC)?;
        send(intruder, from_ref(&public))?;
        eventually("the frame to the public port", || at_db.saw(&public).unwrap_or(false))?;
        // What is only brought to all, and is for one of them.
        let to = family.of(api).to_string();
        let stray = Packet::udp(&family.of(intruder).to_string(), 4000, &to, PRIVATE);
        let stray = stage.on_link(intruder, Some(api), stray)?.to_mac(EVERYBODY).bytes();
        stage.repelled(intruder, &[stray], &[("not-for-pod", 1)], at_db)?;
    }
    // A network's broadcast address is not known to be one: it is nobody's.
    let of_network = Packet::udp(&intruder.v4.to_string(), 4000, "10.77.0.255", EVERYWHERE);
    let of_network = stage.on_link(intruder, Some(db), of_network)?.to_mac(EVERYBODY).bytes();
    stage.repelled(intruder, &[of_network], &[("not-for-pod", 2)], &mut taps[1])?;
    stage.goes_on()?;
    for family in Family::BOTH {
        let frame = to_all(stage, family, EVERYWHERE)?;
        stage.arrives_with_the_switch_off(intruder, &[frame], &mut taps[1])?;
    }
    eventually("the database to hear the intruder", || isolated.received() > 0)
}
