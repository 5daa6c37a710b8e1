//! Packets that the node sends on with its own address in place of the sender's, as it does for services.

use std::net::{IpAddr, SocketAddr, UdpSocket};

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

/// Pods that share a bridge come out of the bridge again then: the way that they came in says nothing but the stamp.
pub fn a_pod_behind_the_nodes_address_is_neither_the_node_nor_anybody_else(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    for family in Family::BOTH {
        translate(&stage.node.ns, family, family.of(db))?;
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
