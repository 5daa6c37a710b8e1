//! The maps that a judgement reads, in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use portcullis_common::Identity;
use portcullis_common::policy::{Decision, PortKey, PortStep, Row, RowKey};
use portcullis_common::service::{Service, ServiceKey};

/// Addresses, prefixes, rows and services. A subject class has the row set of its own number.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Who has exactly an address.
    pub addresses: HashMap<IpAddr, Identity>,
    /// Frontends of services.
    pub services: BTreeMap<ServiceKey, Service>,
    prefixes: Vec<(IpAddr, u8, Identity)>,
    subjects: HashSet<u32>,
    rows: HashMap<RowKey, Row>,
    steps: Vec<PortStep>,
}

impl Tables {
    /// Adds a prefix.
    pub fn add_prefix(&mut self, address: IpAddr, length: u8, identity: Identity) {
        self.prefixes.push((address, length, identity));
        self.prefixes.sort_by_key(|(_, length, _)| std::cmp::Reverse(*length));
    }

    /// A subject class has rows from now on.
    pub fn add_subject(&mut self, subject: u32) {
        self.subjects.insert(subject);
    }

    /// Adds the row of a subject class about a peer: sorted steps, the first one from [`PortKey::FIRST`] on.
    pub fn add_row(&mut self, subject: u32, direction: u32, peer: u32, steps: &[(PortKey, Decision)]) {
        self.subjects.insert(subject);
        let index = |length: usize| u32::try_from(length).unwrap();
        let row = if let [(key, decision)] = steps {
            Row { steps_at: 0, steps: 0, decision: PortStep::new(*key, *decision) }
        } else {
            let steps_at = index(self.steps.len());
            self.steps.extend(steps.iter().map(|(key, decision)| PortStep::new(*key, *decision)));
            Row { steps_at, steps: index(steps.len()), decision: PortStep::default() }
        };
        self.rows.insert(RowKey { rowset: subject, peer, direction }, row);
    }

    pub(crate) fn rowset(&self, subject: u32) -> u32 {
        if self.subjects.contains(&subject) { subject } else { 0 }
    }

    pub(crate) fn row(&self, key: &RowKey) -> Option<Row> {
        self.rows.get(key).copied()
    }

    pub(crate) fn step(&self, index: u32) -> Option<PortStep> {
        self.steps.get(index as usize).copied()
    }

    /// Whose longest prefix has an address.
    pub fn prefix(&self, address: IpAddr) -> Option<Identity> {
        let wide = |address: &IpAddr| match address {
            IpAddr::V4(v4) => (4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (6, v6.to_bits()),
        };
        let (version, bits) = wide(&address);
        self.prefixes.iter().find_map(|(prefix, length, identity)| {
            let (of, wanted) = wide(prefix);
            let outside = (bits ^ wanted).checked_shr(128 - u32::from(*length)).unwrap_or(0);
            (of == version && outside == 0).then_some(*identity)
        })
    }
}
