//! The walk on the host: the same generic code as in the kernel, over maps in memory. What the loaded programs do is
//! compared with it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use portcullis_common::abi::{Addr6, Counters, Endpoint, Mode, PairKey, config};
use portcullis_common::bytes::Bytes;
use portcullis_common::cache::CachedVerdict;
use portcullis_common::event::Event;
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6, state};
use portcullis_common::judge::{Config, Family, Maps, Metadata, V4, V6};
use portcullis_common::packet::{
    ETHERNET, FragmentPart, Packet as _, Parsed, parse_ipv4, parse_ipv4_direct, parse_ipv6, parse_ipv6_direct,
};
use portcullis_common::policy::{PolicyMaps, PortStep, Row, RowKey};
use portcullis_common::process::{ARP_BYTES, Action, Datapath, FlowRef, Transit, Work, admit_arp, walk};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::{Direction, Identity, Reason, Verdict};

use crate::tables::Tables;

/// Slot of the one endpoint: that of interface 1.
pub const SLOT: u32 = 1;
/// Ticks of its clock a second.
pub const HZ: u32 = 1000;

/// Maps, flows and counters in memory, with one endpoint.
pub struct Host {
    /// Addresses, rows and services.
    pub tables: Tables,
    /// The endpoint; `None`: the interface has no entry.
    pub endpoint: Option<Endpoint>,
    /// What the agent writes to the endpoint as the revision in force.
    revision: u32,
    /// Jiffies.
    pub now: u64,
    words: [u32; config::WORDS as usize],
    flows4: RefCell<HashMap<FlowKey4, Entry>>,
    flows6: RefCell<HashMap<FlowKey6, Entry>>,
    verdicts4: RefCell<HashMap<usize, CachedVerdict<u32>>>,
    verdicts6: RefCell<HashMap<usize, CachedVerdict<Addr6>>>,
    /// After how many more looks whose a flow is another processor has put another's in its place, if one does.
    replaced_after: Rc<Cell<Option<u32>>>,
    /// New flows that are not answered yet, by direction.
    unanswered: [Cell<u32>; 2],
    pairs: RefCell<Vec<(PairKey, Counters)>>,
    drops: RefCell<HashMap<(Reason, Direction), u64>>,
    event: Cell<Option<Event>>,
}

/// An entry of a flow table.
#[derive(Clone)]
pub struct Entry(Rc<Cell<Flow>>, Rc<Cell<Option<u32>>>);

impl<K> FlowRef<K> for Entry {
    fn load(&self) -> Flow {
        self.0.get()
    }
    fn glance(&self) -> Flow {
        self.0.get()
    }
    fn is_still(&self, _: &K) -> bool {
        let left = self.1.get();
        self.1.set(left.map(|left| left.saturating_sub(1)));
        left != Some(0)
    }
    fn touch(&self, now: u64) {
        self.0.set(Flow { last_seen: now, ..self.0.get() });
    }
    fn advance(&self, state: u8, timeout: u32) {
        self.0.set(Flow { state, timeout, ..self.0.get() });
    }
}

impl Host {
    /// An enforcing datapath with these maps.
    pub fn new(tables: Tables, endpoint: Option<Endpoint>) -> Self {
        let mut words = [0; config::WORDS as usize];
        words[config::MODE as usize] = Mode::Enforce as u32;
        words[config::HZ as usize] = HZ;
        // Every allowed new flow is an event, so that its reason can be asked for.
        words[config::SAMPLE as usize] = 1;
        Self {
            tables,
            endpoint,
            revision: 1,
            now: 1_000_000,
            words,
            flows4: RefCell::default(),
            flows6: RefCell::default(),
            verdicts4: RefCell::default(),
            verdicts6: RefCell::default(),
            replaced_after: Rc::default(),
            unanswered: [const { Cell::new(0) }; 2],
            pairs: RefCell::default(),
            drops: RefCell::default(),
            event: Cell::default(),
        }
    }

    /// Sets a word of the configuration.
    pub fn set_word(&mut self, word: u32, value: u32) {
        self.words[word as usize] = value;
    }

    /// Another processor puts another's flow in the place of whatever is found, after so many more looks whose it is.
    pub fn replace_after(&self, looks: u32) {
        self.replaced_after.set(Some(looks));
    }

