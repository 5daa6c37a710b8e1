//! What an apply has to look at: the elements that may differ from what the kernel holds.
//!
//! Invariant: whatever is not in the scope is in the kernel as it is desired.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::identity::Identity;
use portcullis_common::service::ServiceKey;

use super::rows::RowSets;
use super::services::Frontends;
use crate::policy::{Delta, Desired};

/// The elements.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Exact addresses.
    pub addresses: Vec<IpAddr>,
    /// Prefixes.
    pub prefixes: Vec<IpNet>,
    /// Frontends.
    pub services: Vec<ServiceKey>,
    /// Subject classes.
    pub subjects: BTreeSet<u32>,
}

impl Scope {
    /// What differs; everything is compared.
    pub fn between(addresses: &Addresses, frontends: &Frontends, rows: &RowSets, desired: &Desired) -> Self {
        let differs = |subject: &u32| {
            let held = rows.rows(*subject);
            let wanted = desired.subjects.get(subject);
            match (held, wanted) {
                (Some(held), Some(wanted)) => !Arc::ptr_eq(held, wanted) && held != wanted,
                _ => true,
            }
        };
        let wanted = desired.subjects.keys().copied();
        Self {
            addresses: differing(&addresses.exact, &desired.ipcache),
            prefixes: differing(&addresses.prefixes, &desired.cidrs),
            services: differing(frontends.values(), &desired.services),
            subjects: wanted.chain(rows.subjects()).filter(differs).collect(),
        }
    }

    /// What is known to differ.
    pub fn of(delta: &Delta, addresses: &Addresses, desired: &Desired) -> Self {
        Self {
            addresses: delta.addresses.iter().copied().collect(),
            prefixes: if delta.prefixes {
                differing(&addresses.prefixes, &desired.cidrs)
            } else {
                Vec::new()
            },
            services: delta.services.iter().copied().collect(),
            subjects: delta.subjects.clone(),
        }
    }
}

/// The keys under which two maps do not have the same.
fn differing<K: Ord + Copy, V: PartialEq>(held: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Vec<K> {
    let new = wanted.iter().filter(|(key, value)| held.get(key) != Some(value)).map(|(key, _)| *key);
    let gone = held.keys().filter(|key| !wanted.contains_key(key)).copied();
    new.chain(gone).collect()
}

/// How often something has each peer class.
#[derive(Clone, Debug, Default)]
pub struct PeerCounts(HashMap<u32, usize>);

impl PeerCounts {
    /// One more.
    pub fn add(&mut self, peer: u32) {
        *self.0.entry(peer).or_default() += 1;
    }

    /// One less.
    pub fn remove(&mut self, peer: u32) {
        if let Some(count) = self.0.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&peer);
            }
        }
    }

    /// How many there are.
    pub fn count(&self, peer: u32) -> usize {
        self.0.get(&peer).copied().unwrap_or_default()
    }
}

/// What the kernel holds of addresses and prefixes.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    exact: BTreeMap<IpAddr, Identity>,
    prefixes: BTreeMap<IpNet, Identity>,
    peers: PeerCounts,
}

impl Addresses {
    /// What was found.
    pub fn new(exact: BTreeMap<IpAddr, Identity>, prefixes: BTreeMap<IpNet, Identity>) -> Self {
        let mut peers = PeerCounts::default();
        exact.values().chain(prefixes.values()).for_each(|identity| peers.add(identity.peer));
        Self { exact, prefixes, peers }
    }

    /// Exact addresses.
    pub const fn exact(&self) -> &BTreeMap<IpAddr, Identity> {
        &self.exact
    }

    /// Prefixes.
    pub const fn prefixes(&self) -> &BTreeMap<IpNet, Identity> {
        &self.prefixes
    }

    /// How many have each peer class.
    pub const fn peers(&self) -> &PeerCounts {
        &self.peers
    }

    /// An address was written, or removed.
    pub fn set_exact(&mut self, address: IpAddr, identity: Option<Identity>) {
        let before = match identity {
            Some(identity) => self.exact.insert(address, identity),
            None => self.exact.remove(&address),
        };
        self.count(before, identity);
    }

    /// A prefix was written, or removed.
    pub fn set_prefix(&mut self, prefix: IpNet, identity: Option<Identity>) {
        let before = match identity {
            Some(identity) => self.prefixes.insert(prefix, identity),
            None => self.prefixes.remove(&prefix),
        };
        self.count(before, identity);
    }

    fn count(&mut self, before: Option<Identity>, now: Option<Identity>) {
        if let Some(identity) = before {
            self.peers.remove(identity.peer);
        }
        if let Some(identity) = now {
            self.peers.add(identity.peer);
        }
    }
}
