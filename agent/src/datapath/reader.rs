//! The pinned maps as dumps, status and metrics see them: typed answers, no handles. Reads only, so it works beside a
//! running agent and after its death.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;

use aya::maps::MapInfo;
use aya::maps::lpm_trie::Key;
use aya::programs::links::{FdLink, PinnedLink};
use ipnet::IpNet;
use portcullis_common::abi::{Addr6, Counters, Digest, Endpoint, Mode, NumberKey, PairKey, config, names};
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6, state};
use portcullis_common::identity::Identity;
use portcullis_common::policy::{Decision, PortKey, PortStep, Row, RowKey};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::{Direction, Kind, Reason};

use super::inspect::{self, AnyKey, PairCounters, Usage};
use super::kernel::KernelMaps;
use super::{DatapathError, EventSource, HookState, Pins, attach, batch, probe};
use crate::policy::service_address;

/// The pinned maps, open for reading.
#[derive(Debug)]
pub struct Reader {
    pins: Pins,
    maps: KernelMaps,
}

/// An address or prefix and who is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    /// The prefix; of full length for an address.
    pub net: IpNet,
    /// Whether it is an exact address (of the ipcache) or a prefix, which only addresses without an entry meet.
    pub exact: bool,
    /// Who is behind it.
    pub identity: Identity,
}

/// Protocol and port keys from..=to and what is decided about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub from: PortKey,
    /// Last key.
    pub to: PortKey,
    /// The decision.
    pub decision: Decision,
}

/// A row in force: what a subject class may do with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRow {
    /// The subject class.
    pub subject: u32,
    /// As the subject sees it.
    pub direction: Direction,
    /// A peer class, or the wildcard of a kind.
    pub peer: u32,
    /// Every protocol and port, in order.
    pub ranges: Vec<KeyRange>,
}

/// What a scrape counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// How full each map is.
    pub usage: Vec<Usage>,
    /// Exact addresses by kind.
    pub identities: BTreeMap<Kind, u64>,
}

impl Reader {
    /// Opens the maps that an agent pinned, whatever sizes it gave them.
    ///
    /// # Errors
    /// If there are none, or they are not ours.
    pub fn open(bpffs: &Path) -> Result<Self, DatapathError> {
        Ok(Self { pins: Pins::new(bpffs), maps: inspect::open(bpffs)? })
    }

    /// The revision in force.
    pub fn revision(&self) -> Result<u32, DatapathError> {
        inspect::config_word(&self.maps, config::REVISION)
    }

    /// Kernel timer ticks a second, as the agent wrote them down.
    pub fn ticks_per_second(&self) -> Result<u32, DatapathError> {
        inspect::config_word(&self.maps, config::HZ)
    }

    /// Whether some address found no room, so that unknown addresses are denied.
    pub fn overflow(&self) -> Result<bool, DatapathError> {
        Ok(inspect::config_word(&self.maps, config::OVERFLOW)? != 0)
    }

    /// Whether some frontend of a service found no room, so that what may be one is denied.
    pub fn services_overflow(&self) -> Result<bool, DatapathError> {
        Ok(inspect::config_word(&self.maps, config::SERVICES_OVERFLOW)? != 0)
    }

    /// The mode that the agent set and the one that `portcullis mode` set.
    pub fn modes(&self) -> Result<(Option<Mode>, Option<Mode>), DatapathError> {
        inspect::modes(&self.maps)
    }

    /// Counters of every pair of principals.
    pub fn counters(&self) -> Result<Vec<PairCounters>, DatapathError> {
        inspect::pair_counters(&self.maps)
    }

    /// The counter slot of a pair; `None` if it was never seen.
    pub fn slot_of(&self, pair: &PairKey) -> Result<Option<u32>, DatapathError> {
        inspect::slot_of(&self.maps, pair)
    }

    /// The counters in a slot.
    pub fn slot_counters(&self, slot: u32) -> Result<Counters, DatapathError> {
        inspect::slot_counters(&self.maps, slot)
    }

