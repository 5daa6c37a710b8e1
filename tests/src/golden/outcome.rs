//! Everything that a packet changed, in words, from the kernel's maps or from those of the walk on the host.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::datapath::{inspect, set_override};
use portcullis_checks::Host;
use portcullis_checks::host::HZ;
use portcullis_common::abi::{Counters, Endpoint, Mode, PairKey, config};
use portcullis_common::flow::{Flow, FlowKey, origin, state};
use portcullis_common::{Direction, Kind, Reason, Verdict};

use super::{By, setups};
use crate::fixture::{API, Fixture, INTRUDER, WEB};
use crate::host::{host, tables};

/// What was done with a packet, and every change that followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it passed.
    pub passed: bool,
    /// Drop counters that rose, by one each.
    pub drops: Vec<String>,
    /// Pairs whose counters rose, by one packet and its bytes each.
    pub counts: Vec<String>,
    /// Flows that came, changed or went.
    pub flows: Vec<String>,
}

/// A flow's key, whatever its version: addresses, ports, protocol, who asked.
pub type Key = (IpAddr, IpAddr, u16, u16, u8, u8);

/// Counters, drops and flows at a moment. Of flows what both sides can agree on: time-outs in seconds, and neither time
/// of last use nor counter slot nor revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Counters of each pair.
    pub pairs: BTreeMap<PairKey, Counters>,
    /// Dropped packets.
    pub drops: BTreeMap<(Reason, Direction), u64>,
    /// Flows, described.
    pub flows: BTreeMap<Key, String>,
}

/// What the cases are tried on.
pub trait Subject {
    /// Becomes a set-up, without flows.
    fn reset(&mut self, setup: &str);
    /// Becomes a set-up, with the flows of before.
    fn change(&mut self, setup: &str);
    /// Somebody forces a mode, or stops to.
    fn force(&mut self, mode: Option<Mode>);
    /// A packet goes through; whether it passes.
    fn run(&mut self, hook: Direction, frame: &[u8], by: By) -> bool;
    /// What is there now.
    fn snapshot(&self) -> Snapshot;
}

/// Runs a packet through a subject and says what came of it.
pub fn outcome(subject: &mut dyn Subject, hook: Direction, frame: &[u8], by: By) -> Outcome {
    let before = subject.snapshot();
    let passed = subject.run(hook, frame, by);
    let after = subject.snapshot();
    Outcome {
        passed,
        drops: dropped(&before, &after),
        counts: counted(&before, &after, frame.len() as u64),
        flows: changed(&before, &after),
    }
}

fn dropped(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    for (&(reason, direction), count) in &after.drops {
        match count - before.drops.get(&(reason, direction)).copied().unwrap_or(0) {
            0 => {}
            1 => found.push(format!("{reason} {direction}")),
            many => found.push(format!("{reason} {direction}, {many} times")),
        }
    }
    found
}

fn counted(before: &Snapshot, after: &Snapshot, length: u64) -> Vec<String> {
    let mut found = Vec::new();
    for (pair, now) in &after.pairs {
        let then = before.pairs.get(pair).copied().unwrap_or_default();
        for &verdict in Verdict::ALL {
            let of = |counters: &Counters| {
                let at = verdict as usize;
                [counters.packets[at], counters.bytes[at], counters.decisions[at]]
            };
            let [then, now] = [of(&then), of(now)];
            let rise: Vec<u64> = now.iter().zip(then).map(|(now, then)| now - then).collect();
            let direction = Direction::from_number(u8::try_from(pair.direction).unwrap()).unwrap();
            let what = format!("{} > {} {direction} {verdict}", name(pair.source), name(pair.destination));
            match rise[..] {
                [0, 0, 0] => {}
                [1, bytes, 0] if bytes == length => found.push(what),
                [1, bytes, 1] if bytes == length => found.push(format!("{what} decision")),
                _ => found.push(format!("{what}: {rise:?} packets, bytes, decisions")),
            }
        }
    }
    found
}

fn changed(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    for (key, now) in &after.flows {
        match before.flows.get(key) {
            None => found.push(format!("created {now}")),
            Some(then) if then != now => found.push(format!("became {now}")),
            Some(_) => {}
        }
    }
    found
        .extend(before.flows.iter().filter(|(key, _)| !after.flows.contains_key(key)).map(|_| "gone".into()));
    found
}

fn name(principal: u32) -> String {
    let kind = u8::try_from(principal).ok().and_then(Kind::from_number);
    match (principal, kind) {
        (API, _) => "api".to_owned(),
        (WEB, _) => "web".to_owned(),
        (INTRUDER, _) => "intruder".to_owned(),
        (_, Some(kind)) => format!("{kind:?}").to_lowercase(),
        (other, None) => other.to_string(),
    }
}

