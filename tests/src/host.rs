//! The walk on the host: the same generic code as in the kernel, over maps in memory. What the loaded programs do is
//! compared with it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use portcullis::policy::{Desired, HostMaps};
use portcullis_common::abi::{Addr6, Endpoint, Fragment, FragmentKey, Mode, PairKey, config, endpoint_flags};
use portcullis_common::bytes::Bytes;
use portcullis_common::event::Event;
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};
use portcullis_common::judge::{Config, Family, Maps, Metadata, V4, V6};
use portcullis_common::packet::{
    ETHERNET, FragmentPart, Packet as _, Parsed, parse_ipv4, parse_ipv4_direct, parse_ipv6, parse_ipv6_direct,
};
use portcullis_common::policy::{PolicyMaps, PortStep, Row, RowKey};
use portcullis_common::process::{ARP_BYTES, Action, Datapath, FlowRef, Transit, Work, admit_arp, walk};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::{Direction, Identity, Reason, Verdict};

use crate::fixture::{API, SUBJECT};
use crate::packets::POD_MAC;

/// Slot of the one endpoint.
const SLOT: u32 = 1;

/// Maps, flows and counters in memory, with the fixture's endpoint.
pub struct Host {
    maps: HostMaps,
    endpoint: Endpoint,
    flows4: RefCell<HashMap<FlowKey4, Entry>>,
    flows6: RefCell<HashMap<FlowKey6, Entry>>,
    fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    drops: RefCell<HashMap<(Reason, Direction), u64>>,
}

/// An entry of a flow table.
#[derive(Clone)]
pub struct Entry(Rc<Cell<Flow>>);

impl FlowRef for Entry {
    fn load(&self) -> Flow {
        self.0.get()
    }
    fn glance(&self) -> Flow {
        self.0.get()
    }
    fn touch(&self, now: u64) {
        self.0.set(Flow { last_seen: now, ..self.0.get() });
    }
    fn advance(&self, state: u8, timeout: u32) {
        self.0.set(Flow { state, timeout, ..self.0.get() });
    }
}

