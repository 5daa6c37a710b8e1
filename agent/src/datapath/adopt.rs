//! What an earlier agent left in the maps, taken over by content.
//!
//! Invariant: what `SUBJECTS` points at stays untouched until the first apply has replaced it; only rows of no set in
//! force are retired from the start. A set that is found as it is wanted is not written again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::Direction;
use portcullis_common::abi::{Digest, NumberKey, names};
use portcullis_common::identity::Identity;
use portcullis_common::policy::{PortKey, PortStep, Row, RowKey};
use portcullis_common::service::{Service, ServiceKey};

use super::kernel::KernelMaps;
use super::ports::PortTables;
use super::rows::RowSets;
use super::{DatapathError, Retired, Sizes};
use crate::policy::{Function, RowSet};

/// The rows, as far as they could be taken over.
pub struct Adopted {
    pub rows: RowSets,
    pub tables: PortTables,
    pub retired: Retired,
    pub foreign: Foreign,
}

/// Row sets in force that are not as this agent would have written them.
#[derive(Debug, Default)]
pub struct Foreign {
    /// Their subject classes.
    pub subjects: BTreeSet<u32>,
    /// Their rows, to be retired when every one of those classes has other rows or none.
    pub retired: Retired,
}

/// Takes over the rows.
///
/// # Errors
/// If a map cannot be read.
pub fn rows(maps: &KernelMaps, sizes: &Sizes) -> Result<Adopted, DatapathError> {
    let mut sets: BTreeMap<u32, Vec<(RowKey, Row)>> = BTreeMap::new();
    let mut ranges = BTreeSet::new();
    let mut next = 1;
    for entry in &maps.rows {
        let (key, row) = entry.map_err(|error| DatapathError::map("read", names::ROWS, error))?;
        if row.steps > 0 {
            ranges.insert((row.steps_at, row.steps));
        }
        next = next.max(key.rowset.saturating_add(1));
        sets.entry(key.rowset).or_default().push((key, row));
    }
    let mut in_force = Vec::new();
    for subject in 0..maps.subjects.len() {
        let number = maps
            .subjects
            .get(&subject, 0)
            .map_err(|error| DatapathError::map("read", names::SUBJECTS, error))?;
        if number != 0 {
            next = next.max(number.saturating_add(1));
            in_force.push((subject, number));
        }
    }
    let mut rows = RowSets::new(next);
    let mut tables = PortTables::new(sizes.ports_size, ranges.iter().copied());
    let mut functions = BTreeMap::new();
    let mut foreign = Foreign::default();
    let mut kept = BTreeSet::new();
    for (subject, number) in in_force {
        let entries = sets.remove(&number).unwrap_or_default();
        match take_over(maps, &entries, &mut functions)? {
            Some(set) if share(&mut tables, &entries, &set, &mut kept) => {
                rows.adopt(subject, number, set);
            }
            _ => {
                foreign.subjects.insert(subject);
                foreign.retired.rows.extend(entries.iter().map(|(key, _)| *key));
            }
        }
    }
    let mut retired = Retired::default();
    retired.rows.extend(sets.into_values().flatten().map(|(key, _)| key));
    // Tables of nobody's rows are given back late, together with those of the foreign sets: they may be shared.
    foreign.retired.ranges = ranges.difference(&kept).copied().collect();
    Ok(Adopted { rows, tables, retired, foreign })
}

/// The content of a row set; `None` if it is not as this version writes them.
fn take_over(
    maps: &KernelMaps,
    entries: &[(RowKey, Row)],
    functions: &mut BTreeMap<(u32, u32), Option<Arc<Function>>>,
) -> Result<Option<RowSet>, DatapathError> {
    let mut set = RowSet::new();
    for (key, row) in entries {
        let Some(direction) = Direction::ALL.iter().find(|d| **d as u32 == key.direction) else {
            return Ok(None);
        };
        let function = if row.steps == 0 {
            Some(Arc::new(Function::constant(row.decision.decision())))
        } else if let Some(known) = functions.get(&(row.steps_at, row.steps)) {
            known.clone()
        } else {
            let read = read_function(maps, row)?.map(Arc::new);
            functions.insert((row.steps_at, row.steps), read.clone());
            read
        };
        // The first step is in the row too.
        let Some(function) = function.filter(|f| {
            let (key, decision) = f.steps()[0];
            row.decision == PortStep::new(key, decision)
        }) else {
            return Ok(None);
        };
        set.insert((*direction, key.peer), function);
    }
    Ok(Some(set))
}

