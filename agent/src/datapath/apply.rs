//! Bringing the kernel to the desired state.
//!
//! Invariants: rows of a class are there before any address moves to it; the revision rises after every batch that may
//! have turned an allow into a deny; what was retired is deleted after a grace period; what cannot be programmed is
//! denied and reported, never passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::maps::MapError;
use portcullis_common::abi::{Digest, Mode, NumberKey, config, names};
use portcullis_common::identity::{FIRST_PRINCIPAL, Identity};
use portcullis_common::{Direction, Kind};

use super::kernel::ANY;
use super::{Applied, Datapath, DatapathError, EndpointSpec, HookState, attach, ports, rows, staging, sys};
use crate::policy::Desired;

impl Datapath {
    /// Brings the kernel to the desired state. An error in one object does not keep the others from being written.
    ///
    /// # Errors
    /// If the state of the kernel cannot even be read, or the revision not be raised.
    pub fn apply(
        &mut self,
        desired: &Desired,
        endpoints: &[EndpointSpec],
        mode: Mode,
        numbers: impl Iterator<Item = (NumberKey, Digest)>,
    ) -> Result<Applied, DatapathError> {
        let mut applied = Applied::default();
        self.write_numbers(numbers, &mut applied);
        self.stage_rows(desired, &mut applied)?;
        let mut services = self.write_services(desired, &mut applied)?;
        self.write_addresses(desired, &mut applied)?;
        self.remove_services(desired, &mut services, &mut applied)?;
        let removed = self.slots.apply(
            &mut self.maps,
            &self.pins,
            &self.options.sizes,
            desired,
            endpoints,
            &mut applied,
        );
        self.write_rows(desired, &mut applied)?;
        let mut judged_anew = applied.writes > services.harmless;
        if self.config(config::MODE)? != mode as u32 {
            self.set_config(config::MODE, mode as u32)?;
            judged_anew = true;
        }
        if judged_anew || self.config(config::REVISION)? == 0 {
            self.raise_revision()?;
            applied.revised = true;
        }
        self.retire_subjects(desired, &mut applied);
        self.attach_all(endpoints, &removed, &mut applied);
        Ok(applied)
    }

    fn raise_revision(&mut self) -> Result<(), DatapathError> {
        let next = self.config(config::REVISION)?.wrapping_add(1).max(1);
        self.set_config(config::REVISION, next)
    }

    fn write_numbers(&mut self, numbers: impl Iterator<Item = (NumberKey, Digest)>, applied: &mut Applied) {
        let wanted: BTreeMap<_, _> = numbers.collect();
        for (key, digest) in &wanted {
            if self.numbers.get(key) == Some(digest) {
                continue;
            }
            match self.maps.numbers.insert(key, digest, ANY) {
                Ok(()) => drop(self.numbers.insert(*key, *digest)),
                Err(error) => applied.errors.push(DatapathError::map("write", names::NUMBERS, error)),
            }
        }
        let maps = &mut self.maps;
        self.numbers.retain(|key, _| {
            let keep = wanted.contains_key(key);
            if !keep {
                let _ = maps.numbers.remove(key);
            }
            keep
        });
    }

    /// Peer classes that addresses and endpoints of services have now.
    fn live_peers(&self) -> BTreeSet<u32> {
        let addresses = self.ipcache.values().chain(self.cidrs.values()).map(|identity| identity.peer);
        addresses.chain(self.services.peers()).collect()
    }

    /// Before any address moves: new peer classes get in the sets in force what their addresses get today, and new
    /// subject classes get their rows.
    fn stage_rows(&mut self, desired: &Desired, applied: &mut Applied) -> Result<(), DatapathError> {
        for subject in std::mem::take(&mut self.failed) {
            // Written from scratch: what of it is in the kernel is not known.
            let change = self.rows.remove(subject);
            self.retire(change);
        }
        let live = self.live_peers();
        let moves = staging::Moves::between(&self.ipcache, &self.cidrs, &self.services.sets, desired);
        let in_force: Vec<u32> = self.rows.subjects().collect();
        for subject in in_force {
            let Some(rows) = self.rows.rows(subject) else { continue };
            let Some(staged) = moves.stage(rows, false) else { continue };
            if !self.write_subject(subject, &Arc::new(staged), &live, applied)? {
                // Constants need no room: for the moment the new classes get nothing.
                let Some(rows) = self.rows.rows(subject) else { continue };
                if let Some(strict) = moves.stage(rows, true) {
                    let _ = self.write_subject(subject, &Arc::new(strict), &live, applied)?;
                }
            }
        }
        for (subject, rows) in &desired.subjects {
            if self.rows.rows(*subject).is_none() {
                let rows = moves.unstaged(rows).map_or_else(|| Arc::clone(rows), Arc::new);
                // Without room it is said, and denied, when the sets are switched.
                let _ = self.write_subject(*subject, &rows, &live, applied)?;
            }
        }
        Ok(())
    }

