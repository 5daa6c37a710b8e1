//! For who changes flows in their tables behind the back of the programs, or takes them out.

use std::path::Path;

use anyhow::Result;
use aya::Pod;
use aya::maps::{Array, Map, MapData};
use portcullis::datapath::mapped::Mapped;
use portcullis_common::table::FlowEntry;

/// Takes every flow, and what is kept of fragments, out of a pinned table; returns how many flows there were.
///
/// # Errors
/// If there is no such table, or it cannot be written.
pub fn empty<K: Default>(pin: &Path) -> Result<usize>
where
    FlowEntry<K>: Pod,
{
    change(pin, |_| FlowEntry::<K>::default())
}

/// Changes every flow, and what is kept of fragments, of a pinned table; returns how many flows there were.
///
/// # Errors
/// As for [`empty`].
pub fn change<K>(pin: &Path, changed: impl Fn(FlowEntry<K>) -> FlowEntry<K>) -> Result<usize>
where
    FlowEntry<K>: Pod,
{
    let mapped = Mapped::<FlowEntry<K>>::open(pin)?;
    let entries = (0..mapped.len()).filter_map(|index| Some((index, mapped.get(index)?)));
    let whole: Vec<_> = entries.filter(|(_, entry)| entry.is_whole()).collect();
    let mut table: Array<MapData, FlowEntry<K>> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    for (index, entry) in &whole {
        table.set(*index, changed(*entry), 0)?;
    }
    Ok(whole.iter().filter(|(_, entry)| entry.is_flow()).count())
}
