//! Records as text for people: one line each, its columns at the same place in every line as far as names fit.

use std::net::SocketAddr;

use super::{EventRecord, Lost, Party};

/// Columns of a party; a longer one pushes the rest of its line to the right.
const PARTY: usize = 44;

/// An event as a line.
pub fn event_line(event: &EventRecord) -> String {
    let EventRecord {
        time,
        verdict,
        direction,
        reason,
        rule,
        protocol,
        source,
        destination,
        reply,
        length: _,
        interface: _,
    } = event;
    let (source, destination) = (party(source), party(destination));
    let rule = rule.as_ref().map(|rule| format!(": {rule}")).unwrap_or_default();
    let answer = if *reply { " (an answer)" } else { "" };
    format!(
        "{time} {verdict:<5} {direction:<7} {protocol:<6} {source:<PARTY$} -> {destination:<PARTY$} {reason}{rule}{answer}"
    )
}

/// What was missed, as a line.
pub fn missed_line(count: u64, at: Lost) -> String {
    let events = if count == 1 { "event" } else { "events" };
    let why = match at {
        Lost::Kernel => "more than the agent's --event-rate, or than the kernel's buffer holds",
        Lost::Queue => "this monitor reads too slowly",
    };
    format!("# missed {count} {events}: {why}")
}

fn party(party: &Party) -> String {
    let Party { identity, pod, address, port, service } = party;
    let identity = identity.as_ref().map(|name| format!("{name} ")).unwrap_or_default();
    let address =
        port.map_or_else(|| address.to_string(), |port| SocketAddr::new(*address, port).to_string());
    let of = match (service, pod) {
        (Some(service), _) => format!(" (service {service})"),
        (None, Some(pod)) => format!(" ({pod})"),
        (None, None) => String::new(),
    };
    format!("{identity}{address}{of}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::record::tests::{denied, named};
    use portcullis_common::abi::Addr6;
    use portcullis_common::event::Event;
    use portcullis_common::policy::protocol;
    use portcullis_common::{Direction, Reason, Verdict};

    #[test]
    fn lines_are_aligned_and_as_they_were() {
        let wire = denied();
        let v6 = |last| Addr6::from_bytes([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let audited = Event {
            family: 6,
            protocol: protocol::ICMPV6,
            source: v6(2),
            destination: v6(9),
            destination_principal: 4,
            direction: Direction::Egress as u8,
            verdict: Verdict::Audit as u8,
            ..wire
        };
        let no_flow = Event {
            source_principal: 0,
            destination_principal: 0,
            rule: 0,
            reason: Reason::NoFlow as u8,
            ..wire
        };
        let to_service = Event {
            destination: Addr6 { words_be: [u32::from_ne_bytes([10, 96, 0, 9]), 0, 0, 0] },
            destination_principal: 5,
            ..wire
        };
        let lines: Vec<String> =
            [wire, audited, no_flow, to_service].iter().map(|event| event_line(&named(event))).collect();
        let wanted = "\
2025-11-25T19:01:02.500Z deny  ingress tcp    shop/api 10.0.0.2:40000 (shop/api-0)         -> shop/db 10.0.0.3:5432 (shop/db-0)            policy: IdentityPolicy shop/db ingress (isolation)
2025-11-25T19:01:02.500Z audit egress  icmpv6 shop/api fd77::2                             -> world fd77::9                                policy: IdentityPolicy shop/db ingress (isolation)
2025-11-25T19:01:02.500Z deny  ingress tcp    10.0.0.2:40000 (shop/api-0)                  -> shop/db 10.0.0.3:5432 (shop/db-0)            no-flow
2025-11-25T19:01:02.500Z deny  ingress tcp    shop/api 10.0.0.2:40000 (shop/api-0)         -> unmanaged 10.96.0.9:5432 (service shop/db:pg) policy: IdentityPolicy shop/db ingress (isolation)";
        assert_eq!(lines.join("\n"), wanted);
    }

    #[test]
    fn what_was_missed_is_said_with_the_place() {
        assert_eq!(
            missed_line(1, Lost::Kernel),
            "# missed 1 event: more than the agent's --event-rate, or than the kernel's buffer holds"
        );
        assert_eq!(missed_line(37, Lost::Queue), "# missed 37 events: this monitor reads too slowly");
    }
}
