//! Which endpoint is in which slot, with its flow tables.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;

use portcullis_common::abi::{
    Addr6, ENDPOINT_ADDRESSES, ENDPOINT_PROBES, ENDPOINT_SLOTS, Endpoint, endpoint_flags, names,
};
use portcullis_common::{Direction, Kind, Verdict};

use super::kernel::KernelMaps;
use super::{Applied, DatapathError, Pins, Sizes, attach, clsact, flows, sys};
use crate::policy::Desired;

/// An endpoint as the owner of the world wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Index of the host-side interface.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// MAC address of the pod's side; packets from the pod must carry it.
    pub mac: Option<[u8; 6]>,
    /// UID of the pod that it is bound to, if it is known.
    pub pod: Option<String>,
    /// The addresses found in the pod's namespace; they count only while the pod is unknown.
    pub addresses: Vec<IpAddr>,
    /// What an unknown pod gets.
    pub unknown: Verdict,
}

/// What is written for an interface.
#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    written: Endpoint,
    /// Whether its flow tables are there and of the size that is wanted now.
    tables: bool,
}

/// Slots in use.
#[derive(Debug)]
pub struct Slots {
    by_ifindex: BTreeMap<u32, Entry>,
    /// Interfaces that have programs and no slot: everything is dropped there. Also those of an earlier agent.
    without: BTreeSet<u32>,
    /// Interfaces whose flow tables this agent made.
    fresh: HashSet<u32>,
    /// What the flows of every endpoint must have to count as judged.
    revision: u32,
}

/// An entry that permits nothing, for a program that still looks at it while it is written or taken away.
fn nobody(ifindex: u32) -> Endpoint {
    Endpoint {
        ifindex,
        principal: Kind::Unmanaged.principal(),
        unknown_verdict: Verdict::Deny as u8,
        ..Endpoint::default()
    }
}

impl Slots {
    /// The slots of an earlier agent. An endpoint whose flow tables are gone or of another size keeps its slot and gets
    /// new ones when it is written next.
    pub fn adopt(
        maps: &KernelMaps,
        pins: &Pins,
        sizes: &Sizes,
        revision: u32,
    ) -> Result<Self, DatapathError> {
        let mut by_ifindex = BTreeMap::new();
        let mut without: BTreeSet<u32> = linked(&pins.links()).collect();
        for slot in 0..ENDPOINT_SLOTS {
            let written = maps
                .endpoints
                .get(&slot, 0)
                .map_err(|error| DatapathError::map("read", names::ENDPOINTS, error))?;
            if written.ifindex != 0 {
                without.remove(&written.ifindex);
                let tables = flows::present(pins, slot, &written, sizes.flows_size);
                by_ifindex.insert(written.ifindex, Entry { slot, written, tables });
            }
        }
        Ok(Self { by_ifindex, without, fresh: HashSet::new(), revision })
    }

    /// Lets no endpoint take its flows for judged that have another revision.
    ///
    /// # Errors
    /// If an endpoint cannot be written; it is written again at the next apply.
    pub fn revise(&mut self, maps: &mut KernelMaps, revision: u32) -> Result<(), DatapathError> {
        self.revision = revision;
        for entry in self.by_ifindex.values_mut() {
            let value = Endpoint { revision, ..entry.written };
            maps.endpoints
                .set(entry.slot, value, 0)
                .map_err(|error| DatapathError::map("write", names::ENDPOINTS, error))?;
            entry.written = value;
        }
        Ok(())
    }

    /// Writes the endpoints; returns the interfaces that are none any more.
    pub fn apply(
        &mut self,
        maps: &mut KernelMaps,
        pins: &Pins,
        sizes: &Sizes,
        desired: &Desired,
        wanted: &[EndpointSpec],
        applied: &mut Applied,
    ) -> Vec<u32> {
        let indexes: BTreeSet<u32> = wanted.iter().map(|spec| spec.ifindex).collect();
        let mut gone: Vec<u32> = self.by_ifindex.keys().filter(|i| !indexes.contains(i)).copied().collect();
        for ifindex in &gone {
            let Some(Entry { slot, .. }) = self.by_ifindex.get(ifindex).copied() else { continue };
            // The programs may still run there for a moment: without an entry they drop, and one that has just found
            // this entry finds nobody in it.
            match maps.endpoints.set(slot, nobody(0), 0) {
                Ok(()) => {
                    self.by_ifindex.remove(ifindex);
                    applied.writes += 1;
                }
                Err(error) => applied.errors.push(DatapathError::map("write", names::ENDPOINTS, error)),
            }
            if let Err(error) = flows::remove(pins, slot) {
                applied.errors.push(error);
            }
        }
        gone.extend(self.without.difference(&indexes));
        self.without.retain(|ifindex| indexes.contains(ifindex));
        for spec in wanted {
            if let Err(error) = self.write(maps, pins, sizes, desired, spec, applied) {
                applied.errors.push(error);
            }
            if self.by_ifindex.contains_key(&spec.ifindex) {
                self.without.remove(&spec.ifindex);
            } else {
                self.without.insert(spec.ifindex);
            }
        }
        gone
    }

