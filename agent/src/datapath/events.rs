//! Verdict events from the ring buffer. It has one reader at a time: the position up to which it is read is in the
//! kernel, and two that move it would lose each other's records.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use aya::maps::{Map, MapData, RingBuf};
use portcullis_common::abi::{Addr6, names};
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

/// The ring buffer, as a stream of events.
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
    /// Calls `handle` with each batch of events as they come, until it returns `false`.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited on.
    pub async fn run(self, mut handle: impl FnMut(&[Event]) -> bool) -> io::Result<()> {
        let Self { ring, _lock } = self;
        // SAFETY: the ring buffer owns its file descriptor and gives out the same one for as long as it lives.
        let mut waiting = unsafe { AsyncFd::register(ring) }?;
        loop {
            let mut guard = waiting.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut batch = Vec::new();
            let mut read = 0;
            while read < BATCH
                && let Some(record) = ring.next()
            {
                read += 1;
                batch.extend(decode(&record));
            }
            let drained = read < BATCH;
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

/// The event in a record; `None` if it has another length (the programs are of another version).
fn decode(record: &[u8]) -> Option<Event> {
    if record.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length is right, and any bit pattern is a valid event.
    Some(unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) })
}

/// Source and destination of an event's packet.
pub fn packet_ends(event: &Event) -> (SocketAddr, SocketAddr) {
    let address = |words: Addr6| {
        if event.family == 4 {
            IpAddr::from(words.words_be[0].to_ne_bytes())
        } else {
            words.to_bytes().into()
        }
    };
    (
        SocketAddr::new(address(event.source), event.source_port),
        SocketAddr::new(address(event.destination), event.destination_port),
    )
}

/// Source and destination of an event's flow, as its principals are: an answer goes the other way.
pub fn flow_ends(event: &Event) -> (SocketAddr, SocketAddr) {
    let (source, destination) = packet_ends(event);
    if event.reply == 0 { (source, destination) } else { (destination, source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_length_is_no_event() {
        let event = Event { destination_port: 80, ..Event::default() };
        // SAFETY: a plain struct without padding, read as the bytes that the kernel would send.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const event).cast::<u8>(), size_of::<Event>()) };
        assert_eq!(decode(bytes), Some(event));
        assert_eq!(decode(&bytes[1..]), None);
        assert_eq!(decode(b"short"), None);
    }
}
