//! What waits for one monitor: never more than so many lines, and a count of what found no room.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{Lost, Record};

/// Lines that wait for a monitor at most. Lines are shared between the monitors.
pub const CAPACITY: usize = 1024;

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<Bytes>,
    /// Came after the lines, and found no room.
    overflowed: u64,
    /// Were not sent by the kernel.
    unsent: u64,
}

/// The lines for one monitor.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Lines and counts are whole at any time.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds lines; those that do not fit are counted. Never waits.
    pub fn push(&self, lines: &[Bytes]) {
        let mut waiting = self.waiting();
        let room = CAPACITY.saturating_sub(waiting.lines.len());
        let (fit, rest) = lines.split_at(room.min(lines.len()));
        waiting.lines.extend_from_slice(fit);
        waiting.overflowed += rest.len() as u64;
        drop(waiting);
        self.filled.notify_one();
    }

    /// Counts what the kernel did not send.
    pub fn add_unsent(&self, count: u64) {
        self.waiting().unsent += count;
        self.filled.notify_one();
    }

    /// Waits until there is something to tell, and takes all of it, so that a count stands where its events would.
    pub async fn take(&self) -> Vec<Bytes> {
        loop {
            let Waiting { mut lines, overflowed, unsent } = mem::take(&mut *self.waiting());
            for (count, at) in [(overflowed, Lost::Queue), (unsent, Lost::Kernel)] {
                if count > 0 {
                    lines.push(Record::Missed { count, at }.line());
                }
            }
            if !lines.is_empty() {
                return lines;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> Vec<Bytes> {
        (0..count).map(|number| Bytes::from(format!("{number}\n"))).collect()
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_told_after_what_fitted() {
        let queue = Queue::default();
        queue.push(&lines(CAPACITY - 1));
        queue.push(&lines(4));
        queue.add_unsent(5);
        queue.push(&lines(2));
        let taken = queue.take().await;
        assert_eq!(taken.len(), CAPACITY + 2);
        assert_eq!(taken[CAPACITY - 1], "0\n");
        assert_eq!(taken[CAPACITY], "{\"type\":\"missed\",\"count\":5,\"at\":\"queue\"}\n");
        assert_eq!(taken[CAPACITY + 1], "{\"type\":\"missed\",\"count\":5,\"at\":\"kernel\"}\n");
        queue.push(&lines(1));
        assert_eq!(queue.take().await, ["0\n"], "there is room again, and nothing is told twice");
    }
}
