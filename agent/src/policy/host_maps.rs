//! The desired maps as the kernel would hold them, on the host: tests, `matrix` and `explain` ask them through the same
//! [`evaluate`] that runs in the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::abi::{Addr6, Endpoint, endpoint_flags};
use portcullis_common::flow::origin;
use portcullis_common::judge::{
    Config, Family, Maps, Question, V4, V6, identify, judge_flow, without_service,
};
use portcullis_common::policy::{Decision, PolicyMaps, PortKey, PortStep, Row, RowKey, evaluate};
use portcullis_common::service::{Service, ServiceKey};
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
    services: BTreeMap<ServiceKey, Service>,
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
            services: desired.services.clone(),
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
        self.exact(address).unwrap_or_else(|| self.prefix(address))
    }

    /// The exact entry of an address.
    pub fn exact(&self, address: IpAddr) -> Option<Identity> {
        self.ipcache.get(&address).copied()
    }

    /// The longest prefix of an address, else the outside.
    pub fn prefix(&self, address: IpAddr) -> Identity {
        let prefixes = self.lengths.iter().rev().filter_map(|&length| IpNet::new(address, length).ok());
        let mut found = prefixes.filter_map(|prefix| self.cidrs.get(&prefix.trunc()));
        found.next().copied().unwrap_or(Identity::WORLD)
    }

    /// A frontend of a service.
    pub fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    /// Who an address is as a source.
    pub fn source(&self, address: IpAddr) -> Identity {
        match address {
            IpAddr::V4(a) => {
                let address = u32::from_ne_bytes(a.octets());
                without_service::<V4, _>(self, address, identify::<V4, _>(self, address))
            }
            IpAddr::V6(a) => {
                let address = Addr6::from_bytes(a.octets());
                without_service::<V6, _>(self, address, identify::<V6, _>(self, address))
            }
        }
    }

    /// The verdict about a flow that a pod of a subject class opens, and the principal that it counts for: by way of a
    /// service where the address is a frontend.
    pub fn decide_egress(
        &self,
        subject: u32,
        remote: IpAddr,
        (protocol, port): (u8, u16),
    ) -> (Decision, u32) {
        match remote {
            IpAddr::V4(a) => self.opened::<V4>(subject, u32::from_ne_bytes(a.octets()), protocol, port),
            IpAddr::V6(a) => self.opened::<V6>(subject, Addr6::from_bytes(a.octets()), protocol, port),
        }
    }

    fn opened<F: Family>(&self, subject: u32, remote: F::Address, protocol: u8, port: u16) -> (Decision, u32)
    where
        Self: Maps<F>,
        F::Address: Default,
    {
        let endpoint = Endpoint { ifindex: 1, flags: endpoint_flags::KNOWN, subject, ..Endpoint::default() };
        let question = Question::<F> {
            local: F::Address::default(),
            remote,
            local_port: 0,
            remote_port: port,
            protocol,
            opener: Direction::Egress,
            origin: origin::ADDRESS,
        };
        let judgement = judge_flow(self, &endpoint, &question);
        (judgement.decision, judgement.destination)
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

impl Config for HostMaps {
    fn config(&self, _: u32) -> u32 {
        0
    }
}

macro_rules! maps {
    ($family:ty, $address:ty, $read:expr) => {
        impl Maps<$family> for HostMaps {
            fn exact(&self, address: $address) -> Option<Identity> {
                self.ipcache.get(&$read(address)).copied()
            }
            fn prefix(&self, address: $address) -> Option<Identity> {
                Some(HostMaps::prefix(self, $read(address)))
            }
            fn service(&self, key: &ServiceKey, into: &mut Service) -> bool {
                self.services.get(key).map(|service| *into = *service).is_some()
            }
            fn endpoint(&self, _: u32) -> Option<&Endpoint> {
                None
            }
        }
    };
}

maps!(V4, u32, |address: u32| IpAddr::from(address.to_ne_bytes()));
maps!(V6, Addr6, |address: Addr6| IpAddr::from(address.to_bytes()));
