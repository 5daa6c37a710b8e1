//! What a monitor gets: one JSON object a line. Fields and types of records are added, never renamed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use portcullis_common::event::Event;
use portcullis_common::policy::protocol;
use portcullis_common::{Direction, Reason, Verdict};
use serde::{Deserialize, Serialize};

use super::Clock;
use crate::datapath::flow_ends;
use crate::policy::{protocol_name, protocol_words};
use crate::state::{EndpointState, State};

/// Version of the records' form.
pub const FORMAT: u32 = 1;

/// A line of the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Record {
    /// Who speaks; the first line.
    Agent(Hello),
    /// A verdict.
    Event(Box<EventRecord>),
    /// Events that are not shown.
    Missed {
        /// How many.
        count: u64,
        /// Where they were lost.
        at: Lost,
    },
    /// What a newer agent says.
    #[serde(other)]
    Unknown,
}

impl Record {
    /// It as JSON.
    pub fn text(&self) -> String {
        // Numbers and texts alone: there is nothing that could not be told.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// It as a line of JSON.
    pub fn line(&self) -> Bytes {
        let mut line = self.text();
        line.push('\n');
        line.into()
    }
}

/// Where events are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lost {
    /// In the kernel: over `--event-rate`, or no room in the ring buffer.
    Kernel,
    /// On the way from the agent to this monitor, which reads too slowly.
    Queue,
}

/// Who sends the events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// One in how many allowed new flows becomes an event; `0`: none.
    pub sample: u32,
}

/// A verdict, with names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// RFC 3339, UTC.
    pub time: String,
    /// `allow`, `deny` or `audit`.
    pub verdict: String,
    /// The policy direction, seen from the pod that it is about.
    pub direction: String,
    /// Why.
    pub reason: String,
    /// The rule that decided, if one did.
    pub rule: Option<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or `protocol N`.
    pub protocol: String,
    /// Who opened the flow, or tried to.
    pub source: Party,
    /// To whom.
    pub destination: Party,
    /// Whether the packet itself went the other way: an answer that is denied.
    pub reply: bool,
    /// Bytes of the packet.
    pub length: u32,
    /// The host side of the pod at which it was judged.
    pub interface: Option<String>,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The principal, if the packet got so far.
    pub identity: Option<String>,
    /// `namespace/name` of the pod.
    pub pod: Option<String>,
    /// The address on the packet.
    pub address: IpAddr,
    /// The port, of protocols that have ports.
    pub port: Option<u16>,
    /// The service that the address and port stand for.
    pub service: Option<String>,
}

/// Names for the numbers in events.
#[derive(Clone, Debug, Default)]
pub struct Names {
    state: Arc<State>,
    /// Places in the state's list, by interface.
    endpoints: HashMap<u32, usize>,
}

impl Names {
    /// The names that a state has.
    pub fn new(state: Arc<State>) -> Self {
        let endpoints = state.endpoints.iter().enumerate().map(|(place, e)| (e.ifindex, place)).collect();
        Self { state, endpoints }
    }

    fn endpoint(&self, ifindex: u32) -> Option<&EndpointState> {
        self.state.endpoints.get(*self.endpoints.get(&ifindex)?)
    }

    /// An event in words.
    pub fn record(&self, event: &Event, clock: Clock) -> EventRecord {
        let local = self.endpoint(event.ifindex);
        let (source, destination) = flow_ends(event);
        let refused = event.source_principal == 0;
        // What a pod sends is its own, whatever address it claims.
        let sent_here = refused && event.direction == Direction::Egress as u8;
        let frontend = format!("{destination}/{}", protocol_name(event.protocol));
        EventRecord {
            time: clock.text(event.time_ns),
            verdict: Verdict::from_number(event.verdict).map_or("?", Verdict::name).to_owned(),
            direction: Direction::from_number(event.direction).map_or("?", Direction::name).to_owned(),
            reason: Reason::from_number(event.reason).map_or("?", Reason::name).to_owned(),
            rule: (event.rule != 0).then(|| {
                let name = self.state.rules.get(&event.rule).cloned();
                name.unwrap_or_else(|| format!("#{}", event.rule))
            }),
            protocol: protocol_words(event.protocol),
            source: self.party(event, event.source_principal, source, local, sent_here),
            destination: Party {
                service: self.state.services.get(&frontend).cloned(),
                ..self.party(event, event.destination_principal, destination, local, false)
            },
            reply: event.reply != 0,
            length: event.length,
            interface: local.map(|endpoint| endpoint.interface.clone()),
        }
    }

