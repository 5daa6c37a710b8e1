//! The map statics. Sizes are defaults; the agent sets the real ones when it creates the maps.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use portcullis_common::abi::{
    Addr6, Counters, Digest, ENDPOINT_SLOTS, Endpoint, EventBudget, FlowBudget, NumberKey, PairKey, config,
};
use portcullis_common::cache::{self, CachedVerdict};
use portcullis_common::flow::{FlowKey4, FlowKey6};
use portcullis_common::identity::Identity;
use portcullis_common::judge::{V4, V6};
use portcullis_common::policy::{PortStep, Row, RowKey};
use portcullis_common::process::Work;
use portcullis_common::reason::REASONS;
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::table::{self, FlowEntry};

/// Flow table of one endpoint, IPv4; the template of the inner maps.
pub type Flows4 = Array<FlowEntry<FlowKey4>, { table::entries(4096) as usize }>;
/// Flow table of one endpoint, IPv6; the template of the inner maps.
pub type Flows6 = Array<FlowEntry<FlowKey6>, { table::entries(4096) as usize }>;

/// Hash maps allocate entries when they are written: most hold far less than they may.
const NO_PREALLOC: usize = 1;

#[btf_map]
pub static CONFIG: Array<u32, { config::WORDS as usize }> = Array::new();
#[btf_map]
pub static ENDPOINTS: Array<Endpoint, { ENDPOINT_SLOTS as usize }> = Array::new();
#[btf_map]
pub static IPCACHE4: HashMap<u32, Identity, 131_072, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static IPCACHE6: HashMap<Addr6, Identity, 131_072, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static CIDRS4: LpmTrie<u32, Identity, 65_536> = LpmTrie::new();
#[btf_map]
pub static CIDRS6: LpmTrie<Addr6, Identity, 65_536> = LpmTrie::new();
#[btf_map]
pub static SERVICES: HashMap<ServiceKey, Service, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SUBJECTS: Array<u32, 4096> = Array::new();
#[btf_map]
pub static ROWS: HashMap<RowKey, Row, 262_144, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static PORTS: Array<PortStep, 65_536> = Array::new();
#[btf_map]
pub static FLOWS4: ArrayOfMaps<Flows4, { ENDPOINT_SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static FLOWS6: ArrayOfMaps<Flows6, { ENDPOINT_SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 16_384> = PerCpuArray::new();
#[btf_map]
pub static SLOTS: HashMap<PairKey, u32, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static NEXT_SLOT: Array<u64, 1> = Array::new();
#[btf_map]
pub static DROPS: PerCpuArray<u64, { REASONS * 2 }> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<(), 262_144> = RingBuf::new();
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
#[btf_map]
pub static FLOW_BUDGETS: Array<FlowBudget, { ENDPOINT_SLOTS as usize * 2 }> = Array::new();
#[btf_map]
pub static NUMBERS: HashMap<NumberKey, Digest, 262_144, NO_PREALLOC> = HashMap::new();

/// What a processor remembers, see [`portcullis_common::cache`]; not pinned. One value each: an element for every place would
/// be one more pointer to follow.
#[btf_map]
pub static VERDICT_CACHE4: PerCpuArray<[CachedVerdict<u32>; cache::VERDICTS], 1> = PerCpuArray::new();
#[btf_map]
pub static VERDICT_CACHE6: PerCpuArray<[CachedVerdict<Addr6>; cache::VERDICTS], 1> = PerCpuArray::new();

/// Work on the packet at hand; not pinned.
#[btf_map]
pub static WORK4: PerCpuArray<Work<V4>, 1> = PerCpuArray::new();
#[btf_map]
pub static WORK6: PerCpuArray<Work<V6>, 1> = PerCpuArray::new();
