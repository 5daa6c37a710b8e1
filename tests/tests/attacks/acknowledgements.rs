//! A pod that may open no connection, and so leaves out the packet that opens one.

use std::net::SocketAddr;

use anyhow::Result;
use portcullis_tests::Manifests;
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::raw::Tap;

use super::stage::{Family, PUBLIC, SOON, Stage};

/// The intruder opens no connection, and takes any.
fn hermit(manifests: &Manifests) -> Result<()> {
    manifests.write(
        "hermit.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: hermit, namespace: elsewhere}\n\
         spec: {podSelector: {}, policyTypes: [Egress]}\n",
    )
}

/// Every kind of segment that opens nothing.
const NO_OPENING: [u8; 8] = [
    flags::ACK,
    flags::SYN | flags::ACK,
    flags::FIN | flags::ACK,
    flags::FIN,
    flags::RST,
    flags::RST | flags::ACK,
    flags::SYN | flags::FIN | flags::ACK,
    0,
];

fn segments(stage: &Stage<'_>, family: Family, bits: &[u8]) -> Result<Vec<Vec<u8>>> {
    let [api, _, intruder] = stage.pods();
    let [from, to] = [intruder, api].map(|pod| family.of(pod).to_string());
    let segment = |bits: &u8| {
        let packet = Packet::tcp(&from, 4000, &to, PUBLIC, *bits);
        Ok(stage.on_link(intruder, Some(api), packet)?.bytes())
    };
    bits.iter().map(segment).collect()
}

pub fn segments_that_open_nothing_get_an_egress_denied_pod_nowhere(stage: &mut Stage<'_>) -> Result<()> {
    let [api, _, intruder] = stage.pods();
    let mut tap = Tap::at(&api.ns, "eth0")?;
    stage.changes(hermit)?;
    for family in Family::BOTH {
        // Nobody is kept from the API, but for the intruder's own policy.
        let _server = api.ns.tcp_echo(SocketAddr::new(family.of(api), PUBLIC))?;
        let silent = segments(stage, family, &NO_OPENING)?;
        stage.repelled(intruder, &silent, &[("no-flow", silent.len() as u64)], &mut tap)?;
        // What does open one is judged, and is no help to what follows.
        let opening = segments(stage, family, &[flags::SYN, flags::SYN | flags::FIN])?;
        stage.repelled(intruder, &opening, &[("policy", 2)], &mut tap)?;
        stage.repelled(intruder, &silent, &[("no-flow", silent.len() as u64)], &mut tap)?;
        // It answers who connects to it, with the same kinds of segments.
        let own = intruder.ns.tcp_echo(SocketAddr::new(family.of(intruder), PUBLIC))?;
        api.ns.tcp_exchange(own.address(), SOON)?;
    }
    stage.api_goes_on()?;
    for family in Family::BOTH {
        let silent = segments(stage, family, &NO_OPENING)?;
        stage.arrives_with_the_switch_off(intruder, &silent, &mut tap)?;
    }
    stage.changes(|manifests| manifests.remove("hermit.yaml"))
}