    /// Which number means what: the digests of the definitions.
    pub fn numbers(&self) -> Result<BTreeMap<NumberKey, Digest>, DatapathError> {
        let mut found = BTreeMap::new();
        self.each(names::NUMBERS, &mut |key: NumberKey, digest: Digest| {
            found.insert(key, digest);
        })?;
        Ok(found)
    }

    /// Dropped packets by reason and direction, without zeros.
    pub fn drops(&self) -> Result<Vec<(Reason, Direction, u64)>, DatapathError> {
        inspect::drops(&self.maps)
    }

    /// Events that were not sent because their budget was used up.
    pub fn missed_events(&self) -> Result<u64, DatapathError> {
        inspect::missed_events(&self.maps)
    }

    /// The ring buffer of events, to be claimed: it has one reader.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn events(&self) -> Result<EventSource, DatapathError> {
        EventSource::open(&self.pins)
    }

    /// One in how many allowed new flows becomes an event; `0`: none.
    pub fn sample(&self) -> Result<u32, DatapathError> {
        inspect::config_word(&self.maps, config::SAMPLE)
    }

    /// Whether what was opened is still what is pinned; a cleanup takes it away.
    pub fn is_pinned(&self) -> bool {
        self.pins.map(names::EVENTS).exists()
    }

    /// The endpoints by slot.
    pub fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, DatapathError> {
        inspect::endpoints(&self.maps)
    }

    /// The flows of the endpoint in a slot.
    pub fn flows(&self, slot: u32) -> Result<Vec<(AnyKey, Flow)>, DatapathError> {
        inspect::flows(&self.pins, slot)
    }

    /// The interfaces with a TCP connection whose opener goes on as if it had been answered, while our programs saw no
    /// answer: it goes by a way past one of the hooks.
    ///
    /// # Errors
    /// If a map or the kernel's tick counter cannot be read.
    pub fn one_sided(&self) -> Result<BTreeSet<u32>, DatapathError> {
        let now =
            probe::jiffies().map_err(|error| DatapathError::System { call: "reading jiffies", error })?;
        let tells = |flow: &Flow| {
            #[expect(clippy::cast_possible_truncation, reason = "the low halves are compared, across a wrap")]
            let idle = now.wrapping_sub(flow.last_seen as u32);
            let alive = idle <= flow.timeout || idle > u32::MAX / 2;
            // Also of one that looks open again: its opener's last acknowledgement came after its FIN.
            alive && flow.state & state::UNHEARD != 0
        };
        let mut found = BTreeSet::new();
        for (slot, endpoint) in self.endpoints()? {
            let mut told = false;
            let pins = [self.pins.flow(slot, 4), self.pins.flow(slot, 6)];
            if !pins.iter().all(|pin| pin.exists()) {
                // The endpoint is coming or going.
                continue;
            }
            inspect::table(&self.pins, slot, 4, &mut |_: FlowKey4, flow| told |= tells(&flow))?;
            inspect::table(&self.pins, slot, 6, &mut |_: FlowKey6, flow| told |= tells(&flow))?;
            if told {
                found.insert(endpoint.ifindex);
            }
        }
        Ok(found)
    }

    /// Which pair a counter slot belongs to.
    pub fn pairs_by_slot(&self) -> Result<HashMap<u32, PairKey>, DatapathError> {
        let mut found = HashMap::new();
        self.each(names::SLOTS, &mut |pair: PairKey, slot: u32| {
            found.insert(slot, pair);
        })?;
        Ok(found)
    }

    fn each<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
        each: &mut dyn FnMut(K, V),
    ) -> Result<(), DatapathError> {
        batch::for_each(&self.pins.map(name), name, each)
    }

    /// Every address and prefix, sorted.
    pub fn addresses(&self) -> Result<Vec<AddressEntry>, DatapathError> {
        let mut found = Vec::new();
        let exact =
            |address: IpAddr, identity| AddressEntry { net: IpNet::from(address), exact: true, identity };
        self.each(names::IPCACHE4, &mut |a: u32, id| found.push(exact(IpAddr::from(a.to_ne_bytes()), id)))?;
        self.each(names::IPCACHE6, &mut |a: Addr6, id| found.push(exact(IpAddr::from(a.to_bytes()), id)))?;
        let mut prefix = |address: IpAddr, length: u32, identity| {
            let net = u8::try_from(length).ok().and_then(|length| IpNet::new(address, length).ok());
            found.extend(net.map(|net| AddressEntry { net, exact: false, identity }));
        };
        self.each(names::CIDRS4, &mut |key: Key<u32>, identity| {
            prefix(IpAddr::from(key.data().to_ne_bytes()), key.prefix_len(), identity);
        })?;
        self.each(names::CIDRS6, &mut |key: Key<Addr6>, identity| {
            prefix(IpAddr::from(key.data().to_bytes()), key.prefix_len(), identity);
        })?;
        found.sort_by_key(|entry| (!entry.exact, entry.net.addr().is_ipv6(), entry.net));
        Ok(found)
    }

    /// The frontends of services, sorted.
    pub fn services(&self) -> Result<Vec<(ServiceKey, Service)>, DatapathError> {
        let mut found = Vec::new();
        self.each(names::SERVICES, &mut |key: ServiceKey, service: Service| found.push((key, service)))?;
        found.sort_by_key(|(key, _)| (key.family, service_address(key), key.protocol, key.port));
        Ok(found)
    }

    /// The rows in force of every subject class, sorted.
    pub fn policies(&self) -> Result<Vec<PolicyRow>, DatapathError> {
        let mut subjects = HashMap::new();
        self.each(names::SUBJECTS, &mut |subject: u32, rowset: u32| {
            if rowset != 0 {
                subjects.insert(rowset, subject);
            }
        })?;
        let mut rows = Vec::new();
        self.each(names::ROWS, &mut |key: RowKey, row: Row| {
            if let Some(subject) = subjects.get(&key.rowset) {
                rows.push((*subject, key, row));
            }
        })?;
        let mut found = Vec::with_capacity(rows.len());
        for (subject, key, row) in rows {
            let direction = if key.direction == Direction::Egress as u32 {
                Direction::Egress
            } else {
                Direction::Ingress
            };
            found.push(PolicyRow { subject, direction, peer: key.peer, ranges: self.ranges(&row)? });
        }
        found.sort_by_key(|row| (row.subject, row.direction, row.peer & 0x8000_0000 != 0, row.peer));
        Ok(found)
    }

    fn ranges(&self, row: &Row) -> Result<Vec<KeyRange>, DatapathError> {
        let mut steps = vec![row.decision];
        if row.steps > 0 {
            steps.clear();
            for index in row.steps_at..row.steps_at.saturating_add(row.steps) {
                let step = self.maps.ports.get(&index, 0);
                steps.push(step.map_err(|error| DatapathError::map("read", names::PORTS, error))?);
            }
        }
        Ok(key_ranges(&steps))
    }

    /// Counts what the larger maps hold.
    pub fn census(&self) -> Result<Census, DatapathError> {
        let mut census = Census::default();
        let mut kinds = [0u64; 256];
        let mut count = |map: &'static str, entries: u64| {
            let capacity = MapInfo::from_pin(self.pins.map(map)).map(|info| u64::from(info.max_entries()));
            census.usage.push(Usage { map, entries, capacity: capacity.unwrap_or(0) });
        };
        let mut entries = 0;
        self.each(names::IPCACHE4, &mut |_: u32, id: Identity| {
            entries += 1;
            kinds[usize::from(id.kind)] += 1;
        })?;
        count(names::IPCACHE4, entries);
        entries = 0;
        self.each(names::IPCACHE6, &mut |_: Addr6, id: Identity| {
            entries += 1;
            kinds[usize::from(id.kind)] += 1;
        })?;
        count(names::IPCACHE6, entries);
        count(names::CIDRS4, self.count::<Key<u32>, Identity>(names::CIDRS4)?);
        count(names::CIDRS6, self.count::<Key<Addr6>, Identity>(names::CIDRS6)?);
        count(names::SERVICES, self.count::<ServiceKey, Service>(names::SERVICES)?);
        entries = 0;
        self.each(names::SUBJECTS, &mut |_: u32, rowset: u32| entries += u64::from(rowset != 0))?;
        count(names::SUBJECTS, entries);
        entries = 0;
        let mut tables = BTreeSet::new();
        self.each(names::ROWS, &mut |_: RowKey, row: Row| {
            entries += 1;
            if row.steps > 0 {
                tables.insert((row.steps_at, row.steps));
            }
        })?;
        count(names::ROWS, entries);
        // Tables do not overlap: they are shared whole.
        count(names::PORTS, tables.iter().map(|(_, steps)| u64::from(*steps)).sum());
        count(names::SLOTS, self.count::<PairKey, u32>(names::SLOTS)?);
        count(names::NUMBERS, self.count::<NumberKey, Digest>(names::NUMBERS)?);
        count(names::ENDPOINTS, self.endpoints()?.len() as u64);
        let known = Kind::ALL.into_iter().map(|kind| (kind, kinds[kind as usize]));
        census.identities = known.collect();
        Ok(census)
    }

    fn count<K: aya::Pod, V: aya::Pod>(&self, name: &'static str) -> Result<u64, DatapathError> {
        let mut entries = 0;
        self.each(name, &mut |_: K, _: V| entries += 1)?;
        Ok(entries)
    }

    /// What the hook of an interface looks like now, asked of the kernel. `None` where neither our filter nor a
    /// link of any interface is found: then only the agent knows what should be there.
    pub fn hook(&self, ifindex: u32, direction: Direction) -> Option<HookState> {
        match self.program(ifindex, direction) {
            Some((program, tcx)) => Some(attach::state(ifindex, direction, program, tcx)),
            None => (!Pins::list(&self.pins.links()).is_empty()).then_some(HookState::Missing),
        }
    }

    /// The programs that run before ours on the hook of an interface.
    pub fn before_ours(&self, ifindex: u32, direction: Direction) -> Vec<String> {
        let found = self.program(ifindex, direction);
        let before = found.and_then(|(program, tcx)| attach::before(ifindex, direction, program, tcx));
        before.unwrap_or_default().into_iter().map(attach::describe_program).collect()
    }

    /// Our program for the hook of an interface, and whether it is attached by TCX. A link that cannot be read has
    /// program `0`, which is on no hook.
    fn program(&self, ifindex: u32, direction: Direction) -> Option<(u32, bool)> {
        let pin = self.pins.link(ifindex, direction);
        if !pin.exists() {
            return Some((attach::find_filter(ifindex, direction).ok()??, false));
        }
        let link = PinnedLink::from_pin(&pin).ok();
        let info = link.and_then(|link| FdLink::from(link).info().ok());
        Some((info.map_or(0, |info| info.program_id()), true))
    }
}

