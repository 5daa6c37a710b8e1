//! Sizes and shapes of the maps.

use std::fmt;
use std::mem::size_of;

use aya::maps::MapInfo;
use portcullis_common::abi::{
    Addr6, Counters, Digest, ENDPOINT_SLOTS, Endpoint, EventBudget, FlowBudget, NumberKey, PairKey, config,
    names,
};
use portcullis_common::identity::Identity;
use portcullis_common::policy::{PortStep, Row, RowKey};
use portcullis_common::reason::REASONS;
use portcullis_common::service::{Service, ServiceKey};

/// How many entries the maps have; each is a flag of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Sizes {
    /// Addresses that are known exactly, for each IP version
    #[arg(long, value_name = "N", default_value_t = 131_072, help_heading = "Map sizes")]
    pub ipcache_size: u32,
    /// CIDR prefixes, for each IP version
    #[arg(long, value_name = "N", default_value_t = 65_536, help_heading = "Map sizes")]
    pub cidrs_size: u32,
    /// Frontends of services: an address, or the nodes', with a protocol and a port
    #[arg(long, value_name = "N", default_value_t = 65_536, help_heading = "Map sizes")]
    pub services_size: u32,
    /// Subject classes: groups of pods that the same policies select
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Map sizes")]
    pub subjects_size: u32,
    /// Policy rows: subject class, direction and peer class
    #[arg(long, value_name = "N", default_value_t = 262_144, help_heading = "Map sizes")]
    pub rows_size: u32,
    /// Steps of port tables (8 bytes each)
    #[arg(long, value_name = "N", default_value_t = 65_536, help_heading = "Map sizes")]
    pub ports_size: u32,
    /// Pairs of principals that have counters of their own (72 bytes a CPU each)
    #[arg(long, value_name = "N", default_value_t = 16_384, help_heading = "Map sizes")]
    pub counters_size: u32,
    /// Flows of one endpoint, for each IP version (96 and 144 bytes each)
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Map sizes",
        value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub flows_size: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            ipcache_size: 131_072,
            cidrs_size: 65_536,
            services_size: 65_536,
            subjects_size: 4096,
            rows_size: 262_144,
            ports_size: 65_536,
            counters_size: 16_384,
            flows_size: 4096,
        }
    }
}

/// Bytes of the event ring buffer.
pub const EVENT_BYTES: u32 = 262_144;
/// Entries of the map from number to digest.
const NUMBERS: u32 = 262_144;

/// Type (`BPF_MAP_TYPE_*`, include/uapi/linux/bpf.h), sizes and flags of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    kind: u32,
    key: usize,
    value: usize,
    /// Number of entries.
    pub entries: u32,
}

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LPM_TRIE: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const RINGBUF: u32 = 27;

impl Shape {
    const fn new(kind: u32, key: usize, value: usize, entries: u32) -> Self {
        Self { kind, key, value, entries }
    }

    /// The same shape with another number of entries.
    #[must_use]
    pub const fn with_entries(self, entries: u32) -> Self {
        Self { entries, ..self }
    }

    /// The shape of an existing map.
    pub fn of(info: &MapInfo) -> Self {
        Self {
            kind: info.map_type().map_or(0, |kind| kind as u32),
            key: info.key_size() as usize,
            value: info.value_size() as usize,
            entries: info.max_entries(),
        }
    }

    /// The shape that a pinned map of this name must have.
    pub fn wanted(name: &str, sizes: &Sizes) -> Option<Self> {
        let identity = size_of::<Identity>();
        Some(match name {
            names::CONFIG => Self::new(ARRAY, 4, 4, config::WORDS),
            names::ENDPOINTS => Self::new(ARRAY, 4, size_of::<Endpoint>(), ENDPOINT_SLOTS),
            names::IPCACHE4 => Self::new(HASH, 4, identity, sizes.ipcache_size),
            names::IPCACHE6 => Self::new(HASH, size_of::<Addr6>(), identity, sizes.ipcache_size),
            names::CIDRS4 => Self::new(LPM_TRIE, 8, identity, sizes.cidrs_size),
            names::CIDRS6 => Self::new(LPM_TRIE, 20, identity, sizes.cidrs_size),
            names::SERVICES => {
                Self::new(HASH, size_of::<ServiceKey>(), size_of::<Service>(), sizes.services_size)
            }
            names::SUBJECTS => Self::new(ARRAY, 4, 4, sizes.subjects_size),
            names::ROWS => Self::new(HASH, size_of::<RowKey>(), size_of::<Row>(), sizes.rows_size),
            names::PORTS => Self::new(ARRAY, 4, size_of::<PortStep>(), sizes.ports_size),
            names::FLOWS4 | names::FLOWS6 => Self::new(ARRAY_OF_MAPS, 4, 4, ENDPOINT_SLOTS),
            names::COUNTERS => Self::new(PERCPU_ARRAY, 4, size_of::<Counters>(), sizes.counters_size),
            names::SLOTS => Self::new(HASH, size_of::<PairKey>(), 4, sizes.counters_size),
            names::NEXT_SLOT => Self::new(ARRAY, 4, 8, 1),
            #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
            names::DROPS => Self::new(PERCPU_ARRAY, 4, 8, REASONS as u32 * 2),
            names::EVENTS => Self::new(RINGBUF, 0, 0, EVENT_BYTES),
            names::EVENT_BUDGET => Self::new(PERCPU_ARRAY, 4, size_of::<EventBudget>(), 1),
            names::FLOW_BUDGETS => Self::new(ARRAY, 4, size_of::<FlowBudget>(), ENDPOINT_SLOTS * 2),
            names::NUMBERS => Self::new(HASH, size_of::<NumberKey>(), size_of::<Digest>(), NUMBERS),
            _ => return None,
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, value, entries } = self;
        write!(f, "of type {kind} with {entries} entries of {key}-byte keys and {value}-byte values")
    }
}