fn read_function(maps: &KernelMaps, row: &Row) -> Result<Option<Function>, DatapathError> {
    let end = row.steps_at.saturating_add(row.steps);
    if end > maps.ports.len() || row.steps < 2 {
        return Ok(None);
    }
    let mut steps = Vec::new();
    for index in row.steps_at..end {
        let step: PortStep =
            maps.ports.get(&index, 0).map_err(|error| DatapathError::map("read", names::PORTS, error))?;
        steps.push((PortKey(step.from()), step.decision()));
    }
    let length = steps.len();
    // Merged steps would not fill the room that they are in.
    Ok(Function::new(steps).filter(|function| function.steps().len() == length))
}

/// Registers the tables of a set. `false`: one of them cannot be shared; those before it stay taken then, because the
/// set is in force.
fn share(
    tables: &mut PortTables,
    entries: &[(RowKey, Row)],
    set: &RowSet,
    kept: &mut BTreeSet<(u32, u32)>,
) -> bool {
    for (key, row) in entries {
        let Some(direction) = Direction::ALL.iter().find(|d| **d as u32 == key.direction) else { continue };
        let Some(function) = set.get(&(*direction, key.peer)) else { continue };
        if !tables.adopt(function, row.steps_at) {
            return false;
        }
        kept.insert((row.steps_at, row.steps));
    }
    true
}

/// What the kernel holds.
pub fn ipcache(maps: &KernelMaps) -> Result<BTreeMap<IpAddr, Identity>, DatapathError> {
    let mut found = BTreeMap::new();
    for entry in &maps.ipcache4 {
        let (address, identity) =
            entry.map_err(|error| DatapathError::map("read", names::IPCACHE4, error))?;
        found.insert(IpAddr::from(address.to_ne_bytes()), identity);
    }
    for entry in &maps.ipcache6 {
        let (address, identity) =
            entry.map_err(|error| DatapathError::map("read", names::IPCACHE6, error))?;
        found.insert(IpAddr::from(address.to_bytes()), identity);
    }
    Ok(found)
}

/// What the kernel holds.
pub fn cidrs(maps: &KernelMaps) -> Result<BTreeMap<IpNet, Identity>, DatapathError> {
    let mut found = BTreeMap::new();
    let net =
        |address: IpAddr, length: u32| IpNet::new(address, u8::try_from(length).unwrap_or(u8::MAX)).ok();
    for entry in &maps.cidrs4 {
        let (key, identity) = entry.map_err(|error| DatapathError::map("read", names::CIDRS4, error))?;
        found
            .extend(net(IpAddr::from(key.data().to_ne_bytes()), key.prefix_len()).map(|net| (net, identity)));
    }
    for entry in &maps.cidrs6 {
        let (key, identity) = entry.map_err(|error| DatapathError::map("read", names::CIDRS6, error))?;
        found.extend(net(IpAddr::from(key.data().to_bytes()), key.prefix_len()).map(|net| (net, identity)));
    }
    Ok(found)
}

/// What the kernel holds.
pub fn services(maps: &KernelMaps) -> Result<BTreeMap<ServiceKey, Service>, DatapathError> {
    maps.services
        .iter()
        .map(|entry| entry.map_err(|error| DatapathError::map("read", names::SERVICES, error)))
        .collect()
}

/// What the kernel holds.
pub fn numbers(maps: &KernelMaps) -> Result<BTreeMap<NumberKey, Digest>, DatapathError> {
    maps.numbers
        .iter()
        .map(|entry| entry.map_err(|error| DatapathError::map("read", names::NUMBERS, error)))
        .collect()
}
