//! What maps say, with every number replaced by the digest of what it stands for: two agents that gave out different
//! numbers have equal pictures if, and only if, their maps mean the same.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use portcullis::datapath::Reader;
use portcullis::identity::Numbers;
use portcullis::policy::{Desired, service_address};
use portcullis_common::abi::{Digest, NumberKey, NumberSpace, endpoint_flags};
use portcullis_common::policy::{Decision, PortKey};
use portcullis_common::service::{SERVICE_COMPILED, Service, ServiceKey};
use portcullis_common::{Direction, Identity, Kind};

/// One line for each entry: what it is for, and what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    lines: BTreeMap<String, String>,
}

/// Digests by number.
struct Namer(BTreeMap<NumberKey, Digest>);

impl Namer {
    /// The name of a number: reserved ones and wildcards name themselves.
    fn name(&self, space: NumberSpace, number: u32) -> String {
        let key = NumberKey { space: space as u32, number };
        self.0.get(&key).map_or_else(
            || format!("#{number:x}"),
            |digest| format!("{:016x}", u128::from_be_bytes(*digest) >> 64),
        )
    }

    fn identity(&self, identity: &Identity) -> String {
        let Identity { principal, peer, subject, kind, flags, pad: _ } = *identity;
        format!(
            "principal {} peer {} subject {} kind {kind} flags {flags}",
            self.name(NumberSpace::Principal, principal),
            self.name(NumberSpace::Peer, peer),
            self.name(NumberSpace::Subject, subject)
        )
    }

    fn service(&self, service: &Service) -> String {
        let count = if service.count == SERVICE_COMPILED { 1 } else { service.count as usize };
        let entries: Vec<String> = service.entries[..count]
            .iter()
            .map(|entry| {
                let (principal, peer) = (entry.principal, entry.peer);
                format!(
                    "{}/{}:{} kind {} flags {}",
                    self.name(NumberSpace::Principal, principal),
                    self.name(NumberSpace::Peer, peer),
                    entry.port,
                    entry.kind,
                    entry.flags
                )
            })
            .collect();
        format!("{:x}: {}", service.count, entries.join(", "))
    }

    fn row<'a>(&self, steps: impl Iterator<Item = (PortKey, &'a Decision)>) -> String {
        let step = |(key, decision): (PortKey, &Decision)| {
            let Decision { verdict, reason, rule } = decision;
            format!("from {:x} {verdict} {reason} {}", key.0, self.name(NumberSpace::Rule, *rule))
        };
        steps.map(step).collect::<Vec<_>>().join(", ")
    }

    fn pod(&self, principal: u32, subject: u32) -> String {
        let (principal, subject) =
            (self.name(NumberSpace::Principal, principal), self.name(NumberSpace::Subject, subject));
        format!("principal {principal} subject {subject}")
    }
}

fn address_key(exact: bool, net: IpNet) -> String {
    format!("{} {net}", if exact { "address" } else { "prefix" })
}

fn service_line(key: &ServiceKey) -> String {
    let address = service_address(key);
    format!("frontend {address:?} port {} protocol {} family {:x}", key.port, key.protocol, key.family)
}

impl Picture {
    /// Of a compiled world, with the pods that are behind the interfaces of some places.
    pub fn of_desired(desired: &Desired, numbers: &Numbers, places: &[(u32, String)]) -> Self {
        let namer = Namer(numbers.entries().collect());
        let mut picture = Self::default();
        for (address, identity) in &desired.ipcache {
            picture.add(address_key(true, IpNet::from(*address)), namer.identity(identity));
        }
        for (net, identity) in &desired.cidrs {
            picture.add(address_key(false, *net), namer.identity(identity));
        }
        for (key, service) in &desired.services {
            picture.add(service_line(key), namer.service(service));
        }
        for (subject, rows) in &desired.subjects {
            for ((direction, peer), function) in rows.iter() {
                let steps = function.steps().iter().map(|(key, decision)| (*key, decision));
                picture.add_row(&namer, *subject, *direction, *peer, namer.row(steps));
            }
        }
        for (ifindex, uid) in places {
            let pod = desired.pods.get(uid).map(|pod| namer.pod(pod.principal, pod.subject));
            picture.add(format!("interface {ifindex}"), pod.unwrap_or_else(|| "unknown".to_owned()));
        }
        picture
    }

    /// Of the pinned maps in a folder.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn of_kernel(folder: &Path) -> Result<Self> {
        let reader = Reader::open(folder)?;
        let namer = Namer(reader.numbers()?);
        let mut picture = Self::default();
        for entry in reader.addresses()? {
            picture.add(address_key(entry.exact, entry.net), namer.identity(&entry.identity));
        }
        for (key, service) in reader.services()? {
            picture.add(service_line(&key), namer.service(&service));
        }
        for row in reader.policies()? {
            let steps = row.ranges.iter().map(|range| (range.from, &range.decision));
            picture.add_row(&namer, row.subject, row.direction, row.peer, namer.row(steps));
        }
        for (_, endpoint) in reader.endpoints()? {
            let known = endpoint.flags & endpoint_flags::KNOWN != 0;
            let pod = if known {
                namer.pod(endpoint.principal, endpoint.subject)
            } else {
                anyhow::ensure!(endpoint.principal == Kind::Unmanaged.principal(), "{endpoint:?}");
                "unknown".to_owned()
            };
            picture.add(format!("interface {}", endpoint.ifindex), pod);
        }
        Ok(picture)
    }

    fn add_row(&mut self, namer: &Namer, subject: u32, direction: Direction, peer: u32, says: String) {
        let subject = namer.name(NumberSpace::Subject, subject);
        self.add(format!("row of {subject}: {direction} {}", namer.name(NumberSpace::Peer, peer)), says);
    }

    fn add(&mut self, what: String, says: String) {
        self.lines.insert(what, says);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Fails with the first entries that differ.
    ///
    /// # Errors
    /// If any does.
    pub fn ensure_equal(&self, wanted: &Self) -> Result<()> {
        let mut told = Vec::new();
        for (what, says) in &self.lines {
            match wanted.lines.get(what) {
                Some(other) if other == says => {}
                Some(other) => told.push(format!("{what}\n  is     {says}\n  should {other}")),
                None => told.push(format!("{what}\n  is     {says}\n  should not be there")),
            }
        }
        let missing = wanted.lines.iter().filter(|(what, _)| !self.lines.contains_key(*what));
        told.extend(missing.map(|(what, says)| format!("{what}\n  is not there\n  should {says}")));
        let count = told.len();
        told.truncate(10);
        (count == 0).then_some(()).with_context(|| format!("{count} entries differ:\n{}", told.join("\n")))
    }
}
