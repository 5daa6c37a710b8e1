//! What a flood costs the node: a packet that opens a flow and is denied, one that is permitted and finds the budget of new
//! flows used up, and one that is permitted and pushes another flow out of a full table.

use portcullis::datapath::Sizes;
use portcullis::datapath::testrun::ProbeMetadata;
use portcullis_common::Direction;
use portcullis_common::abi::config;
use portcullis_tests::fixture::Fixture;
use portcullis_tests::packets::{Packet, flags};
use serde_json::{Map, Value, json};

use super::figures::{median, nanoseconds};

/// Samples of each; the median counts.
const ROUNDS: usize = 11;
/// Runs of a packet that leaves nothing.
const SAME: u32 = 200_000;
/// Flows of a sample: several times what a table holds, each from a port of its own.
const PORTS: std::ops::Range<u16> = 10_000..40_000;

/// Measures and shows; the figures of `json` go into the report.
pub fn run(json: bool, report: &mut Map<String, Value>) {
    super::kernel::own_network();
    let mut fixture = Fixture::new(Sizes::default());
    fixture.apply();
    let mut samples: [(&str, Vec<f64>); 3] =
        ["denied", "over-budget", "permitted-into-a-full-table"].map(|name| (name, Vec::new()));
    for _ in 0..ROUNDS {
        let [(_, denied), (_, over), (_, full)] = &mut samples;
        let packet = Packet::tcp("10.0.0.2", 4000, "10.0.0.4", 80, flags::SYN);
        denied.push(repeated(&mut fixture, &packet));
        // One flow is let in a second, and is not this one.
        fixture.set_config(config::NEW_FLOW_RATE, 1);
        let _ = fixture.sends(&Packet::tcp("10.0.0.2", 3999, "10.0.0.3", 80, flags::SYN));
        over.push(repeated(&mut fixture, &Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::SYN)));
        fixture.set_config(config::NEW_FLOW_RATE, 0);
        full.push(different(&mut fixture));
    }
    if !json {
        println!("\n{:<32} {:>8} {:>32}", "FLOOD", "NS", "OF A PROCESSOR AT 100,000 A SECOND");
    }
    for (name, values) in samples {
        let ns = median(values);
        if json {
            report.insert(format!("flood-{name}"), json!({ "ns": ns }));
        } else {
            println!("{name:<32} {ns:>8.0} {:>31.1}%", ns * 100_000.0 / 1e9 * 100.0);
        }
    }
}

fn repeated(fixture: &mut Fixture, packet: &Packet) -> f64 {
    let result = fixture.probe(Direction::Egress, &packet.bytes(), ProbeMetadata::default(), SAME);
    nanoseconds(result.duration)
}

fn different(fixture: &mut Fixture) -> f64 {
    let count = f64::from(PORTS.end - PORTS.start);
    let mut total = 0.0;
    for port in PORTS {
        let packet = Packet::tcp("10.0.0.2", port, "10.0.0.3", 80, flags::SYN).bytes();
        let result = fixture.probe(Direction::Egress, &packet, ProbeMetadata::default(), 1);
        assert!(result.passed, "it is permitted");
        total += nanoseconds(result.duration);
    }
    total / count
}
