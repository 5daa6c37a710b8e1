//! What a packet costs, measured by the kernel (`BPF_PROG_TEST_RUN`) in one run: an empty program, the limit (parse, one
//! LRU lookup, one per-CPU array update), the same with a table that all endpoints share, and ours.
//!
//! A verdict that was given to the like of a new flow is not looked for again (`portcullis_common::cache`): new flows are
//! judged here unless they are called remembered. A packet that ends its flow goes through all of its states.
//!
//! Every round runs each case once, in turn, so that a change of the machine's speed hits all of them alike; the figure
//! of a case is the median of its rounds. Net is what is left without the empty program; ratios are of net figures.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use aya::Pod;
use aya::maps::{HashMap, PerCpuArray};
use aya::programs::SchedClassifier;
use portcullis::datapath::testrun::{self, ProbeMetadata, ProbeResult};
use portcullis::datapath::{BENCH_OBJECT, Sizes};
use portcullis_common::abi::config;
use portcullis_common::flow::{FlowKey as _, FlowKey4};
use portcullis_common::{Direction, Identity, Kind, Verdict};
use portcullis_tests::fixture::{Fixture, SUBJECT, WEB, always, only, rows};
use portcullis_tests::golden::{self, Version};
use portcullis_tests::packets::{Packet, flags};

use super::budgets::{Bound, Budget};
use super::figures::{median, nanoseconds};
use super::process::seconds;

/// Rounds that count, and one before them that does not.
const ROUNDS: usize = 21;
/// Runs of a known packet in a round.
const KNOWN: u32 = 100_000;
/// Peers that new flows are opened to in turn, and runs of each in a round.
const PEERS: u32 = 128;
const NEW: u32 = 100;
/// Packets of a known flow: how the figure is called, and the case of the golden table.
const KNOWN_FLOWS: &[(&str, &str, Version)] = &[
    ("known-flow-ipv4", "a segment of an open connection only counts", Version::V4),
    ("known-flow-ipv6", "a segment of an open connection only counts", Version::V6),
    (
        "known-flow-ipv4-options",
        "a segment with options, as every system sends them, only counts",
        Version::V4,
    ),
    (
        "known-flow-ipv6-options",
        "a segment with options, as every system sends them, only counts (IPv6)",
        Version::V6,
    ),
];
/// The same flows, with a packet that ends them: where a frame has its TCP flags.
const ENDS: &[(&str, usize, Version)] =
    &[("known-flow-ipv4-ends", 47, Version::V4), ("known-flow-ipv6-ends", 67, Version::V6)];
/// One in so many allowed new flows would be reported, so each is judged.
const JUDGE: u32 = u32::MAX;
/// Counter slot of the flow of the limit programs.
const COUNTER: u32 = 7;
/// Where a test run is, unless it says where.
const LOOPBACK: u32 = 1;
/// Where an IPv4 frame has its destination address.
const DESTINATION: std::ops::Range<usize> = 30..34;
/// A peer whose ports have many ranges, its class, and how many.
const PORTS_PEER: Ipv4Addr = Ipv4Addr::new(10, 63, 0, 1);
const PORTS_CLASS: u32 = 99;
const PORT_RANGES: u16 = 60;
/// A subject class that no pod of the benchmark has.
const ELSEWHERE: u32 = 7;
/// Changes a second, and how many packets of a known flow a processor does in one.
const CHANGES: &[u32] = &[1, 10, 100];
const PACKETS_A_SECOND: u32 = 15_000_000;
/// How many identities the maps hold in the cases of new flows.
const IDENTITIES: &[u32] = &[100, 10_000, 100_000];

/// What is compared, the case and the one that it is compared with, and the most that its ratio may be.
const BUDGETS: [(&str, &str, &str, f64); 5] = [
    ("known flow, IPv4 TCP / limit", "known-flow-ipv4", "limit", 1.3),
    ("known flow, IPv6 / limit", "known-flow-ipv6", "limit", 1.5),
    ("new flow allowed, 100,000 / 100 identities", "new-flow-allowed-100000", "new-flow-allowed-100", 1.3),
    ("new flow denied, 100,000 / 100 identities", "new-flow-denied-100000", "new-flow-denied-100", 1.3),
    ("new flow by a table of ports / by none", "new-flow-allowed-ports", "new-flow-allowed-100", 1.5),
];
/// The most that changes elsewhere may do to a known flow.
const UNDER_CHANGES: f64 = 1.1;

