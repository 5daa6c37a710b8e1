//! The golden table: packets, what is done with each of them, and everything that changes by it.
//!
//! `tests/data/packets.yaml` is read by people, by the test `golden`, which runs every case through the loaded programs
//! and through the walk on the host, by the benchmark, and by the random packets, which begin with these.

pub mod frame;
pub mod outcome;
pub mod setups;

use std::fmt;

use portcullis_checks::mutate::Seed;
use portcullis_common::abi::Mode;
use portcullis_common::{Direction, Reason, Verdict};
use serde::{Deserialize, Deserializer};

pub use frame::{PacketSpec, Version};

use crate::fixture::Fixture;
use outcome::{Outcome, Subject};

const TABLE: &str = include_str!("../../data/packets.yaml");

/// A case of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it tries.
    pub name: String,
    /// The IP version; both if it is not said.
    #[serde(default, deserialize_with = "versions")]
    ip: Versions,
    /// Name of a set-up ([`setups`]).
    #[serde(default = "shop")]
    pub setup: String,
    /// What happened before.
    #[serde(default)]
    pub before: Vec<Step>,
    /// The hook.
    pub hook: Hook,
    /// Where it came into the node.
    #[serde(default)]
    pub by: By,
    /// The packet.
    pub packet: PacketSpec,
    /// It is tried cut to every length, and each of them is dropped the same way.
    #[serde(default)]
    pub every_length: bool,
    /// What is done with it.
    #[serde(deserialize_with = "verdict")]
    pub verdict: Verdict,
    /// Why.
    #[serde(deserialize_with = "reason")]
    pub reason: Reason,
    /// The pair and direction whose counters change by one packet, with the verdict; `decision`: by a decision, too.
    #[serde(default)]
    pub counts: String,
    /// What becomes of the flows.
    #[serde(default)]
    pub flow: String,
}

/// The IP versions that a case holds for.
#[derive(Clone, Copy, Debug, Default)]
struct Versions(Option<Version>);

/// Something that happened before.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum Step {
    /// A packet went through.
    Packet {
        /// The hook.
        hook: Hook,
        /// Where it came into the node.
        #[serde(default)]
        by: By,
        /// The packet.
        packet: PacketSpec,
        /// Whether it was dropped.
        #[serde(default)]
        dropped: bool,
    },
    /// Policy, endpoint and mode became those of another set-up.
    Setup {
        /// Its name.
        setup: String,
    },
    /// Somebody ran `portcullis mode`.
    Override {
        /// `off`, `audit` or `clear`.
        r#override: String,
    },
}

/// A hook by its name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// What the pod sends.
    FromPod,
    /// What it receives.
    ToPod,
}

impl Hook {
    /// The direction.
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod => Direction::Egress,
            Self::ToPod => Direction::Ingress,
        }
    }
}

/// Where a packet came into the node.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// By an interface that is no endpoint's.
    #[default]
    Uplink,
    /// It was made on the node.
    Node,
    /// By the pod's own interface.
    Itself,
}

impl By {
    /// The interface in the metadata of a packet at a hook; what a pod sends comes in by no other.
    pub const fn ifindex(self, hook: Direction) -> u32 {
        match (hook, self) {
            (Direction::Egress, _) | (_, Self::Node) => 0,
            (_, Self::Uplink) => 99,
            (_, Self::Itself) => 1,
        }
    }
}

fn shop() -> String {
    "shop".to_owned()
}

fn versions<'de, D: Deserializer<'de>>(from: D) -> Result<Versions, D::Error> {
    match u8::deserialize(from)? {
        4 => Ok(Versions(Some(Version::V4))),
        6 => Ok(Versions(Some(Version::V6))),
        other => Err(serde::de::Error::custom(format!("{other} is no IP version"))),
    }
}

fn verdict<'de, D: Deserializer<'de>>(from: D) -> Result<Verdict, D::Error> {
    named(from, Verdict::ALL)
}

