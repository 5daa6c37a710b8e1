//! A flow table: an array of entries that carry their keys.
//!
//! A key may lie in [`WINDOW`] places, which begin at its home. Who stores a flow where all of them are taken replaces the
//! one that would be absent first: what is half open or closing goes before what is open, whoever sends how many. The home
//! depends on a secret of the endpoint, so that nobody can choose keys that meet.
//!
//! Every processor reads and writes at any time. An entry's version is odd while one writes it, and another one whenever it
//! was written. A place that changes its owner has a key that no packet has meanwhile, so who has found a key, has read the
//! flow, and finds the key still there has read that key's flow. A flow that is stored again is written in place: who reads it
//! meanwhile sees old and new words of the same permitted flow.

use crate::abi::map_type;
use crate::flow::{Flow, FlowKey, FlowKey4, FlowKey6, state};

/// In how many places a key may lie.
pub const WINDOW: u32 = 8;

/// How often a place is chosen, because another processor was faster.
const ATTEMPTS: u32 = 2;

/// A value of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowEntry<K> {
    /// The flow.
    pub flow: Flow,
    /// Its key, written last.
    pub key: K,
}

map_type!(FlowEntry<FlowKey4>, 48, key = 32);
map_type!(FlowEntry<FlowKey6>, 72, key = 32);

impl<K> FlowEntry<K> {
    /// Whether a copy of it is whole: it was used, and nobody was writing it.
    pub const fn is_whole(&self) -> bool {
        self.flow.version != 0 && self.flow.version.is_multiple_of(2)
    }

    /// Whether a copy of it holds a flow, and no [fragment](crate::fragment).
    pub const fn is_flow(&self) -> bool {
        self.is_whole() && self.flow.state != state::FRAGMENT
    }
}

/// How many homes a table for so many flows has: with twice the places, few keys meet.
pub const fn homes(flows: u32) -> u32 {
    flows.saturating_mul(2)
}

/// How many entries a table for so many flows has: the windows of the last homes end there.
pub const fn entries(flows: u32) -> u32 {
    homes(flows).saturating_add(WINDOW - 1)
}

/// Where the window of a key begins.
#[inline(always)]
pub fn home<K: FlowKey>(key: &K, seed: u64, homes: u32) -> u32 {
    // Keys in a row, as of ports that are used one after the other, have hashes at equal distances: mixed, they have not.
    let hash = key.hash(seed);
    let mixed = (hash ^ hash >> 32).wrapping_mul(seed | 1);
    // The upper half, as a part of one, times the number of homes.
    (((mixed >> 32) * homes as u64) >> 32) as u32
}

/// A place of a table, which other processors read and write at any time.
pub trait Place<K> {
    /// The version of its entry: `0` if it was never used, odd while it is written.
    fn version(&self) -> u32;
    /// Whether the entry is of this key.
    fn holds(&self, key: &K) -> bool;
    /// After how many jiffies it would be absent; negative if it is already.
    fn left(&self, now: u64) -> i64;
    /// Makes the version odd, if it is still this even one. What is written after it is seen after it.
    fn claim(&self, version: u32) -> bool;
    /// Gives the entry a key that no packet has.
    fn vacate(&self);
    /// Writes the flow but for its version, and then the key.
    fn fill(&self, key: &K, flow: &Flow);
    /// Sets the version.
    fn release(&self, version: u32);
}

/// The place of a key.
#[inline(always)]
pub fn find<K, P: Place<K>>(key: &K, home: u32, place: impl Fn(u32) -> Option<P>) -> Option<P> {
    for step in 0..WINDOW {
        let place = place(home + step)?;
        if place.version() == 0 {
            return None;
        }
        if place.holds(key) {
            return Some(place);
        }
    }
    None
}

/// Stores a flow, in place of an older one of the key or of the one that would be absent first; `false` if other processors
/// had that place: none that would be absent later gives way for that.
///
/// Two that store the same key for the first time at the same moment may both be in the table then: the first one is found,
/// and the other one is absent in time.
#[inline(always)]
pub fn store<K, P: Place<K>>(key: &K, flow: &Flow, home: u32, place: impl Fn(u32) -> Option<P>) -> bool {
    for _ in 0..ATTEMPTS {
        let (step, version) = choose(key, flow, home, &place);
        if step == WINDOW {
            return false;
        }
        let Some(place) = place(home + step) else { return false };
        if version % 2 != 0 {
            if place.holds(key) {
                // Another processor is storing this very flow.
                return true;
            }
        } else if place.claim(version) {
            if !place.holds(key) {
                place.vacate();
            }
            place.fill(key, flow);
            // Never 0 again: behind a place that was never used nothing is looked for.
            let next = version.wrapping_add(2);
            place.release(if next == 0 { 2 } else { next });
            return true;
        }
    }
    false
}

