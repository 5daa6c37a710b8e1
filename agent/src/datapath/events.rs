//! Verdict events from the ring buffer.

use std::io;

use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use portcullis_common::event::Event;
use tokio::io::unix::AsyncFd;

/// The ring buffer, as a stream of records.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Calls `handle` with each batch of records as they come, until it returns `false`.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited on.
    pub async fn run(self, mut handle: impl FnMut(&[Bytes]) -> bool) -> io::Result<()> {
        // SAFETY: the ring buffer owns its file descriptor and gives out the same one for as long as it lives.
        let mut waiting = unsafe { AsyncFd::register(self.ring) }?;
        loop {
            let mut guard = waiting.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut batch = Vec::new();
            while let Some(record) = ring.next() {
                batch.push(Bytes::copy_from_slice(&record));
            }
            guard.clear_ready();
            if !batch.is_empty() && !handle(&batch) {
                return Ok(());
            }
        }
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
