//! Verdict events in the log: the first of a kind at once, the others of a window as a count, so that a flood of denials
//! is a line and not a flood of lines.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portcullis_common::event::Event;
use portcullis_common::{Direction, Reason, Verdict};
use tracing::{debug, info};

use crate::datapath::flow_ends;
use crate::policy::protocol_words;
use crate::state::State;

/// How long repetitions of a denial are only counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How many kinds of denials are told apart; the rest is logged at debug level only.
const KINDS: usize = 4096;

/// What makes two denials the same to a reader of the log. Not the port: a sweep over all of them is one line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    source: u32,
    destination: u32,
    protocol: u8,
    direction: u8,
    verdict: u8,
    reason: u8,
}

#[derive(Debug)]
struct Repeated {
    since: Instant,
    more: u64,
    line: String,
}

#[derive(Debug, Default)]
struct Inner {
    names: Arc<State>,
    kinds: HashMap<Kind, Repeated>,
}

/// The log of verdict events; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Denials {
    inner: Arc<Mutex<Inner>>,
}

impl Denials {
    /// An empty log.
    pub fn start() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What a panicking thread left is a cache of log lines.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names for the numbers in events.
    pub fn name(&self, names: Arc<State>) {
        self.inner().names = names;
    }

    /// Takes events.
    pub fn take(&self, events: &[Event]) {
        let mut inner = self.inner();
        for event in events {
            let line = describe(event, &inner.names);
            debug!("{line}");
            let known = inner.kinds.len();
            let kind = Kind {
                source: event.source_principal,
                destination: event.destination_principal,
                protocol: event.protocol,
                direction: event.direction,
                verdict: event.verdict,
                reason: event.reason,
            };
            match inner.kinds.get_mut(&kind) {
                Some(repeated) => repeated.more += 1,
                None if known < KINDS => {
                    info!("{line}");
                    inner.kinds.insert(kind, Repeated { since: Instant::now(), more: 0, line });
                }
                None => {}
            }
        }
    }

    /// Ends windows that are over: what was only counted is said.
    pub fn summarize(&self) {
        self.inner().kinds.retain(|_, repeated| {
            if repeated.since.elapsed() < WINDOW {
                return true;
            }
            if repeated.more > 0 {
                info!(more = repeated.more, "{}", repeated.line);
            }
            false
        });
    }
}

/// An event in words.
fn describe(event: &Event, names: &State) -> String {
    let party = |principal: u32, address: IpAddr| {
        let pod = names.pods.get(&address).map(|pod| format!(" {pod}")).unwrap_or_default();
        if principal == 0 {
            format!("{address}{pod}")
        } else {
            format!("{} {address}{pod}", names.principal(principal))
        }
    };
    let (source, destination) = flow_ends(event);
    let verdict = Verdict::from_number(event.verdict).map_or("?", Verdict::name);
    let direction = Direction::from_number(event.direction).map_or("?", Direction::name);
    let reason = Reason::from_number(event.reason).map_or("?", Reason::name);
    let rule = names.rules.get(&event.rule).map(|rule| format!(" by {rule}")).unwrap_or_default();
    format!(
        "{verdict} {direction} {}/{} from [{}] to [{}]: {reason}{rule}",
        protocol_words(event.protocol),
        destination.port(),
        party(event.source_principal, source.ip()),
        party(event.destination_principal, destination.ip()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::abi::Addr6;

    #[test]
    fn an_event_reads_with_names_where_they_are_known() {
        let mut names = State::default();
        names.principals.insert(16, "shop/api".to_owned());
        names.rules.insert(7, "IdentityPolicy shop/db ingress (isolation)".to_owned());
        names.pods.insert("10.0.0.2".parse().unwrap(), "shop/api-1".to_owned());
        let event = Event {
            rule: 7,
            source_principal: 16,
            destination_principal: 99,
            source: Addr6 { words_be: [u32::from_ne_bytes([10, 0, 0, 2]), 0, 0, 0] },
            destination: Addr6 { words_be: [u32::from_ne_bytes([10, 0, 0, 3]), 0, 0, 0] },
            destination_port: 5432,
            protocol: 6,
            family: 4,
            direction: Direction::Ingress as u8,
            verdict: Verdict::Deny as u8,
            reason: Reason::Policy as u8,
            ..Event::default()
        };
        let answer = Event {
            reply: 1,
            source: event.destination,
            destination: event.source,
            source_port: event.destination_port,
            destination_port: 40_000,
            ..event
        };
        for event in [event, answer] {
            assert_eq!(
                describe(&event, &names),
                "deny ingress tcp/5432 from [shop/api 10.0.0.2 shop/api-1] to [#99 10.0.0.3]: policy by IdentityPolicy \
                 shop/db ingress (isolation)"
            );
        }
    }

    #[test]
    fn repetitions_are_counted_and_not_kept_forever() {
        let denials = Denials::start();
        let event = |destination_port| Event { verdict: 1, family: 4, destination_port, ..Event::default() };
        denials.take(&[event(1), event(2)]);
        let inner = denials.inner();
        assert_eq!(inner.kinds.values().map(|r| r.more).collect::<Vec<_>>(), [1], "a sweep is one line");
    }
}
