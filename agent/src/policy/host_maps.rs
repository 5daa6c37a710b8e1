//! The desired maps as the kernel would hold them, on the host: tests, `matrix` and `explain` ask them through the same
//! [`evaluate`] that runs in the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::policy::{Decision, PolicyMaps, PortKey, PortStep, Row, RowKey, evaluate};
use portcullis_common::{Direction, Identity};

use super::desired::{Desired, Function};

/// Rows, steps and addresses. A subject class has the row set of its own number.
#[derive(Clone, Debug, Default)]
pub struct HostMaps {
    subjects: BTreeSet<u32>,
    rows: HashMap<RowKey, Row>,
    steps: Vec<PortStep>,
    ipcache: BTreeMap<IpAddr, Identity>,
    cidrs: BTreeMap<IpNet, Identity>,
    /// Prefix lengths that occur.
    lengths: BTreeSet<u8>,
}

impl HostMaps {
    /// Lowers the desired maps. Equal functions share their steps.
    pub fn new(desired: &Desired) -> Self {
        let mut maps = Self {
            subjects: desired.subjects.keys().copied().collect(),
            ipcache: desired.ipcache.clone(),
            cidrs: desired.cidrs.clone(),
            lengths: desired.cidrs.keys().map(IpNet::prefix_len).collect(),
            ..Self::default()
        };
        let mut lowered: HashMap<&Function, Row> = HashMap::new();
        for (&rowset, rows) in &desired.subjects {
            for (&(direction, peer), function) in rows.iter() {
                let row = *lowered.entry(function).or_insert_with(|| maps.lower(function));
                maps.rows.insert(RowKey { rowset, peer, direction: direction as u32 }, row);
            }
        }
        maps
    }

    fn lower(&mut self, function: &Function) -> Row {
        if let [(key, decision)] = function.steps() {
            return Row { steps_at: 0, steps: 0, decision: PortStep::new(*key, *decision) };
        }
        let index = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let row = Row {
            steps_at: index(self.steps.len()),
            steps: index(function.steps().len()),
            decision: PortStep::default(),
        };
        self.steps.extend(function.steps().iter().map(|(key, decision)| PortStep::new(*key, *decision)));
        row
    }

    /// Who is behind an address: the exact entry, else the longest prefix, else the outside.
    pub fn identity(&self, address: IpAddr) -> Identity {
        if let Some(identity) = self.ipcache.get(&address) {
            return *identity;
        }
        let prefixes = self.lengths.iter().rev().filter_map(|&length| IpNet::new(address, length).ok());
        let mut found = prefixes.filter_map(|prefix| self.cidrs.get(&prefix.trunc()));
        found.next().copied().unwrap_or(Identity::WORLD)
    }

    /// The verdict of a subject class about a peer's address.
    pub fn decide(&self, subject: u32, direction: Direction, peer: IpAddr, key: PortKey) -> Decision {
        let Identity { peer, kind, .. } = self.identity(peer);
        evaluate(self, subject, direction, peer, kind, key)
    }
}

impl PolicyMaps for HostMaps {
    fn rowset(&self, subject: u32) -> u32 {
        if self.subjects.contains(&subject) { subject } else { 0 }
    }

    fn row(&self, key: &RowKey) -> Option<Row> {
        self.rows.get(key).copied()
    }

    fn step(&self, index: u32) -> Option<PortStep> {
        self.steps.get(usize::try_from(index).ok()?).copied()
    }
}