/// The ranges of sorted steps, of which the first starts at the first key. The last one ends with the last key.
fn key_ranges(steps: &[PortStep]) -> Vec<KeyRange> {
    let ends = steps.iter().skip(1).map(|next| next.from()).chain([PortKey::END]);
    steps
        .iter()
        .zip(ends)
        .map(|(step, end)| KeyRange {
            from: PortKey(step.from()),
            to: PortKey(end.saturating_sub(1)),
            decision: step.decision(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::Verdict;

    #[test]
    fn steps_become_ranges_that_cover_every_key() {
        let allow = Decision { verdict: Verdict::Allow, reason: Reason::Policy, rule: 3 };
        let deny = Decision::new(Verdict::Deny, Reason::Policy);
        let constant = key_ranges(&[PortStep::new(PortKey::FIRST, allow)]);
        assert_eq!(constant, [KeyRange { from: PortKey::FIRST, to: PortKey::OTHER, decision: allow }]);
        let three = key_ranges(&[
            PortStep::new(PortKey::FIRST, deny),
            PortStep::new(PortKey::new(6, 80), allow),
            PortStep::new(PortKey::new(6, 81), deny),
        ]);
        let ends: Vec<_> = three.iter().map(|r| (r.from.0, r.to.0)).collect();
        assert_eq!(ends, [(0, 79), (80, 80), (81, PortKey::OTHER.0)]);
    }
}
