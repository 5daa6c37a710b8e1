//! Packets that were dropped for want of a flow: conntrack is asked who opened their connection, and that is judged under the
//! policy of now. If it may go on, the retransmission finds its flow.
//!
//! Invariant: however many such packets are sent, and whatever they say, the work for them is bounded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use portcullis_common::event::Event;
use portcullis_common::packet::tcp;
use portcullis_common::policy::protocol;
use portcullis_common::{Direction, Reason};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::owner::Owner;
use crate::conntrack::{Client, Tuple};
use crate::datapath::packet_ends;

/// How often conntrack is asked in a second at most. Packets beyond are left to their retransmission.
const QUESTIONS_PER_SECOND: u32 = 500;
/// For how long the same is not asked again where the connection may not go on, or is not known.
const REFUSED: Duration = Duration::from_secs(5);
/// As [`REFUSED`], where it goes on: what was sent before its flow was there may still be on its way here. Shorter than it
/// takes TCP to send again, so that a flow that is lost once more is found at once.
const GRANTED: Duration = Duration::from_millis(100);
/// Packets that wait to be looked at.
const QUEUE: usize = 256;

/// A packet without a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lost {
    /// Interface of the endpoint.
    ifindex: u32,
    /// From the pod's side to the other, whichever way the packet went: that is how conntrack has one of the directions.
    packet: Tuple,
}

/// A queue from the events to [`Recall`].
pub fn queue() -> (mpsc::Sender<Lost>, mpsc::Receiver<Lost>) {
    mpsc::channel(QUEUE)
}

/// Takes the packets without a flow out of events. What finds no room is left to its retransmission.
pub fn take(events: &[Event], queue: &mpsc::Sender<Lost>) {
    for lost in events.iter().filter_map(lost) {
        let _ = queue.try_send(lost);
    }
}

fn lost(event: &Event) -> Option<Lost> {
    // A SYN with ACK answers what was refused, and a reset needs no flow any more.
    let goes_on = event.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::ACK;
    if event.reason != Reason::NoFlow as u8 || event.protocol != protocol::TCP || !goes_on {
        return None;
    }
    let (source, destination) = packet_ends(event);
    let (local, remote) = match Direction::from_number(event.direction)? {
        Direction::Egress => (source, destination),
        Direction::Ingress => (destination, source),
    };
    Some(Lost { ifindex: event.ifindex, packet: Tuple::new(local, remote)? })
}

/// What is remembered, and the socket.
#[derive(Debug, Default)]
pub struct Recall {
    client: Option<Client>,
    /// Until when something is not asked again.
    answered: HashMap<Lost, Instant>,
    second: Option<Instant>,
    asked: u32,
    /// A failure is said once.
    warned: bool,
}

impl Recall {
    /// Looks at a packet and at those that wait behind it.
    pub fn answer_all(&mut self, owner: &mut Owner, first: Lost, queue: &mut mpsc::Receiver<Lost>) {
        self.answer(owner, first);
        // No more than that at once: others wait for the owner, too.
        for lost in std::iter::from_fn(|| queue.try_recv().ok()).take(QUEUE) {
            self.answer(owner, lost);
        }
    }

    fn answer(&mut self, owner: &mut Owner, lost: Lost) {
        let now = Instant::now();
        if !self.may_ask(lost, now) {
            return;
        }
        let goes_on = self.judge(owner, lost);
        debug!(ifindex = lost.ifindex, from = %lost.packet.source, to = %lost.packet.destination, goes_on, "no flow");
        self.answered.insert(lost, now + if goes_on { GRANTED } else { REFUSED });
    }

    /// Policies have changed: what was refused may be allowed now.
    pub fn forget(&mut self) {
        self.answered.clear();
    }

