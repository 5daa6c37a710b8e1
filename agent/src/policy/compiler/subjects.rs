//! The subject classes that need rows here: of this node's pods, and of other pods on whose egress a policy acts.
//!
//! Invariant: a class has rows exactly while an address has it; of a class that only pods elsewhere have they are for
//! egress alone.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_common::abi::NumberSpace;
use portcullis_common::{Direction, Verdict};

use super::super::classes::Reached;
use super::super::desired::{Desired, Problem, RowSet};
use super::super::linked::{Linked, PeerView};
use super::super::rows::{RowWriter, Sees, Writing};
use super::super::subjects::SubjectClass;
use super::delta::Delta;
use super::{Compiler, Record};
use crate::identity::Numbers;

/// Index of a class while an address has it.
pub type SubjectId = u32;

/// A class that some address has.
struct Subject {
    class: Arc<SubjectClass>,
    /// `0`: not yet, or there was none left.
    number: u32,
    /// Addresses of this node's pods that have it, and those of pods elsewhere.
    users: [u32; 2],
    /// Whether its rows are those of a class that a pod of this node has; `None`: it has none yet.
    written: Option<bool>,
    /// What its rules see, by direction.
    sees: [Sees; 2],
}

impl Subject {
    const fn is_local(&self) -> bool {
        self.users[0] > 0
    }

    const fn is_wanted(&self) -> bool {
        self.users[0] > 0 || self.users[1] > 0
    }
}

/// Every class that some address has.
#[derive(Default)]
pub struct Subjects {
    slots: Vec<Option<Subject>>,
    free: Vec<SubjectId>,
    index: HashMap<Arc<SubjectClass>, SubjectId>,
    touched: BTreeSet<SubjectId>,
    /// Those that found no number.
    starved: BTreeSet<SubjectId>,
    by_selector: HashMap<u32, BTreeSet<SubjectId>>,
    by_block: HashMap<u32, BTreeSet<SubjectId>>,
    by_port_name: HashMap<String, BTreeSet<SubjectId>>,
    /// Numbers of the rules, and how many subjects use each.
    rule_numbers: Vec<u32>,
    rule_users: Vec<u32>,
}

/// The directions in which a class has rows.
fn directions(local: bool) -> &'static [Direction] {
    if local { &[Direction::Ingress, Direction::Egress] } else { &[Direction::Egress] }
}

