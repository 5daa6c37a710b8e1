//! Reading the pinned maps, for dumps and metrics, also while the agent is dead.

use std::path::Path;

use aya::Pod;
use portcullis_common::abi::{
    ABI, Counters, ENDPOINT_SLOTS, Endpoint, EventBudget, Mode, PairKey, config, names,
};
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};
use portcullis_common::table::FlowEntry;
use portcullis_common::{Direction, Reason, Verdict};

use super::kernel::KernelMaps;
use super::mapped::Mapped;
use super::{DatapathError, Pins, Shape, Sizes};

/// Counters of one pair of principals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCounters {
    /// The pair; `None` for all pairs that found no slot of their own.
    pub pair: Option<PairKey>,
    /// Sum over the CPUs.
    pub counters: Counters,
}

/// A flow of an endpoint.
#[derive(Clone, Copy, Debug)]
pub enum AnyKey {
    /// IPv4.
    V4(FlowKey4),
    /// IPv6.
    V6(FlowKey6),
}

/// Opens the pinned maps of this version, whatever sizes they have.
///
/// # Errors
/// If there are none, or they are not ours.
pub fn open(bpffs: &Path) -> Result<KernelMaps, DatapathError> {
    let pins = Pins::new(bpffs);
    if !pins.map(names::CONFIG).exists() {
        return Err(DatapathError::File {
            what: "find the maps of an agent in",
            path: pins.folder(),
            error: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!(
                    "no maps of version {ABI} are pinned there: no agent has run on this node since its boot, or --bpffs names another folder"
                ),
            ),
        });
    }
    // Sizes may be any; kinds and layouts may not.
    pins.check(&|name| {
        let entries = aya::maps::MapInfo::from_pin(pins.map(name)).ok()?.max_entries();
        Shape::wanted(name, &Sizes::default()).map(|shape| shape.with_entries(entries))
    })?;
    KernelMaps::open(&pins)
}

fn read(map: &'static str) -> impl Fn(aya::maps::MapError) -> DatapathError {
    move |error| DatapathError::map("read", map, error)
}

/// The counters in a slot, summed over the CPUs.
///
/// # Errors
/// If the map cannot be read.
pub fn slot_counters(maps: &KernelMaps, slot: u32) -> Result<Counters, DatapathError> {
    let values = maps.counters.get(&slot, 0).map_err(read(names::COUNTERS))?;
    let mut total = Counters::default();
    for value in values.iter() {
        for i in 0..3 {
            total.packets[i] += value.packets[i];
            total.bytes[i] += value.bytes[i];
            total.decisions[i] += value.decisions[i];
        }
    }
    Ok(total)
}

/// The counter slot of a pair; `None` if it was never seen.
///
/// # Errors
/// If the map cannot be read.
pub fn slot_of(maps: &KernelMaps, pair: &PairKey) -> Result<Option<u32>, DatapathError> {
    match maps.slots.get(pair, 0) {
        Ok(slot) => Ok(Some(slot)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(read(names::SLOTS)(error)),
    }
}

/// The counters of every pair that has been seen, slot 0 last if it counted anything.
///
/// # Errors
/// If a map cannot be read.
pub fn pair_counters(maps: &KernelMaps) -> Result<Vec<PairCounters>, DatapathError> {
    let mut slots: Vec<(PairKey, u32)> =
        maps.slots.iter().collect::<Result<_, _>>().map_err(read(names::SLOTS))?;
    slots.sort_unstable();
    let mut found = Vec::with_capacity(slots.len() + 1);
    for (pair, slot) in slots {
        found.push(PairCounters { pair: Some(pair), counters: slot_counters(maps, slot)? });
    }
    let other = slot_counters(maps, 0)?;
    if other != Counters::default() {
        found.push(PairCounters { pair: None, counters: other });
    }
    Ok(found)
}

/// Dropped packets by reason and direction; those that are zero are left out.
///
/// # Errors
/// If the map cannot be read.
pub fn drops(maps: &KernelMaps) -> Result<Vec<(Reason, Direction, u64)>, DatapathError> {
    let mut found = Vec::new();
    for &reason in Reason::ALL {
        for &direction in Direction::ALL {
            let index = u32::from(reason as u8) * 2 + u32::from(direction as u8);
            let total = maps.drops.get(&index, 0).map_err(read(names::DROPS))?.iter().sum();
            if total > 0 {
                found.push((reason, direction, total));
            }
        }
    }
    Ok(found)
}

/// The endpoints, with their slots.
///
/// # Errors
/// If the map cannot be read.
pub fn endpoints(maps: &KernelMaps) -> Result<Vec<(u32, Endpoint)>, DatapathError> {
    let mut found = Vec::new();
    for slot in 0..ENDPOINT_SLOTS {
        let endpoint = maps.endpoints.get(&slot, 0).map_err(read(names::ENDPOINTS))?;
        if endpoint.ifindex != 0 {
            found.push((slot, endpoint));
        }
    }
    Ok(found)
}

/// The flows of a slot.
///
/// # Errors
/// If a table cannot be opened or read.
pub fn flows(pins: &Pins, slot: u32) -> Result<Vec<(AnyKey, Flow)>, DatapathError> {
    let mut found = Vec::new();
    table::<FlowKey4>(pins, slot, 4, &mut |key, flow| found.push((AnyKey::V4(key), flow)))?;
    table::<FlowKey6>(pins, slot, 6, &mut |key, flow| found.push((AnyKey::V6(key), flow)))?;
    Ok(found)
}

/// Calls `each` with every flow of a table.
///
/// # Errors
/// If the table cannot be opened or read.
pub fn table<K>(
    pins: &Pins,
    slot: u32,
    version: u8,
    each: &mut dyn FnMut(K, Flow),
) -> Result<(), DatapathError>
where
    FlowEntry<K>: Pod,
{
    let table = Mapped::<FlowEntry<K>>::open(&pins.flow(slot, version))?;
    for index in 0..table.len() {
        let [Some(entry), Some(again)] = [table.get(index), table.get(index)] else { break };
        // One that is being written, or was meanwhile, is another one's in part.
        if entry.is_flow() && entry.flow.version == again.flow.version {
            each(entry.key, entry.flow);
        }
    }
    Ok(())
}

/// Events sent in the current second and missed ever, over all CPUs.
///
/// # Errors
/// If the map cannot be read.
pub fn missed_events(maps: &KernelMaps) -> Result<u64, DatapathError> {
    let budgets = maps.event_budget.get(&0, 0).map_err(read(names::EVENT_BUDGET))?;
    Ok(budgets.iter().map(|EventBudget { missed, .. }| missed).sum())
}

/// A word of the configuration.
///
/// # Errors
/// If the map cannot be read.
pub fn config_word(maps: &KernelMaps, word: u32) -> Result<u32, DatapathError> {
    maps.config.get(&word, 0).map_err(read(names::CONFIG))
}

/// The mode that the agent set and the one that `portcullis mode` set.
///
/// # Errors
/// If the map cannot be read.
pub fn modes(maps: &KernelMaps) -> Result<(Option<Mode>, Option<Mode>), DatapathError> {
    let word = |word| config_word(maps, word).map(Mode::from_number);
    Ok((word(config::MODE)?, word(config::OVERRIDE)?))
}

/// Entries in use and capacity of a map, as far as it can be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Name of the map.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries it can hold.
    pub capacity: u64,
}

/// The verdict of a flow.
pub fn flow_verdict(flow: &Flow) -> Verdict {
    Verdict::from_number(flow.verdict).unwrap_or(Verdict::Deny)
}
