//! Conversations under way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use portcullis_common::Direction;
use portcullis_common::abi::PairKey;
use portcullis_common::flow::{Flow, FlowKey, state};
use portcullis_common::policy::protocol;
use serde::Serialize;

use super::{Context, Part, endpoints};
use crate::cli::output;
use crate::cli::table::Table;
use crate::datapath::inspect::{AnyKey, flow_verdict};
use crate::datapath::probe;

/// A flow.
#[derive(Clone, Debug, Serialize)]
struct Record {
    ifindex: u32,
    /// The pod, or the interface while the pod is unknown.
    endpoint: String,
    protocol: String,
    protocol_number: u8,
    local_address: IpAddr,
    /// The pod's port, or the id of an ICMP echo.
    local_port: u16,
    remote_address: IpAddr,
    remote_port: u16,
    /// `in`: opened by the other side; `out`: by the pod.
    opener: &'static str,
    verdict: &'static str,
    /// `new` (not answered), `open`, `closing` or `expired`.
    state: &'static str,
    /// Seconds since the last packet; written at most once a second.
    idle_seconds: Option<u64>,
    timeout_seconds: Option<u64>,
    /// `current`; `old`: judged again at its next packet; `override`: let pass only by `portcullis mode`.
    revision: &'static str,
    revision_number: u32,
    source_principal: Option<String>,
    destination_principal: Option<String>,
}

/// What turns a flow's numbers into words.
struct Lens {
    revision: u32,
    ticks_per_second: u64,
    /// Low half of the kernel's tick counter, if it could be had.
    now: Option<u32>,
    pairs: HashMap<u32, PairKey>,
}

impl Lens {
    fn idle_ticks(&self, flow: &Flow) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the low halves are compared, across a wrap")]
        let idle = self.now?.wrapping_sub(flow.last_seen as u32);
        // A flow touched after the clock was read.
        Some(if idle > u32::MAX / 2 { 0 } else { idle })
    }

    fn seconds(&self, ticks: u32) -> Option<u64> {
        u64::from(ticks).checked_div(self.ticks_per_second)
    }

    fn state(&self, flow: &Flow) -> &'static str {
        if self.idle_ticks(flow).is_some_and(|idle| idle > flow.timeout) {
            return "expired";
        }
        match flow.state & state::LIFE {
            state::NEW => "new",
            state::OPEN => "open",
            state::HALF_OPEN => "half-open",
            _ => "closing",
        }
    }

    const fn revision(&self, flow: &Flow) -> &'static str {
        match flow.revision {
            0 => "override",
            number if number == self.revision => "current",
            _ => "old",
        }
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        protocol::IGMP => "igmp".to_owned(),
        other => other.to_string(),
    }
}

/// Local and remote address, local and remote port, protocol.
fn parts(key: &impl FlowKey) -> (IpAddr, IpAddr, u16, u16, u8) {
    (key.local(), key.remote(), key.local_port(), key.remote_port(), key.protocol())
}

fn record(context: &Context, lens: &Lens, ifindex: u32, endpoint: &str, key: AnyKey, flow: &Flow) -> Record {
    let (local, remote, local_port, remote_port, number) = match key {
        AnyKey::V4(key) => parts(&key),
        AnyKey::V6(key) => parts(&key),
    };
    let pair = lens.pairs.get(&flow.slot);
    Record {
        ifindex,
        endpoint: endpoint.to_owned(),
        protocol: protocol_name(number),
        protocol_number: number,
        local_address: local,
        local_port,
        remote_address: remote,
        remote_port,
        opener: if flow.opener == Direction::Egress as u8 { "out" } else { "in" },
        verdict: flow_verdict(flow).name(),
        state: lens.state(flow),
        idle_seconds: lens.idle_ticks(flow).and_then(|ticks| lens.seconds(ticks)),
        timeout_seconds: lens.seconds(flow.timeout),
        revision: lens.revision(flow),
        revision_number: flow.revision,
        source_principal: pair.map(|pair| context.names.principal(pair.source)),
        destination_principal: pair.map(|pair| context.names.principal(pair.destination)),
    }
}

pub fn part(context: &Context) -> anyhow::Result<Part> {
    let Context { reader, names } = context;
    let now = probe::jiffies();
    if let Err(error) = &now {
        output::note(&format!(
            "idle times are not known: the kernel's tick counter cannot be read ({error})"
        ));
    }
    let lens = Lens {
        revision: reader.revision()?,
        ticks_per_second: u64::from(reader.ticks_per_second()?),
        now: now.ok(),
        pairs: reader.pairs_by_slot()?,
    };
    let mut records = Vec::new();
    for (slot, endpoint) in reader.endpoints()? {
        let ifindex = endpoint.ifindex;
        let name = endpoints::pod(names, &endpoint).unwrap_or_else(|| endpoints::interface(names, ifindex));
        match reader.flows(slot) {
            Ok(flows) => {
                records.extend(
                    flows.iter().map(|(key, flow)| record(context, &lens, ifindex, &name, *key, flow)),
                );
            }
            // An endpoint may go while it is read; the others still have flows.
            Err(error) => output::note(&format!("the flows of {name} are left out: {error}")),
        }
    }
    records.sort_by(|a, b| {
        let key =
            |r: &Record| (r.protocol_number, r.local_address, r.local_port, r.remote_address, r.remote_port);
        (&a.endpoint, key(a)).cmp(&(&b.endpoint, key(b)))
    });
    let header = [
        "ENDPOINT", "PROTOCOL", "LOCAL", "REMOTE", "OPENER", "VERDICT", "STATE", "IDLE", "TIMEOUT",
        "REVISION",
    ];
    let seconds = |value: Option<u64>| value.map_or_else(String::new, |seconds| format!("{seconds}s"));
    let table = Table::of(&header, &records, |r| {
        vec![
            r.endpoint.clone(),
            r.protocol.clone(),
            SocketAddr::new(r.local_address, r.local_port).to_string(),
            SocketAddr::new(r.remote_address, r.remote_port).to_string(),
            r.opener.to_owned(),
            r.verdict.to_owned(),
            r.state.to_owned(),
            seconds(r.idle_seconds),
            seconds(r.timeout_seconds),
            r.revision.to_owned(),
        ]
    });
    Ok(Part { name: "flows", tables: vec![table], json: serde_json::to_value(&records)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_counts_across_the_wrap_of_the_low_half_and_is_never_negative() {
        let lens = |now| Lens { revision: 7, ticks_per_second: 100, now, pairs: HashMap::new() };
        let flow =
            |last_seen| Flow { last_seen, timeout: 1000, revision: 7, state: state::OPEN, ..Flow::default() };
        let before_wrap = flow((5 << 32) + u64::from(u32::MAX) - 99);
        let after = lens(Some(200));
        assert_eq!(after.idle_ticks(&before_wrap), Some(300));
        assert_eq!(after.seconds(300), Some(3));
        assert_eq!(after.state(&before_wrap), "open");
        assert_eq!(lens(Some(2000)).state(&before_wrap), "expired");
        assert_eq!(after.idle_ticks(&flow(250)), Some(0), "touched after the clock was read");
        assert_eq!(lens(None).idle_ticks(&before_wrap), None);
        assert_eq!(after.revision(&before_wrap), "current");
        assert_eq!(after.revision(&Flow { revision: 6, ..before_wrap }), "old");
        assert_eq!(after.revision(&Flow { revision: 0, ..before_wrap }), "override");
    }
}
