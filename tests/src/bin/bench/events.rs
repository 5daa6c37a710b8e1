//! What verdict events cost a flood of denials: the same denied packet, with events up to the agent's ordinary rate and
//! with none. Each sample lasts longer than the second for which the rate counts, so what is sent in it is in the figure,
//! and so is what its reader takes of the machine.

use std::time::Duration;

use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::datapath::{Claim, Reader, Sizes};
use portcullis_common::Direction;
use portcullis_common::abi::config;
use portcullis_tests::fixture::Fixture;
use portcullis_tests::packets::{Packet, flags};
use serde_json::{Map, Value, json};

use super::figures::{median, nanoseconds};

/// Samples of each.
const ROUNDS: usize = 7;
/// How long a sample takes, about: well more than a second, also if the processor's clock rises.
const SAMPLE: Duration = Duration::from_secs(3);
/// Packets by which it is found out how many those are.
const FIRST: u32 = 500_000;
/// `--event-rate` if nothing else is said.
const RATE: u32 = 1000;

/// Measures and shows; the figures of `json` go into the report.
pub fn run(json: bool, report: &mut Map<String, Value>) {
    super::kernel::own_network();
    let mut fixture = Fixture::new(Sizes::default());
    fixture.apply();
    let source = fixture.datapath.events().expect("the ring buffer");
    let Claim::Ours(events) = source.claim().expect("the ring buffer") else { panic!("somebody reads it") };
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(events.run(|_| true))
    });
    let missed = Reader::open(fixture.folder()).expect("the maps");
    let packet = Packet::tcp("10.0.0.2", 4000, "10.0.0.4", 80, flags::SYN).bytes();
    fixture.set_config(config::EVENT_RATE, 0);
    let first = fixture.probe(Direction::Egress, &packet, ProbeMetadata::default(), FIRST);
    let packets = u32::try_from(SAMPLE.as_nanos() / first.duration.as_nanos()).expect("a number of packets");
    let mut samples = [Vec::new(), Vec::new()];
    let mut sent = 0;
    for _ in 0..ROUNDS {
        for (rate, samples) in [0, RATE].into_iter().zip(&mut samples) {
            fixture.set_config(config::EVENT_RATE, rate);
            let before = missed.missed_events().expect("a count");
            let result = fixture.probe(Direction::Egress, &packet, ProbeMetadata::default(), packets);
            assert!(!result.passed, "it is denied");
            assert!(
                result.duration * packets > Duration::from_secs(1),
                "a sample must last longer than a second"
            );
            if rate > 0 {
                sent += u64::from(packets) - (missed.missed_events().expect("a count") - before);
            }
            samples.push(nanoseconds(result.duration));
        }
    }
    assert!(sent >= u64::from(RATE) * ROUNDS as u64, "only {sent} events were sent");
    let [off, on] = samples.map(median);
    let ratio = on / off;
    if json {
        report
            .insert("denied_flood".to_owned(), json!({"no_events_ns": off, "events_ns": on, "ratio": ratio}));
        return;
    }
    println!("\nDENIED FLOOD, ns a packet");
    println!("without events {off:.1}, with {RATE} a second {on:.1}: {ratio:.3} of it ({sent} events)");
}
