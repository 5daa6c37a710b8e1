//! The only place that names aya: loads programs, adopts pinned maps, writes desired state ([`apply`]).
//!
//! Invariants: rows of a class are complete before any address moves to it; the revision rises after every batch that
//! may have turned an allow into a deny; what was retired is deleted after a grace period; what cannot be programmed is
//! denied and reported, never passed.

mod addresses;
mod adopt;
mod apply;
mod attach;
mod batch;
mod clsact;
mod connections;
mod endpoints;
mod error;
mod events;
mod flows;
pub mod inspect;
mod kernel;
pub mod mapped;
mod pins;
mod ports;
pub mod probe;
mod reader;
mod rows;
mod scope;
mod segment;
mod services;
mod sizes;
mod staging;
pub mod sys;
pub mod testrun;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use aya::{Ebpf, EbpfLoader};
use portcullis_common::abi::{Digest, Mode, NumberKey, config, names};
use portcullis_common::policy::RowKey;
use portcullis_common::table;
use portcullis_common::{Direction, abi};

pub use attach::{AttachMode, HookState, describe_program, find_filter};
pub use endpoints::EndpointSpec;
pub use error::DatapathError;
pub use events::{Claim, EventSource, Events, flow_ends, packet_ends};
pub use kernel::KernelMaps;
pub use pins::Pins;
pub use reader::{AddressEntry, Census, KeyRange, PolicyRow, Reader};
pub use sizes::{EVENT_BYTES, Shape, Sizes};

use crate::policy::Function;
use endpoints::Slots;
use ports::PortTables;
use rows::RowSets;

/// The compiled programs; `cargo build` made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis.o"));

/// As [`OBJECT`], with the programs that the benchmark compares ours with.
#[cfg(feature = "bench")]
pub static BENCH_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-bench.o"));

/// Programs of somebody else, which tests put before and behind ours.
#[cfg(feature = "bench")]
pub static WITNESS_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/witness.o"));

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder in bpffs.
    pub bpffs: PathBuf,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Map sizes.
    pub sizes: Sizes,
    /// One in so many allowed new flows is reported; `0`: none.
    pub sample: u32,
    /// Events a second and CPU at most.
    pub event_rate: u32,
    /// New flows a second, endpoint and direction that nobody has answered yet; `0`: any number.
    pub new_flow_rate: u32,
}

/// The kernel side of the agent. One owner writes.
#[derive(Debug)]
pub struct Datapath {
    options: Options,
    pins: Pins,
    tcx: bool,
    ebpf: Ebpf,
    programs: BTreeMap<Direction, u32>,
    maps: KernelMaps,
    tables: PortTables,
    rows: RowSets,
    slots: Slots,
    addresses: scope::Addresses,
    /// Peer classes of this node's pods, as of the last apply.
    local_peers: BTreeSet<u32>,
    services: services::Frontends,
    numbers: BTreeMap<NumberKey, Digest>,
    retired: Retired,
    /// Tables whose rows are deleted; a program may still hold such a row until the next grace period.
    dying: Retired,
    /// What an earlier agent left in force that cannot be taken over by content: replaced at the first apply.
    foreign: adopt::Foreign,
    /// Subjects whose rows could not be written; denied until they can.
    failed: BTreeSet<u32>,
    /// Whether an earlier agent had put something in force here.
    adopted: bool,
    /// Whether the connections that are older than this agent are still to be judged: until the first apply.
    seeding: bool,
    /// UDP ports of the node's tunnels.
    tunnels: BTreeSet<u16>,
    _lock: std::fs::File,
}

/// What waits for the grace period.
#[derive(Debug, Default)]
struct Retired {
    rows: Vec<RowKey>,
    functions: Vec<Arc<Function>>,
    /// Ranges of `PORTS` that an earlier agent's rows used.
    ranges: Vec<(u32, u32)>,
}

impl Retired {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.functions.is_empty() && self.ranges.is_empty()
    }

    fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.functions.extend(other.functions);
        self.ranges.extend(other.ranges);
    }
}

/// What an [`Datapath::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Elements written or deleted.
    pub writes: usize,
    /// Whether flows are judged again.
    pub revised: bool,
    /// What could not be programmed; it is denied, and is tried again at the next apply.
    pub errors: Vec<DatapathError>,
}