    /// Existing flows are judged again.
    pub fn raise_revision(&mut self) {
        self.revision += 1;
    }

    /// Forgets flows and fragments.
    pub fn forget(&self) {
        self.flows4.borrow_mut().clear();
        self.flows6.borrow_mut().clear();
        self.verdicts4.borrow_mut().clear();
        self.verdicts6.borrow_mut().clear();
    }

    /// Dropped packets of a reason and a direction.
    pub fn drops(&self, reason: Reason, direction: Direction) -> u64 {
        self.drops.borrow().get(&(reason, direction)).copied().unwrap_or(0)
    }

    /// Dropped packets.
    pub fn dropped(&self) -> u64 {
        self.drops.borrow().values().sum()
    }

    /// The pairs that were seen, with their counters.
    pub fn pairs(&self) -> Vec<(PairKey, Counters)> {
        self.pairs.borrow().clone()
    }

    /// The IPv4 flows.
    pub fn flows4(&self) -> Vec<(FlowKey4, Flow)> {
        flows(&self.flows4)
    }

    /// The IPv6 flows.
    pub fn flows6(&self) -> Vec<(FlowKey6, Flow)> {
        flows(&self.flows6)
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        self.flows4().len() + self.flows6().len()
    }

    /// The event of the last packet, if it made one.
    pub fn event(&self) -> Option<Event> {
        self.event.get()
    }

    /// Walks a frame through a hook; `true`: it passes.
    pub fn run(&self, hook: Direction, frame: &[u8], ingress_ifindex: u32) -> bool {
        self.run_bytes(hook, &Bytes::whole(frame), ingress_ifindex)
    }

