//! Bringing the kernel to the desired state.
//!
//! Invariants: rows of a class are there before any address moves to it; the revision rises after every batch that may
//! have turned an allow into a deny; what was retired is deleted after a grace period; what cannot be programmed is
//! denied and reported, never passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::maps::MapError;
use portcullis_common::Direction;
use portcullis_common::abi::{Digest, Mode, NumberKey, config, names};

use super::kernel::ANY;
use super::scope::Scope;
use super::{Applied, Datapath, DatapathError, EndpointSpec, HookState, attach, ports, rows, staging, sys};
use crate::policy::{Delta, Desired};

impl Datapath {
    /// Brings the kernel to the desired state; everything is compared. An error in one object does not keep the others
    /// from being written.
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
        for subject in std::mem::take(&mut self.failed) {
            // Written from scratch: what of it is in the kernel is not known.
            let change = self.rows.remove(subject);
            self.retire(change);
        }
        let scope = Scope::between(&self.addresses, &self.services, &self.rows, desired);
        let written = self.write(desired, &scope, endpoints, mode, &mut applied);
        self.settle(written)?;
        Ok(applied)
    }

    /// As [`Self::apply`], after an apply without an error: only what has changed since then is looked at.
    ///
    /// # Errors
    /// As [`Self::apply`]; then, and after any error in [`Applied::errors`], everything has to be compared.
    pub fn apply_delta(
        &mut self,
        desired: &Desired,
        delta: &Delta,
        endpoints: &[EndpointSpec],
        mode: Mode,
        numbers: Vec<(NumberKey, Option<Digest>)>,
    ) -> Result<Applied, DatapathError> {
        let mut applied = Applied::default();
        for (key, digest) in numbers {
            self.write_number(key, digest, &mut applied);
        }
        let scope = Scope::of(delta, &self.addresses, desired);
        let written = self.write(desired, &scope, endpoints, mode, &mut applied);
        self.settle(written)?;
        Ok(applied)
    }

    /// After an error what was written before it may already deny what flows and processors have for permitted, so they are
    /// not believed either.
    fn settle(&mut self, written: Result<(), DatapathError>) -> Result<(), DatapathError> {
        if written.is_err() {
            // The next apply compares everything, and says what cannot be written.
            let _ = self.raise_revision();
        }
        written
    }

    fn write(
        &mut self,
        desired: &Desired,
        scope: &Scope,
        endpoints: &[EndpointSpec],
        mode: Mode,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        let mut judged_anew = self.write_tunnels()?;
        let staged = self.stage_rows(desired, scope, applied)?;
        let mut services = self.write_services(desired, scope, applied)?;
        self.write_addresses(desired, scope, applied)?;
        self.remove_services(desired, scope, &mut services, applied)?;
        let removed =
            self.slots.apply(&mut self.maps, &self.pins, &self.options.sizes, desired, endpoints, applied);
        self.write_rows(desired, scope.subjects.union(&staged), applied)?;
        self.local_peers = local_peers(desired);
        judged_anew |= applied.writes > services.harmless;
        if self.config(config::MODE)? != mode as u32 {
            self.set_config(config::MODE, mode as u32)?;
            judged_anew = true;
        }
        if judged_anew || self.config(config::REVISION)? == 0 {
            self.raise_revision()?;
            applied.revised = true;
        }
        self.retire_subjects(desired, scope, applied);
        let fresh = self.slots.take_fresh();
        if self.seeding {
            self.seed(&fresh);
            self.seeding = false;
        }
        self.attach_all(endpoints, &removed, applied);
        Ok(())
    }

    fn raise_revision(&mut self) -> Result<(), DatapathError> {
        let next = self.config(config::REVISION)?.wrapping_add(1).max(1);
        // First, so that an agent that dies in between finds the endpoints behind it, and writes them again.
        self.set_config(config::REVISION, next)?;
        self.slots.revise(&mut self.maps, next)
    }

    fn write_numbers(&mut self, numbers: impl Iterator<Item = (NumberKey, Digest)>, applied: &mut Applied) {
        let wanted: BTreeMap<_, _> = numbers.collect();
        for (key, digest) in &wanted {
            self.write_number(*key, Some(*digest), applied);
        }
        let gone: Vec<NumberKey> =
            self.numbers.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.write_number(key, None, applied);
        }
    }

    fn write_number(&mut self, key: NumberKey, digest: Option<Digest>, applied: &mut Applied) {
        let Some(digest) = digest else {
            if self.numbers.remove(&key).is_some() {
                let _ = self.maps.numbers.remove(&key);
            }
            return;
        };
        if self.numbers.get(&key) == Some(&digest) {
            return;
        }
        match self.maps.numbers.insert(key, digest, ANY) {
            Ok(()) => drop(self.numbers.insert(key, digest)),
            Err(error) => applied.errors.push(DatapathError::map("write", names::NUMBERS, error)),
        }
    }

    /// Before any address moves: new peer classes get in the sets in force what their addresses get today, and new
    /// subject classes get their rows. Returns the subject classes whose rows are not the desired ones now.
    fn stage_rows(
        &mut self,
        desired: &Desired,
        scope: &Scope,
        applied: &mut Applied,
    ) -> Result<BTreeSet<u32>, DatapathError> {
        let mut written = BTreeSet::new();
        let local_now = local_peers(desired);
        let newly_local: BTreeSet<u32> = local_now.difference(&self.local_peers).copied().collect();
        let local = self.local_peers.union(&local_now).copied().collect();
        let moves = staging::Moves::between(&self.addresses, &self.services.sets, desired, scope, local);
        if moves.needs_staging() {
            let in_force: Vec<u32> = self.rows.subjects().collect();
            for subject in in_force {
                let Some(rows) = self.rows.rows(subject) else { continue };
                let Some(staged) = moves.stage(rows, false) else { continue };
                written.insert(subject);
                if !self.write_subject(subject, &Arc::new(staged), applied)? {
                    // Constants need no room: for the moment the new classes get nothing.
                    let Some(rows) = self.rows.rows(subject) else { continue };
                    if let Some(strict) = moves.stage(rows, true) {
                        let _ = self.write_subject(subject, &Arc::new(strict), applied)?;
                    }
                }
            }
        }
        for subject in &scope.subjects {
            let Some(wanted) = desired.subjects.get(subject) else { continue };
            let rows = match self.rows.rows(*subject) {
                None => moves.unstaged(wanted).map_or_else(|| Arc::clone(wanted), Arc::new),
                // Of pods elsewhere: what they may send to a pod that comes to this node.
                Some(rows) => match staging::newly_met(rows, wanted, &newly_local) {
                    Some(staged) => Arc::new(staged),
                    None => continue,
                },
            };
            // Without room it is said, and denied, when the sets are switched.
            let _ = self.write_subject(*subject, &rows, applied)?;
        }
        Ok(written)
    }

    /// After the addresses moved: the desired rows.
    fn write_rows<'s>(
        &mut self,
        desired: &Desired,
        subjects: impl Iterator<Item = &'s u32>,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        for subject in subjects {
            let Some(rows) = desired.subjects.get(subject) else { continue };
            if !self.failed.contains(subject) && !self.write_subject(*subject, rows, applied)? {
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
        applied: &mut Applied,
    ) -> Result<bool, DatapathError> {
        let Self { addresses, services, .. } = self;
        // Peer classes that addresses and endpoints of services have now.
        let live = |peer| addresses.peers().count(peer) + services.peers().count(peer) > 0;
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

    fn retire_subjects(&mut self, desired: &Desired, scope: &Scope, applied: &mut Applied) {
        for subject in scope.subjects.iter().filter(|s| !desired.subjects.contains_key(s)) {
            if self.rows.rows(*subject).is_none() {
                continue;
            }
            let _ = self.maps.subjects.set(*subject, 0, 0);
            let change = self.rows.remove(*subject);
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

/// The peer classes of this node's pods.
fn local_peers(desired: &Desired) -> BTreeSet<u32> {
    let addresses = desired.pods.values().flat_map(|pod| &pod.addresses);
    addresses.filter_map(|address| desired.ipcache.get(address)).map(|identity| identity.peer).collect()
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