fn reason<'de, D: Deserializer<'de>>(from: D) -> Result<Reason, D::Error> {
    named(from, Reason::ALL)
}

fn named<'de, D: Deserializer<'de>, T: Copy + fmt::Display>(from: D, all: &[T]) -> Result<T, D::Error> {
    let name = String::deserialize(from)?;
    let found = all.iter().find(|known| known.to_string() == name).copied();
    found.ok_or_else(|| serde::de::Error::custom(format!("`{name}` is not known")))
}

/// Every case of the table.
pub fn cases() -> Vec<Case> {
    serde_saphyr::from_str(TABLE).unwrap_or_else(|error| panic!("tests/data/packets.yaml: {error}"))
}

/// The case of a name.
pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case `{name}`"))
}

impl Case {
    /// The IP versions that it is tried with.
    pub fn versions(&self) -> Vec<Version> {
        self.ip.0.map_or_else(|| vec![Version::V4, Version::V6], |version| vec![version])
    }

    /// Its packets: one, or one for each length that does not hold it.
    pub fn frames(&self, version: Version) -> Vec<Vec<u8>> {
        let frame = self.packet.frame(version);
        if !self.every_length {
            return vec![frame];
        }
        (frame::ETHERNET..frame.len()).map(|length| frame[..length].to_vec()).collect()
    }

    /// What the table says about one of its packets.
    pub fn expected(&self) -> Outcome {
        let reason = (self.verdict == Verdict::Deny).then_some(self.reason);
        Outcome {
            passed: self.verdict != Verdict::Deny,
            drops: reason.map(|reason| format!("{reason} {}", self.hook.direction())).into_iter().collect(),
            counts: Some(self.counts.clone()).into_iter().filter(|text| !text.is_empty()).collect(),
            flows: Some(self.flow.clone()).into_iter().filter(|text| !text.is_empty()).collect(),
        }
    }

    /// Brings about what happened before.
    pub fn prepare(&self, subject: &mut dyn Subject, version: Version) {
        subject.reset(&self.setup);
        for step in &self.before {
            match step {
                Step::Packet { hook, by, packet, dropped } => {
                    let passed = subject.run(hook.direction(), &packet.frame(version), *by);
                    assert_eq!(passed, !dropped, "{} ({version:?}): before it: {packet:?}", self.name);
                }
                Step::Setup { setup } => subject.change(setup),
                Step::Override { r#override } => subject.force(match r#override.as_str() {
                    "off" => Some(Mode::Off),
                    "audit" => Some(Mode::Audit),
                    "clear" => None,
                    other => panic!("`{other}` is no mode"),
                }),
            }
        }
    }
}

/// The packets of every case and of what comes before it: what random packets begin with.
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for case in cases() {
        for version in case.versions() {
            let mut add = |hook: Hook, packet: &PacketSpec| {
                seeds.push(Seed { hook: hook.direction(), frame: packet.frame(version) });
            };
            for step in &case.before {
                if let Step::Packet { hook, packet, .. } = step {
                    add(*hook, packet);
                }
            }
            add(case.hook, &case.packet);
        }
    }
    seeds.sort_unstable_by(|a, b| (a.hook, &a.frame).cmp(&(b.hook, &b.frame)));
    seeds.dedup_by(|a, b| (a.hook, &a.frame) == (b.hook, &b.frame));
    seeds
}

/// Sends what comes before a case, and returns its packet: for the benchmark.
pub fn ready(name: &str, version: Version, fixture: &mut Fixture) -> (Direction, Vec<u8>) {
    let case = case(name);
    for step in &case.before {
        let Step::Packet { hook, by, packet, .. } = step else { panic!("`{name}` changes its set-up") };
        assert!(outcome::run(fixture, hook.direction(), &packet.frame(version), *by), "{name}");
    }
    (case.hook.direction(), case.packet.frame(version))
}