    fn write(
        &mut self,
        maps: &mut KernelMaps,
        pins: &Pins,
        sizes: &Sizes,
        desired: &Desired,
        spec: &EndpointSpec,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        let mut value = Endpoint { revision: self.revision, ..value_of(spec, desired) };
        let known = self.by_ifindex.get(&spec.ifindex).copied();
        let with_tables = known.filter(|entry| entry.tables);
        if let Some(Entry { written, .. }) = with_tables {
            (value.flow_homes, value.flow_seed) = (written.flow_homes, written.flow_seed);
            if written == value {
                return Ok(());
            }
        } else {
            value = flows::keyed(value, sizes.flows_size);
        }
        let slot = match known {
            Some(entry) => entry.slot,
            None => self.free_slot(spec).ok_or_else(|| no_slot(spec))?,
        };
        if with_tables.is_none() {
            // New tables for a new endpoint: it starts with no flows of a former one.
            flows::create(maps, pins, slot, sizes.flows_size)?;
            self.fresh.insert(spec.ifindex);
        }
        if let Err(error) = maps.endpoints.set(slot, value, 0) {
            // What it had may be somebody else's by now.
            let Endpoint { flow_homes, flow_seed, .. } = value;
            let denying = Endpoint { flow_homes, flow_seed, ..nobody(spec.ifindex) };
            if maps.endpoints.set(slot, denying, 0).is_ok() {
                self.by_ifindex.insert(spec.ifindex, Entry { slot, written: denying, tables: true });
                applied.writes += 1;
            }
            return Err(DatapathError::map("write", names::ENDPOINTS, error));
        }
        self.by_ifindex.insert(spec.ifindex, Entry { slot, written: value, tables: true });
        applied.writes += 1;
        Ok(())
    }

    /// The endpoints as they are in the map.
    pub fn written(&self) -> impl Iterator<Item = &Endpoint> {
        self.by_ifindex.values().map(|entry| &entry.written)
    }

    /// The endpoint of an interface as it is in the map.
    pub fn of(&self, ifindex: u32) -> Option<&Endpoint> {
        self.by_ifindex.get(&ifindex).map(|entry| &entry.written)
    }

    /// The interfaces whose flow tables were made since the last call.
    pub fn take_fresh(&mut self) -> HashSet<u32> {
        std::mem::take(&mut self.fresh)
    }

    fn free_slot(&self, spec: &EndpointSpec) -> Option<u32> {
        let taken: BTreeSet<u32> = self.by_ifindex.values().map(|entry| entry.slot).collect();
        (0..ENDPOINT_PROBES)
            .map(|probe| spec.ifindex.wrapping_add(probe) % ENDPOINT_SLOTS)
            .find(|s| !taken.contains(s))
    }
}

fn no_slot(spec: &EndpointSpec) -> DatapathError {
    DatapathError::NoSlot { interface: spec.name.clone(), ifindex: spec.ifindex, probes: ENDPOINT_PROBES }
}

/// The interfaces of a folder of pinned links.
fn linked(folder: &Path) -> impl Iterator<Item = u32> {
    Pins::list(folder).into_iter().filter_map(|name| Some(link_of(&name)?.0))
}

/// The interface and direction in the name of a pinned link ([`Pins::link`]).
fn link_of(name: &str) -> Option<(u32, Direction)> {
    let (ifindex, direction) = name.split_once('-')?;
    let direction = *Direction::ALL.iter().find(|known| known.to_string() == direction)?;
    Some((ifindex.parse().ok()?, direction))
}

/// The map value of an endpoint.
fn value_of(spec: &EndpointSpec, desired: &Desired) -> Endpoint {
    let pod = spec.pod.as_ref().and_then(|uid| desired.pods.get(uid));
    // A pod that is not known may have taken an address: it speaks for none of the nodes and services.
    let may_be_its = |address: &&IpAddr| {
        let identity = desired.ipcache.get(*address);
        identity.is_none_or(|identity| {
            matches!(Kind::from_number(identity.kind), Some(Kind::Pod | Kind::Unmanaged))
        })
    };
    let seen = || spec.addresses.iter().filter(may_be_its).copied().collect();
    let addresses: Vec<IpAddr> = pod.map_or_else(seen, |pod| pod.addresses.clone());
    let mut value = Endpoint {
        ifindex: spec.ifindex,
        master: spec.master.unwrap_or(0),
        unknown_verdict: spec.unknown as u8,
        principal: Kind::Unmanaged.principal(),
        ..Endpoint::default()
    };
    if let Some(pod) = pod {
        value.flags |= endpoint_flags::KNOWN;
        value.principal = pod.principal;
        value.subject = pod.subject;
        value.flags |= if pod.routes { endpoint_flags::ROUTES } else { 0 };
    }
    if let Some(mac) = spec.mac {
        value.flags |= endpoint_flags::CHECK_MAC;
        value.mac = mac;
    }
    let (mut v4, mut v6) = (0, 0);
    for address in addresses {
        match address {
            IpAddr::V4(a) if v4 < ENDPOINT_ADDRESSES => {
                value.addr4_be[v4] = u32::from_ne_bytes(a.octets());
                v4 += 1;
            }
            IpAddr::V6(a) if v6 < ENDPOINT_ADDRESSES => {
                value.addr6[v6] = Addr6::from_bytes(a.octets());
                v6 += 1;
            }
            // More addresses than an entry holds: packets from them are dropped as spoofed, never let through.
            _ => {}
        }
    }
    value
}