    /// After the addresses moved: the desired rows.
    fn write_rows(&mut self, desired: &Desired, applied: &mut Applied) -> Result<(), DatapathError> {
        let live = self.live_peers();
        for (subject, rows) in &desired.subjects {
            if !self.failed.contains(subject) && !self.write_subject(*subject, rows, &live, applied)? {
                applied.errors.push(DatapathError::Full {
                    map: names::PORTS,
                    what: format!("a table has no room, so subject class {subject} is denied"),
                    flag: "--ports-size",
                });
                self.deny(*subject)?;
            }
        }
        Ok(())
    }

    /// Writes rows of a subject class; `false` if the port tables have no room, and nothing was changed.
    fn write_subject(
        &mut self,
        subject: u32,
        rows: &Arc<crate::policy::RowSet>,
        live: &BTreeSet<u32>,
        applied: &mut Applied,
    ) -> Result<bool, DatapathError> {
        let change = match self.rows.plan(subject, rows, live, &mut self.tables) {
            Ok(Some(change)) => change,
            Ok(None) => return Ok(true),
            Err(ports::NoRoom(_)) => return Ok(false),
        };
        if let Err(error) = self.write_change(subject, &change, applied) {
            applied.errors.push(error);
            self.deny(subject)?;
        }
        self.retire(change);
        Ok(true)
    }

    fn write_change(
        &mut self,
        subject: u32,
        change: &rows::Change,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        for (index, step) in &change.steps {
            if let Err(error) = self.maps.ports.set(*index, *step, 0) {
                change.written.iter().for_each(|function| self.tables.doubt(function));
                return Err(DatapathError::map("write", names::PORTS, error));
            }
        }
        for (key, row) in &change.put {
            self.maps.rows.insert(key, row, ANY).map_err(|error| full(&error, names::ROWS, "--rows-size"))?;
        }
        for key in &change.remove {
            let _ = self.maps.rows.remove(key);
        }
        if let Some(number) = change.switch_to {
            self.maps.subjects.set(subject, number, 0).map_err(|_| {
                full(
                    &MapError::OutOfBounds { index: subject, max_entries: 0 },
                    names::SUBJECTS,
                    "--subjects-size",
                )
            })?;
        }
        applied.writes += change.steps.len() + change.put.len() + change.remove.len();
        Ok(())
    }

    /// Nothing is in force for the subject: the kernel denies with `no-policy`.
    fn deny(&mut self, subject: u32) -> Result<(), DatapathError> {
        self.failed.insert(subject);
        match self.maps.subjects.set(subject, 0, 0) {
            Ok(()) => self.raise_revision(),
            // A class beyond the array has no rows for the kernel either.
            Err(_) => Ok(()),
        }
    }

    fn retire(&mut self, change: rows::Change) {
        self.retired.rows.extend(change.retire);
        self.retired.functions.extend(change.release);
    }

    fn retire_subjects(&mut self, desired: &Desired, applied: &mut Applied) {
        let gone: Vec<u32> = self.rows.subjects().filter(|s| !desired.subjects.contains_key(s)).collect();
        for subject in gone {
            let _ = self.maps.subjects.set(subject, 0, 0);
            let change = self.rows.remove(subject);
            applied.writes += 1;
            self.retire(change);
        }
        let foreign = std::mem::take(&mut self.foreign);
        for subject in foreign.subjects.iter().filter(|s| !desired.subjects.contains_key(s)) {
            let _ = self.maps.subjects.set(*subject, 0, 0);
            applied.writes += 1;
        }
        self.retired.extend(foreign.retired);
    }

