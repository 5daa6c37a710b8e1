//! The interfaces of this node's pods, as the kernel has them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_common::Direction;
use portcullis_common::abi::{Addr6, Endpoint, endpoint_flags};
use serde::Serialize;

use super::{Context, Part};
use crate::cli::names::Names;
use crate::cli::table::Table;
use crate::datapath::{HookState, Reader, sys};

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
struct Record {
    ifindex: u32,
    interface: String,
    /// `namespace/name`, if the pod is known.
    pod: Option<String>,
    principal: String,
    principal_number: u32,
    /// Addresses that the pod may send from.
    addresses: Vec<IpAddr>,
    /// Whether it may also forward packets of addresses outside of the cluster.
    routes: bool,
    subject: String,
    subject_number: u32,
    /// Whether the kernel knows the pod behind the interface.
    known: bool,
    /// By hook: `attached`, `not-first`, `missing` or `unknown`.
    hooks: BTreeMap<&'static str, String>,
    warning: Option<String>,
}

/// The addresses in an entry.
pub fn addresses(endpoint: &Endpoint) -> Vec<IpAddr> {
    let v4 = endpoint.addr4_be.into_iter().filter(|a| *a != 0).map(|a| IpAddr::from(a.to_ne_bytes()));
    let v6 =
        endpoint.addr6.into_iter().filter(|a| *a != Addr6::default()).map(|a| IpAddr::from(a.to_bytes()));
    v4.chain(v6).collect()
}

/// The hook of a direction, as people call it.
pub const fn hook_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "to-pod",
        Direction::Egress => "from-pod",
    }
}

/// The state of a hook: the kernel's answer, or what the agent wrote where only it can tell.
pub fn hook_state(reader: &Reader, names: &Names, ifindex: u32, direction: Direction) -> String {
    let text = match reader.hook(ifindex, direction) {
        Some(HookState::Attached) => "attached",
        Some(HookState::NotFirst) => "not-first",
        Some(HookState::Missing) => "missing",
        // Links are never all gone while they are used.
        None if names.state().attach == "tcx" => "missing",
        None => {
            let written = names.endpoint(ifindex).and_then(|e| e.hooks.get(hook_name(direction)));
            return written.cloned().unwrap_or_else(|| "unknown".to_owned());
        }
    };
    text.to_owned()
}

/// The name of an interface: what the kernel says, or what the agent wrote.
pub fn interface(names: &Names, ifindex: u32) -> String {
    let written = || names.endpoint(ifindex).map(|endpoint| endpoint.interface.clone());
    sys::interface_name(ifindex).or_else(written).unwrap_or_else(|| format!("#{ifindex}"))
}

/// The pod of an endpoint, by interface or by address.
pub fn pod(names: &Names, endpoint: &Endpoint) -> Option<String> {
    if endpoint.flags & endpoint_flags::KNOWN == 0 {
        return None;
    }
    let by_interface = names.endpoint(endpoint.ifindex).and_then(|e| e.pod.clone());
    by_interface.or_else(|| addresses(endpoint).into_iter().find_map(|a| names.pod(a).map(str::to_owned)))
}

fn record(context: &Context, endpoint: &Endpoint) -> Record {
    let Context { reader, names } = context;
    let ifindex = endpoint.ifindex;
    Record {
        ifindex,
        interface: interface(names, ifindex),
        pod: pod(names, endpoint),
        principal: names.principal(endpoint.principal),
        principal_number: endpoint.principal,
        addresses: addresses(endpoint),
        routes: endpoint.flags & endpoint_flags::ROUTES != 0,
        subject: names.subject(endpoint.subject),
        subject_number: endpoint.subject,
        known: endpoint.flags & endpoint_flags::KNOWN != 0,
        hooks: Direction::ALL
            .iter()
            .map(|&d| (hook_name(d), hook_state(reader, names, ifindex, d)))
            .collect(),
        warning: names.endpoint(ifindex).and_then(|e| e.warning.clone()),
    }
}

/// What the pod may send from, in one column.
fn sources(record: &Record) -> String {
    let mut sources: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
    sources.extend(record.routes.then(|| "and routes".to_owned()));
    sources.join(",")
}

/// Both hooks in a word if they agree.
fn hooks(hooks: &BTreeMap<&'static str, String>) -> String {
    let mut states = hooks.values();
    match (states.next(), states.next()) {
        (Some(one), Some(other)) if one == other => one.clone(),
        _ => hooks.iter().map(|(hook, state)| format!("{hook}={state}")).collect::<Vec<_>>().join(" "),
    }
}

pub(super) fn part(context: &Context) -> anyhow::Result<Part> {
    let mut endpoints = context.reader.endpoints()?;
    endpoints.sort_by_key(|(_, endpoint)| endpoint.ifindex);
    let records: Vec<Record> = endpoints.iter().map(|(_, endpoint)| record(context, endpoint)).collect();
    let header = ["IFINDEX", "INTERFACE", "POD", "PRINCIPAL", "ADDRESSES", "SUBJECT", "HOOKS"];
    let table = Table::of(&header, &records, |r| {
        vec![
            r.ifindex.to_string(),
            r.interface.clone(),
            r.pod.clone().unwrap_or_default(),
            r.principal.clone(),
            sources(r),
            r.subject.clone(),
            hooks(&r.hooks),
        ]
    });
    Ok(Part { name: "endpoints", tables: vec![table], json: serde_json::to_value(&records)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_one_word_where_they_agree() {
        let both = |a: &str, b: &str| BTreeMap::from([("to-pod", a.to_owned()), ("from-pod", b.to_owned())]);
        assert_eq!(hooks(&both("attached", "attached")), "attached");
        assert_eq!(hooks(&both("attached", "missing")), "from-pod=missing to-pod=attached");
    }

    #[test]
    fn unused_places_are_no_addresses() {
        let endpoint = Endpoint {
            addr4_be: [u32::from_ne_bytes([10, 0, 0, 1]), 0],
            addr6: [Addr6::from_bytes([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), Addr6::default()],
            ..Endpoint::default()
        };
        assert_eq!(addresses(&endpoint), ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}
