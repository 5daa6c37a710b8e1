//! Rows of subject classes: which row set is in force, and how a change gets there without a third verdict on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::Direction;
use portcullis_common::identity::PEER_UNKNOWN;
use portcullis_common::policy::{Row, RowKey};

use super::ports::{NoRoom, PortTables};
use crate::policy::{Function, RowSet};

/// The row set in force of a subject class.
#[derive(Clone, Debug)]
struct Live {
    number: u32,
    rows: Arc<RowSet>,
}

/// What is in the kernel, by subject class.
#[derive(Debug)]
pub struct RowSets {
    live: BTreeMap<u32, Live>,
    next: u32,
}

/// How a subject class gets from its rows in force to the desired ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Steps to write first.
    pub steps: Vec<(u32, portcullis_common::policy::PortStep)>,
    /// Rows to write next.
    pub put: Vec<(RowKey, Row)>,
    /// Functions whose steps are among those to write.
    pub written: Vec<Arc<Function>>,
    /// Rows of the set in force to remove at once: their class falls back to its kind's row.
    pub remove: Vec<RowKey>,
    /// Then, if the rows are of a new set: the set to put in force.
    pub switch_to: Option<u32>,
    /// Rows to remove once nothing can use them.
    pub retire: Vec<RowKey>,
    /// Functions whose tables are given back then.
    pub release: Vec<Arc<Function>>,
}

impl RowSets {
    /// Row sets from `next` on are free.
    pub fn new(next: u32) -> Self {
        Self { live: BTreeMap::new(), next: next.max(1) }
    }

    /// Subject classes with rows in force.
    pub fn subjects(&self) -> impl Iterator<Item = u32> + '_ {
        self.live.keys().copied()
    }

    /// The rows in force of a subject class.
    pub fn rows(&self, subject: u32) -> Option<&Arc<RowSet>> {
        self.live.get(&subject).map(|live| &live.rows)
    }

    /// Takes over the row set that an earlier agent put in force.
    pub fn adopt(&mut self, subject: u32, number: u32, rows: RowSet) {
        self.live.insert(subject, Live { number, rows: Arc::new(rows) });
    }

    /// Plans the change of a subject class; `live` says which peer classes addresses have now.
    ///
    /// A change of at most one row that packets can meet is made in place: replacing a hash element is atomic. Any
    /// other one is written as a new set and switched by one word.
    ///
    /// # Errors
    /// If the port tables have no room; nothing is changed then.
    pub fn plan(
        &mut self,
        subject: u32,
        wanted: &Arc<RowSet>,
        live: impl Fn(u32) -> bool,
        tables: &mut PortTables,
    ) -> Result<Option<Change>, NoRoom> {
        let before = self.live.get(&subject).cloned();
        if before.as_ref().is_some_and(|live| Arc::ptr_eq(&live.rows, wanted) || live.rows == *wanted) {
            return Ok(None);
        }
        let met = |peer: u32| peer & 0x8000_0000 != 0 || peer == PEER_UNKNOWN || live(peer);
        let mut change = Change::default();
        let in_place = before.as_ref().filter(|live| {
            let differs = |key: &&(Direction, u32)| live.rows.get(*key) != wanted.get(*key);
            let keys: BTreeSet<_> = live.rows.keys().chain(wanted.keys()).filter(differs).collect();
            keys.iter().filter(|(_, peer)| met(*peer)).count() <= 1
        });
        let number = in_place.map_or(self.next, |live| live.number);
        let mut taken = Vec::new();
        for (key, function) in wanted.iter() {
            if in_place.is_some_and(|live| live.rows.get(key) == Some(function)) {
                continue;
            }
            match tables.acquire(function) {
                Ok((row, steps)) => {
                    taken.push(function);
                    if !steps.is_empty() {
                        change.written.push(Arc::clone(function));
                    }
                    change.steps.extend(steps);
                    change.put.push((row_key(number, *key), row));
                }
                Err(full) => {
                    for function in taken {
                        tables.release(function);
                    }
                    return Err(full);
                }
            }
        }
        if let Some(live) = &before {
            for (key, function) in live.rows.iter() {
                if in_place.is_none() || wanted.get(key) != Some(function) {
                    change.release.push(Arc::clone(function));
                }
                if in_place.is_none() {
                    change.retire.push(row_key(live.number, *key));
                } else if !wanted.contains_key(key) {
                    // Not later: it would stay in force until then, and may have been put back by then.
                    change.remove.push(row_key(live.number, *key));
                }
            }
        }
        if in_place.is_none() {
            change.switch_to = Some(number);
            self.next += 1;
        }
        self.live.insert(subject, Live { number, rows: Arc::clone(wanted) });
        Ok(Some(change))
    }

    /// Forgets a subject class that nobody has any more.
    pub fn remove(&mut self, subject: u32) -> Change {
        let Some(live) = self.live.remove(&subject) else { return Change::default() };
        Change {
            retire: live.rows.keys().map(|key| row_key(live.number, *key)).collect(),
            release: live.rows.values().cloned().collect(),
            ..Change::default()
        }
    }
}

fn row_key(rowset: u32, (direction, peer): (Direction, u32)) -> RowKey {
    RowKey { rowset, peer, direction: direction as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::policy::{Decision, wildcard_of};
    use portcullis_common::{Kind, Reason, Verdict};

    fn rows(entries: &[(u32, Verdict)]) -> Arc<RowSet> {
        let function = |v| Arc::new(Function::constant(Decision::new(v, Reason::Policy)));
        Arc::new(entries.iter().map(|&(peer, v)| ((Direction::Ingress, peer), function(v))).collect())
    }

    fn setup() -> (RowSets, PortTables, u32) {
        (RowSets::new(5), PortTables::new(100, []), wildcard_of(Kind::Pod))
    }

    #[test]
    fn one_row_changes_in_place_and_two_make_a_new_set() {
        let (mut sets, mut tables, any) = setup();
        let live = |peer| [20, 21].contains(&peer);
        let first = rows(&[(any, Verdict::Deny), (20, Verdict::Allow)]);
        let change = sets.plan(1, &first, live, &mut tables).unwrap().unwrap();
        assert_eq!((change.switch_to, change.put.len(), change.retire.len()), (Some(5), 2, 0));
        assert_eq!(sets.plan(1, &first, live, &mut tables).unwrap(), None);

        let one = rows(&[(any, Verdict::Deny), (20, Verdict::Deny)]);
        let change = sets.plan(1, &one, live, &mut tables).unwrap().unwrap();
        assert_eq!((change.switch_to, change.put.len()), (None, 1));
        assert_eq!(change.put[0].0, RowKey { rowset: 5, peer: 20, direction: 0 });

        let wildcard_and_exception = rows(&[(any, Verdict::Allow), (21, Verdict::Deny)]);
        let change = sets.plan(1, &wildcard_and_exception, live, &mut tables).unwrap().unwrap();
        assert_eq!((change.switch_to, change.put.len(), change.retire.len()), (Some(6), 2, 2));
    }

    #[test]
    fn rows_of_classes_that_no_address_has_are_written_beforehand() {
        let (mut sets, mut tables, any) = setup();
        let first = rows(&[(any, Verdict::Deny)]);
        sets.plan(1, &first, |_| false, &mut tables).unwrap();
        let more = rows(&[(any, Verdict::Deny), (30, Verdict::Allow), (31, Verdict::Allow)]);
        let change = sets.plan(1, &more, |_| false, &mut tables).unwrap().unwrap();
        assert_eq!((change.switch_to, change.put.len()), (None, 2));
    }
}