    fn may_ask(&mut self, lost: Lost, now: Instant) -> bool {
        if self.second.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (self.second, self.asked) = (Some(now), 0);
            // No more of them live than can be asked in the time.
            self.answered.retain(|_, until| *until > now);
        }
        if self.asked >= QUESTIONS_PER_SECOND || self.answered.get(&lost).is_some_and(|until| *until > now) {
            return false;
        }
        self.asked += 1;
        true
    }

    fn judge(&mut self, owner: &mut Owner, lost: Lost) -> bool {
        let client = match self.client.take() {
            Some(client) => Ok(client),
            None => Client::open(),
        };
        let found = client.and_then(|mut client| {
            let found = client.find(lost.packet)?;
            // One that failed is not used again: half an answer may be left in it.
            self.client = Some(client);
            Ok(found)
        });
        match found {
            Ok(None) => false,
            Ok(Some(connection)) => match owner.recall(&connection, lost.ifindex, lost.packet) {
                Ok(goes_on) => goes_on,
                Err(error) => {
                    debug!(%error, "a connection without a flow was not judged");
                    false
                }
            },
            Err(error) => {
                if !error.is_absence() && !std::mem::replace(&mut self.warned, true) {
                    warn!(%error, "conntrack cannot be asked: connections that lose their flow are cut");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::Verdict;
    use portcullis_common::abi::Addr6;

    fn event(direction: Direction, flags: u8) -> Event {
        let word = |octets| Addr6 { words_be: [u32::from_ne_bytes(octets), 0, 0, 0] };
        Event {
            ifindex: 12,
            source: word([10, 0, 0, 2]),
            destination: word([10, 0, 0, 3]),
            source_port: 4000,
            destination_port: 80,
            protocol: protocol::TCP,
            family: 4,
            direction: direction as u8,
            verdict: Verdict::Deny as u8,
            reason: Reason::NoFlow as u8,
            tcp_flags: flags,
            ..Event::default()
        }
    }

    fn tuple(source: &str, destination: &str) -> Option<Tuple> {
        Tuple::new(source.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn the_tuple_asked_for_begins_at_the_pod_whichever_way_the_packet_went() {
        let asked = |direction| lost(&event(direction, tcp::ACK)).map(|lost| lost.packet);
        assert_eq!(asked(Direction::Egress), tuple("10.0.0.2:4000", "10.0.0.3:80"));
        assert_eq!(asked(Direction::Ingress), tuple("10.0.0.3:80", "10.0.0.2:4000"));
    }

    #[test]
    fn only_segments_of_a_connection_that_goes_on_are_asked_about() {
        let of = |change: fn(&mut Event)| {
            let mut event = event(Direction::Egress, tcp::ACK | tcp::FIN);
            change(&mut event);
            lost(&event).is_some()
        };
        assert!(of(|_| {}));
        assert!(!of(|e| e.tcp_flags = tcp::ACK | tcp::RST));
        assert!(!of(|e| e.tcp_flags = tcp::ACK | tcp::SYN));
        assert!(!of(|e| e.tcp_flags = 0));
        assert!(!of(|e| e.protocol = protocol::ICMP));
        assert!(!of(|e| e.reason = Reason::Policy as u8));
        assert!(!of(|e| e.direction = 9));
    }

    #[test]
    fn a_flood_is_asked_about_so_often_a_second_and_the_same_once_in_a_while() {
        let numbered = |port: u16| {
            let packet = tuple(&format!("10.0.0.2:{port}"), "10.0.0.3:80").unwrap();
            Lost { ifindex: 12, packet }
        };
        let start = Instant::now();
        let mut recall = Recall::default();
        let asked = (0..2000).filter(|port| recall.may_ask(numbered(*port), start)).count();
        assert_eq!(asked, 500);
        let later = start + Duration::from_secs(1);
        assert!(recall.may_ask(numbered(1), later));
        recall.answered.insert(numbered(1), later + REFUSED);
        assert!(!recall.may_ask(numbered(1), later + Duration::from_secs(4)));
        assert!(recall.may_ask(numbered(1), later + REFUSED));
        assert!(recall.answered.is_empty(), "what is over is not kept");
        recall.answered.insert(numbered(1), later + REFUSED * 3);
        recall.forget();
        assert!(recall.may_ask(numbered(1), later + REFUSED));
    }
}
