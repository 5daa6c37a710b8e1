//! The allocator of stable numbers.
//!
//! A number is handed out for a definition and belongs to it until it is freed explicitly: the kernel, a pinned map or a
//! counter may hold it longer than the compiler needs it. Definitions are remembered by digest, so that numbers
//! survive a restart in a pinned map.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use portcullis_common::abi::{Digest, NumberKey, NumberSpace};
use portcullis_common::identity::{FIRST_PEER, FIRST_PRINCIPAL, FIRST_SUBJECT};
use sha2::{Digest as _, Sha256};

/// How many entries the kernel's array of subject classes has by default.
pub const DEFAULT_SUBJECTS: u32 = 4096;

/// The number that stands for "there was none left".
const NONE: u32 = 0;
/// Numbers from here on are wildcards of kinds, not classes.
const END: u32 = 0x8000_0000;

/// Hands out numbers: the same definition gets the same number, the lowest free one at first.
#[derive(Clone, Debug)]
pub struct Numbers {
    principals: Space,
    peers: Space,
    subjects: Space,
    rules: Space,
    /// What was handed out or given back since [`Self::take_changed`].
    changed: BTreeSet<NumberKey>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new(DEFAULT_SUBJECTS)
    }
}

impl Numbers {
    /// With nothing handed out yet. `subjects` is the size of the kernel's array of subject classes.
    pub fn new(subjects: u32) -> Self {
        Self {
            principals: Space::new(FIRST_PRINCIPAL, END),
            peers: Space::new(FIRST_PEER, END),
            subjects: Space::new(FIRST_SUBJECT, subjects),
            rules: Space::new(1, END),
            changed: BTreeSet::new(),
        }
    }

    /// Takes over what a pinned map holds. Which definition a digest belongs to shows only when that definition is
    /// asked for: then it gets this number. Until then the number is unused, and not given to anybody else.
    ///
    /// Entries outside their space (of a larger array, of a space that this version does not know) are left out.
    pub fn load(&mut self, entries: impl IntoIterator<Item = (NumberKey, Digest)>) {
        for (key, digest) in entries {
            if let Some(space) = self.space_of_key(key) {
                space.adopt(key.number, digest);
            }
        }
    }

    /// Every number that is not free, with the digest of its definition: what the pinned map shall hold.
    pub fn entries(&self) -> impl Iterator<Item = (NumberKey, Digest)> {
        self.spaces().into_iter().flat_map(|(id, space)| {
            space
                .taken
                .iter()
                .map(move |(&number, taken)| (NumberKey { space: id as u32, number }, taken.digest))
        })
    }

    /// Starts a compile from nothing: from here on every number counts as unused until it is asked for.
    pub fn begin(&mut self) {
        for space in [&mut self.principals, &mut self.peers, &mut self.subjects, &mut self.rules] {
            space.taken.values_mut().for_each(|taken| taken.uses = 0);
            space.unused = space.taken.keys().copied().collect();
        }
    }

    /// The number of a definition, with one more user; `0` when the space is full. No real number is `0`, and what
    /// carries it is denied.
    pub fn number(&mut self, space: NumberSpace, definition: &str) -> u32 {
        let (number, new) = self.space_mut(space).number(digest(definition));
        if new {
            self.changed.insert(NumberKey { space: space as u32, number });
        }
        number
    }

    /// Whether a new definition would get a number.
    pub fn has_room(&self, space: NumberSpace) -> bool {
        let found = self.spaces().into_iter().find(|(id, _)| *id == space);
        found.is_some_and(|(_, space)| space.taken.len() < (space.end - space.first) as usize)
    }

    /// One user less; `true` if that was the last one. The number stays taken until it is freed.
    pub fn release(&mut self, space: NumberSpace, number: u32) -> bool {
        self.space_mut(space).release(number)
    }

    /// The numbers that have no user. They stay taken until they are freed.
    pub fn unused(&self) -> impl Iterator<Item = NumberKey> {
        self.spaces().into_iter().flat_map(|(id, space)| {
            space.unused.iter().map(move |&number| NumberKey { space: id as u32, number })
        })
    }

    /// Gives a number back, once nothing can hold it any more. `false`: it is in use (again) or was free already, and
    /// nothing was done.
    pub fn free(&mut self, key: NumberKey) -> bool {
        let freed = self.space_of_key(key).is_some_and(|space| space.free(key.number));
        if freed {
            self.changed.insert(key);
        }
        freed
    }

