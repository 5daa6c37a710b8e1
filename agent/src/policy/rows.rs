//! The rows of a subject class: what it answers for every peer that its rules can tell from others of its kind.
//!
//! Invariant: a row that is written for one class is the row that writing all of them gives.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use portcullis_common::policy::wildcard_of;
use portcullis_common::{Direction, Kind};

use super::classes::{Peer, PeerClasses, PeerId, Reach};
use super::desired::{EndpointSet, Function, RowSet};
use super::ir::NamedPort;
use super::linked::{Linked, PeerView};
use super::services::row_of_set;
use super::subjects::SubjectClass;
use super::tiers::{Acting, Question};

/// What the rules of a subject class can see of a peer in one direction.
#[derive(Clone, Debug, Default)]
pub struct Sees {
    /// Indexes of selectors, ascending.
    pub selectors: Vec<u32>,
    /// Indexes of blocks, ascending.
    pub blocks: Vec<u32>,
    /// Names of ports.
    pub names: BTreeSet<String>,
}

impl Sees {
    /// Of the rules of a class.
    pub fn new(linked: &Linked, class: &SubjectClass, direction: Direction) -> Self {
        let (mut selectors, mut blocks) = (BTreeSet::new(), BTreeSet::new());
        let mut names = BTreeSet::new();
        for rule in class.sections(linked, direction).flat_map(|(.., section)| &section.rules) {
            selectors.extend(&rule.peers.selectors);
            blocks.extend(&rule.peers.blocks);
            if direction == Direction::Egress {
                names.extend(rule.port_names().map(str::to_owned));
            }
        }
        Self { selectors: selectors.into_iter().collect(), blocks: blocks.into_iter().collect(), names }
    }

    /// Whether it may tell a class from "anything of its kind"; see [`PeerClasses::candidates`].
    fn tells(&self, peer: &PeerView<'_>, families: &[u32]) -> bool {
        let common = |ours: &[u32], theirs: &[u32]| theirs.iter().any(|id| ours.binary_search(id).is_ok());
        common(&self.selectors, peer.selectors)
            || self.blocks.iter().any(|id| families.contains(id) != peer.blocks.binary_search(id).is_ok())
            || peer.ports.iter().any(|(name, ..)| self.names.contains(name))
    }
}

/// What the rules of a subject see of a peer: peers that look alike get the same function.
type Looks = (Kind, Vec<u32>, Vec<u32>, Vec<NamedPort>);

/// Writes rows. Equal functions are shared.
pub struct RowWriter<'c> {
    /// The policies in force.
    pub linked: &'c Linked,
    /// The peers.
    pub peers: &'c PeerClasses,
    /// Blocks that contain every address of a family.
    pub families: &'c [u32],
    /// Numbers of the rules.
    pub rule_numbers: &'c [u32],
    /// The functions so far.
    pub functions: &'c mut HashSet<Arc<Function>>,
}

/// A subject class whose rows are written.
#[derive(Clone, Copy)]
pub struct Writing<'c> {
    /// What makes it.
    pub class: &'c SubjectClass,
    /// What it sees in the direction.
    pub sees: &'c Sees,
    /// The direction.
    pub direction: Direction,
    /// Whether a pod of this node has it. What pods elsewhere send is asked for here only where a pod of this node may
    /// be the peer.
    pub local: bool,
}

