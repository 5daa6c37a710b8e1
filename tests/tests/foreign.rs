//! Programs of others on the interfaces of pods: they run before and after ours, with ours and without.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::TcAttachType;
use portcullis_tests::packets::Packet;
use portcullis_tests::raw::Raw;
use portcullis_tests::shop::{DB_OPEN_TO_API, api_and_db};
use portcullis_tests::witness::{By, Witness};
use portcullis_tests::{Agent, eventually, privileged_test};

/// For what must work.
const SOON: Duration = Duration::from_secs(5);
/// How many packets are forbidden.
const FORBIDDEN: u64 = 7;

/// Programs before and behind ours at both hooks of the database, attached as ours are.
fn others_go_on(by: By) -> Result<()> {
    let ours = if by == By::Tcx { "tcx" } else { "clsact" };
    let (node, manifests) = api_and_db(DB_OPEN_TO_API)?;
    let mut agent = Agent::on(&node.ns).manifests(manifests.path()).args(["--attach", ours]).start()?;
    let [api, db] = [&node.pods[0], &node.pods[1]];
    let at = SocketAddr::new(db.v4.into(), 5432);
    let _server = db.ns.tcp_echo(at)?;
    let witness = |hook| Witness::around(&node.ns, &db.veth, hook, by);
    let (to_pod, from_pod) = (witness(TcAttachType::Egress)?, witness(TcAttachType::Ingress)?);

    api.ns.tcp_exchange(at, SOON)?;
    let (to, from) = (to_pod.wait_for_dropped(0)?, from_pod.wait_for_dropped(0)?);
    ensure!(to[1].packets >= 4 && from[1].packets >= 3, "a connection: {to:?}, {from:?}");
    ensure!(to[0].bytes == to[1].bytes && from[0].bytes == from[1].bytes, "{to:?}, {from:?}");

    // UDP is not open: each datagram is dropped on its way to the database.
    let (policy, spoofed) = (agent.dropped("policy")?, agent.dropped("spoofed-source")?);
    api.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..FORBIDDEN).try_for_each(|_| socket.send_to(b"x", at).map(drop).map_err(Into::into))
    })?;
    let frame = Packet::udp("10.77.0.77", 4000, &api.v4.to_string(), 80);
    let frame = frame.from_mac(db.ns.mac("eth0")?).to_mac(node.ns.mac(&db.veth)?).checksummed().bytes();
    db.ns.run(|| {
        let mut raw = Raw::open("eth0", false)?;
        (0..FORBIDDEN).try_for_each(|_| raw.send(&frame))
    })?;
    to_pod.wait_for_dropped(FORBIDDEN).context("towards the pod")?;
    from_pod.wait_for_dropped(FORBIDDEN).context("from the pod")?;
    eventually("ours to have counted them", || {
        agent.dropped("policy").is_ok_and(|now| now == policy + FORBIDDEN)
            && agent.dropped("spoofed-source").is_ok_and(|now| now == spoofed + FORBIDDEN)
    })?;

    // Ours go, and theirs stay.
    agent.terminate()?;
    agent.cli(["cleanup"])?;
    let before = to_pod.seen()?;
    api.ns.tcp_exchange(at, SOON)?;
    api.ns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", at)?))?;
    let after = to_pod.wait_for_dropped(FORBIDDEN).context("without ours")?;
    ensure!(after[0].packets > before[0].packets + 4, "{before:?}, {after:?}");
    from_pod.wait_for_dropped(FORBIDDEN).context("without ours")?;
    Ok(())
}

#[test]
fn links_of_others_run_before_and_behind_our_links_and_outlive_them() -> Result<()> {
    privileged_test(|| others_go_on(By::Tcx))
}

#[test]
fn filters_of_others_run_before_and_behind_our_filters_and_outlive_them() -> Result<()> {
    privileged_test(|| others_go_on(By::Clsact))
}