impl Subjects {
    /// The class of one more address.
    pub fn acquire(&mut self, class: SubjectClass, local: bool) -> SubjectId {
        let id = self.index.get(&class).copied().unwrap_or_else(|| {
            let id = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            });
            let class = Arc::new(class);
            self.index.insert(Arc::clone(&class), id);
            if let Some(slot) = self.slots.get_mut(id as usize) {
                *slot = Some(Subject {
                    class,
                    number: 0,
                    users: [0; 2],
                    written: None,
                    sees: Default::default(),
                });
            }
            id
        });
        self.count(id, local, |users| *users += 1);
        id
    }

    /// One address less.
    pub fn release(&mut self, id: SubjectId, local: bool) {
        self.count(id, local, |users| *users = users.saturating_sub(1));
    }

    fn count(&mut self, id: SubjectId, local: bool, change: impl Fn(&mut u32)) {
        if let Some(Some(subject)) = self.slots.get_mut(id as usize) {
            change(&mut subject.users[usize::from(!local)]);
            if !subject.is_wanted() || subject.written != Some(subject.is_local()) {
                self.touched.insert(id);
            }
        }
    }

    fn get(&self, id: SubjectId) -> Option<&Subject> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// The number of a class.
    pub fn number_of(&self, id: SubjectId) -> u32 {
        self.get(id).map_or(0, |subject| subject.number)
    }

    /// Those that a pod of this node has.
    pub fn local(&self) -> impl Iterator<Item = SubjectId> {
        let local = |(id, subject): (SubjectId, &Option<Subject>)| {
            subject.as_ref().filter(|subject| subject.is_local()).map(|_| id)
        };
        (0..).zip(&self.slots).filter_map(local)
    }

    /// The addresses of classes that found no number, if there may be one now.
    pub fn starved(&mut self, records: &HashMap<IpAddr, Record>, numbers: &Numbers) -> BTreeSet<IpAddr> {
        if self.starved.is_empty() || !numbers.has_room(NumberSpace::Subject) {
            return BTreeSet::new();
        }
        let starved = std::mem::take(&mut self.starved);
        let has = |record: &Record| record.subject.is_some_and(|id| starved.contains(&id));
        let addresses = records.iter().filter(|(_, record)| has(record)).map(|(address, _)| *address);
        let addresses = addresses.collect();
        self.touched.extend(starved);
        addresses
    }

    /// Gives numbers to classes that are new, and to their rules, and takes them from those that nobody has any more.
    /// Returns those whose rows are to be written anew.
    pub fn number(
        &mut self,
        linked: &Linked,
        numbers: &mut Numbers,
        desired: &mut Desired,
        default: Verdict,
        delta: &mut Delta,
    ) -> Vec<SubjectId> {
        self.rule_numbers.resize(linked.rule_names.len(), 0);
        self.rule_users.resize(linked.rule_names.len(), 0);
        let mut wanted = Vec::new();
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(subject) = self.get(id) else { continue };
            if !subject.is_wanted() {
                gone.push(id);
            } else if subject.written != Some(subject.is_local()) {
                // This node's own pods come first: should the numbers run out, it is not they who go without.
                wanted.push((!subject.is_local(), subject.class.definition(linked, default), id));
            }
        }
        wanted.sort();
        let mut written = Vec::new();
        for (_, definition, id) in wanted {
            let Some(Some(subject)) = self.slots.get_mut(id as usize) else { continue };
            if subject.number == 0 {
                subject.number = numbers.number(NumberSpace::Subject, &definition);
                if subject.number == 0 {
                    self.starved.insert(id);
                    continue;
                }
                desired.names.subjects.insert(subject.number, definition);
                subject.sees = [Direction::Ingress, Direction::Egress]
                    .map(|direction| Sees::new(linked, &subject.class, direction));
                let sees = subject.sees.clone();
                self.index_sees(id, &sees, true);
            }
            self.use_rules(id, linked, numbers, desired);
            written.push(id);
        }
        for id in gone {
            self.remove(id, linked, numbers, desired, delta);
        }
        written
    }

    /// A class that nobody has any more goes.
    fn remove(
        &mut self,
        id: SubjectId,
        linked: &Linked,
        numbers: &mut Numbers,
        desired: &mut Desired,
        delta: &mut Delta,
    ) {
        let Some(Some(subject)) = self.slots.get(id as usize) else { return };
        let (class, number, written) = (Arc::clone(&subject.class), subject.number, subject.written);
        let sees = subject.sees.clone();
        if let Some(local) = written {
            self.leave_rules(&class, local, linked, numbers, desired);
        }
        self.index_sees(id, &sees, false);
        self.index.remove(&class);
        self.starved.remove(&id);
        if let Some(slot) = self.slots.get_mut(id as usize) {
            *slot = None;
        }
        self.free.push(id);
        if number != 0 && numbers.release(NumberSpace::Subject, number) {
            desired.names.subjects.remove(&number);
            desired.subjects.remove(&number);
            delta.subjects.insert(number);
        }
    }

    /// The rules that can decide about a class get numbers, and what it used before is given back.
    fn use_rules(&mut self, id: SubjectId, linked: &Linked, numbers: &mut Numbers, desired: &mut Desired) {
        let Some(Some(subject)) = self.slots.get_mut(id as usize) else { return };
        let now = subject.is_local();
        let before = subject.written.replace(now);
        let class = Arc::clone(&subject.class);
        for rule in directions(now).iter().flat_map(|direction| class.rules(linked, *direction)) {
            let (Some(number), Some(users)) =
                (self.rule_numbers.get_mut(rule), self.rule_users.get_mut(rule))
            else {
                continue;
            };
            if *users == 0 {
                *number = numbers.number(NumberSpace::Rule, &linked.rule_names[rule]);
                desired.names.rules.insert(*number, linked.rule_names[rule].clone());
            }
            *users += 1;
        }
        if let Some(before) = before {
            self.leave_rules(&class, before, linked, numbers, desired);
        }
    }

    fn leave_rules(
        &mut self,
        class: &SubjectClass,
        local: bool,
        linked: &Linked,
        numbers: &mut Numbers,
        desired: &mut Desired,
    ) {
        for rule in directions(local).iter().flat_map(|direction| class.rules(linked, *direction)) {
            let (Some(number), Some(users)) =
                (self.rule_numbers.get_mut(rule), self.rule_users.get_mut(rule))
            else {
                continue;
            };
            *users = users.saturating_sub(1);
            if *users == 0 {
                let number = std::mem::take(number);
                if numbers.release(NumberSpace::Rule, number) {
                    desired.names.rules.remove(&number);
                }
            }
        }
    }

    /// Notes, or forgets, what a class sees.
    fn index_sees(&mut self, id: SubjectId, sees: &[Sees; 2], add: bool) {
        fn change<K: std::hash::Hash + Eq + Clone>(
            index: &mut HashMap<K, BTreeSet<SubjectId>>,
            key: &K,
            id: SubjectId,
            add: bool,
        ) {
            if add {
                index.entry(key.clone()).or_default().insert(id);
            } else if let Some(ids) = index.get_mut(key) {
                ids.remove(&id);
                if ids.is_empty() {
                    index.remove(key);
                }
            }
        }
        for Sees { selectors, blocks, names } in sees {
            for key in selectors {
                change(&mut self.by_selector, key, id, add);
            }
            for key in blocks {
                change(&mut self.by_block, key, id, add);
            }
            for key in names {
                change(&mut self.by_port_name, key, id, add);
            }
        }
    }

    /// The classes whose rules may tell a peer from "anything of its kind".
    fn telling(&self, peer: &PeerView<'_>, families: &[u32]) -> BTreeSet<SubjectId> {
        let mut found = BTreeSet::new();
        found.extend(peer.selectors.iter().filter_map(|id| self.by_selector.get(id)).flatten());
        found.extend(peer.blocks.iter().filter_map(|id| self.by_block.get(id)).flatten());
        found.extend(peer.ports.iter().filter_map(|(name, ..)| self.by_port_name.get(name)).flatten());
        let outside = families.iter().filter(|id| peer.blocks.binary_search(id).is_err());
        found.extend(outside.filter_map(|id| self.by_block.get(id)).flatten());
        found
    }

    /// Those that found no number.
    pub const fn without_number(&self) -> &BTreeSet<SubjectId> {
        &self.starved
    }

    /// What is wrong: classes without a number.
    pub fn problems<'s>(
        &'s self,
        linked: &'s Linked,
        default: Verdict,
    ) -> impl Iterator<Item = Problem> + 's {
        self.starved.iter().filter_map(|id| self.get(*id)).map(move |subject| Problem {
            object: format!("subject class {}", subject.class.definition(linked, default)),
            field: String::new(),
            message: "there is no room for it in the array of subject classes: its pods on this node are \
                      denied everything, and egress of pods elsewhere is not checked again here; make the \
                      array larger"
                .to_owned(),
        })
    }
}

