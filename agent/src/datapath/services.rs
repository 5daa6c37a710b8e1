//! The frontends of services in the kernel.
//!
//! Invariants: an entry is written when the rows of its classes are there, and before its address becomes a service's;
//! it is removed after the address has become something else. What finds no room is denied, by a word that says that
//! frontends are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::abi::{Addr6, config, names, service_overflow};
use portcullis_common::service::{SERVICE_COMPILED, Service, ServiceEntry, ServiceKey};

use super::apply::full;
use super::kernel::ANY;
use super::scope::{PeerCounts, Scope};
use super::{Applied, Datapath, DatapathError};
use crate::policy::{Desired, EndpointSet};

/// What the kernel holds.
#[derive(Debug, Default)]
pub struct Frontends {
    /// The values.
    values: BTreeMap<ServiceKey, Service>,
    /// How many entries have each peer class.
    peers: PeerCounts,
    /// The endpoints behind the peer classes that stand for many; of an earlier agent's they are not known.
    pub sets: BTreeMap<u32, Arc<EndpointSet>>,
}

impl Frontends {
    /// What an earlier agent left.
    pub fn new(values: BTreeMap<ServiceKey, Service>) -> Self {
        let mut peers = PeerCounts::default();
        values.values().flat_map(entries).for_each(|entry| peers.add(entry.peer));
        Self { values, peers, sets: BTreeMap::new() }
    }

    /// The frontends.
    pub const fn values(&self) -> &BTreeMap<ServiceKey, Service> {
        &self.values
    }

    /// Peer classes that packets can meet by way of a frontend.
    pub const fn peers(&self) -> &PeerCounts {
        &self.peers
    }

    /// A frontend was written, or removed; returns what it was.
    fn set(&mut self, key: ServiceKey, service: Option<Service>) -> Option<Service> {
        let before = match service {
            Some(service) => self.values.insert(key, service),
            None => self.values.remove(&key),
        };
        before.iter().flat_map(entries).for_each(|entry| self.peers.remove(entry.peer));
        service.iter().flat_map(entries).for_each(|entry| self.peers.add(entry.peer));
        before
    }
}

/// The entries that are used.
fn entries(service: &Service) -> &[ServiceEntry] {
    let count = if service.count == SERVICE_COMPILED { 1 } else { service.count as usize };
    service.entries.get(..count).unwrap_or(&service.entries)
}

/// The endpoints of a frontend; `None` if they are not known.
fn endpoints<'a>(
    service: &'a Service,
    sets: &'a BTreeMap<u32, Arc<EndpointSet>>,
) -> Option<&'a [ServiceEntry]> {
    if service.count != SERVICE_COMPILED {
        return Some(entries(service));
    }
    sets.get(&service.entries[0].peer).map(|set| set.entries.as_slice())
}

/// Whether a frontend's new endpoints may deny what the old ones allowed: one has come that nobody judges again. One
/// that leaves revokes nothing.
fn tightens(
    old: Option<(&Service, &BTreeMap<u32, Arc<EndpointSet>>)>,
    new: (&Service, &BTreeMap<u32, Arc<EndpointSet>>),
) -> bool {
    let old = match old {
        // Before, the flow was judged by what the address is without this frontend.
        None => return true,
        Some((service, sets)) => endpoints(service, sets),
    };
    let (Some(old), Some(new)) = (old, endpoints(new.0, new.1)) else { return true };
    let old: BTreeSet<&ServiceEntry> = old.iter().collect();
    new.iter().any(|entry| !entry.is_judged_again() && !old.contains(entry))
}

/// What became of the frontends.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Writes that cannot have turned an allow into a deny.
    pub harmless: usize,
    /// Those that found no room.
    missing: Vec<ServiceKey>,
}

impl Datapath {
    /// Writes new and changed frontends; the nodes' first: should room be short, they keep theirs.
    pub(super) fn write_services(
        &mut self,
        desired: &Desired,
        scope: &Scope,
        applied: &mut Applied,
    ) -> Result<Outcome, DatapathError> {
        let mut outcome = Outcome::default();
        let of_address = |key: &ServiceKey| key.address != Addr6::default();
        let wanted = scope.services.iter().filter_map(|key| desired.services.get_key_value(key));
        let mut changed: Vec<_> =
            wanted.filter(|(key, service)| self.services.values.get(key) != Some(service)).collect();
        changed.sort_by_key(|(key, _)| of_address(key));
        for (key, service) in changed {
            if self.maps.services.insert(key, service, ANY).is_err() {
                outcome.missing.push(*key);
                continue;
            }
            let old = self.services.set(*key, Some(*service));
            let old = old.as_ref().map(|old| (old, &self.services.sets));
            applied.writes += 1;
            outcome.harmless += usize::from(!tightens(old, (service, &desired.sets)));
        }
        if self.services.sets != desired.sets {
            self.services.sets.extend(desired.sets.iter().map(|(number, set)| (*number, Arc::clone(set))));
        }
        if !outcome.missing.is_empty() {
            // At once: their addresses become a service's next.
            self.note_missing(&outcome.missing, applied)?;
        }
        Ok(outcome)
    }

    /// Removes frontends that are gone, and gives their room to those that found none.
    pub(super) fn remove_services(
        &mut self,
        desired: &Desired,
        scope: &Scope,
        outcome: &mut Outcome,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        let missing: BTreeSet<ServiceKey> = std::mem::take(&mut outcome.missing).into_iter().collect();
        // What could not be replaced must not keep its old meaning.
        let gone = scope.services.iter().filter(|key| !desired.services.contains_key(key));
        for key in gone.chain(&missing) {
            if self.services.set(*key, None).is_some() {
                let _ = self.maps.services.remove(key);
                applied.writes += 1;
            }
        }
        for key in missing {
            let Some(service) = desired.services.get(&key) else { continue };
            match self.maps.services.insert(key, service, ANY) {
                Ok(()) => {
                    self.services.set(key, Some(*service));
                    applied.writes += 1;
                }
                Err(error) => {
                    applied.errors.push(full(&error, names::SERVICES, "--services-size"));
                    outcome.missing.push(key);
                }
            }
        }
        if self.services.sets != desired.sets {
            self.services.sets.clone_from(&desired.sets);
        }
        self.note_missing(&outcome.missing, applied)
    }

    fn note_missing(&mut self, missing: &[ServiceKey], applied: &mut Applied) -> Result<(), DatapathError> {
        let word = if missing.is_empty() {
            service_overflow::NONE
        } else if missing.iter().any(|key| key.address == Addr6::default()) {
            service_overflow::NODES
        } else {
            service_overflow::ADDRESSES
        };
        if self.config(config::SERVICES_OVERFLOW)? != word {
            self.set_config(config::SERVICES_OVERFLOW, word)?;
            applied.writes += 1;
        }
        Ok(())
    }
}
