//! A pod that tells its neighbours that an address of another one is at its own place on the link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use portcullis_tests::packets::{Packet, arp_packet};
use portcullis_tests::raw::Tap;
use portcullis_tests::{Network, Pod, eventually};

use super::stage::{ALL_NODES, EVERYBODY, Mac, SOON, Stage, send, shown};

const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Everything that ARP can say to make neighbours believe that an address is the intruder's.
fn claims_of_arp(me: Mac, claimed: Ipv4Addr, victim: (Mac, Ipv4Addr)) -> Vec<Vec<u8>> {
    let say = |operation, to, target| arp_packet(operation, (me, to), (me, claimed), target);
    vec![
        say(QUESTION, EVERYBODY, ([0; 6], claimed)),
        say(ANSWER, EVERYBODY, (EVERYBODY, claimed)),
        say(ANSWER, victim.0, victim),
        say(QUESTION, victim.0, ([0; 6], victim.1)),
    ]
}

/// A message of neighbour discovery about an address, with the sender's place on the link as the option that `kind` has.
fn discovery(kind: u8, me: Mac, from: Ipv6Addr, to: (&str, Mac), about: Ipv6Addr) -> Vec<u8> {
    let (option, flags) = if kind == ADVERTISEMENT { (2, 0x20) } else { (1, 0) };
    let mut body = about.octets().to_vec();
    body.extend([option, 1]);
    body.extend(me);
    let packet = Packet::icmp(&from.to_string(), to.0, kind, 0, [flags, 0, 0, 0], &body);
    packet.from_mac(me).to_mac(to.1).checksummed().bytes()
}

/// As [`claims_of_arp`].
fn claims_of_discovery(me: (Mac, Ipv6Addr), claimed: Ipv6Addr, victim: (Mac, Ipv6Addr)) -> Vec<Vec<u8>> {
    let to = (victim.1.to_string(), victim.0);
    let to = (to.0.as_str(), to.1);
    vec![
        discovery(ADVERTISEMENT, me.0, me.1, ("ff02::1", ALL_NODES), claimed),
        discovery(ADVERTISEMENT, me.0, me.1, to, claimed),
        discovery(ADVERTISEMENT, me.0, claimed, to, claimed),
        discovery(SOLICITATION, me.0, claimed, to, victim.1),
    ]
}

/// The addresses that the intruder claims: the API's and the gateway's.
fn claimed(stage: &Stage<'_>) -> [(Ipv4Addr, Ipv6Addr); 2] {
    let [api, ..] = stage.pods();
    let gateway = match stage.network {
        Network::Routed => (Ipv4Addr::new(169, 254, 1, 1), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        Network::Bridged => (Ipv4Addr::new(10, 77, 0, 1), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1)),
    };
    [(api.v4, api.v6), gateway]
}

/// Where a pod believes an address to be.
fn believed(pod: &Pod, address: IpAddr) -> Result<String> {
    let text = shown(&pod.ns, &format!("neigh show to {address} dev eth0"))?;
    Ok(text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned())
}

pub fn a_pod_that_says_to_have_anothers_address_is_not_believed(stage: &mut Stage<'_>) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let (me, place) = (intruder.ns.mac("eth0")?, db.ns.mac("eth0")?);
    // A new answer counts at once.
    db.ns.sysctl(&[("net/ipv4/neigh/eth0/locktime", "0")])?;
    let known = |address: (Ipv4Addr, Ipv6Addr)| -> Result<[String; 2]> {
        Ok([believed(db, address.0.into())?, believed(db, address.1.into())?])
    };
    let mut tap = Tap::at(&db.ns, "eth0")?;
    for address in claimed(stage) {
        if stage.network == Network::Bridged {
            // So that it knows them; of a gateway that is only known by its link it does already.
            db.ns.ping(address.0.into(), SOON)?;
            db.ns.ping(address.1.into(), SOON)?;
        }
        let before = known(address)?;
        let mut frames = claims_of_arp(me, address.0, (place, db.v4));
        frames.extend(claims_of_discovery((me, intruder.v6), address.1, (place, db.v6)));
        stage.repelled(intruder, &frames, &[("spoofed-source", frames.len() as u64)], &mut tap)?;
        ensure!(known(address)? == before, "{before:?} became {:?}", known(address)?);
    }
    stage.goes_on()?;
    if stage.network == Network::Routed {
        // Only the node is on the link.
        return Ok(());
    }
    let truth = api.ns.hardware_address("eth0")?;
    ensure!(known((api.v4, api.v6))? == [truth.clone(), truth], "the database knows where the API is");
    let lie = intruder.ns.hardware_address("eth0")?;
    stage.with_the_switch_off(|| {
        let mut frames = claims_of_arp(me, api.v4, (place, db.v4));
        frames.extend(claims_of_discovery((me, intruder.v6), api.v6, (place, db.v6)));
        send(intruder, &frames)?;
        eventually("the database to believe it", || {
            known((api.v4, api.v6)).is_ok_and(|believed| believed == [lie.clone(), lie.clone()])
        })
    })
}
