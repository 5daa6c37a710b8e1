//! Verdict events from the ring buffer. It has one reader at a time: the position up to which it is read is in the
//! kernel, and two that move it would lose each other's records.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use bytes::Bytes;
use portcullis_common::abi::{EventBudget, names};
use portcullis_common::event::Event;
use tokio::io::unix::AsyncFd;

use super::error::DatapathError;
use super::kernel::open_pin;
use super::{Pins, sys};

/// The ring buffer, before anybody reads it.
pub struct EventSource {
    map: Map,
    /// Who reads the ring buffer has the lock of this folder. It is not the agent's own lock, which is on the folder above.
    folder: PathBuf,
}

impl std::fmt::Debug for EventSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventSource").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl EventSource {
    pub(super) const fn new(map: Map, folder: PathBuf) -> Self {
        Self { map, folder }
    }

    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self::new(open_pin(&pins.map(names::EVENTS), names::EVENTS)?, pins.folder()))
    }

    /// Becomes its reader, unless another process is.
    ///
    /// # Errors
    /// If the folder or the ring buffer cannot be used.
    pub fn claim(self) -> Result<Claim, DatapathError> {
        let Self { map, folder } = self;
        let lock = match sys::lock(&folder) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(Claim::Taken(Self { map, folder })),
            Err(error) => return Err(DatapathError::File { what: "lock", path: folder, error }),
        };
        // Only now: it begins where the reader before has stopped.
        let ring = RingBuf::try_from(map).map_err(|error| DatapathError::map("use", names::EVENTS, error))?;
        Ok(Claim::Ours(Events { ring, _lock: lock }))
    }
}

/// What became of [`EventSource::claim`].
#[derive(Debug)]
pub enum Claim {
    /// This process reads the events.
    Ours(Events),
    /// Another process does; here is the source for another try.
    Taken(EventSource),
}

/// The ring buffer, as a stream of records.
pub struct Events {
    ring: RingBuf<MapData>,
    /// Given back after the ring buffer.
    _lock: File,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Calls `handle` with each batch of records as they come, until it returns `false`.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited on.
    pub async fn run(self, mut handle: impl FnMut(&[Bytes]) -> bool) -> io::Result<()> {
        let Self { ring, _lock } = self;
        // SAFETY: the ring buffer owns its file descriptor and gives out the same one for as long as it lives.
        let mut waiting = unsafe { AsyncFd::register(ring) }?;
        loop {
            let mut guard = waiting.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(record) = ring.next()
            {
                batch.push(Bytes::copy_from_slice(&record));
            }
            let drained = batch.len() < BATCH;
            if drained {
                guard.clear_ready();
            }
            if !batch.is_empty() && !handle(&batch) {
                return Ok(());
            }
            if !drained {
                // A flood must not keep the thread's other tasks from their turn.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Records that are handled at once, at most.
const BATCH: usize = 1024;

/// The kernel's count of events that it did not send.
pub struct MissedEvents {
    budget: PerCpuArray<MapData, EventBudget>,
}

impl std::fmt::Debug for MissedEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MissedEvents").finish_non_exhaustive()
    }
}

impl MissedEvents {
    /// Opens the pinned counter. The agent that calls this has compared its shape.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(bpffs: &Path) -> Result<Self, DatapathError> {
        let map = open_pin(&Pins::new(bpffs).map(names::EVENT_BUDGET), names::EVENT_BUDGET)?;
        let budget = PerCpuArray::try_from(map)
            .map_err(|error| DatapathError::map("use", names::EVENT_BUDGET, error))?;
        Ok(Self { budget })
    }

    /// How many there have been since the maps were made.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn count(&self) -> Result<u64, DatapathError> {
        let budgets = self.budget.get(&0, 0);
        let budgets = budgets.map_err(|error| DatapathError::map("read", names::EVENT_BUDGET, error))?;
        Ok(budgets.iter().map(|EventBudget { missed, .. }| missed).sum())
    }
}

/// The event in a record; `None` if it has another length (the programs are of another version).
pub fn decode_event(record: &Bytes) -> Option<Event> {
    if record.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length is right, and any bit pattern is a valid event.
    Some(unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) })
}