/// A flow in words.
fn describe(flow: &Flow, hz: u32) -> String {
    let opener = Direction::from_number(flow.opener).map_or("?", Direction::name);
    let life = match flow.state & state::LIFE {
        state::NEW => "new",
        state::OPEN => "open",
        state::HALF_OPEN => "half-open",
        state::CLOSING => "closing",
        _ => "?",
    };
    let mut words = vec![opener.to_owned(), life.to_owned()];
    for (bit, word) in [
        (state::FIN_OPENER, "fin-of-opener"),
        (state::FIN_OTHER, "fin-of-other"),
        (state::UNHEARD, "unheard"),
        (state::UNANSWERED, "unanswered"),
    ] {
        words.extend((flow.state & bit != 0).then(|| word.to_owned()));
    }
    words.push(format!("{}s", f64::from(flow.timeout) / f64::from(hz)));
    match flow.origin {
        origin::ADDRESS => {}
        origin::HOST => words.push("by host".to_owned()),
        origin::WORLD => words.push("by world".to_owned()),
        other => words.push(format!("by interface {}", other - origin::ENDPOINT)),
    }
    if flow.verdict == Verdict::Audit as u8 {
        words.push("audit".to_owned());
    }
    words.join(" ")
}

fn parts(key: &impl FlowKey) -> Key {
    (key.local(), key.remote(), key.local_port(), key.remote_port(), key.protocol(), key.echo_opener())
}

/// The loaded programs.
pub struct Kernel<'a> {
    fixture: &'a mut Fixture,
    setup: String,
    forced: bool,
    hz: u32,
}

impl<'a> Kernel<'a> {
    /// Of a fixture.
    pub fn new(fixture: &'a mut Fixture) -> Self {
        let hz = inspect::config_word(fixture.maps(), config::HZ).expect("the clock");
        Self { fixture, setup: String::new(), forced: false, hz }
    }

    /// The walk on the host, with the endpoints of these set-ups as the agent writes them.
    pub fn host<'n>(&mut self, setups: impl Iterator<Item = &'n str>) -> HostSubject {
        let mut endpoints = BTreeMap::new();
        for setup in setups {
            if !endpoints.contains_key(setup) {
                self.change(setup);
                endpoints.insert(setup.to_owned(), self.fixture.endpoint());
            }
        }
        HostSubject { host: host(self.fixture), endpoints }
    }
}

impl Subject for Kernel<'_> {
    fn reset(&mut self, setup: &str) {
        if self.forced {
            self.force(None);
        }
        self.change(setup);
        self.fixture.forget();
    }

    fn change(&mut self, setup: &str) {
        if self.setup == setup {
            return;
        }
        setup.clone_into(&mut self.setup);
        let setups::Setup { desired, endpoints, mode } = setups::named(setup);
        self.fixture.desired = desired;
        self.fixture.apply_with(&endpoints, mode);
    }

    fn force(&mut self, mode: Option<Mode>) {
        self.forced = mode.is_some();
        set_override(self.fixture.folder(), mode).expect("the override is written");
    }

    fn run(&mut self, hook: Direction, frame: &[u8], by: By) -> bool {
        run(self.fixture, hook, frame, by)
    }

    fn snapshot(&self) -> Snapshot {
        let maps = self.fixture.maps();
        let mut snapshot = Snapshot::default();
        for found in inspect::pair_counters(maps).expect("the counters") {
            snapshot.pairs.insert(found.pair.expect("every pair has a slot"), found.counters);
        }
        for (reason, direction, count) in inspect::drops(maps).expect("the drops") {
            snapshot.drops.insert((reason, direction), count);
        }
        if self.fixture.endpoint().is_some() {
            for (key, flow) in self.fixture.flows() {
                let key = match key {
                    inspect::AnyKey::V4(key) => parts(&key),
                    inspect::AnyKey::V6(key) => parts(&key),
                };
                snapshot.flows.insert(key, describe(&flow, self.hz));
            }
        }
        snapshot
    }
}

/// A packet through the program of a hook.
pub fn run(fixture: &mut Fixture, hook: Direction, frame: &[u8], by: By) -> bool {
    fixture.run_with(hook, frame, ProbeMetadata { ingress_ifindex: by.ifindex(hook), ifindex: 0 })
}

/// The walk on the host.
pub struct HostSubject {
    /// It.
    pub host: Host,
    endpoints: BTreeMap<String, Option<Endpoint>>,
}

impl Subject for HostSubject {
    fn reset(&mut self, setup: &str) {
        self.force(None);
        self.host.forget();
        self.change(setup);
    }

    fn change(&mut self, setup: &str) {
        let setups::Setup { desired, mode, .. } = setups::named(setup);
        self.host.tables = tables(&desired);
        self.host.endpoint = self.endpoints[setup];
        self.host.set_word(config::MODE, mode as u32);
        self.host.raise_revision();
    }

    fn force(&mut self, mode: Option<Mode>) {
        self.host.set_word(config::OVERRIDE, mode.map_or(0, |mode| mode as u32));
    }

    fn run(&mut self, hook: Direction, frame: &[u8], by: By) -> bool {
        self.host.run(hook, frame, by.ifindex(hook))
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.pairs.extend(self.host.pairs());
        for &reason in Reason::ALL {
            for &direction in Direction::ALL {
                let count = self.host.drops(reason, direction);
                if count > 0 {
                    snapshot.drops.insert((reason, direction), count);
                }
            }
        }
        snapshot.flows.extend(self.host.flows4().iter().map(|(key, flow)| (parts(key), describe(flow, HZ))));
        snapshot.flows.extend(self.host.flows6().iter().map(|(key, flow)| (parts(key), describe(flow, HZ))));
        snapshot
    }
}
