//! The layout of the pinned maps: names, keys, values and the version of it all.
//!
//! Whatever changes a size, an offset or a meaning here raises [`ABI`], and with it the folder in bpffs.

/// Version of the pinned-map layout; the maps live in `/sys/fs/bpf/portcullis/v<ABI>/`.
pub const ABI: u32 = 1;

/// Implements what every key and value needs: size and offset asserts, and aya's `Pod` for the agent.
macro_rules! map_type {
    ($type:ty, $size:literal $(, $field:ident = $offset:literal)* $(,)?) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
        // SAFETY: `#[repr(C)]`, integers and arrays of them only, explicit padding; any bit pattern is valid.
        #[cfg(feature = "aya")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use map_type;

/// Names of the maps, as in the BPF object and in bpffs.
pub mod names {
    /// [`super::config`] words: `u32` index to `u32`.
    pub const CONFIG: &str = "CONFIG";
    /// Slot to [`super::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// IPv4 address (network order `u32`) to [`crate::Identity`].
    pub const IPCACHE4: &str = "IPCACHE4";
    /// IPv6 address ([`super::Addr6`]) to [`crate::Identity`].
    pub const IPCACHE6: &str = "IPCACHE6";
    /// IPv4 prefix to [`crate::Identity`].
    pub const CIDRS4: &str = "CIDRS4";
    /// IPv6 prefix to [`crate::Identity`].
    pub const CIDRS6: &str = "CIDRS6";
    /// [`crate::service::ServiceKey`] to [`crate::service::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// Subject class to the number of its rows in force.
    pub const SUBJECTS: &str = "SUBJECTS";
    /// [`crate::policy::RowKey`] to [`crate::policy::Row`].
    pub const ROWS: &str = "ROWS";
    /// Index to [`crate::policy::PortStep`].
    pub const PORTS: &str = "PORTS";
    /// Slot to the table of that endpoint's IPv4 flows: index to [`crate::table::FlowEntry`].
    pub const FLOWS4: &str = "FLOWS4";
    /// Slot to the table of that endpoint's IPv6 flows.
    pub const FLOWS6: &str = "FLOWS6";
    /// Counter slot to [`super::Counters`], per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`super::PairKey`] to counter slot.
    pub const SLOTS: &str = "SLOTS";
    /// One word: the next counter slot that is free (atomic, hence 64 bits).
    pub const NEXT_SLOT: &str = "NEXT_SLOT";
    /// `reason * 2 + direction` to packets, per CPU.
    pub const DROPS: &str = "DROPS";
    /// Ring buffer of [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU [`super::EventBudget`].
    pub const EVENT_BUDGET: &str = "EVENT_BUDGET";
    /// `slot * 2 + direction` to [`super::FlowBudget`]; the programs alone use it.
    pub const FLOW_BUDGETS: &str = "FLOW_BUDGETS";
    /// [`super::NumberKey`] to digest: which number means what; user space only.
    pub const NUMBERS: &str = "NUMBERS";

    /// Every pinned map.
    pub const ALL: &[&str] = &[
        CONFIG,
        ENDPOINTS,
        IPCACHE4,
        IPCACHE6,
        CIDRS4,
        CIDRS6,
        SERVICES,
        SUBJECTS,
        ROWS,
        PORTS,
        FLOWS4,
        FLOWS6,
        COUNTERS,
        SLOTS,
        NEXT_SLOT,
        DROPS,
        EVENTS,
        EVENT_BUDGET,
        FLOW_BUDGETS,
        NUMBERS,
    ];
}

/// Words of the `CONFIG` map. Each is one `u32`, written whole, so that agent and CLI never overwrite each other.
pub mod config {
    /// Rises whenever an existing allow may have become a deny; the programs read it from [`super::Endpoint`]. Never `0`: a
    /// flow stored with `0` is always judged again.
    pub const REVISION: u32 = 0;
    /// [`super::Mode`] that the agent derives from its configuration.
    pub const MODE: u32 = 1;
    /// [`super::Mode`] that `portcullis mode` sets, `0` when it is not set; the more lenient of both holds.
    pub const OVERRIDE: u32 = 2;
    /// Kernel timer ticks a second.
    pub const HZ: u32 = 3;
    /// One in so many allowed new flows becomes an event; `0`: none.
    pub const SAMPLE: u32 = 4;
    /// Events a second and CPU that the kernel sends at most.
    pub const EVENT_RATE: u32 = 5;
    /// How many counter slots there are.
    pub const SLOT_CAPACITY: u32 = 6;
    /// Not `0`: an address or prefix found no room, so addresses that no map knows may be anybody's and are denied.
    pub const OVERFLOW: u32 = 7;
    /// [`super::service_overflow`]: frontends of services found no room.
    pub const SERVICES_OVERFLOW: u32 = 8;
    /// New flows a second, endpoint and direction that nobody has answered yet; `0`: any number.
    pub const NEW_FLOW_RATE: u32 = 9;
    /// First of [`TUNNEL_WORDS`] words with two UDP ports each that tunnels of the nodes take encapsulated packets at;
    /// unused ones are `0`.
    pub const TUNNELS: u32 = 10;
    /// How many words the ports of tunnels take.
    pub const TUNNEL_WORDS: u32 = 4;
    /// Among the ports of tunnels: there are more than fit, so every port may be one.
    pub const TUNNEL_ANY: u16 = u16::MAX;
    /// How many homes the flow tables have that the maps of tables take ([`crate::table::homes`]); `0`: nobody knows.
    pub const FLOW_HOMES: u32 = 14;
    /// How many words the map has.
    pub const WORDS: u32 = 16;
}

/// Values of [`config::SERVICES_OVERFLOW`]: which frontends are missing, so that what looks like none may be one.
pub mod service_overflow {
    /// None is.
    pub const NONE: u32 = 0;
    /// Addresses of services.
    pub const ADDRESSES: u32 = 1;
    /// Ports of the nodes' addresses, too.
    pub const NODES: u32 = 2;
}

/// How strictly verdicts are applied. The numbers are stored in `CONFIG`; a higher one is more lenient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Mode {
    /// Denied packets are dropped.
    Enforce = 1,
    /// Denied packets pass and are counted as audited.
    Audit = 2,
    /// Everything passes.
    Off = 3,
}

