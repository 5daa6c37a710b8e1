//! Where port tables lie in the `PORTS` array: tables are immutable, shared by content, and their room is reused only
//! when nothing in the kernel refers to it any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use portcullis_common::policy::{PortKey, PortStep, Row};

use crate::policy::Function;

/// Room in the array, and who uses it.
#[derive(Debug)]
pub struct PortTables {
    /// Free ranges: start to length.
    free: BTreeMap<u32, u32>,
    tables: HashMap<Arc<Function>, Table>,
    capacity: u32,
}

#[derive(Clone, Copy, Debug)]
struct Table {
    at: u32,
    users: usize,
    /// Whether its steps are in the kernel, as far as is known.
    written: bool,
}

/// The array has no room for a table of so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom(pub u32);

impl PortTables {
    /// An array of `capacity` steps of which the ranges in `used` (start, length) are in use by rows that this agent
    /// did not write.
    pub fn new(capacity: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut taken: Vec<_> = used.into_iter().collect();
        taken.sort_unstable();
        let mut free = BTreeMap::new();
        let mut next = 0;
        for (at, length) in taken {
            if at > next {
                free.insert(next, at - next);
            }
            next = next.max(at.saturating_add(length));
        }
        if next < capacity {
            free.insert(next, capacity - next);
        }
        Self { free, tables: HashMap::new(), capacity }
    }

    /// A row for a function, and the steps that must be written before it (index and step) if they are not there yet.
    ///
    /// # Errors
    /// If the array has no room.
    pub fn acquire(&mut self, function: &Arc<Function>) -> Result<(Row, Vec<(u32, PortStep)>), NoRoom> {
        let steps = function.steps();
        if let [(_, decision)] = steps {
            return Ok((
                Row { steps_at: 0, steps: 0, decision: PortStep::new(PortKey::FIRST, *decision) },
                Vec::new(),
            ));
        }
        let length = u32::try_from(steps.len()).unwrap_or(u32::MAX);
        let row = |at| Row { steps_at: at, steps: length, decision: PortStep::new(steps[0].0, steps[0].1) };
        if let Some(table) = self.tables.get_mut(function) {
            table.users += 1;
            let known = std::mem::replace(&mut table.written, true);
            let at = table.at;
            return Ok((row(at), if known { Vec::new() } else { placed(at, function) }));
        }
        let Some((at, room)) =
            self.free.iter().find(|(_, room)| **room >= length).map(|(at, room)| (*at, *room))
        else {
            return Err(NoRoom(length));
        };
        self.free.remove(&at);
        if room > length {
            self.free.insert(at + length, room - length);
        }
        self.tables.insert(Arc::clone(function), Table { at, users: 1, written: true });
        Ok((row(at), placed(at, function)))
    }

    /// Takes over a table that an earlier agent wrote at `at`, for one more row. The range must have been given to
    /// [`Self::new`]. `false`: the function lies elsewhere already, so this table cannot be shared.
    pub fn adopt(&mut self, function: &Arc<Function>, at: u32) -> bool {
        if function.steps().len() == 1 {
            return true;
        }
        let table = self.tables.entry(Arc::clone(function)).or_insert(Table { at, users: 0, written: true });
        let same = table.at == at;
        table.users += usize::from(same);
        same
    }

    /// The steps of a function may not all have reached the kernel: whoever acquires it next writes them again.
    pub fn doubt(&mut self, function: &Arc<Function>) {
        if let Some(table) = self.tables.get_mut(function) {
            table.written = false;
        }
    }

    /// Gives a function's table back; its room is free when nobody uses it. Call it only after the grace period.
    pub fn release(&mut self, function: &Arc<Function>) {
        let Some(table) = self.tables.get_mut(function) else { return };
        table.users -= 1;
        if table.users > 0 {
            return;
        }
        let at = table.at;
        let length = u32::try_from(function.steps().len()).unwrap_or(u32::MAX);
        self.tables.remove(function);
        self.give_back(at, length);
    }