impl Datapath {
    /// Takes the lock, compares and adopts the pinned maps, and loads the programs. Nothing is written yet: what is
    /// enforced stays so until the first [`Datapath::apply`].
    ///
    /// # Errors
    /// If another agent runs, a pin is foreign, or the kernel refuses.
    pub fn open(options: Options) -> Result<Self, DatapathError> {
        let pins = Pins::new(&options.bpffs);
        pins.create()?;
        let lock = pins.lock()?;
        let sizes = options.sizes;
        pins.check(&|name| Shape::wanted(name, &sizes))?;
        let mut ebpf = load_object(OBJECT, &pins, &sizes)?;
        let mut programs = BTreeMap::new();
        for &direction in Direction::ALL {
            programs.insert(direction, attach::load(&mut ebpf, direction)?);
        }
        #[cfg(feature = "log")]
        forward_log(&mut ebpf)?;
        let maps = KernelMaps::take(&mut ebpf)?;
        let tcx = match options.attach {
            AttachMode::Auto => sys::has_tcx(),
            AttachMode::Tcx => true,
            AttachMode::Clsact => false,
        };
        let adopt::Adopted { rows, tables, retired, foreign } = adopt::rows(&maps, &sizes)?;
        let revision = inspect::config_word(&maps, config::REVISION)?;
        let mut datapath = Self {
            slots: Slots::adopt(&maps, &pins, &sizes, revision)?,
            addresses: scope::Addresses::new(adopt::ipcache(&maps)?, adopt::cidrs(&maps)?),
            local_peers: BTreeSet::new(),
            services: services::Frontends::new(adopt::services(&maps)?),
            numbers: adopt::numbers(&maps)?,
            failed: BTreeSet::new(),
            // Maps alone say nothing: a start that failed before its first apply leaves them, too.
            adopted: revision != 0,
            seeding: true,
            tunnels: BTreeSet::new(),
            options,
            pins,
            tcx,
            ebpf,
            programs,
            maps,
            tables,
            rows,
            retired,
            dying: Retired::default(),
            foreign,
            _lock: lock,
        };
        datapath.configure()?;
        Ok(datapath)
    }

    fn configure(&mut self) -> Result<(), DatapathError> {
        let ticks =
            sys::ticks_per_second().map_err(|error| DatapathError::System { call: "clock_getres", error })?;
        self.set_config(config::HZ, ticks)?;
        self.set_config(config::SAMPLE, self.options.sample)?;
        self.set_config(config::EVENT_RATE, self.options.event_rate)?;
        self.set_config(config::NEW_FLOW_RATE, self.options.new_flow_rate)?;
        self.set_config(config::SLOT_CAPACITY, self.options.sizes.counters_size)?;
        self.set_config(config::FLOW_HOMES, table::homes(self.options.sizes.flows_size))?;
        // Slot 0 is "other", for pairs that find no slot.
        if self.maps.next_slot.get(&0, 0).map_err(|e| DatapathError::map("read", names::NEXT_SLOT, e))? == 0 {
            self.maps.next_slot.set(0, 1, 0).map_err(|e| DatapathError::map("write", names::NEXT_SLOT, e))?;
        }
        Ok(())
    }

    /// Whether an earlier agent had put something in force here: then its verdicts are in force until the first apply.
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// How programs are attached: TCX or clsact.
    pub const fn uses_tcx(&self) -> bool {
        self.tcx
    }

