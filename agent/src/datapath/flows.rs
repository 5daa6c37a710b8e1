//! The endpoints' flow tables: one LRU hash an endpoint and IP version, so that no pod can push out another's flows.
//! The tables are pinned beside the outer map, so that a dump can open them without asking the kernel by id.

use std::ffi::CStr;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use aya_obj::generated::bpf_map_type;
use portcullis_common::abi::{ENDPOINT_SLOTS, names};
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};

use super::error::{DatapathError, describe};
use super::kernel::KernelMaps;
use super::pins::Pins;
use super::sys::{self, NewMap};

/// A table of flows. What the outer map has as its template is made of this too, so that the kernel takes one for the other.
fn table<K>(name: &CStr, entries: u32) -> NewMap<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "sizes of small structs")]
    let (key, value) = (size_of::<K>() as u32, size_of::<Flow>() as u32);
    NewMap { name, kind: bpf_map_type::BPF_MAP_TYPE_LRU_HASH, key, value, entries }
}

/// Makes and pins the maps of tables, unless they are pinned already. The loader would give their template a description of its
/// types, which the tables have not, and before Linux 6.2 the kernel takes such tables for another kind of map.
///
/// # Errors
/// If a map cannot be made or pinned.
pub fn create_outer(pins: &Pins, entries: u32) -> Result<(), DatapathError> {
    outer(pins, names::FLOWS4, c"FLOWS4", &table::<FlowKey4>(c"", entries))?;
    outer(pins, names::FLOWS6, c"FLOWS6", &table::<FlowKey6>(c"", entries))
}

fn outer(pins: &Pins, name: &str, short: &CStr, template: &NewMap<'_>) -> Result<(), DatapathError> {
    let pin = pins.map(name);
    if pin.exists() {
        return Ok(());
    }
    let failed = |error: &dyn std::error::Error| DatapathError::map("create", name, describe(error));
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS;
    let map = NewMap { name: short, kind, key: 4, value: 4, entries: ENDPOINT_SLOTS };
    let map = sys::create_map(template, None).and_then(|inner| sys::create_map(&map, Some(&inner)));
    let map = MapData::from_fd(map.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    map.pin(pin).map_err(|e| failed(&e))
}

/// Gives the endpoint in a slot new, empty tables.
///
/// # Errors
/// If a table cannot be made, pinned or set.
pub fn create(maps: &mut KernelMaps, pins: &Pins, slot: u32, entries: u32) -> Result<(), DatapathError> {
    let table = create_table::<FlowKey4>(&pins.flow(slot, 4), c"flows4", entries)?;
    maps.flows4
        .set(slot, &table, 0)
        .map_err(|error| DatapathError::map("set a table in", names::FLOWS4, describe(&error)))?;
    let table = create_table::<FlowKey6>(&pins.flow(slot, 6), c"flows6", entries)?;
    maps.flows6
        .set(slot, &table, 0)
        .map_err(|error| DatapathError::map("set a table in", names::FLOWS6, describe(&error)))
}

fn create_table<K: Pod>(
    pin: &Path,
    name: &CStr,
    entries: u32,
) -> Result<HashMap<MapData, K, Flow>, DatapathError> {
    let failed = |error: &dyn std::fmt::Display| DatapathError::map("create", name.to_string_lossy(), error);
    // aya's typed `create` knows no LRU type.
    let data = sys::create_map(&table::<K>(name, entries), None).map_err(|e| failed(&e))?;
    let data = MapData::from_fd(data).map_err(|e| failed(&e))?;
    Pins::remove(pin)?;
    data.pin(pin).map_err(|e| failed(&e))?;
    HashMap::try_from(Map::LruHashMap(data)).map_err(|e| failed(&e))
}

/// Opens a pinned table.
///
/// # Errors
/// If it is missing or of another layout.
pub fn open<K: Pod>(pin: &Path) -> Result<HashMap<MapData, K, Flow>, DatapathError> {
    let failed = |error: &dyn std::fmt::Display| DatapathError::map("open", pin.display().to_string(), error);
    let data = MapData::from_pin(pin).map_err(|e| failed(&e))?;
    let info = data.info().map_err(|e| failed(&e))?;
    // aya compares sizes when it wraps the map; the type it takes from us.
    if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<Flow>() {
        return Err(failed(&"it has another layout"));
    }
    HashMap::try_from(Map::LruHashMap(data)).map_err(|e| failed(&e))
}

/// Whether a slot's pinned tables are there and have this size.
pub fn present(pins: &Pins, slot: u32, entries: u32) -> bool {
    let fits = |version| {
        aya::maps::MapInfo::from_pin(pins.flow(slot, version)).is_ok_and(|info| info.max_entries() == entries)
    };
    fits(4) && fits(6)
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