    /// Frees a range that was in use from the start.
    pub fn give_back(&mut self, mut at: u32, mut length: u32) {
        if let Some((&before, &room)) = self.free.range(..at).next_back()
            && before + room == at
        {
            self.free.remove(&before);
            at = before;
            length += room;
        }
        if let Some(room) = self.free.remove(&(at + length)) {
            length += room;
        }
        self.free.insert(at, length);
    }

    /// Steps in use, and how many there can be.
    pub fn usage(&self) -> (u32, u32) {
        (self.capacity - self.free.values().sum::<u32>(), self.capacity)
    }
}

/// The steps of a table at their indexes.
fn placed(at: u32, function: &Function) -> Vec<(u32, PortStep)> {
    let step = |(key, decision): &(PortKey, _)| PortStep::new(*key, *decision);
    (at..).zip(function.steps().iter().map(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::policy::Decision;
    use portcullis_common::{Reason, Verdict};

    fn function(ports: &[u16]) -> Arc<Function> {
        let allow = Decision::new(Verdict::Allow, Reason::Policy);
        let deny = Decision::new(Verdict::Deny, Reason::Policy);
        let steps = std::iter::once((PortKey::FIRST, deny))
            .chain(ports.iter().flat_map(|&p| [(PortKey::new(6, p), allow), (PortKey::new(6, p + 1), deny)]));
        Arc::new(Function::new(steps).unwrap())
    }

    #[test]
    fn tables_are_shared_by_content_and_freed_with_the_last_user() {
        let mut tables = PortTables::new(100, []);
        let (row, steps) = tables.acquire(&function(&[80])).unwrap();
        assert_eq!((row.steps, steps.len()), (3, 3));
        let (again, written) = tables.acquire(&function(&[80])).unwrap();
        assert_eq!((again, written.len()), (row, 0));
        assert_eq!(tables.usage(), (3, 100));
        tables.release(&function(&[80]));
        assert_eq!(tables.usage(), (3, 100));
        tables.release(&function(&[80]));
        assert_eq!(tables.usage(), (0, 100));
        assert_eq!(tables.free, BTreeMap::from([(0, 100)]), "neighbouring ranges are joined");
    }

    #[test]
    fn ranges_of_a_former_agent_are_not_overwritten() {
        let mut tables = PortTables::new(20, [(3, 4), (0, 2)]);
        let (row, _) = tables.acquire(&function(&[80])).unwrap();
        assert_eq!(row.steps_at, 7);
        assert_eq!(tables.acquire(&function(&[1, 3, 5, 7, 9, 11])), Err(NoRoom(13)));
        tables.give_back(0, 2);
        tables.give_back(3, 4);
        assert_eq!(tables.free, BTreeMap::from([(0, 7), (10, 10)]));
    }

    #[test]
    fn an_adopted_table_is_not_written_again_and_a_doubted_one_is() {
        let mut tables = PortTables::new(20, [(2, 3)]);
        assert!(tables.adopt(&function(&[80]), 2));
        assert!(!tables.adopt(&function(&[80]), 9), "the same function at another place");
        let (row, steps) = tables.acquire(&function(&[80])).unwrap();
        assert_eq!((row.steps_at, steps.len()), (2, 0));
        tables.doubt(&function(&[80]));
        assert_eq!(tables.acquire(&function(&[80])).unwrap().1.len(), 3);
        assert_eq!(tables.acquire(&function(&[80])).unwrap().1.len(), 0);
        (0..4).for_each(|_| tables.release(&function(&[80])));
        assert_eq!(tables.usage(), (0, 20));
    }

    #[test]
    fn a_constant_needs_no_room() {
        let mut tables = PortTables::new(0, []);
        let constant = Arc::new(Function::constant(Decision::new(Verdict::Allow, Reason::Default)));
        assert_eq!(tables.acquire(&constant).unwrap().0.steps, 0);
    }
}