    /// The numbers that an earlier agent gave out.
    pub fn numbers(&self) -> impl Iterator<Item = (NumberKey, Digest)> + '_ {
        self.numbers.iter().map(|(key, digest)| (*key, *digest))
    }

    /// Takes the ring buffer, to be claimed.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn events(&mut self) -> Result<EventSource, DatapathError> {
        let map = self
            .ebpf
            .take_map(names::EVENTS)
            .ok_or_else(|| DatapathError::map("take", names::EVENTS, "it was taken before"))?;
        Ok(EventSource::new(map, self.pins.folder()))
    }

    fn config(&self, word: u32) -> Result<u32, DatapathError> {
        inspect::config_word(&self.maps, word)
    }

    fn set_config(&mut self, word: u32, value: u32) -> Result<(), DatapathError> {
        self.maps
            .config
            .set(word, value, 0)
            .map_err(|error| DatapathError::map("write", names::CONFIG, error))
    }

    /// What the hook of an endpoint looks like now.
    pub fn hook_state(&self, ifindex: u32, direction: Direction) -> HookState {
        let program = self.programs.get(&direction).copied().unwrap_or(0);
        attach::state(ifindex, direction, program, self.tcx)
    }

    /// The ids of the programs that run before ours on the hook of an endpoint.
    pub fn before_ours(&self, ifindex: u32, direction: Direction) -> Vec<u32> {
        let program = self.programs.get(&direction).copied().unwrap_or(0);
        attach::before(ifindex, direction, program, self.tcx).unwrap_or_default()
    }

    /// Steps of port tables in use, and how many there can be.
    pub fn port_usage(&self) -> (u32, u32) {
        self.tables.usage()
    }
}

/// Sends the programs' own log lines to the agent's log.
#[cfg(feature = "log")]
fn forward_log(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let failed = |error: String| DatapathError::map("read the log of", "AYA_LOGS", error);
    let logger = aya_log::EbpfLogger::init(ebpf).map_err(|error| failed(error.to_string()))?;
    // SAFETY: the logger owns its file descriptor and gives out the same one for as long as it lives.
    let mut waiting =
        unsafe { tokio::io::unix::AsyncFd::register(logger) }.map_err(|error| failed(error.to_string()))?;
    tokio::spawn(async move {
        while let Ok(mut guard) = waiting.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}

/// Creates or adopts the maps of the object and makes its programs ready to load.
///
/// # Errors
/// If the kernel refuses a map.
pub fn load_object(object: &[u8], pins: &Pins, sizes: &Sizes) -> Result<Ebpf, DatapathError> {
    flows::create_outer(pins, sizes.flows_size)?;
    let mut loader = EbpfLoader::new();
    for name in names::ALL {
        loader.map_pin_path(name, pins.map(name));
        if let Some(shape) = Shape::wanted(name, sizes) {
            loader.map_max_entries(name, shape.entries);
        }
    }
    Ok(loader.load(object)?)
}

/// Takes every trace of an agent off this node: programs, links, maps. The maps go last, and only when no program is
/// left that uses them.
///
/// # Errors
/// What could not be removed.
pub fn cleanup(bpffs: &std::path::Path) -> Result<Vec<String>, DatapathError> {
    let pins = Pins::new(bpffs);
    if !bpffs.exists() {
        // Without the folder nobody can tell whether an agent with another one put them there.
        let filters = endpoints::filters_in_words()?;
        return if filters.is_empty() {
            Ok(Vec::new())
        } else {
            Err(DatapathError::NoFolder { folder: bpffs.to_owned(), filters: filters.join("; ") })
        };
    }
    let _lock = pins.lock()?;
    let versions = Pins::list(bpffs);
    let mut removed = endpoints::detach_all(&pins, &versions)?;
    for version in versions {
        let folder = bpffs.join(&version);
        std::fs::remove_dir_all(&folder).map_err(|error| DatapathError::File {
            what: "remove",
            path: folder.clone(),
            error,
        })?;
        removed.push(folder.display().to_string());
    }
    std::fs::remove_dir(bpffs).map_err(|error| DatapathError::File {
        what: "remove",
        path: bpffs.to_owned(),
        error,
    })?;
    removed.push(bpffs.display().to_string());
    Ok(removed)
}

/// Sets or clears the override of `portcullis mode`, in the pinned map, also while the agent is dead.
///
/// # Errors
/// If there are no maps, or they are not ours.
pub fn set_override(bpffs: &std::path::Path, mode: Option<Mode>) -> Result<Option<Mode>, DatapathError> {
    let maps = inspect::open(bpffs)?;
    let mut words = maps.config;
    let before = words.get(&config::OVERRIDE, 0).map_err(|e| DatapathError::map("read", names::CONFIG, e))?;
    words
        .set(config::OVERRIDE, mode.map_or(0, |mode| mode as u32), 0)
        .map_err(|error| DatapathError::map("write", names::CONFIG, error))?;
    Ok(abi::Mode::from_number(before))
}