impl Mode {
    /// The mode behind a stored number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Enforce),
            2 => Some(Self::Audit),
            3 => Some(Self::Off),
            _ => None,
        }
    }

    /// The mode with this name, in any case. `disabled` is `off`, for people and readers of YAML: there the bare word
    /// `off` is a boolean.
    pub fn from_name(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("disabled") {
            return Some(Self::Off);
        }
        [Self::Enforce, Self::Audit, Self::Off]
            .into_iter()
            .find(|mode| name.eq_ignore_ascii_case(mode.name()))
    }

    /// The name that people write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Off => "off",
        }
    }
}

/// An IPv6 address as four words in network order, aligned for 32-bit loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Addr6 {
    /// The address, each word in network order.
    pub words_be: [u32; 4],
}

map_type!(Addr6, 16);

impl Addr6 {
    /// From the sixteen bytes of the address.
    #[inline(always)]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self {
            words_be: [
                u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
                u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
                u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
            ],
        }
    }

    /// The sixteen bytes of the address.
    pub const fn to_bytes(self) -> [u8; 16] {
        let [a, b, c, d] = self.words_be;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

/// How many addresses of a family an endpoint can have.
pub const ENDPOINT_ADDRESSES: usize = 2;
/// How many slots after the first one are tried for an interface.
pub const ENDPOINT_PROBES: u32 = 16;
/// How many slots there are; a power of two. `slot = (ifindex + probe) % ENDPOINT_SLOTS`.
pub const ENDPOINT_SLOTS: u32 = 4096;

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// The pod behind the interface is known; without it `unknown_verdict` decides.
    pub const KNOWN: u32 = 1;
    /// `mac` is set, and packets from the pod must carry it.
    pub const CHECK_MAC: u32 = 2;
    /// The pod forwards packets of addresses outside of the cluster.
    pub const ROUTES: u32 = 4;
}