    /// The numbers that were handed out (with their digest) or given back since the last call.
    pub fn take_changed(&mut self) -> Vec<(NumberKey, Option<Digest>)> {
        let changed = std::mem::take(&mut self.changed);
        let digest = |key: NumberKey| {
            let space = self.spaces().into_iter().find(|(id, _)| *id as u32 == key.space)?.1;
            space.taken.get(&key.number).map(|taken| taken.digest)
        };
        changed.into_iter().map(|key| (key, digest(key))).collect()
    }

    fn spaces(&self) -> [(NumberSpace, &Space); 4] {
        let Self { principals, peers, subjects, rules, changed: _ } = self;
        [
            (NumberSpace::Principal, principals),
            (NumberSpace::Peer, peers),
            (NumberSpace::Subject, subjects),
            (NumberSpace::Rule, rules),
        ]
    }

    fn space_mut(&mut self, space: NumberSpace) -> &mut Space {
        match space {
            NumberSpace::Principal => &mut self.principals,
            NumberSpace::Peer => &mut self.peers,
            NumberSpace::Subject => &mut self.subjects,
            NumberSpace::Rule => &mut self.rules,
        }
    }

    fn space_of_key(&mut self, key: NumberKey) -> Option<&mut Space> {
        let id = self.spaces().into_iter().map(|(id, _)| id).find(|id| *id as u32 == key.space)?;
        Some(self.space_mut(id))
    }
}

/// The first sixteen bytes of the SHA-256 of a definition.
fn digest(definition: &str) -> Digest {
    let mut digest = Digest::default();
    for (to, from) in digest.iter_mut().zip(Sha256::digest(definition.as_bytes())) {
        *to = from;
    }
    digest
}

#[derive(Clone, Debug)]
struct Taken {
    digest: Digest,
    uses: u32,
}

/// The numbers of one kind: `first..end`.
#[derive(Clone, Debug)]
struct Space {
    first: u32,
    end: u32,
    taken: BTreeMap<u32, Taken>,
    by_digest: HashMap<Digest, u32>,
    /// Those of the taken ones that have no user.
    unused: BTreeSet<u32>,
    /// No number below is free, so that a search need not start at `first`.
    lowest: u32,
}

impl Space {
    fn new(first: u32, end: u32) -> Self {
        Self {
            first,
            end,
            taken: BTreeMap::new(),
            by_digest: HashMap::new(),
            unused: BTreeSet::new(),
            lowest: first,
        }
    }

    fn adopt(&mut self, number: u32, digest: Digest) {
        if !(self.first..self.end).contains(&number) || self.taken.contains_key(&number) {
            return;
        }
        // A digest found twice keeps its first number; the other is still reserved, because somebody may hold it.
        self.by_digest.entry(digest).or_insert(number);
        self.taken.insert(number, Taken { digest, uses: 0 });
        self.unused.insert(number);
    }

    /// The number, and whether it was free before.
    fn number(&mut self, digest: Digest) -> (u32, bool) {
        if let Some(&number) = self.by_digest.get(&digest) {
            let taken = self.taken.entry(number).or_insert(Taken { digest, uses: 0 });
            taken.uses += 1;
            self.unused.remove(&number);
            return (number, false);
        }
        let Some(number) = self.lowest_free() else { return (NONE, false) };
        self.by_digest.insert(digest, number);
        self.taken.insert(number, Taken { digest, uses: 1 });
        (number, true)
    }

    fn release(&mut self, number: u32) -> bool {
        let Some(taken) = self.taken.get_mut(&number).filter(|taken| taken.uses > 0) else { return false };
        taken.uses -= 1;
        if taken.uses == 0 {
            self.unused.insert(number);
        }
        taken.uses == 0
    }

    fn lowest_free(&mut self) -> Option<u32> {
        for &taken in self.taken.range(self.lowest..).map(|(number, _)| number) {
            if taken != self.lowest {
                break;
            }
            self.lowest += 1;
        }
        (self.lowest < self.end).then_some(self.lowest)
    }