    /// `is_local`: it is the pod behind the interface, even if the address is not its own.
    fn party(
        &self,
        event: &Event,
        principal: u32,
        end: SocketAddr,
        local: Option<&EndpointState>,
        is_local: bool,
    ) -> Party {
        let (address, port) = (end.ip(), end.port());
        let here = local.filter(|endpoint| is_local || endpoint.addresses.contains(&address));
        let identity = match (principal, here) {
            (0, Some(endpoint)) => Some(endpoint.principal.clone()).filter(|name| !name.is_empty()),
            (0, None) => None,
            (number, _) => Some(self.state.principal(number)),
        };
        let pod = match here {
            Some(endpoint) => endpoint.pod.clone(),
            None => self.state.pods.get(&address).cloned(),
        };
        let has_ports = matches!(event.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        Party { identity, pod, address, port: has_ports.then_some(port), service: None }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use portcullis_common::abi::Addr6;

    fn words(last: u8) -> Addr6 {
        Addr6 { words_be: [u32::from_ne_bytes([10, 0, 0, last]), 0, 0, 0] }
    }

    /// The pods `shop/api-0` (10.0.0.2) and `shop/db-0` (10.0.0.3, behind `veth3`), and a service.
    pub fn names() -> Names {
        let mut state = State::default();
        state.principals.insert(16, "shop/api".to_owned());
        state.principals.insert(17, "shop/db".to_owned());
        state.rules.insert(7, "IdentityPolicy shop/db ingress (isolation)".to_owned());
        state.pods.insert("10.0.0.2".parse().unwrap(), "shop/api-0".to_owned());
        state.services.insert("10.96.0.9:5432/TCP".to_owned(), "shop/db:pg".to_owned());
        state.endpoints.push(EndpointState {
            ifindex: 3,
            interface: "veth3".to_owned(),
            pod: Some("shop/db-0".to_owned()),
            principal: "shop/db".to_owned(),
            addresses: vec!["10.0.0.3".parse().unwrap()],
            ..EndpointState::default()
        });
        Names::new(Arc::new(state))
    }

    /// The database does not let the API in.
    pub fn denied() -> Event {
        Event {
            time_ns: 62_500_000_000,
            ifindex: 3,
            rule: 7,
            source_principal: 16,
            destination_principal: 17,
            source: words(2),
            destination: words(3),
            source_port: 40_000,
            destination_port: 5432,
            length: 74,
            protocol: protocol::TCP,
            family: 4,
            direction: Direction::Ingress as u8,
            verdict: Verdict::Deny as u8,
            reason: Reason::Policy as u8,
            ..Event::default()
        }
    }

    pub fn named(event: &Event) -> EventRecord {
        names().record(event, Clock::ahead_by(1_764_097_200_000_000_000))
    }

    #[test]
    fn an_event_has_names_where_they_are_known_as_json() {
        let json = serde_json::to_string(&Record::Event(Box::new(named(&denied())))).unwrap();
        let wanted = concat!(
            r#"{"type":"event","time":"2025-11-25T19:01:02.500Z","verdict":"deny","direction":"ingress","#,
            r#""reason":"policy","rule":"IdentityPolicy shop/db ingress (isolation)","protocol":"tcp","#,
            r#""source":{"identity":"shop/api","pod":"shop/api-0","address":"10.0.0.2","port":40000,"service":null},"#,
            r#""destination":{"identity":"shop/db","pod":"shop/db-0","address":"10.0.0.3","port":5432,"service":null},"#,
            r#""reply":false,"length":74,"interface":"veth3"}"#,
        );
        assert_eq!(json, wanted);
        let back: Record = serde_json::from_str(&json).unwrap();
        assert_eq!(back, Record::Event(Box::new(named(&denied()))));
    }

    #[test]
    fn other_records_are_json_too_and_unknown_ones_are_passed_over() {
        let missed = Record::Missed { count: 3, at: Lost::Kernel };
        let json = serde_json::to_string(&missed).unwrap();
        assert_eq!(json, r#"{"type":"missed","count":3,"at":"kernel"}"#);
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), missed);
        let newer: Record = serde_json::from_str(r#"{"type":"weather","rain":true}"#).unwrap();
        assert_eq!(newer, Record::Unknown);
    }

    #[test]
    fn an_answer_that_is_denied_keeps_names_and_addresses_together() {
        let there = named(&denied());
        let wire = denied();
        let back = Event {
            reply: 1,
            source: wire.destination,
            destination: wire.source,
            source_port: wire.destination_port,
            destination_port: wire.source_port,
            ..wire
        };
        assert_eq!(named(&back), EventRecord { reply: true, ..there });
    }

    #[test]
    fn who_sends_under_a_false_address_is_named_and_the_address_is_not_believed() {
        let spoofed = Event {
            rule: 0,
            source_principal: 0,
            destination_principal: 0,
            // That of the other pod.
            source: words(2),
            destination: words(9),
            direction: Direction::Egress as u8,
            reason: Reason::SpoofedSource as u8,
            ..denied()
        };
        let record = named(&spoofed);
        let source = (record.source.identity.as_deref(), record.source.pod.as_deref());
        assert_eq!(source, (Some("shop/db"), Some("shop/db-0")));
        assert_eq!(record.source.address.to_string(), "10.0.0.2");
        assert_eq!((record.destination.identity, record.destination.pod, record.rule), (None, None, None));
    }

    #[test]
    fn services_and_numbers_without_a_name_are_shown() {
        let to_service = Event {
            destination: Addr6 { words_be: [u32::from_ne_bytes([10, 96, 0, 9]), 0, 0, 0] },
            destination_principal: 4,
            rule: 8,
            ..denied()
        };
        let record = named(&to_service);
        assert_eq!(record.destination.service.as_deref(), Some("shop/db:pg"));
        assert_eq!(
            (record.destination.identity.as_deref(), record.rule.as_deref()),
            (Some("world"), Some("#8"))
        );
        let ping = named(&Event { protocol: protocol::ICMP, ..denied() });
        assert_eq!((ping.protocol.as_str(), ping.destination.port), ("icmp", None));
        assert_eq!(named(&Event { protocol: 47, ..denied() }).protocol, "protocol 47");
    }
}
