//! The endpoints' flow tables: one LRU hash an endpoint and IP version, so that no pod can push out another's flows.
//! The tables are pinned beside the outer map, so that a dump can open them without asking the kernel by id.

use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};

use super::error::DatapathError;
use super::kernel::KernelMaps;
use super::pins::Pins;

/// `BPF_MAP_TYPE_LRU_HASH`.
const LRU_HASH: u32 = 9;

/// Gives the endpoint in a slot new, empty tables.
///
/// # Errors
/// If a table cannot be made, pinned or set.
pub fn create(maps: &mut KernelMaps, pins: &Pins, slot: u32, entries: u32) -> Result<(), DatapathError> {
    let table = create_table::<FlowKey4>(&pins.flow(slot, 4), "flows4", entries)?;
    maps.flows4
        .set(slot, &table, 0)
        .map_err(|error| DatapathError::map("set a table in", "FLOWS4", error))?;
    let table = create_table::<FlowKey6>(&pins.flow(slot, 6), "flows6", entries)?;
    maps.flows6.set(slot, &table, 0).map_err(|error| DatapathError::map("set a table in", "FLOWS6", error))
}

fn create_table<K: Pod>(
    pin: &Path,
    name: &str,
    entries: u32,
) -> Result<HashMap<MapData, K, Flow>, DatapathError> {
    let failed = |error: &dyn std::fmt::Display| DatapathError::map("create", name, error);
    #[expect(clippy::cast_possible_truncation, reason = "sizes of small structs")]
    let (key, value) = (size_of::<K>() as u32, size_of::<Flow>() as u32);
    // aya's typed `create` knows no LRU type.
    let object = aya_obj::Map::new_from_params(LRU_HASH, key, value, entries, 0);
    let data = MapData::create(object, name, None).map_err(|e| failed(&e))?;
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
    for (name, version) in [("FLOWS4", 4), ("FLOWS6", 6)] {
        if let Ok(outer) = MapData::from_pin(pins.map(name)) {
            // An element that is not there is what was wanted.
            let _ = super::sys::delete_element(outer.fd().as_fd(), slot);
        }
        Pins::remove(&pins.flow(slot, version))?;
    }
    Ok(())
}
