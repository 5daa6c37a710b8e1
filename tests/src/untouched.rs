//! Packets through the loaded programs, of which nothing may be changed on the way.

use portcullis::datapath::testrun::{CONTEXT_BYTES, ProbeMetadata, ProbeRemains, ProbeResult};
use portcullis::datapath::{Datapath, DatapathError};
use portcullis_common::Direction;

/// Fields of `struct __sk_buff` that a test run takes and tells: `mark`, `priority`, `cb`, `tstamp`.
const FIELDS: [(&str, std::ops::Range<usize>); 4] =
    [("mark", 8..12), ("priority", 32..36), ("cb", 48..68), ("tstamp", 152..160)];

/// Runs a program once on a packet.
///
/// # Errors
/// What the kernel says.
///
/// # Panics
/// If the packet or its metadata is another one afterwards.
pub fn probe(
    datapath: &mut Datapath,
    direction: Direction,
    packet: &[u8],
    metadata: ProbeMetadata,
) -> Result<ProbeResult, DatapathError> {
    let mut context: [u8; CONTEXT_BYTES] = metadata.context();
    for (_, field) in FIELDS {
        for (i, byte) in context[field].iter_mut().enumerate() {
            *byte = 1 + u8::try_from(i).unwrap_or(0);
        }
    }
    let ProbeRemains { result, packet: left, context: context_left } =
        datapath.probe_whole(direction, packet, &context)?;
    assert!(left == packet, "the program changed {packet:02x?} to {left:02x?}");
    for (name, field) in FIELDS {
        let [before, after] = [&context, &context_left].map(|context| &context[field.clone()]);
        assert!(before == after, "the program changed `{name}` from {before:02x?} to {after:02x?}");
    }
    Ok(result)
}
