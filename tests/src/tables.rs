//! For who changes flows in their tables behind the back of the programs, or takes them out.

use std::path::Path;

use anyhow::Result;
use aya::Pod;
use aya::maps::{Array, Map, MapData};
use portcullis::datapath::mapped::Mapped;
use portcullis_common::table::FlowEntry;

/// Takes every flow out of a pinned table; returns how many there were.
///
/// # Errors
/// If there is no such table, or it cannot be written.
pub fn empty<K: Default>(pin: &Path) -> Result<usize>
where
    FlowEntry<K>: Pod,
{
    change(pin, |_| FlowEntry::<K>::default())
}

/// Changes every flow of a pinned table; returns how many there were.
///
/// # Errors
/// As for [`empty`].
pub fn change<K>(pin: &Path, changed: impl Fn(FlowEntry<K>) -> FlowEntry<K>) -> Result<usize>
where
    FlowEntry<K>: Pod,
{
    let mapped = Mapped::<FlowEntry<K>>::open(pin)?;
    let entries = (0..mapped.len()).filter_map(|index| Some((index, mapped.get(index)?)));
    let flows: Vec<_> = entries.filter(|(_, entry)| entry.is_flow()).collect();
    let mut table: Array<MapData, FlowEntry<K>> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    for (index, entry) in &flows {
        table.set(*index, changed(*entry), 0)?;
    }
    Ok(flows.len())
}