    fn free(&mut self, number: u32) -> bool {
        match self.taken.get(&number) {
            Some(taken) if taken.uses == 0 => {
                if self.by_digest.get(&taken.digest) == Some(&number) {
                    self.by_digest.remove(&taken.digest);
                }
                self.taken.remove(&number);
                self.unused.remove(&number);
                self.lowest = self.lowest.min(number);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NumberSpace::{Peer, Principal, Rule, Subject};

    fn key(space: NumberSpace, number: u32) -> NumberKey {
        NumberKey { space: space as u32, number }
    }

    #[test]
    fn a_definition_keeps_its_number_and_each_space_starts_at_its_own() {
        let mut numbers = Numbers::default();
        let first = [Principal, Peer, Subject, Rule].map(|space| numbers.number(space, "shop/api"));
        assert_eq!(first, [FIRST_PRINCIPAL, FIRST_PEER, FIRST_SUBJECT, 1]);
        assert_eq!(numbers.number(Principal, "shop/db"), FIRST_PRINCIPAL + 1);
        assert_eq!([Principal, Peer, Subject, Rule].map(|space| numbers.number(space, "shop/api")), first);
    }

    #[test]
    fn the_digest_is_the_first_half_of_sha256() {
        let wanted =
            [0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24];
        assert_eq!(digest(""), wanted);
    }

    #[test]
    fn a_retired_number_is_reused_only_after_it_was_freed() {
        let mut numbers = Numbers::default();
        let [a, b] = ["a", "b"].map(|d| numbers.number(Subject, d));
        numbers.begin();
        numbers.number(Subject, "b");
        assert_eq!(numbers.unused().collect::<Vec<_>>(), [key(Subject, a)]);
        assert_eq!(numbers.number(Subject, "c"), 3, "a's number may still be held by a program");
        assert!(numbers.free(key(Subject, a)));
        assert!(!numbers.free(key(Subject, a)), "free already");
        assert!(!numbers.free(key(Subject, b)), "in use");
        assert_eq!(numbers.number(Subject, "d"), a, "the lowest free number");
        assert_eq!(numbers.number(Subject, "e"), 4);
    }

    #[test]
    fn a_definition_that_comes_back_before_its_number_was_freed_keeps_it() {
        let mut numbers = Numbers::default();
        let a = numbers.number(Peer, "a");
        numbers.begin();
        assert_eq!(numbers.unused().count(), 1);
        assert_eq!(numbers.number(Peer, "a"), a);
        assert!(
            !numbers.free(key(Peer, a)),
            "a free that was decided before must not hit the returned definition"
        );
    }

    #[test]
    fn a_restart_adopts_what_matches_and_keeps_the_rest_reserved() {
        let mut before = Numbers::default();
        for definition in ["x", "a", "y", "b"] {
            before.number(Peer, definition);
        }
        let pinned: Vec<_> = before.entries().collect();
        let mut after = Numbers::default();
        after.load(pinned.clone());
        assert_eq!(after.entries().collect::<Vec<_>>(), pinned);
        after.begin();
        assert_eq!(after.number(Peer, "b"), FIRST_PEER + 3);
        assert_eq!(after.number(Peer, "a"), FIRST_PEER + 1);
        assert_eq!(
            after.number(Peer, "new"),
            FIRST_PEER + 4,
            "the numbers of x and y may still be in the maps"
        );
        let unused: Vec<_> = after.unused().collect();
        assert_eq!(unused, [key(Peer, FIRST_PEER), key(Peer, FIRST_PEER + 2)]);
    }

    #[test]
    fn loaded_entries_that_make_no_sense_are_left_out() {
        let mut numbers = Numbers::new(10);
        let d = digest("a");
        numbers.load([
            (key(Subject, 0), d),
            (key(Subject, 10), d),
            (key(Principal, FIRST_PRINCIPAL - 1), d),
            (NumberKey { space: 99, number: 20 }, d),
        ]);
        assert_eq!(numbers.entries().count(), 0);
        // The same definition under two numbers: both are reserved, one is used.
        numbers.load([(key(Subject, 2), d), (key(Subject, 1), d)]);
        assert_eq!(numbers.number(Subject, "a"), 2);
        assert_eq!(numbers.number(Subject, "b"), 3);
        assert!(numbers.free(key(Subject, 1)));
        assert_eq!(numbers.number(Subject, "a"), 2, "freeing the double did not forget the definition");
    }

    #[test]
    fn a_full_space_hands_out_nothing() {
        let mut numbers = Numbers::new(3);
        assert_eq!(["a", "b", "c", "a"].map(|d| numbers.number(Subject, d)), [1, 2, NONE, 1]);
        assert_eq!(numbers.entries().count(), 2);
    }
}
