//! Packets that the node sends on with its own address in place of the sender's, as it does for services.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use portcullis_tests::command::run;
use portcullis_tests::{Namespace, eventually};

use super::stage::{Family, PRIVATE, SOON, Stage};

/// Addresses that nobody has: the node translates them to the database's.
const SERVICE: (&str, &str) = ("10.96.0.50", "fd96::50");

fn service(family: Family) -> Result<IpAddr> {
    let (v4, v6) = SERVICE;
    Ok(if family == Family::V4 { v4 } else { v6 }.parse()?)
}

/// As the node's proxy does it for a pod that may be the endpoint of its own connection: both addresses change.
fn translate(ns: &Namespace, family: Family, db: IpAddr) -> Result<()> {
    let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let (service, node) = (service(family)?, family.node());
    let target = SocketAddr::new(db, PRIVATE);
    for rule in [
        format!("mangle -A PREROUTING -d {service} -j MARK --set-mark 7"),
        format!("nat -A PREROUTING -d {service} -p udp --dport {PRIVATE} -j DNAT --to-destination {target}"),
        format!("nat -A POSTROUTING -m mark --mark 7 -j SNAT --to-source {node}"),
    ] {
        run(&mut ns.command(tool, format!("-w -t {rule}").split(' ')))?;
    }
    Ok(())
}

/// Lets the bridge show no packets to the node's filters, which would know the port that they came in by (`br_netfilter`).
/// Then they come from the bridge, and the stamp alone says from whom.
fn without_filters(ns: &Namespace) -> Result<()> {
    ns.run(|| {
        for family in ["iptables", "ip6tables"] {
            let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            // Without the module there is no switch, and nothing to be switched off.
            if Path::new(&switch).exists() {
                fs::write(&switch, "0").context(switch)?;
            }
        }
        Ok(())
    })
}

pub fn a_pod_behind_the_nodes_address_and_a_bridge_without_filters_is_known_by_its_stamp(
    stage: &mut Stage<'_>,
) -> Result<()> {
    without_filters(&stage.node.ns)?;
    is_told_apart(stage)
}

pub fn a_pod_behind_the_nodes_address_is_neither_the_node_nor_anybody_else(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let db = stage.pods()[1];
    for family in Family::BOTH {
        translate(&stage.node.ns, family, family.of(db))?;
    }
    is_told_apart(stage)
}

/// That the API gets to the database by the service, and the intruder does not.
fn is_told_apart(stage: &mut Stage<'_>) -> Result<()> {
    let [api, _, intruder] = stage.pods();
    for family in Family::BOTH {
        let at = SocketAddr::new(service(family)?, PRIVATE);
        api.ns.udp_exchange(at, SOON).with_context(|| format!("the API at {at}"))?;

        let of_intruder = stage.denied_at_db("elsewhere/intruder")?;
        let heard = stage.heard();
        let say = || {
            intruder.ns.run(|| {
                let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
                Ok(UdpSocket::bind(any)?.send_to(b"let me in", at)?)
            })
        };
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
