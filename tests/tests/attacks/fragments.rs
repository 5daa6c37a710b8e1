//! A pod that hides in fragments where its packets go, and who they are from.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::raw::Tap;
use portcullis_tests::traffic::udp_socket;
use portcullis_tests::{Namespace, eventually};

use super::stage::{Family, PRIVATE, PUBLIC, SOON, Stage, send};

/// Bytes of a small datagram or segment here, with its header.
const SMALL: usize = 48;
/// More than fits into three packets.
const LARGE: usize = 5000;
/// Destination options (RFC 8200, 4.6).
const DESTINATION_OPTIONS: u8 = 60;

/// A packet of the intruder to the database.
fn to_db(stage: &Stage<'_>, family: Family, make: impl FnOnce(&str, &str) -> Packet) -> Result<Packet> {
    let [_, db, intruder] = stage.pods();
    let [from, to] = [intruder, db].map(|pod| family.of(pod).to_string());
    stage.on_link(intruder, Some(db), make(&from, &to))
}

/// A datagram of this length to a port of the database.
fn datagram(stage: &Stage<'_>, family: Family, port: u16, length: usize) -> Result<Packet> {
    to_db(stage, family, |from, to| Packet::udp(from, 4000, to, port).data(length - 12))
}

fn syn(stage: &Stage<'_>, family: Family, port: u16) -> Result<Packet> {
    to_db(stage, family, |from, to| Packet::tcp(from, 4000, to, port, flags::SYN).data(SMALL - 20))
}

/// Makes a first fragment larger than what a router may put behind its headers (two options that nobody knows, and
/// everybody skips).
fn inflated(first: Packet) -> Packet {
    let mut option = vec![0x1e, 253];
    option.resize(255, 0);
    first.extension(DESTINATION_OPTIONS, &option.repeat(2))
}

/// A game with fragments.
struct Trick {
    what: &'static str,
    /// What passes, because nothing is wrong with it.
    harmless: Vec<Packet>,
    /// What follows.
    hidden: Vec<Packet>,
    /// What becomes of that.
    reasons: &'static [(&'static str, u64)],
}

fn tricks(stage: &Stage<'_>, family: Family) -> Result<Vec<Trick>> {
    let forbidden = datagram(stage, family, PRIVATE, SMALL)?;
    let permitted = datagram(stage, family, PUBLIC, SMALL)?;
    let (forbidden_syn, permitted_syn) = (syn(stage, family, PRIVATE)?, syn(stage, family, PUBLIC)?);
    let trick = |what, hidden, reasons| Trick { what, harmless: Vec::new(), hidden, reasons };
    let mut tricks = vec![
        trick(
            "a forbidden datagram in two",
            vec![forbidden.piece(0..24, 1), forbidden.piece(24..SMALL, 1)],
            &[("policy", 2)][..],
        ),
        trick(
            "a header that is not whole in the first fragment",
            vec![
                forbidden_syn.piece(0..8, 2),
                forbidden_syn.piece(8..SMALL, 2),
                forbidden_syn.piece(0..16, 3),
                forbidden_syn.piece(16..SMALL, 3),
            ],
            &[("fragment-tiny", 4)],
        ),
        trick("no first fragment", vec![forbidden.piece(24..SMALL, 4)], &[("fragment-unknown", 1)]),
        trick(
            "the first fragment last",
            vec![forbidden.piece(24..SMALL, 5), forbidden.piece(0..24, 5)],
            &[("fragment-unknown", 1), ("policy", 1)],
        ),
        Trick {
            harmless: vec![permitted.piece(0..24, 6)],
            ..trick(
                "a forbidden datagram over the beginning of a permitted one",
                vec![forbidden.piece(0..24, 6), forbidden.piece(24..SMALL, 6)],
                &[("policy", 2)],
            )
        },
        Trick {
            harmless: vec![permitted_syn.piece(0..24, 7)],
            ..trick(
                "another header over the one of a permitted segment",
                vec![forbidden_syn.piece(8..SMALL, 7), forbidden_syn.piece(16..SMALL, 7)],
                &[("fragment-tiny", 2)],
            )
        },
    ];
    if family == Family::V6 {
        let first = inflated(forbidden.piece(0..24, 8));
        tricks.push(trick(
            "a first fragment that options have made large",
            vec![first, forbidden.piece(24..SMALL, 8)],
            &[("policy", 2)],
        ));
    }
    Ok(tricks)
}

fn frames(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(Packet::bytes).collect()
}