impl Host {
    /// The desired maps, with the fixture's endpoint, enforced.
    pub fn new(desired: &Desired) -> Self {
        let mut endpoint = Endpoint {
            ifindex: 1,
            flags: endpoint_flags::KNOWN | endpoint_flags::CHECK_MAC,
            principal: API,
            subject: SUBJECT,
            mac: POD_MAC,
            ..Endpoint::default()
        };
        endpoint.addr4_be[0] = u32::from_ne_bytes(Ipv4Addr::new(10, 0, 0, 2).octets());
        endpoint.addr6[0] = Addr6::from_bytes(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
        Self {
            maps: HostMaps::new(desired),
            endpoint,
            flows4: RefCell::default(),
            flows6: RefCell::default(),
            fragments: RefCell::default(),
            drops: RefCell::default(),
        }
    }

    /// Dropped packets of a reason and a direction.
    pub fn drops(&self, reason: Reason, direction: Direction) -> u64 {
        self.drops.borrow().get(&(reason, direction)).copied().unwrap_or(0)
    }

    /// Walks a frame through a hook; `true`: it passes. As the programs' entry points do it.
    pub fn run(&self, hook: Direction, frame: &[u8], ingress_ifindex: u32) -> bool {
        let bytes = Bytes::whole(frame);
        if hook == Direction::Egress && frame[6..12] != self.endpoint.mac {
            return self.refused(Reason::SpoofedSource, hook);
        }
        match [frame[12], frame[13]] {
            [0x08, 0x00] => {
                let parsed = parse_ipv4_direct(&bytes).map_or_else(|| parse_ipv4(&bytes), Ok);
                self.walk::<V4>(parsed, hook, frame.len(), ingress_ifindex)
            }
            [0x86, 0xdd] => {
                let parsed = parse_ipv6_direct(&bytes).map_or_else(|| parse_ipv6(&bytes), Ok);
                self.walk::<V6>(parsed, hook, frame.len(), ingress_ifindex)
            }
            [0x08, 0x06] if hook == Direction::Egress => {
                let packet = bytes.load::<ARP_BYTES>(ETHERNET).ok_or(Reason::Truncated);
                match packet.and_then(|packet| admit_arp(self, &self.endpoint, &packet)) {
                    Ok(()) => true,
                    Err(reason) => self.refused(reason, hook),
                }
            }
            [0x08, 0x06] => true,
            _ => self.refused(Reason::UnknownEthertype, hook),
        }
    }

    fn walk<F: Family>(
        &self,
        parsed: Result<Parsed<F::Address>, Reason>,
        hook: Direction,
        length: usize,
        ingress_ifindex: u32,
    ) -> bool
    where
        Self: Datapath<F>,
    {
        let packet = match parsed {
            Ok(packet) => packet,
            Err(reason) => return self.refused(reason, hook),
        };
        let metadata = Metadata {
            ingress_ifindex,
            fragment: packet.fragment != FragmentPart::Whole,
            // The kernel's test run gives every packet a socket.
            has_socket: true,
            ..Metadata::default()
        };
        let length = u32::try_from(length).expect("a frame");
        let transit = Transit::<F> { packet, hook, slot: SLOT, length, metadata };
        walk(self, &self.endpoint, &mut Work::new(transit)) == Action::Pass
    }

    fn refused(&self, reason: Reason, direction: Direction) -> bool {
        *self.drops.borrow_mut().entry((reason, direction)).or_default() += 1;
        false
    }
}

impl PolicyMaps for Host {
    fn rowset(&self, subject: u32) -> u32 {
        self.maps.rowset(subject)
    }
    fn row(&self, key: &RowKey) -> Option<Row> {
        self.maps.row(key)
    }
    fn step(&self, index: u32) -> Option<PortStep> {
        self.maps.step(index)
    }
}

impl Config for Host {
    fn config(&self, word: u32) -> u32 {
        match word {
            config::REVISION => 1,
            config::MODE => Mode::Enforce as u32,
            config::HZ => 1000,
            _ => 0,
        }
    }
}

macro_rules! datapath {
    ($family:ty, $address:ty, $key:ty, $flows:ident, $wide:expr) => {
        impl Maps<$family> for Host {
            fn exact(&self, address: $address) -> Option<Identity> {
                self.maps.exact($wide(address))
            }
            fn prefix(&self, address: $address) -> Option<Identity> {
                Some(self.maps.prefix($wide(address)))
            }
            fn service(&self, key: &ServiceKey, into: &mut Service) -> bool {
                self.maps.service(key).map(|service| *into = service).is_some()
            }
            fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
                (slot == SLOT).then_some(&self.endpoint)
            }
        }

        impl Datapath<$family> for Host {
            type Flow = Entry;
            fn now(&self) -> u64 {
                1_000_000
            }
            fn flow(&self, _: u32, key: &$key) -> Option<Entry> {
                self.$flows.borrow().get(key).cloned()
            }
            fn insert(&self, _: u32, key: &$key, flow: &Flow) -> bool {
                self.$flows.borrow_mut().insert(*key, Entry(Rc::new(Cell::new(*flow))));
                true
            }
            fn spend(&self, _: u32, _: Direction, _: u64) -> bool {
                true
            }
            fn refund(&self, _: u32, _: Direction) {}
            fn count(&self, _: u32, _: Verdict, _: u64, _: bool) {}
            fn slot_of(&self, _: &PairKey) -> u32 {
                1
            }
            fn count_drop(&self, reason: Reason, direction: Direction) {
                self.refused(reason, direction);
            }
            fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
                self.fragments.borrow().get(key).copied()
            }
            fn remember(&self, key: &FragmentKey, fragment: &Fragment) {
                self.fragments.borrow_mut().insert(*key, *fragment);
            }
            fn may_report(&self, _: u64) -> bool {
                false
            }
            fn report(&self, _: &Event) {}
            fn sampled(&self, _: u32) -> bool {
                false
            }
        }
    };
}

datapath!(V4, u32, FlowKey4, flows4, |address: u32| IpAddr::from(address.to_ne_bytes()));
datapath!(V6, Addr6, FlowKey6, flows6, |address: Addr6| IpAddr::from(address.to_bytes()));