/// Measures and shows; the figures of `json` go into the report.
pub fn run(json: bool, report: &mut serde_json::Map<String, serde_json::Value>) -> Vec<Budget> {
    super::kernel::own_network();
    let figures = measure(json);
    let empty = figures["empty"];
    let limit = figures["limit"] - empty;
    if json {
        let cases: serde_json::Map<String, serde_json::Value> = figures
            .iter()
            .map(|(name, ns)| {
                let net = ns - empty;
                (name.clone(), serde_json::json!({"ns": ns, "net_ns": net, "to_limit": round(net / limit)}))
            })
            .collect();
        report.insert("cases".to_owned(), cases.into());
    } else {
        println!("{:<28} {:>8} {:>8} {:>9}", "CASE", "NS", "NET NS", "TO LIMIT");
        for name in order(&figures) {
            let net = figures[&name] - empty;
            println!("{name:<28} {:>8.1} {net:>8.1} {:>9.2}", figures[&name], net / limit);
        }
    }
    budgets(&figures)
}

/// The ratios of net times that have a budget.
fn budgets(figures: &BTreeMap<String, f64>) -> Vec<Budget> {
    let net = |case: &str| figures[case] - figures["empty"];
    let budget = |what: String, case: &str, to: &str, most| Budget {
        what,
        ratio: net(case) / net(to),
        bound: Bound::AtMost(most),
    };
    let known = KNOWN_FLOWS[0].0;
    let fixed = BUDGETS.iter().map(|(what, case, to, most)| budget((*what).to_owned(), case, to, *most));
    let changes = CHANGES.iter().map(|rate| {
        let what = format!("known flow under {rate} policy changes a second / none");
        budget(what, &under_changes(*rate), known, UNDER_CHANGES)
    });
    fixed.chain(changes).collect()
}

