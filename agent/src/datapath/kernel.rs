//! Typed handles of the kernel's maps.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use ipnet::IpNet;
use portcullis_common::abi::{Addr6, Counters, Digest, Endpoint, EventBudget, NumberKey, PairKey, names};
use portcullis_common::flow::{FlowKey4, FlowKey6};
use portcullis_common::identity::Identity;
use portcullis_common::policy::{PortStep, Row, RowKey};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::table::FlowEntry;

use super::error::DatapathError;
use super::pins::Pins;

/// `BPF_ANY`: create or replace.
pub const ANY: u64 = 0;

/// Every map that user space reads or writes.
pub struct KernelMaps {
    pub config: Array<MapData, u32>,
    pub endpoints: Array<MapData, Endpoint>,
    pub ipcache4: HashMap<MapData, u32, Identity>,
    pub ipcache6: HashMap<MapData, Addr6, Identity>,
    pub cidrs4: LpmTrie<MapData, u32, Identity>,
    pub cidrs6: LpmTrie<MapData, Addr6, Identity>,
    pub services: HashMap<MapData, ServiceKey, Service>,
    pub subjects: Array<MapData, u32>,
    pub rows: HashMap<MapData, RowKey, Row>,
    pub ports: Array<MapData, PortStep>,
    pub flows4: ArrayOfMaps<MapData, Array<MapData, FlowEntry<FlowKey4>>>,
    pub flows6: ArrayOfMaps<MapData, Array<MapData, FlowEntry<FlowKey6>>>,
    pub counters: PerCpuArray<MapData, Counters>,
    pub slots: HashMap<MapData, PairKey, u32>,
    pub next_slot: Array<MapData, u64>,
    pub drops: PerCpuArray<MapData, u64>,
    pub event_budget: PerCpuArray<MapData, EventBudget>,
    pub numbers: HashMap<MapData, NumberKey, Digest>,
}

impl fmt::Debug for KernelMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelMaps").finish_non_exhaustive()
    }
}

impl KernelMaps {
    /// From maps found by name.
    fn from_source(
        source: &mut dyn FnMut(&str) -> Result<Map, DatapathError>,
    ) -> Result<Self, DatapathError> {
        fn typed<T: TryFrom<Map, Error = MapError>>(
            source: &mut dyn FnMut(&str) -> Result<Map, DatapathError>,
            name: &str,
        ) -> Result<T, DatapathError> {
            T::try_from(source(name)?).map_err(|error| DatapathError::map("use", name, error))
        }
        Ok(Self {
            config: typed(source, names::CONFIG)?,
            endpoints: typed(source, names::ENDPOINTS)?,
            ipcache4: typed(source, names::IPCACHE4)?,
            ipcache6: typed(source, names::IPCACHE6)?,
            cidrs4: typed(source, names::CIDRS4)?,
            cidrs6: typed(source, names::CIDRS6)?,
            services: typed(source, names::SERVICES)?,
            subjects: typed(source, names::SUBJECTS)?,
            rows: typed(source, names::ROWS)?,
            ports: typed(source, names::PORTS)?,
            flows4: typed(source, names::FLOWS4)?,
            flows6: typed(source, names::FLOWS6)?,
            counters: typed(source, names::COUNTERS)?,
            slots: typed(source, names::SLOTS)?,
            next_slot: typed(source, names::NEXT_SLOT)?,
            drops: typed(source, names::DROPS)?,
            event_budget: typed(source, names::EVENT_BUDGET)?,
            numbers: typed(source, names::NUMBERS)?,
        })
    }

    /// The maps of a loaded object.
    ///
    /// # Errors
    /// If one is missing or of another type.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Self::from_source(&mut |name| {
            ebpf.take_map(name).ok_or_else(|| DatapathError::map("find", name, "the object does not have it"))
        })
    }

    /// The pinned maps, for reading while the agent may be dead. The caller has compared their shapes.
    ///
    /// # Errors
    /// If one is missing or of another type.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Self::from_source(&mut |name| open_pin(&pins.map(name), name))
    }
}

impl KernelMaps {
    /// Writes who has exactly this address.
    pub fn put_address(&mut self, address: IpAddr, identity: &Identity) -> Result<(), MapError> {
        match address {
            IpAddr::V4(a) => self.ipcache4.insert(u32::from_ne_bytes(a.octets()), identity, ANY),
            IpAddr::V6(a) => self.ipcache6.insert(Addr6::from_bytes(a.octets()), identity, ANY),
        }
    }

    /// Forgets who has this address.
    pub fn remove_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        match address {
            IpAddr::V4(a) => self.ipcache4.remove(&u32::from_ne_bytes(a.octets())),
            IpAddr::V6(a) => self.ipcache6.remove(&Addr6::from_bytes(a.octets())),
        }
    }

    /// Writes who has the addresses of this prefix.
    pub fn put_prefix(&mut self, prefix: IpNet, identity: &Identity) -> Result<(), MapError> {
        match prefix {
            IpNet::V4(net) => self.cidrs4.insert(&key4(net), identity, ANY),
            IpNet::V6(net) => self.cidrs6.insert(&key6(net), identity, ANY),
        }
    }

    /// Forgets who has the addresses of this prefix.
    pub fn remove_prefix(&mut self, prefix: IpNet) -> Result<(), MapError> {
        match prefix {
            IpNet::V4(net) => self.cidrs4.remove(&key4(net)),
            IpNet::V6(net) => self.cidrs6.remove(&key6(net)),
        }
    }
}

/// A pinned map of any type.
pub fn open_pin(path: &Path, name: &str) -> Result<Map, DatapathError> {
    let data = MapData::from_pin(path).map_err(|error| DatapathError::map("open", name, error))?;
    Map::from_map_data(data).map_err(|error| DatapathError::map("open", name, error))
}

/// The key of a prefix in an LPM trie; the bits behind the prefix are zero.
fn key4(net: ipnet::Ipv4Net) -> Key<u32> {
    Key::new(u32::from(net.prefix_len()), u32::from_ne_bytes(net.trunc().addr().octets()))
}

/// As [`key4`].
fn key6(net: ipnet::Ipv6Net) -> Key<Addr6> {
    Key::new(u32::from(net.prefix_len()), Addr6::from_bytes(net.trunc().addr().octets()))
}