/// Takes the programs off every interface of this network namespace: by the pinned links of all versions, and by looking
/// at every clsact qdisc, because no map need be readable for that. Returns the interfaces.
///
/// # Errors
/// Where something of ours is still attached, after everything else was taken off.
pub fn detach_all(pins: &Pins, versions: &[String]) -> Result<Vec<String>, DatapathError> {
    let mut detached = BTreeSet::new();
    let mut stuck = Vec::new();
    for version in versions {
        let folder = pins.root().join(version).join("links");
        for name in Pins::list(&folder) {
            let Some((ifindex, direction)) = link_of(&name) else { continue };
            match attach::unpin(&folder.join(&name), ifindex, direction) {
                Ok(()) => {
                    detached.insert(ifindex);
                }
                Err(error) => stuck.push(error.to_string()),
            }
        }
    }
    for (ifindex, direction) in filtered()? {
        match attach::remove_filter(ifindex, direction) {
            Ok(_) => {
                detached.insert(ifindex);
            }
            Err(error) => stuck.push(format!("{}: {error}", place(ifindex, direction))),
        }
    }
    // That the kernel said yes is not enough.
    let left = filtered()?.into_iter().map(|(ifindex, direction)| place(ifindex, direction));
    stuck
        .extend(left.filter(|place| !stuck.iter().any(|known| known.starts_with(place))).collect::<Vec<_>>());
    if !stuck.is_empty() {
        return Err(DatapathError::StillAttached(stuck.join("; ")));
    }
    Ok(detached.into_iter().map(interface).collect())
}

/// Where filters of ours are, in words: for who finds no pins.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn filters_in_words() -> Result<Vec<String>, DatapathError> {
    Ok(filtered()?.into_iter().map(|(ifindex, direction)| place(ifindex, direction)).collect())
}

/// The hooks that have a filter of ours.
fn filtered() -> Result<Vec<(u32, Direction)>, DatapathError> {
    let asked = |error| DatapathError::System { call: "asking the kernel for clsact filters", error };
    let mut found = Vec::new();
    for ifindex in clsact::interfaces().map_err(asked)? {
        for &direction in Direction::ALL {
            if attach::find_filter(ifindex, direction).map_err(asked)?.is_some() {
                found.push((ifindex, direction));
            }
        }
    }
    Ok(found)
}

fn interface(ifindex: u32) -> String {
    sys::interface_name(ifindex).unwrap_or_else(|| format!("interface {ifindex}"))
}

fn place(ifindex: u32, direction: Direction) -> String {
    format!("filter {} on {}", attach::program_name(direction), interface(ifindex))
}

#[cfg(test)]
mod tests {
    use portcullis_common::identity::Identity;

    use super::*;

    #[test]
    fn a_pod_that_is_not_known_speaks_for_no_node_and_no_service() {
        let mut desired = Desired::default();
        for (address, kind) in [
            ("10.0.0.1", Kind::Host),
            ("10.0.9.1", Kind::Node),
            ("10.96.0.1", Kind::Service),
            ("10.0.0.2", Kind::Pod),
        ] {
            desired.ipcache.insert(address.parse().unwrap(), Identity::new(1, 1, kind));
        }
        let speaks_for = |address: &str| {
            let spec = EndpointSpec {
                ifindex: 7,
                name: "veth7".to_owned(),
                master: None,
                mac: None,
                pod: None,
                addresses: vec![address.parse().unwrap()],
                unknown: Verdict::Deny,
            };
            value_of(&spec, &desired).addr4_be[0] != 0
        };
        for nobodys in ["10.0.0.1", "10.0.9.1", "10.96.0.1"] {
            assert!(!speaks_for(nobodys), "{nobodys}");
        }
        // Its own may be known before it is bound, and nobody may have it yet.
        assert!(speaks_for("10.0.0.2") && speaks_for("10.0.0.3"));
    }
}