pub fn fragments_bring_nothing_to_a_server_that_the_pod_may_not_reach(stage: &mut Stage<'_>) -> Result<()> {
    let [_, db, intruder] = stage.pods();
    let mut tap = Tap::at(&db.ns, "eth0")?;
    for family in Family::BOTH {
        for Trick { what, harmless, hidden, reasons } in tricks(stage, family)? {
            send(intruder, &frames(&harmless))?;
            for frame in frames(&harmless) {
                eventually(what, || tap.saw(&frame).unwrap_or(false))?;
            }
            stage.repelled(intruder, &frames(&hidden), reasons, &mut tap).context(what)?;
        }
    }
    stage.goes_on()?;
    for family in Family::BOTH {
        let heard = stage.heard();
        let whole = datagram(stage, family, PRIVATE, SMALL)?;
        let pieces = frames(&[whole.piece(0..24, 9), whole.piece(24..SMALL, 9)]);
        stage.arrives_with_the_switch_off(intruder, &pieces, &mut tap)?;
        eventually("the datagram to be put together", || stage.heard() > heard)?;
    }
    Ok(())
}

/// Sends a datagram that the kernel must cut, and gets it back whole.
fn large_exchange(from: &Namespace, to: SocketAddr) -> Result<()> {
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(LARGE).collect();
    let back = from.run(|| {
        let socket = udp_socket(to)?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send(&data)?;
        let mut back = vec![0; LARGE + 1];
        let length = socket.recv(&mut back).with_context(|| format!("the answer of {to}"))?;
        back.truncate(length);
        Ok(back)
    })?;
    ensure!(back == data, "{} bytes came back changed", back.len());
    Ok(())
}

pub fn datagrams_that_the_kernel_cuts_arrive_whole_where_they_may_go(stage: &mut Stage<'_>) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let unknown = stage.agent.dropped("fragment-unknown")?;
    for family in Family::BOTH {
        large_exchange(&api.ns, SocketAddr::new(family.of(db), PRIVATE))?;
        large_exchange(&intruder.ns, SocketAddr::new(family.of(db), PUBLIC))?;
        large_exchange(&stage.node.ns, SocketAddr::new(family.of(db), PRIVATE))?;
        let (heard, denied) = (stage.heard(), stage.agent.dropped("policy")?);
        intruder.ns.udp_send(SocketAddr::new(family.of(db), PRIVATE), &[7; LARGE])?;
        eventually("all parts to be dropped", || {
            stage.agent.dropped("policy").is_ok_and(|now| now >= denied + 4)
        })?;
        ensure!(stage.heard() == heard, "the database heard the intruder");
    }
    ensure!(stage.agent.dropped("fragment-unknown")? == unknown, "a part was not known");
    stage.goes_on()
}

/// The node puts its own address in place of the intruder's, as it does for services; conntrack puts fragments together for
/// that, and where they must be cut anew the kernel forgets the interface that they came in by.
fn masquerade(ns: &Namespace) -> Result<()> {
    Family::BOTH.into_iter().try_for_each(|family| {
        let rule = format!("-t nat -A POSTROUTING -p udp --dport {PRIVATE} -o veth1 -j SNAT --to-source");
        ns.firewall(family.tables(), &format!("{rule} {}", family.node()))
    })
}

pub fn fragments_that_the_node_masquerades_and_cuts_anew_are_not_taken_for_its_own(
    stage: &mut Stage<'_>,
) -> Result<()> {
    masquerade(&stage.node.ns)?;
    let [_, db, intruder] = stage.pods();
    let mut tap = Tap::at(&db.ns, "eth0")?;
    for family in Family::BOTH {
        let length = 1424;
        let whole = datagram(stage, family, PRIVATE, length)?;
        let mut pieces = [whole.piece(0..24, 1), whole.piece(24..length, 1)];
        if family == Family::V6 {
            pieces[0] = inflated(pieces[0].clone());
        }
        // What is put together in IPv4 keeps the interface that it came in by.
        let sender = if family == Family::V4 { "elsewhere/intruder" } else { "world" };
        let of_sender = stage.denied_at_db(sender)?;
        let (heard, denied) = (stage.heard(), stage.agent.dropped("policy")?);
        let arrived = tap.seen()?.len();
        send(intruder, &frames(&pieces))?;
        eventually("a part to be dropped", || stage.agent.dropped("policy").is_ok_and(|now| now > denied))?;
        // The kernel gives the rest up then.
        ensure!(stage.denied_at_db(sender)? == of_sender + 1, "it was not taken for one of {sender}");
        let more = tap.seen()?[arrived..].iter().filter(|frame| frame.len() > 500).count();
        ensure!(more == 0 && stage.heard() == heard, "the database got {more} parts");
        // What the node says itself, cut just so, passes.
        large_exchange(&stage.node.ns, SocketAddr::new(family.of(db), PRIVATE))?;
        let heard = stage.heard();
        stage.with_the_switch_off(|| {
            send(intruder, &frames(&pieces))?;
            eventually("the datagram to be put together", || stage.heard() > heard)
        })?;
    }
    Ok(())
}