    /// As [`Host::run`], of a packet that need not be linear. As the programs' entry points do it.
    pub fn run_bytes(&self, hook: Direction, packet: &Bytes<'_>, ingress_ifindex: u32) -> bool {
        self.event.set(None);
        let frame = packet.bytes;
        let Some(endpoint) = self.endpoint else { return self.refused(Reason::NoEndpoint, hook) };
        let endpoint = &Endpoint { revision: self.revision, ..endpoint };
        if hook == Direction::Egress && frame[6..12] != endpoint.mac {
            return self.refused(Reason::SpoofedSource, hook);
        }
        match [frame[12], frame[13]] {
            [0x08, 0x00] => {
                let parsed = parse_ipv4_direct(packet).map_or_else(|| parse_ipv4(packet), Ok);
                self.walk::<V4>(endpoint, parsed, hook, frame.len(), ingress_ifindex)
            }
            [0x86, 0xdd] => {
                let parsed = parse_ipv6_direct(packet).map_or_else(|| parse_ipv6(packet), Ok);
                self.walk::<V6>(endpoint, parsed, hook, frame.len(), ingress_ifindex)
            }
            [0x08, 0x06] if hook == Direction::Egress => {
                let arp = packet.load::<ARP_BYTES>(ETHERNET).ok_or(Reason::Truncated);
                match arp.and_then(|arp| admit_arp(self, endpoint, &arp)) {
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
        endpoint: &Endpoint,
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
        let length = u32::try_from(length).unwrap();
        let transit = Transit::<F> { packet, hook, slot: SLOT, length, metadata };
        walk(self, endpoint, &mut Work::new(transit)) == Action::Pass
    }

    /// What could not be parsed, or belongs to no endpoint, unless the mode lets everything pass.
    fn refused(&self, reason: Reason, direction: Direction) -> bool {
        let lenient = Mode::Audit as u32;
        if self.config(config::MODE) >= lenient || self.config(config::OVERRIDE) >= lenient {
            return true;
        }
        self.count_dropped(reason, direction);
        false
    }

    fn count_dropped(&self, reason: Reason, direction: Direction) {
        *self.drops.borrow_mut().entry((reason, direction)).or_default() += 1;
    }

    fn counted(&self, slot: u32, verdict: Verdict, bytes: u64, decision: bool) {
        let mut pairs = self.pairs.borrow_mut();
        let counters = &mut pairs[slot as usize].1;
        let verdict = verdict as usize;
        counters.packets[verdict] += 1;
        counters.bytes[verdict] += bytes;
        counters.decisions[verdict] += u64::from(decision);
    }

    /// Takes a new flow from the budget, all within one second.
    fn spent(&self, opener: Direction) -> bool {
        let (rate, unanswered) = (self.config(config::NEW_FLOW_RATE), &self.unanswered[opener as usize]);
        let left = rate == 0 || unanswered.get() < rate;
        unanswered.set(unanswered.get() + u32::from(left && rate != 0));
        left
    }

    fn slot(&self, pair: &PairKey) -> u32 {
        let mut pairs = self.pairs.borrow_mut();
        let found = pairs.iter().position(|(known, _)| known == pair);
        let slot = found.unwrap_or_else(|| {
            pairs.push((*pair, Counters::default()));
            pairs.len() - 1
        });
        u32::try_from(slot).unwrap()
    }
}

impl PolicyMaps for Host {
    fn rowset(&self, subject: u32) -> u32 {
        self.tables.rowset(subject)
    }
    fn row(&self, key: &RowKey) -> Option<Row> {
        self.tables.row(key)
    }
    fn step(&self, index: u32) -> Option<PortStep> {
        self.tables.step(index)
    }
}

impl Config for Host {
    fn config(&self, word: u32) -> u32 {
        self.words[word as usize]
    }
}

/// What is in a table without the fragments.
fn flows<K: Copy>(table: &RefCell<HashMap<K, Entry>>) -> Vec<(K, Flow)> {
    let all = table.borrow();
    let flows = all.iter().map(|(key, entry)| (*key, entry.0.get()));
    flows.filter(|(_, flow)| flow.state != state::FRAGMENT).collect()
}

macro_rules! datapath {
    ($family:ty, $address:ty, $key:ty, $flows:ident, $verdicts:ident, $wide:expr) => {
        impl Maps<$family> for Host {
            fn exact(&self, address: $address) -> Option<Identity> {
                self.tables.addresses.get(&$wide(address)).copied()
            }
            fn prefix(&self, address: $address) -> Option<Identity> {
                self.tables.prefix($wide(address))
            }
            fn service(&self, key: &ServiceKey, into: &mut Service) -> bool {
                self.tables.services.get(key).map(|service| *into = *service).is_some()
            }
            fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
                self.endpoint.as_ref().filter(|_| slot == SLOT)
            }
        }

        impl Datapath<$family> for Host {
            type Flow = Entry;
            fn now(&self) -> u64 {
                self.now
            }
            fn flow(&self, _: &Endpoint, _: u32, key: &$key) -> Option<Entry> {
                self.$flows.borrow().get(key).cloned()
            }
            fn insert(&self, _: &Endpoint, _: u32, key: &$key, flow: &Flow) -> bool {
                self.$flows
                    .borrow_mut()
                    .insert(*key, Entry(Rc::new(Cell::new(*flow)), self.replaced_after.clone()));
                true
            }
            fn cached_verdict(&self, place: usize) -> Option<CachedVerdict<$address>> {
                self.$verdicts.borrow().get(&place).copied()
            }
            fn cache_verdict(&self, place: usize, verdict: CachedVerdict<$address>) {
                self.$verdicts.borrow_mut().insert(place, verdict);
            }
            fn spend(&self, _: u32, opener: Direction, _: u64) -> bool {
                self.spent(opener)
            }
            fn refund(&self, _: u32, opener: Direction) {
                let unanswered = &self.unanswered[opener as usize];
                unanswered.set(unanswered.get().saturating_sub(1));
            }
            fn count(&self, slot: u32, verdict: Verdict, bytes: u64, decision: bool) {
                self.counted(slot, verdict, bytes, decision);
            }
            fn slot_of(&self, pair: &PairKey) -> u32 {
                self.slot(pair)
            }
            fn count_drop(&self, reason: Reason, direction: Direction) {
                self.count_dropped(reason, direction);
            }
            fn may_report(&self, _: u64) -> bool {
                true
            }
            fn report(&self, event: &Event) {
                self.event.set(Some(*event));
            }
            fn sampled(&self, _: u32) -> bool {
                true
            }
        }
    };
}

datapath!(V4, u32, FlowKey4, flows4, verdicts4, |address: u32| IpAddr::from(address.to_ne_bytes()));
datapath!(V6, Addr6, FlowKey6, flows6, verdicts6, |address: Addr6| IpAddr::from(address.to_bytes()));