    /// Whether [`Datapath::collect`] has anything to do.
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.dying.is_empty()
    }

    /// Deletes the rows that were retired, after a grace period in which no program run can still hold them, and gives
    /// back the tables of rows that an earlier call deleted. Blocks for some milliseconds, for one grace period at most.
    ///
    /// # Errors
    /// If the grace period cannot be had; everything stays retired then.
    pub fn collect(&mut self) -> Result<usize, DatapathError> {
        if !self.has_retired() {
            return Ok(0);
        }
        self.wait_for_programs()?;
        for function in std::mem::take(&mut self.dying.functions) {
            self.tables.release(&function);
        }
        for (at, length) in std::mem::take(&mut self.dying.ranges) {
            self.tables.give_back(at, length);
        }
        // Their tables wait for the next period: a program may have read a row just before it goes.
        self.dying = std::mem::take(&mut self.retired);
        let rows = std::mem::take(&mut self.dying.rows);
        for key in &rows {
            let _ = self.maps.rows.remove(key);
        }
        Ok(rows.len())
    }

    /// Waits until no program run can still hold what it read from a map before the call.
    ///
    /// # Errors
    /// If the grace period cannot be had.
    pub fn wait_for_programs(&self) -> Result<(), DatapathError> {
        sys::grace_period().map_err(|error| DatapathError::System { call: "membarrier", error })
    }

    fn write_addresses(&mut self, desired: &Desired, applied: &mut Applied) -> Result<(), DatapathError> {
        let mut failed_nets = Vec::new();
        let mut failed_addresses = Vec::new();
        for (net, identity) in &desired.cidrs {
            if self.cidrs.get(net) == Some(identity) {
                continue;
            }
            match self.maps.put_prefix(*net, identity) {
                Ok(()) => {
                    self.cidrs.insert(*net, *identity);
                    applied.writes += 1;
                }
                Err(error) => {
                    failed_nets.push(*net);
                    let name = if net.addr().is_ipv4() { names::CIDRS4 } else { names::CIDRS6 };
                    applied.errors.push(full(&error, name, "--cidrs-size"));
                }
            }
        }
        // This node and the others first: if room is short, they keep theirs.
        let ordinary = |identity: &Identity| identity.principal == 0 || identity.principal >= FIRST_PRINCIPAL;
        let mut changed: Vec<_> =
            desired.ipcache.iter().filter(|(a, identity)| self.ipcache.get(a) != Some(identity)).collect();
        changed.sort_by_key(|(_, identity)| (identity.kind != Kind::Host as u8, ordinary(identity)));
        for (address, identity) in changed {
            match self.maps.put_address(*address, identity) {
                Ok(()) => {
                    self.ipcache.insert(*address, *identity);
                    applied.writes += 1;
                }
                Err(error) => {
                    failed_addresses.push(*address);
                    let name = if address.is_ipv4() { names::IPCACHE4 } else { names::IPCACHE6 };
                    applied.errors.push(full(&error, name, "--ipcache-size"));
                }
            }
        }
        let overflow = !failed_nets.is_empty() || !failed_addresses.is_empty();
        // Before entries go: an address that could not be written must not be taken for somebody else's.
        if self.config(config::OVERFLOW)? != u32::from(overflow) {
            self.set_config(config::OVERFLOW, u32::from(overflow))?;
            applied.writes += 1;
        }
        // What could not be replaced must not keep its old meaning; the flag above denies it.
        let failed_addresses: BTreeSet<_> = failed_addresses.into_iter().collect();
        let failed_nets: BTreeSet<_> = failed_nets.into_iter().collect();
        let gone: Vec<_> = self
            .ipcache
            .keys()
            .filter(|a| !desired.ipcache.contains_key(a) || failed_addresses.contains(a))
            .copied()
            .collect();
        for address in gone {
            let _ = self.maps.remove_address(address);
            self.ipcache.remove(&address);
            applied.writes += 1;
        }
        let gone: Vec<_> = self
            .cidrs
            .keys()
            .filter(|n| !desired.cidrs.contains_key(n) || failed_nets.contains(n))
            .copied()
            .collect();
        for net in gone {
            let _ = self.maps.remove_prefix(net);
            self.cidrs.remove(&net);
            applied.writes += 1;
        }
        Ok(())
    }

    fn attach_all(&mut self, endpoints: &[EndpointSpec], removed: &[u32], applied: &mut Applied) {
        for &ifindex in removed {
            for &direction in Direction::ALL {
                if let Err(error) = attach::detach(&self.pins, ifindex, direction) {
                    applied.errors.push(error);
                }
            }
        }
        for endpoint in endpoints {
            // Also one that found no slot: without an entry the programs drop everything, and without programs it would
            // not be judged at all.
            for &direction in Direction::ALL {
                if self.hook_state(endpoint.ifindex, direction) != HookState::Missing {
                    continue;
                }
                let attached = attach::attach(
                    &mut self.ebpf,
                    &self.pins,
                    endpoint.ifindex,
                    &endpoint.name,
                    direction,
                    self.tcx,
                );
                match attached {
                    Ok(()) => applied.writes += 1,
                    // An interface that is gone by now is no error: its removal is on its way.
                    Err(_) if sys::interface_name(endpoint.ifindex).is_none() => {}
                    Err(error) => applied.errors.push(error),
                }
            }
        }
    }
}

/// An error of a write, told apart from a full map.
pub(super) fn full(error: &MapError, map: &'static str, flag: &'static str) -> DatapathError {
    let text = error.to_string();
    let code = match error {
        MapError::SyscallError(inner) => inner.io_error.raw_os_error(),
        _ => None,
    };
    match (error, code) {
        (_, Some(libc::E2BIG | libc::ENOSPC)) | (MapError::OutOfBounds { .. }, _) => DatapathError::Full {
            map,
            what: "an entry has no room, and what it stands for is denied".to_owned(),
            flag,
        },
        _ => DatapathError::map("write", map, text),
    }
}
