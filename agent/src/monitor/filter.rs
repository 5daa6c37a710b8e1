//! Which events a monitor shows. What is given several times fits if one of them does; different filters must all fit.

use std::str::FromStr;

use portcullis_common::Kind;

use super::{EventRecord, Party};
use crate::policy::{Port, protocol_words};

/// The events that are wanted; the empty filter wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Names of verdicts.
    pub verdicts: Vec<String>,
    /// Name of a direction.
    pub direction: Option<String>,
    /// Names of reasons.
    pub reasons: Vec<String>,
    /// Identities of either side.
    pub identities: Vec<Principal>,
    /// Identities of the source.
    pub from: Vec<Principal>,
    /// Identities of the destination.
    pub to: Vec<Principal>,
    /// Namespaces of either side.
    pub namespaces: Vec<String>,
    /// Ports of the destination.
    pub ports: Vec<PortFilter>,
}

impl Filter {
    /// Whether an event is wanted.
    pub fn matches(&self, event: &EventRecord) -> bool {
        let Self { verdicts, direction, reasons, identities, from, to, namespaces, ports } = self;
        let (source, destination) = (&event.source, &event.destination);
        let either = [source, destination];
        any(verdicts, |verdict| *verdict == event.verdict)
            && direction.as_ref().is_none_or(|direction| *direction == event.direction)
            && any(reasons, |reason| *reason == event.reason)
            && any(identities, |wanted| either.iter().any(|party| wanted.is(party)))
            && any(from, |wanted| wanted.is(source))
            && any(to, |wanted| wanted.is(destination))
            && any(namespaces, |wanted| either.iter().any(|party| is_of(party, wanted)))
            && any(ports, |wanted| wanted.fits(event))
    }
}

fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(fits)
}

fn is_of(party: &Party, namespace: &str) -> bool {
    let names = [&party.identity, &party.pod];
    names.into_iter().flatten().any(|name| name.split_once('/').is_some_and(|(of, _)| of == namespace))
}

/// A principal as people write it: `shop/api`, or a reserved one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal(String);

impl Principal {
    fn is(&self, party: &Party) -> bool {
        party.identity.as_ref() == Some(&self.0)
    }
}

/// A text that is no principal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write NAMESPACE/ACCOUNT, such as shop/api, or one of the reserved principals: host, node, world, unmanaged"
)]
pub struct BadPrincipal;

impl FromStr for Principal {
    type Err = BadPrincipal;

    fn from_str(text: &str) -> Result<Self, BadPrincipal> {
        let reserved = [Kind::Host, Kind::Node, Kind::World, Kind::Unmanaged];
        let good = match text.split_once('/') {
            Some((namespace, account)) => {
                !namespace.is_empty() && !account.is_empty() && !account.contains('/')
            }
            None => reserved.iter().any(|kind| kind.name() == text),
        };
        if good { Ok(Self(text.to_owned())) } else { Err(BadPrincipal) }
    }
}

/// A port with or without a protocol: `80`, `TCP/80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFilter {
    protocol: Option<String>,
    number: u16,
}

impl PortFilter {
    fn fits(&self, event: &EventRecord) -> bool {
        event.destination.port == Some(self.number)
            && self.protocol.as_ref().is_none_or(|protocol| *protocol == event.protocol)
    }
}

/// A text that is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a port from 1 to 65535, with or without a protocol (TCP, UDP or SCTP), such as 80 or TCP/80")]
pub struct BadPort;

impl FromStr for PortFilter {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        if text.contains('/') {
            let Port { protocol, number } = text.parse().map_err(|_| BadPort)?;
            return Ok(Self { protocol: Some(protocol_words(protocol)), number });
        }
        match text.parse() {
            Ok(number) if number != 0 => Ok(Self { protocol: None, number }),
            _ => Err(BadPort),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::record::tests::{denied, named};

    fn principals(names: &[&str]) -> Vec<Principal> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn ports(texts: &[&str]) -> Vec<PortFilter> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_filter_holds_and_all_must() {
        // shop/api 10.0.0.2:40000 -> shop/db 10.0.0.3:5432, denied for ingress by a policy.
        let event = named(&denied());
        let all = Filter::default;
        let own = |text: &str| text.to_owned();
        let cases = [
            (all(), true),
            (Filter { verdicts: vec![own("audit"), own("deny")], ..all() }, true),
            (Filter { verdicts: vec![own("audit")], ..all() }, false),
            (Filter { direction: Some(own("ingress")), ..all() }, true),
            (Filter { direction: Some(own("egress")), ..all() }, false),
            (Filter { reasons: vec![own("policy")], ..all() }, true),
            (Filter { reasons: vec![own("no-flow")], ..all() }, false),
            (Filter { identities: principals(&["shop/db"]), ..all() }, true),
            (Filter { identities: principals(&["shop/api"]), ..all() }, true),
            (Filter { identities: principals(&["shop/ap", "world"]), ..all() }, false),
            (Filter { from: principals(&["shop/api"]), to: principals(&["shop/db"]), ..all() }, true),
            (Filter { from: principals(&["shop/db"]), ..all() }, false),
            (Filter { to: principals(&["shop/api"]), ..all() }, false),
            (Filter { namespaces: vec![own("shop")], ..all() }, true),
            (Filter { namespaces: vec![own("sho")], ..all() }, false),
            (Filter { ports: ports(&["5432"]), ..all() }, true),
            (Filter { ports: ports(&["tcp/5432"]), ..all() }, true),
            (Filter { ports: ports(&["UDP/5432", "80"]), ..all() }, false),
            // The port of the source is a chance number.
            (Filter { ports: ports(&["40000"]), ..all() }, false),
            (Filter { ports: ports(&["5432"]), verdicts: vec![own("allow")], ..all() }, false),
        ];
        for (filter, wanted) in cases {
            assert_eq!(filter.matches(&event), wanted, "{filter:?}");
        }
    }

    #[test]
    fn a_pod_without_an_identity_still_has_a_namespace() {
        let mut event = named(&denied());
        event.source.identity = None;
        event.destination = event.source.clone();
        assert!(Filter { namespaces: vec!["shop".to_owned()], ..Filter::default() }.matches(&event));
    }

    #[test]
    fn what_is_no_principal_and_no_port_is_refused() {
        for text in ["host", "node", "world", "unmanaged", "shop/api"] {
            assert!(text.parse::<Principal>().is_ok(), "{text}");
        }
        for text in ["", "api", "pod", "/api", "shop/", "a/b/c"] {
            assert_eq!(text.parse::<Principal>(), Err(BadPrincipal), "{text}");
        }
        for text in ["", "0", "65536", "http", "ICMP/1", "TCP/", "/80", "TCP/80/1"] {
            assert_eq!(text.parse::<PortFilter>(), Err(BadPort), "{text}");
        }
    }
}