/// Value of `ENDPOINTS`: the host side of a pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Endpoint {
    /// Index of the host-side interface; `0`: the slot is free.
    pub ifindex: u32,
    /// [`endpoint_flags`].
    pub flags: u32,
    /// The revision that its flows must have to count as judged: [`config::REVISION`], here so that a packet of a known flow
    /// need not read another map.
    pub revision: u32,
    /// How many homes its flow tables have ([`crate::table::homes`]).
    pub flow_homes: u32,
    /// The secret on which the home of a flow depends.
    pub flow_seed: u64,
    /// Principal of the pod; `unmanaged` while it is unknown.
    pub principal: u32,
    /// Subject class of the pod; `0` while it is unknown.
    pub subject: u32,
    /// Index of the bridge that the interface is a port of, or `0`.
    pub master: u32,
    /// The pod's IPv4 addresses, network order; unused ones are `0`.
    pub addr4_be: [u32; ENDPOINT_ADDRESSES],
    /// The pod's IPv6 addresses; unused ones are `::`.
    pub addr6: [Addr6; ENDPOINT_ADDRESSES],
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// [`crate::Verdict`] while the pod is unknown.
    pub unknown_verdict: u8,
    /// Explicit padding, zero.
    pub pad: [u8; 5],
}

map_type!(
    Endpoint,
    88,
    ifindex = 0,
    flags = 4,
    revision = 8,
    flow_homes = 12,
    flow_seed = 16,
    principal = 24,
    subject = 28,
    master = 32,
    addr4_be = 36,
    addr6 = 44,
    mac = 76
);

/// Key of `SLOTS`: a pair of principals and the direction at the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PairKey {
    /// Principal that opened the flow.
    pub source: u32,
    /// Principal that it is opened to.
    pub destination: u32,
    /// A [`crate::Direction`], as the pod of this node sees it.
    pub direction: u32,
}

map_type!(PairKey, 12);

/// Value of `COUNTERS`, indexed by [`crate::Verdict`]. Slot `0` counts for all pairs that found no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Counters {
    /// Packets, in both directions of the flows of the pair.
    pub packets: [u64; 3],
    /// Bytes of these packets, from the link header on.
    pub bytes: [u64; 3],
    /// How often policy was evaluated with this result.
    pub decisions: [u64; 3],
}

map_type!(Counters, 72, packets = 0, bytes = 24, decisions = 48);

/// Value of `EVENT_BUDGET`: how many events this CPU sent in the current second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct EventBudget {
    /// When the current second began, jiffies.
    pub since: u64,
    /// Events sent since then.
    pub sent: u64,
    /// Events that were not sent, ever.
    pub missed: u64,
}

map_type!(EventBudget, 24);

/// Value of `FLOW_BUDGETS`: the flows that were opened at an endpoint, in a direction, in the current second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowBudget {
    /// When the current second began, jiffies.
    pub since: u64,
    /// Flows opened since then, without those answered since then.
    pub unanswered: u64,
}

map_type!(FlowBudget, 16, since = 0, unanswered = 8);

/// What a number in `NUMBERS` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum NumberSpace {
    /// Principals.
    Principal = 1,
    /// Peer classes.
    Peer = 2,
    /// Subject classes.
    Subject = 3,
    /// Rules.
    Rule = 4,
}

/// Key of `NUMBERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct NumberKey {
    /// A [`NumberSpace`].
    pub space: u32,
    /// The number.
    pub number: u32,
}

map_type!(NumberKey, 8);

/// Value of `NUMBERS`: digest of the definition that the number stands for.
pub type Digest = [u8; 16];