impl Compiler {
    /// Writes the rows of classes that are `new`, and in those of the others the rows of peers whose reach has changed.
    /// Returns the classes with other rows than before.
    pub(super) fn write_rows(
        &mut self,
        new: &[SubjectId],
        reached: &[Reached],
        delta: &mut Delta,
    ) -> BTreeSet<SubjectId> {
        let mut writer = RowWriter {
            linked: &self.linked,
            peers: &self.peers,
            families: &self.families,
            rule_numbers: &self.subjects.rule_numbers,
            functions: &mut self.functions,
        };
        let mut written = BTreeSet::new();
        for &id in new {
            let Some(subject) = self.subjects.get(id) else { continue };
            let mut rows = RowSet::new();
            for &direction in directions(subject.is_local()) {
                writer.write(writing(subject, direction), &mut rows);
            }
            self.desired.subjects.insert(subject.number, Arc::new(rows));
            delta.subjects.insert(subject.number);
            written.insert(id);
        }
        let fresh: BTreeSet<SubjectId> = new.iter().copied().collect();
        if fresh.len() == self.subjects.index.len() {
            return written;
        }
        for peer in reached.iter().filter_map(|reached| Some((reached.id, self.peers.get(reached.id)?))) {
            let (peer, view) = (peer.0, peer.1.class.view());
            for id in self.subjects.telling(&view, &self.families) {
                let Some(subject) = self.subjects.get(id).filter(|_| !fresh.contains(&id)) else { continue };
                let Some(rows) = self.desired.subjects.get_mut(&subject.number) else { continue };
                for &direction in directions(subject.is_local()) {
                    if writer.rewrite(writing(subject, direction), peer, rows) {
                        delta.subjects.insert(subject.number);
                        written.insert(id);
                    }
                }
            }
        }
        written
    }

    /// Writes the rows of endpoint sets, of which there were those of `before`, of this node's pods' classes.
    pub(super) fn write_sets(
        &mut self,
        classes: &BTreeSet<SubjectId>,
        before: &BTreeSet<u32>,
        delta: &mut Delta,
    ) {
        let mut writer = RowWriter {
            linked: &self.linked,
            peers: &self.peers,
            families: &self.families,
            rule_numbers: &self.subjects.rule_numbers,
            functions: &mut self.functions,
        };
        for subject in classes.iter().filter_map(|id| self.subjects.get(*id)).filter(|s| s.is_local()) {
            let Some(rows) = self.desired.subjects.get_mut(&subject.number) else { continue };
            if writer.write_sets(before, &self.desired.sets, rows) {
                delta.subjects.insert(subject.number);
            }
        }
    }
}

fn writing(subject: &Subject, direction: Direction) -> Writing<'_> {
    let at = usize::from(direction == Direction::Egress);
    Writing { class: &subject.class, sees: &subject.sees[at], direction, local: subject.is_local() }
}
