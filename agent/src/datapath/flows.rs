//! The endpoints' flow tables ([`portcullis_common::table`]): one an endpoint and IP version, so that no pod can push out
//! another's flows.
//! The tables are pinned beside the outer map, so that a dump can open them without asking the kernel by id.

use std::ffi::CStr;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError};
use aya::pin::PinError;
use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_map_type};
use portcullis_common::abi::{ENDPOINT_SLOTS, Endpoint, config, names};
use portcullis_common::flow::{FlowKey4, FlowKey6};
use portcullis_common::table::{self, FlowEntry};

use super::error::{DatapathError, describe};
use super::kernel::KernelMaps;
use super::pins::Pins;
use super::sys::{self, NewMap};

/// A table for so many flows. What the outer map has as its template is made of this too, so that the kernel takes one for
/// the other.
fn table<K>(name: &CStr, flows: u32) -> NewMap<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "the size of a small struct")]
    let value = size_of::<FlowEntry<K>>() as u32;
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    // Mapped by everyone who dumps or scrapes. Some kernels before 6.4 look in line always at the first element of an array in
    // a map ("bpf: Fix elem_size not being set for inner maps"); they do not look in line if its size may vary. Links of TCX
    // came in 6.6.
    let flags = BPF_F_MMAPABLE | if sys::has_tcx() { 0 } else { BPF_F_INNER_MAP };
    NewMap { name, kind, key: 4, value, entries: table::entries(flows), flags }
}

/// Makes and pins the maps of tables, unless they are pinned already for tables of this size. The loader would give their
/// template a description of its types, which the tables have not, and before Linux 6.2 the kernel takes such tables for another
/// kind of map.
///
/// A map of tables takes those of one size only; in return a program finds an entry without a call. With maps for another size
/// go their tables: endpoints get new ones when they are written next.
///
/// # Errors
/// If a map cannot be made or pinned.
pub fn create_outer(pins: &Pins, flows: u32) -> Result<(), DatapathError> {
    let fits = Homes::open(pins).is_some_and(|homes| homes.get() == table::homes(flows));
    if fits && [names::FLOWS4, names::FLOWS6].iter().all(|name| pins.map(name).exists()) {
        return Ok(());
    }
    forget_all(pins)?;
    outer(pins, names::FLOWS4, c"FLOWS4", &table::<FlowKey4>(c"", flows))?;
    outer(pins, names::FLOWS6, c"FLOWS6", &table::<FlowKey6>(c"", flows))
}

/// The word that says what the pinned maps of tables take.
struct Homes(Array<MapData, u32>);

impl Homes {
    fn open(pins: &Pins) -> Option<Self> {
        let words = MapData::from_pin(pins.map(names::CONFIG)).ok()?;
        Some(Self(Array::try_from(Map::Array(words)).ok()?))
    }

    fn get(&self) -> u32 {
        self.0.get(&config::FLOW_HOMES, 0).unwrap_or(0)
    }
}

/// Takes the pins of all tables away, and of the maps that hold them.
fn forget_all(pins: &Pins) -> Result<(), DatapathError> {
    if let Some(mut homes) = Homes::open(pins) {
        // First: what comes in their place may be for another size, and this agent may end before it says so.
        let unknown = homes.0.set(config::FLOW_HOMES, 0, 0);
        unknown.map_err(|error| DatapathError::map("write", names::CONFIG, error))?;
    }
    for name in [names::FLOWS4, names::FLOWS6] {
        Pins::remove(&pins.map(name))?;
    }
    let folder = pins.flows();
    Pins::list(&folder).iter().try_for_each(|name| Pins::remove(&folder.join(name)))
}

fn outer(pins: &Pins, name: &str, short: &CStr, template: &NewMap<'_>) -> Result<(), DatapathError> {
    let failed = |error: &dyn std::error::Error| DatapathError::map("create", name, describe(error));
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS;
    let map = NewMap { name: short, kind, key: 4, value: 4, entries: ENDPOINT_SLOTS, flags: 0 };
    let map = sys::create_map(template, None).and_then(|inner| sys::create_map(&map, Some(&inner)));
    let map = MapData::from_fd(map.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    map.pin(pins.map(name)).map_err(|e| failed(&e))
}

/// Gives the endpoint in a slot new, empty tables.
///
/// # Errors
/// If a table cannot be made, pinned or set.
pub fn create(maps: &mut KernelMaps, pins: &Pins, slot: u32, flows: u32) -> Result<(), DatapathError> {
    let pinned = [4, 6].map(|version| pins.flow(slot, version));
    pinned.iter().try_for_each(|pin| Pins::remove(pin))?;
    let v4 = create_table::<FlowKey4>(c"flows4", flows)?;
    let v6 = create_table::<FlowKey6>(c"flows6", flows)?;
    let failed = |name, error: MapError| DatapathError::map("set a table in", name, describe(&error));
    maps.flows4.set(slot, &v4, 0).map_err(|error| failed(names::FLOWS4, error))?;
    maps.flows6.set(slot, &v6, 0).map_err(|error| failed(names::FLOWS6, error))?;
    // Last: who finds the pins believes that the programs find the tables.
    let failed = |error: PinError| DatapathError::map("pin", "a flow table", describe(&error));
    let [first, second] = pinned;
    v4.pin(first).map_err(failed)?;
    v6.pin(second).map_err(failed)
}

fn create_table<K>(name: &CStr, flows: u32) -> Result<Array<MapData, FlowEntry<K>>, DatapathError>
where
    FlowEntry<K>: Pod,
{
    let failed = |error: &dyn std::fmt::Display| DatapathError::map("create", name.to_string_lossy(), error);
    // As the template was made.
    let data = sys::create_map(&table::<K>(name, flows), None).map_err(|e| failed(&e))?;
    let data = MapData::from_fd(data).map_err(|e| failed(&e))?;
    Array::try_from(Map::Array(data)).map_err(|e| failed(&e))
}

/// The endpoint, with the homes of new tables and a new secret for them.
pub fn keyed(endpoint: Endpoint, flows: u32) -> Endpoint {
    // A fresh hasher has random keys, so what it makes of nothing is random.
    let flow_seed = RandomState::new().build_hasher().finish();
    Endpoint { flow_homes: table::homes(flows), flow_seed, ..endpoint }
}

/// Whether a slot's pinned tables are there for so many flows, and the endpoint is written for them.
pub fn present(pins: &Pins, slot: u32, endpoint: &Endpoint, flows: u32) -> bool {
    let fits = |version| {
        aya::maps::MapInfo::from_pin(pins.flow(slot, version))
            .is_ok_and(|info| info.max_entries() == table::entries(flows))
    };
    endpoint.flow_homes == table::homes(flows) && fits(4) && fits(6)
}

/// Takes the tables of a slot away.
///
/// # Errors
/// If a pin cannot be removed.
pub fn remove(pins: &Pins, slot: u32) -> Result<(), DatapathError> {
    use std::os::fd::AsFd as _;
    for (name, version) in [(names::FLOWS4, 4), (names::FLOWS6, 6)] {
        if let Ok(outer) = MapData::from_pin(pins.map(name)) {
            // An element that is not there is what was wanted.
            let _ = sys::delete_element(outer.fd().as_fd(), slot);
        }
        Pins::remove(&pins.flow(slot, version))?;
    }
    Ok(())
}