impl RowWriter<'_> {
    /// Adds the rows of a direction.
    ///
    /// The row of a kind holds for a peer that no selector matches, that has no named port and that is in no block but
    /// those of a whole family, all of them. Every other class that the rules could tell from it is tried, and gets a row
    /// of its own where the result differs.
    pub fn write(&mut self, subject: Writing<'_>, rows: &mut RowSet) {
        let question = self.question(subject);
        let mut answers: HashMap<Looks, Arc<Function>> = HashMap::new();
        for kind in Kind::ALL {
            // The address of a service is in no block, whatever the block says.
            let blocks = if kind == Kind::Service { &[][..] } else { self.families };
            let anything = PeerView { kind, selectors: &[], blocks, ports: &[] };
            let function = self.answer(&question, subject.sees, &anything, Some(&mut answers));
            rows.insert((subject.direction, wildcard_of(kind)), function);
        }
        for id in self.peers.candidates(subject.sees, self.families, subject.local) {
            if let Some(peer) = self.peers.get(id) {
                self.write_one(&question, subject, peer, rows, Some(&mut answers));
            }
        }
    }

    /// Brings the row of one class up to date; `true` if it was changed.
    pub fn rewrite(&mut self, subject: Writing<'_>, id: PeerId, rows: &mut Arc<RowSet>) -> bool {
        let Some(peer) = self.peers.get(id) else { return false };
        let key = (subject.direction, peer.number);
        let mut new = RowSet::new();
        let kind = (subject.direction, wildcard_of(peer.class.kind));
        new.extend(rows.get(&kind).map(|function| (kind, Arc::clone(function))));
        if subject.sees.tells(&peer.class.view(), self.families) {
            let question = self.question(subject);
            self.write_one(&question, subject, peer, &mut new, None);
        }
        put(rows, key, new.remove(&key))
    }

    fn write_one(
        &mut self,
        question: &Question<'_>,
        subject: Writing<'_>,
        peer: &Peer,
        rows: &mut RowSet,
        answers: Option<&mut HashMap<Looks, Arc<Function>>>,
    ) {
        let meets = peer.reach() == Reach::Everybody || subject.local && peer.reach() == Reach::Local;
        if !meets {
            return;
        }
        let function = self.answer(question, subject.sees, &peer.class.view(), answers);
        if rows.get(&(subject.direction, wildcard_of(peer.class.kind))) != Some(&function) {
            rows.insert((subject.direction, peer.number), function);
        }
    }

    fn question<'q>(&self, subject: Writing<'q>) -> Question<'q>
    where
        Self: 'q,
    {
        let Writing { class, direction, .. } = subject;
        let (linked, rule_numbers) = (self.linked, self.rule_numbers);
        let acting = class.sections(linked, direction).map(|(id, audited, section)| Acting {
            policy: &linked.policies[id as usize],
            section,
            audited,
        });
        Question {
            direction,
            acting: acting.collect(),
            defaults: class.defaults,
            subject_ports: &class.ports,
            rule_numbers,
        }
    }

    /// The function for a peer; `known` are those for peers that look alike.
    fn answer(
        &mut self,
        question: &Question<'_>,
        sees: &Sees,
        peer: &PeerView<'_>,
        known: Option<&mut HashMap<Looks, Arc<Function>>>,
    ) -> Arc<Function> {
        let Some(known) = known else { return self.share(question.answer(peer)) };
        let visible = |ids: &[u32], by: &[u32]| -> Vec<u32> {
            ids.iter().copied().filter(|id| by.binary_search(id).is_ok()).collect()
        };
        let ports = peer.ports.iter().filter(|(name, ..)| sees.names.contains(name)).cloned().collect();
        let looks: Looks =
            (peer.kind, visible(peer.selectors, &sees.selectors), visible(peer.blocks, &sees.blocks), ports);
        if let Some(function) = known.get(&looks) {
            return Arc::clone(function);
        }
        let (kind, selectors, blocks, ports) = &looks;
        let function = self.share(question.answer(&PeerView { kind: *kind, selectors, blocks, ports }));
        known.insert(looks, Arc::clone(&function));
        function
    }

    /// Brings the rows of endpoint sets up to date; those of the endpoints' classes must be there. `before` are the
    /// numbers of sets that may have rows; `true` if anything was changed.
    pub fn write_sets(
        &mut self,
        before: &BTreeSet<u32>,
        sets: &BTreeMap<u32, Arc<EndpointSet>>,
        rows: &mut Arc<RowSet>,
    ) -> bool {
        let mut changed = false;
        for &gone in before.iter().filter(|number| !sets.contains_key(number)) {
            changed |= put(rows, (Direction::Egress, gone), None);
        }
        for (&number, set) in sets {
            let function = row_of_set(rows, set);
            // Not by its own row of before.
            let kind = rows.get(&(Direction::Egress, wildcard_of(Kind::Service)));
            let wanted = kind.is_none_or(|kind| **kind != function).then(|| self.share(function));
            changed |= put(rows, (Direction::Egress, number), wanted);
        }
        changed
    }

    fn share(&mut self, function: Function) -> Arc<Function> {
        if let Some(shared) = self.functions.get(&function) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(function);
        self.functions.insert(Arc::clone(&shared));
        shared
    }
}

/// Sets or removes a row; `true` if that changed anything.
pub fn put(rows: &mut Arc<RowSet>, key: (Direction, u32), wanted: Option<Arc<Function>>) -> bool {
    if rows.get(&key) == wanted.as_ref() {
        return false;
    }
    let rows = Arc::make_mut(rows);
    match wanted {
        Some(function) => drop(rows.insert(key, function)),
        None => drop(rows.remove(&key)),
    }
    true
}
