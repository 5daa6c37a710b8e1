//! Packets that the node sends on with its own address in place of the sender's, as it does for services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use portcullis_tests::{Namespace, Network, eventually};

use super::stage::{Family, PRIVATE, SOON, Stage};

/// Addresses that nobody has: the node translates them to the database's.
const SERVICE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 96, 0, 50), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x50));

/// As the node's proxy does it for a pod that may be the endpoint of its own connection: both addresses change.
fn translate(ns: &Namespace, family: Family, db: IpAddr) -> Result<()> {
    let (service, node) = (family.pick(SERVICE), family.node());
    let target = SocketAddr::new(db, PRIVATE);
    [
        format!("mangle -A PREROUTING -d {service} -j MARK --set-mark 7"),
        format!("nat -A PREROUTING -d {service} -p udp --dport {PRIVATE} -j DNAT --to-destination {target}"),
        format!("nat -A POSTROUTING -m mark --mark 7 -j SNAT --to-source {node}"),
    ]
    .iter()
    .try_for_each(|rule| ns.firewall(family.tables(), &format!("-t {rule}")))
}

pub fn a_pod_behind_the_nodes_address_is_neither_the_node_nor_anybody_else(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let db = stage.pods()[1];
    for family in Family::BOTH {
        translate(&stage.node.ns, family, family.of(db))?;
    }
    is_told_apart(stage)?;
    if stage.network == Network::Bridged {
        // The node's filters knew the port that packets came in by (`br_netfilter`). Without them packets come from the bridge,
        // and the stamp alone says from whom.
        stage.node.ns.filter_bridged(false)?;
        is_told_apart(stage).context("without filters on the bridge")?;
        stage.node.ns.filter_bridged(true)?;
    }
    Ok(())
}

/// That the API gets to the database by the service, and the intruder does not.
fn is_told_apart(stage: &mut Stage<'_>) -> Result<()> {
    let [api, _, intruder] = stage.pods();
    for family in Family::BOTH {
        let at = SocketAddr::new(family.pick(SERVICE), PRIVATE);
        api.ns.udp_exchange(at, SOON).with_context(|| format!("the API at {at}"))?;

        let of_intruder = stage.denied_at_db("elsewhere/intruder")?;
        let heard = stage.heard();
        let say = || intruder.ns.udp_send(at, b"let me in");
        say()?;
        eventually("it to be denied as what it is", || {
            stage.denied_at_db("elsewhere/intruder").is_ok_and(|now| now == of_intruder + 1)
        })?;
        ensure!(stage.heard() == heard, "the database heard the intruder by {at}");
        stage.with_the_switch_off(|| {
            say()?;
            eventually("the database to hear it", || stage.heard() > heard)
        })?;
    }
    stage.goes_on()
}
