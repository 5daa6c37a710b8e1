//! The ways in which the scripted server fails.

use std::collections::BTreeMap;

use super::Chance;
use super::store::Event;

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 429 with `Retry-After`.
    TooMany,
    /// 500.
    Broken,
    /// 503 in plain text, as from a proxy.
    Away,
    /// 404 in plain text, as from a proxy with nothing behind it.
    NotFound,
    /// The connection ends without an answer.
    Reset,
    /// The body ends in the middle of an object, with a broken connection.
    Cut,
    /// The body ends in the middle of an object as if it were complete.
    Short,
    /// The body comes a few bytes at a time.
    Slow,
    /// The body is no JSON.
    Garbage,
    /// 410 for the next page of a list, and for a watch.
    Gone,
    /// A watch: an ERROR event with code 410.
    GoneEvent,
    /// A watch: an ERROR event with code 500.
    ErrorEvent,
    /// A watch: it ends at once.
    Empty,
    /// A watch: events that were sent before are sent again.
    Again,
    /// A watch: events of different objects change places.
    Shuffled,
    /// A watch: that an object is gone is said only after another of its name was.
    LateDelete,
}

/// All of them.
pub const FAULTS: [Fault; 16] = [
    Fault::TooMany,
    Fault::Broken,
    Fault::Away,
    Fault::NotFound,
    Fault::Reset,
    Fault::Cut,
    Fault::Short,
    Fault::Slow,
    Fault::Garbage,
    Fault::Gone,
    Fault::GoneEvent,
    Fault::ErrorEvent,
    Fault::Empty,
    Fault::Again,
    Fault::Shuffled,
    Fault::LateDelete,
];

/// Brings events into another order that keeps that of each object; whether it is another.
pub fn shuffle(events: &mut Vec<Event>, chance: &mut Chance) -> bool {
    let before: Vec<u64> = events.iter().map(|event| event.version).collect();
    let mut queues: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in events.drain(..).rev() {
        queues.entry(event.key()).or_default().push(event);
    }
    while !queues.is_empty() {
        let keys: Vec<String> = queues.keys().cloned().collect();
        let key = chance.pick(&keys);
        match queues.get_mut(key).and_then(Vec::pop) {
            Some(event) => events.push(event),
            None => drop(queues.remove(key)),
        }
    }
    events.iter().map(|event| event.version).ne(before)
}

/// Puts the end of an object after the beginning of the next one of its name; whether there was such a pair.
pub fn delay_deletes(events: &mut [Event]) -> bool {
    let mut delayed = false;
    for at in 0..events.len() {
        let gone = &events[at];
        if gone.what != "DELETED" {
            continue;
        }
        let next = (at + 1..events.len()).find(|next| events[*next].key() == gone.key());
        if let Some(next) =
            next.filter(|next| events[*next].what == "ADDED" && events[*next].uid() != gone.uid())
        {
            events[at..=next].rotate_left(1);
            delayed = true;
        }
    }
    delayed
}
