//! A pod that forges the end of a connection of two others, and a peer that resets its own in vain.

use std::slice::from_ref;

use anyhow::{Context, Result, ensure};
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::raw::Tap;
use portcullis_tests::{Pod, eventually};

use super::stage::{Family, PRIVATE, SOON, Stage, send};

/// A segment of one end of the API's connection to the database.
#[derive(Clone, Copy)]
struct End<'a> {
    from: (&'a Pod, u16),
    to: (&'a Pod, u16),
    /// Number of the next byte that the other end waits for.
    next: u32,
}

/// Both ends as they stand: taps at the API and at the database have seen all that was said.
fn ends<'a>(stage: &Stage<'a>, family: Family, taps: &mut [Tap; 2]) -> Result<[End<'a>; 2]> {
    let [api, db, _] = stage.pods();
    let (api, db) = ((api, stage.port(family)?), (db, PRIVATE));
    let next = [next(&mut taps[1], family, api.1, db.1)?, next(&mut taps[0], family, db.1, api.1)?];
    Ok([End { from: api, to: db, next: next[0] }, End { from: db, to: api, next: next[1] }])
}

/// The number behind the last byte that came by a tap between two ports.
fn next(tap: &mut Tap, family: Family, from: u16, to: u16) -> Result<u32> {
    // Where the TCP header begins, where the protocol is, and the ethertype.
    let (header, protocol, version) =
        if family == Family::V4 { (34, 23, [0x08, 0x00]) } else { (54, 20, [0x86, 0xdd]) };
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    let is_segment = |frame: &&Vec<u8>| {
        frame.get(header..header + 4) == Some(&ports[..]) && frame[12..14] == version && frame[protocol] == 6
    };
    let last = tap.seen()?.iter().rev().find(is_segment).context("a segment of the connection")?;
    let number = u32::from_be_bytes(last[header + 4..header + 8].try_into()?);
    let data = last.len() - header - usize::from(last[header + 12] >> 4) * 4;
    Ok(number.wrapping_add(u32::try_from(data)?))
}

/// A segment of an end, as `sender` puts it on the link; `off` by so much from the number that the other end waits for.
fn segment(
    stage: &Stage<'_>,
    sender: &Pod,
    family: Family,
    end: End<'_>,
    bits: u8,
    off: u32,
) -> Result<Packet> {
    let [from, to] = [end.from.0, end.to.0].map(|pod| family.of(pod).to_string());
    let packet = Packet::tcp(&from, end.from.1, &to, end.to.1, bits);
    stage.on_link(sender, Some(end.to.0), packet.sequence(end.next.wrapping_add(off), 0))
}

/// The states of the connection's flow at the API and at the database.
fn states(stage: &Stage<'_>, family: Family) -> Result<Vec<String>> {
    let mut flows = stage.flows(&[stage.port(family)?])?;
    flows.retain(|flow| flow.protocol == "tcp" && flow.local_address.is_ipv4() == (family == Family::V4));
    Ok(flows.into_iter().map(|flow| flow.state).collect())
}

pub fn a_pod_that_forges_the_end_of_others_connection_does_not_cut_it(stage: &mut Stage<'_>) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let mut taps = [Tap::at(&api.ns, "eth0")?, Tap::at(&db.ns, "eth0")?];
    stage.goes_on()?;
    for family in Family::BOTH {
        let mut frames = Vec::new();
        for end in ends(stage, family, &mut taps)? {
            let theirs = end.from.0.ns.mac("eth0")?;
            for bits in [flags::RST, flags::RST | flags::ACK, flags::FIN | flags::ACK] {
                let packet = segment(stage, intruder, family, end, bits, 0)?;
                frames.extend([packet.bytes(), packet.from_mac(theirs).bytes()]);
            }
        }
        let [at_api, at_db] = &mut taps;
        stage.repelled(intruder, &frames, &[("spoofed-source", frames.len() as u64)], at_db)?;
        for frame in &frames {
            ensure!(!at_api.saw(frame)?, "the API got {frame:02x?}");
        }
        ensure!(states(stage, family)? == ["open", "open"], "{:?}", states(stage, family)?);
    }
    stage.goes_on()?;
    for family in Family::BOTH {
        let end = ends(stage, family, &mut taps)?[0];
        let reset = segment(stage, intruder, family, end, flags::RST, 0)?.bytes();
        stage.arrives_with_the_switch_off(intruder, &[reset], &mut taps[1])?;
        ensure!(stage.connection(family).exchange(SOON).is_err(), "the database was not impressed");
    }
    Ok(())
}

pub fn a_reset_that_the_other_end_does_not_take_loses_no_flow(stage: &mut Stage<'_>) -> Result<()> {
    let [api, db, _] = stage.pods();
    let mut taps = [Tap::at(&api.ns, "eth0")?, Tap::at(&db.ns, "eth0")?];
    stage.goes_on()?;
    for family in Family::BOTH {
        for end in ends(stage, family, &mut taps)? {
            // Far beyond the window.
            let reset = segment(stage, end.from.0, family, end, flags::RST, 1 << 30)?.bytes();
            eventually("the flows to be closing", || {
                send(end.from.0, from_ref(&reset)).is_ok()
                    && states(stage, family).is_ok_and(|states| states == ["closing", "closing"])
            })?;
            stage.connection(family).exchange(SOON).context("after the reset")?;
            let again = states(stage, family)?;
            ensure!(again == ["open", "open"], "{again:?}");
        }
    }
    stage.goes_on()
}