/// The step from home to the place where a key is to be stored, and the version found there, which is odd if the place is being
/// written. [`WINDOW`] steps: there is no place. (No option: the compiler would read what is not there before it looks
/// whether it is, which the verifier does not allow.)
#[inline(always)]
fn choose<K, P: Place<K>>(key: &K, flow: &Flow, home: u32, place: &impl Fn(u32) -> Option<P>) -> (u32, u32) {
    let mut best = (WINDOW, 0);
    let mut least = flow.displaces();
    for step in 0..WINDOW {
        let Some(place) = place(home + step) else { return (WINDOW, 0) };
        let version = place.version();
        if version == 0 || place.holds(key) {
            return (step, version);
        }
        let left = place.left(flow.last_seen);
        if left < least {
            least = left;
            best = (step, version);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::cell::Cell;
    use std::vec::Vec;

    use super::*;

    /// The key that no packet has.
    const NOBODY: FlowKey4 = FlowKey4 { addresses: 0, rest: u64::MAX };

    type Entry = Cell<FlowEntry<FlowKey4>>;
    /// What another processor does as soon as a place was chosen, once.
    type Meanwhile = Cell<Option<fn(&Entry)>>;

    struct Table {
        places: Vec<Entry>,
        meanwhile: Meanwhile,
    }

    impl Table {
        fn new() -> Self {
            let places = (0..entries(4)).map(|_| Cell::default()).collect();
            Self { places, meanwhile: Cell::default() }
        }

        /// With flows in all places, of which the third is expired.
        fn full() -> Self {
            let table = Self::new();
            for number in 0..WINDOW {
                assert!(table.store(number, flow(if number == 2 { 10 } else { 1000 }, 60)));
            }
            table
        }

        fn at(&self, index: u32) -> Option<On<'_>> {
            self.places.get(index as usize).map(|place| On(place, &self.meanwhile))
        }

        fn store(&self, number: u32, flow: Flow) -> bool {
            store(&key(number), &flow, 0, |index| self.at(index))
        }

        fn find(&self, number: u32) -> Option<Flow> {
            find(&key(number), 0, |index| self.at(index)).map(|place| place.0.get().flow)
        }
    }

    struct On<'a>(&'a Entry, &'a Meanwhile);

    impl On<'_> {
        fn change(&self, change: impl Fn(&mut FlowEntry<FlowKey4>)) {
            let mut entry = self.0.get();
            change(&mut entry);
            self.0.set(entry);
        }
    }

    impl Place<FlowKey4> for On<'_> {
        fn version(&self) -> u32 {
            self.0.get().flow.version
        }
        fn holds(&self, key: &FlowKey4) -> bool {
            self.0.get().key == *key
        }
        fn left(&self, now: u64) -> i64 {
            let flow = self.0.get().flow;
            i64::from(flow.timeout) - now.wrapping_sub(flow.last_seen).cast_signed()
        }
        fn claim(&self, version: u32) -> bool {
            if let Some(meanwhile) = self.1.take() {
                meanwhile(self.0);
            }
            let free = self.version() == version;
            if free {
                self.release(version + 1);
            }
            free
        }
        fn vacate(&self) {
            self.change(|entry| entry.key = NOBODY);
        }
        fn fill(&self, key: &FlowKey4, flow: &Flow) {
            assert_eq!(self.version() % 2, 1, "written without a claim");
            assert!(self.holds(key) || self.holds(&NOBODY), "written under another's key");
            self.change(|entry| {
                *entry = FlowEntry { flow: Flow { version: entry.flow.version, ..*flow }, key: *key };
            });
        }
        fn release(&self, version: u32) {
            self.change(|entry| entry.flow.version = version);
        }
    }

    fn key(number: u32) -> FlowKey4 {
        FlowKey4::build(1, 2, (number as u16, 80), 6, 0)
    }

    fn flow(last_seen: u64, timeout: u32) -> Flow {
        Flow { last_seen, timeout, ..Flow::default() }
    }

    #[test]
    fn what_was_stored_is_found_and_stored_again_it_keeps_its_place() {
        let table = Table::new();
        for number in 0..WINDOW {
            assert!(table.find(number).is_none());
            assert!(table.store(number, flow(100, 60)));
        }
        assert!(table.store(3, flow(100, 99)));
        for number in 0..WINDOW {
            let timeout = if number == 3 { 99 } else { 60 };
            assert_eq!(table.find(number).map(|flow| flow.timeout), Some(timeout));
        }
        let used = |entry: &&Entry| entry.get().is_flow();
        assert_eq!(table.places.iter().filter(used).count(), WINDOW as usize);
    }

    #[test]
    fn who_would_be_absent_first_gives_way_and_what_is_open_outlasts_any_flood_of_what_is_not() {
        let table = Table::new();
        for number in 0..WINDOW {
            // Open ones, and one that is older than any that come.
            assert!(table.store(number, flow(100, if number == 5 { 3600 } else { 86_400 })));
        }
        for number in 100..200 {
            assert!(table.store(number, flow(200 + u64::from(number), 60)));
            assert!(table.find(number).is_some() && table.find(number - 1).is_none());
        }
        for number in (0..WINDOW).filter(|number| *number != 5) {
            assert!(table.find(number).is_some(), "{number}");
        }
        assert!(table.find(5).is_none());
    }

    #[test]
    fn a_fragment_takes_the_place_of_none_that_goes_on_and_gives_way_to_any_that_comes() {
        let fragment = |last_seen| Flow { last_seen, timeout: 10, state: state::FRAGMENT, ..Flow::default() };
        let table = Table::new();
        for number in 0..WINDOW {
            assert!(table.store(number, flow(100, if number == 5 { 11 } else { 60 })));
        }
        assert!(!table.store(50, fragment(100)), "all go on for longer");
        assert!(table.store(50, fragment(101)) && table.find(5).is_none(), "one that goes as soon as it");
        assert!(table.store(51, fragment(101)) && table.find(50).is_none(), "one of the same moment");
        assert!(table.store(6, fragment(101)), "its own place");
        assert!(
            table.store(70, flow(101, 20)) && table.find(51).is_none(),
            "the first of those that go first"
        );
        assert!(table.find(70).is_some());
    }

    #[test]
    fn an_expired_one_gives_way_before_a_living_one() {
        let table = Table::full();
        assert!(table.store(50, flow(1001, 60)));
        assert!(table.find(2).is_none() && table.find(50).is_some());
    }

    #[test]
    fn a_place_that_another_processor_took_meanwhile_is_left_to_it() {
        let table = Table::full();
        table.meanwhile.set(Some(|place| {
            let version = place.get().flow.version + 2;
            place.set(FlowEntry { flow: Flow { version, ..flow(1001, 60) }, key: key(77) });
        }));
        assert!(table.store(50, flow(1001, 60)));
        assert!(table.find(77).is_some() && table.find(50).is_some());
    }

    #[test]
    fn a_place_that_is_being_written_is_not_taken_nor_another_for_it_and_the_same_flow_counts_as_stored() {
        let table = Table::full();
        let busy = table.at(2).unwrap();
        let version = busy.version();
        assert!(busy.claim(version));
        assert!(!table.store(50, flow(1001, 60)));
        assert!((0..WINDOW).all(|number| table.find(number).is_some()), "all are as they were");
        assert!(table.store(2, flow(1001, 99)));
        assert_eq!(table.find(2).map(|flow| flow.timeout), Some(60), "by who writes it");
        busy.release(version + 2);
        assert!(table.store(50, flow(1001, 60)));
        assert!(table.find(2).is_none() && table.find(50).is_some());
    }

    #[test]
    fn a_version_is_never_again_that_of_a_place_that_was_never_used() {
        let table = Table::new();
        assert!(table.store(1, flow(1, 60)));
        let first = table.at(0).unwrap();
        first.release(u32::MAX - 1);
        assert!(table.store(1, flow(2, 60)));
        assert_eq!(first.version(), 2);
    }

    /// The most keys in eight homes: of 4096 keys in 8192 homes four on average.
    fn most(homes: &[u32]) -> u32 {
        let mut load = [0; 1024];
        for home in homes {
            load[*home as usize / 8] += 1;
        }
        load.into_iter().max().unwrap_or(0)
    }

    #[test]
    fn no_secret_lets_keys_in_a_row_meet() {
        for number in 1..500_u64 {
            let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let homes: Vec<u32> = (0..4096).map(|number| home(&key(number), seed, 8192)).collect();
            assert!(most(&homes) <= 20, "secret {seed:#x}: {} in eight homes", most(&homes));
        }
    }

    #[test]
    fn homes_are_spread_and_others_for_another_secret() {
        let at = |seed: u64| -> Vec<u32> { (0..4096).map(|number| home(&key(number), seed, 8192)).collect() };
        let (one, other) = (at(0x1234_5678_9abc_def1), at(0x0fed_cba9_8765_4321));
        assert!(one.iter().zip(&other).filter(|(a, b)| a == b).count() < 20);
        for homes in [&one, &other] {
            assert!(homes.iter().all(|home| *home < 8192));
            assert!(most(homes) <= 16);
        }
        assert_eq!(home(&key(1), 7, 0), 0);
    }

    #[test]
    fn homes_of_ipv6_peers_are_spread_whatever_bits_of_their_addresses_differ() {
        let address = |high: u32, low: u32| {
            crate::abi::Addr6::from_bytes({
                let mut bytes = [0xfd; 16];
                (bytes[7], bytes[15]) = (high as u8, low as u8);
                bytes
            })
        };
        let peers = (0..256).flat_map(|high| (0..256).map(move |low| (high, low)));
        let keys =
            peers.map(|(high, low)| FlowKey6::build(address(1, 1), address(high, low), (80, 80), 6, 0));
        let homes: std::collections::BTreeSet<u32> =
            keys.map(|key| home(&key, 0x1234_5678_9abc_def1, 8192)).collect();
        assert!(homes.len() > 8000, "{} of 8,192 homes", homes.len());
    }
}