/// The case of a known flow under so many changes a second.
fn under_changes(per_second: u32) -> String {
    format!("known-flow-ipv4-changes-{per_second}")
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The names in the order of the story.
fn order(figures: &BTreeMap<String, f64>) -> Vec<String> {
    let known = KNOWN_FLOWS.iter().map(|(name, ..)| *name);
    let known = known.chain(ENDS.iter().map(|(name, ..)| *name));
    let mut names: Vec<String> =
        ["empty", "limit", "limit-shared"].into_iter().chain(known).map(str::to_owned).collect();
    for size in IDENTITIES {
        names.extend(["new-flow-allowed", "new-flow-denied"].iter().map(|kind| format!("{kind}-{size}")));
    }
    names.extend(figures.keys().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    names
}

/// The two programs to compare with, loaded.
struct Reference {
    ebpf: aya::Ebpf,
    packet: Vec<u8>,
}

impl Reference {
    fn load() -> Self {
        let mut ebpf = aya::EbpfLoader::new().load(BENCH_OBJECT).expect("the benchmark's object");
        for name in ["bench_empty", "bench_limit", "bench_limit_shared"] {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).expect("the program").try_into().expect("a classifier");
            program.load().expect("the verifier accepts it");
        }
        // The maps of the limit programs get the flow of the packet.
        let (local, remote) = (u32::from_ne_bytes([10, 0, 0, 2]), u32::from_ne_bytes([10, 0, 0, 3]));
        insert(&mut ebpf, "LIMIT_FLOWS", FlowKey4::build(local, remote, (4000, 80), 6, 0));
        let ports = u32::from_ne_bytes([0x0f, 0xa0, 0, 80]);
        insert(&mut ebpf, "SHARED_FLOWS", [local, remote, ports, 6, LOOPBACK]);
        let counters = ebpf.take_map("LIMIT_COUNTERS").expect("LIMIT_COUNTERS");
        let counters: PerCpuArray<_, [u64; 2]> = counters.try_into().expect("its layout");
        let packet = Packet::tcp("10.0.0.2", 4000, "10.0.0.3", 80, flags::ACK).bytes();
        let mut reference = Self { ebpf, packet };
        for (number, name) in (1..).zip(["bench_limit", "bench_limit_shared"]) {
            reference.time(name);
            let packets: u64 =
                counters.get(&COUNTER, 0).expect("a slot").iter().map(|[packets, _]| packets).sum();
            assert_eq!(packets, number * u64::from(KNOWN), "{name} does not find its flow");
        }
        reference
    }

    fn time(&mut self, name: &str) -> f64 {
        let program: &mut SchedClassifier =
            self.ebpf.program_mut(name).expect("the program").try_into().expect("a classifier");
        timed(KNOWN, |runs| {
            testrun::run(program, &self.packet, ProbeMetadata::default(), runs).expect("it runs")
        })
    }
}

/// A flow of a program to compare with.
fn insert<K: Pod>(ebpf: &mut aya::Ebpf, map: &str, key: K) {
    let flows = ebpf.take_map(map).expect("the map");
    HashMap::<_, K, u32>::try_from(flows).expect("its layout").insert(key, COUNTER, 0).expect("an insert");
}

/// Nanoseconds of one of so many runs, by the clock of this thread: the kernel says whole ones only, of which there are few.
fn timed(runs: u32, run: impl FnOnce(u32) -> ProbeResult) -> f64 {
    let start = seconds();
    let result = run(runs);
    let took = seconds() - start;
    assert!(result.passed);
    took * 1e9 / f64::from(runs)
}

/// A fixture whose maps hold `identities` pods, every second of which the endpoint may talk to.
fn populated(identities: u32) -> Fixture {
    let mut fixture = Fixture::new(Sizes::default());
    let web = only(&[(6, 80, 80), (6, 8000, 8010), (17, 80, 80)]);
    let mut set = (*rows(Verdict::Deny, &web)).clone();
    for number in 0..identities {
        let class = 100 + number;
        let mut identity = Identity::new(class, class, Kind::Pod);
        identity.subject = 0;
        fixture.desired.ipcache.insert(IpAddr::V4(peer(number)), identity);
        if number % 2 == 0 {
            set.insert((Direction::Egress, class), always(Verdict::Allow));
        }
    }
    set.insert((Direction::Egress, WEB), web);
    fixture.desired.ipcache.insert(PORTS_PEER.into(), Identity::new(PORTS_CLASS, PORTS_CLASS, Kind::Pod));
    let ranges: Vec<(u8, u16, u16)> = std::iter::once((6, 80, 80))
        .chain((0..PORT_RANGES).map(|i| (6, 1000 + 10 * i, 1004 + 10 * i)))
        .collect();
    set.insert((Direction::Egress, PORTS_CLASS), only(&ranges));
    fixture.desired.subjects.insert(SUBJECT, std::sync::Arc::new(set));
    fixture.apply();
    fixture.set_config(config::SAMPLE, JUDGE);
    fixture
}

/// A SYN whose verdict is in a table of ports, judged as a new flow every time.
fn new_flow_by_ports(fixture: &mut Fixture) -> f64 {
    let (hook, mut packet) = golden::ready("a SYN to a permitted port opens a flow", Version::V4, fixture);
    packet[DESTINATION].copy_from_slice(&PORTS_PEER.octets());
    let result = fixture.probe(hook, &packet, ProbeMetadata::default(), PEERS * NEW);
    assert!(result.passed);
    nanoseconds(result.duration)
}

/// A SYN whose like was judged and permitted before.
fn new_flow_remembered(fixture: &mut Fixture) -> f64 {
    let (hook, packet) = golden::ready("a SYN to a permitted port opens a flow", Version::V4, fixture);
    fixture.set_config(config::SAMPLE, 0);
    let result = fixture.probe(hook, &packet, ProbeMetadata::default(), PEERS * NEW);
    fixture.set_config(config::SAMPLE, JUDGE);
    assert!(result.passed);
    nanoseconds(result.duration)
}

/// A known flow while policies of other pods change: after each change everything is judged once more, then come as many
/// packets as there are until the next change.
fn known_flow_under_changes(fixture: &mut Fixture, per_second: u32) -> f64 {
    let (case, version) = (KNOWN_FLOWS[0].1, KNOWN_FLOWS[0].2);
    let (hook, packet) = golden::ready(case, version, fixture);
    if fixture.desired.subjects.remove(&ELSEWHERE).is_none() {
        let open = rows(Verdict::Allow, &always(Verdict::Allow));
        fixture.desired.subjects.insert(ELSEWHERE, open);
    }
    fixture.apply();
    // Not every change revokes something; here each counts as one that does.
    fixture.revise();
    timed(PACKETS_A_SECOND / per_second, |runs| fixture.probe(hook, &packet, ProbeMetadata::default(), runs))
}

fn peer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number)
}

