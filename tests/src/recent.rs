//! For who takes flows out of the tables, or lets time pass for them, behind the back of the programs.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, loaded_maps};
use portcullis_common::cache::FLOWS;

/// The map of epochs (`agent-ebpf/src/maps.rs`). It is not pinned.
const EPOCHS: &str = "FLOW_EPOCHS";

/// Takes every entry out of a pinned LRU hash; returns how many there were.
///
/// # Errors
/// If there is no such map, or it cannot be written.
pub fn empty<K: Pod, V: Pod>(pin: &Path) -> Result<usize> {
    let mut map: HashMap<MapData, K, V> = Map::LruHashMap(MapData::from_pin(pin)?).try_into()?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in &keys {
        map.remove(key)?;
    }
    Ok(keys.len())
}

/// Lets every packet look its flow up, as after a moment without packets: of all programs on this machine, to which it does no
/// harm.
///
/// # Errors
/// If no programs are loaded, or their map cannot be written.
pub fn forget_recent() -> Result<()> {
    let mut found = 0;
    for map in loaded_maps() {
        // It may be gone by now, with the programs of another test.
        let Ok(map) = map else { continue };
        if map.name_as_str() != Some(EPOCHS) {
            continue;
        }
        let Ok(map) = MapData::from_id(map.id()) else { continue };
        let mut epochs: Array<_, [u32; FLOWS]> = Map::Array(map).try_into().context("its layout")?;
        let now = epochs.get(&0, 0)?;
        epochs.set(0, now.map(|epoch| epoch.wrapping_add(1)), 0)?;
        found += 1;
    }
    ensure!(found > 0, "no programs with a map {EPOCHS} are loaded");
    Ok(())
}