/// Average over the peers of the SYN of the golden table, which is judged as a new flow every time.
fn new_flows(fixture: &mut Fixture, identities: u32, allowed: bool) -> f64 {
    let mut total = 0.0;
    let peers = PEERS.min(identities / 2);
    let step = (identities / 2 / peers) * 2;
    let (hook, mut packet) = golden::ready("a SYN to a permitted port opens a flow", Version::V4, fixture);
    for i in 0..peers {
        let number = i * step + u32::from(!allowed);
        packet[DESTINATION].copy_from_slice(&peer(number).octets());
        let result = fixture.probe(hook, &packet, ProbeMetadata::default(), NEW);
        assert_eq!(result.passed, allowed, "peer {number}");
        total += nanoseconds(result.duration);
    }
    total / f64::from(peers)
}

fn measure(quiet: bool) -> BTreeMap<String, f64> {
    let mut reference = Reference::load();
    let mut fixtures: Vec<(u32, Fixture)> = Vec::new();
    for &identities in IDENTITIES {
        if !quiet {
            eprintln!("filling the maps with {identities} identities");
        }
        fixtures.push((identities, populated(identities)));
    }
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        let mut sample = |name: String, ns: f64| {
            if round > 0 {
                samples.entry(name).or_default().push(ns);
            }
        };
        sample("empty".to_owned(), reference.time("bench_empty"));
        sample("limit".to_owned(), reference.time("bench_limit"));
        sample("limit-shared".to_owned(), reference.time("bench_limit_shared"));
        for (name, case, version) in KNOWN_FLOWS {
            let fixture = &mut fixtures[0].1;
            let (hook, packet) = golden::ready(case, *version, fixture);
            let run = |runs| fixture.probe(hook, &packet, ProbeMetadata::default(), runs);
            sample((*name).to_owned(), timed(KNOWN, run));
        }
        for (name, flags_at, version) in ENDS {
            let fixture = &mut fixtures[0].1;
            let (hook, mut packet) = golden::ready(KNOWN_FLOWS[0].1, *version, fixture);
            packet[*flags_at] |= flags::FIN;
            let run = |runs| fixture.probe(hook, &packet, ProbeMetadata::default(), runs);
            sample((*name).to_owned(), timed(KNOWN, run));
        }
        sample("new-flow-remembered".to_owned(), new_flow_remembered(&mut fixtures[0].1));
        sample("new-flow-allowed-ports".to_owned(), new_flow_by_ports(&mut fixtures[0].1));
        for rate in CHANGES {
            let ns = known_flow_under_changes(&mut fixtures[0].1, *rate);
            sample(under_changes(*rate), ns);
        }
        for (identities, fixture) in &mut fixtures {
            sample(format!("new-flow-allowed-{identities}"), new_flows(fixture, *identities, true));
            sample(format!("new-flow-denied-{identities}"), new_flows(fixture, *identities, false));
        }
    }
    samples.into_iter().map(|(name, values)| (name, median(values))).collect()
}
