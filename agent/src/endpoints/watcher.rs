//! The task that keeps the table in step with the kernel and publishes it.
//!
//! Invariants: subscribed before the first dump; after an overrun the queue is read to its end before the dump, so that
//! nothing older than the dump is applied after it; a snapshot is published only between whole steps.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::Snapshot;
use super::error::Error;
use super::requests::Requests;
use super::socket::{Datagram, Group, RouteSocket};
use super::table::Table;
use super::wire::Content;

/// After a dump that did not succeed.
const RETRY: Duration = Duration::from_millis(50);
/// Datagrams taken from one socket before the others get their turn.
const BATCH: usize = 1024;
const ADDRESS_GROUPS: [Group; 2] = [Group::Ipv4Address, Group::Ipv6Address];

/// How the watcher works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of notifications that may wait while the watcher is busy; beyond that they are lost and everything is
    /// dumped again. The kernel doubles it for its own bookkeeping.
    pub receive_buffer: u32,
}

impl Default for Options {
    fn default() -> Self {
        // Some 3,000 link notifications: every interface of a full node changes several times.
        Self { receive_buffer: 4 * 1024 * 1024 }
    }
}

/// Follows the interfaces and addresses of a network namespace until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    task: JoinHandle<Error>,
}

impl Watcher {
    /// Starts to follow the network namespace of the calling thread, which must be in a tokio runtime. Needs
    /// `CAP_NET_ADMIN`; with `CAP_NET_BROADCAST` an address that a pod gets later is seen at once instead of at the
    /// next look.
    pub fn spawn(options: Options) -> Result<Self, Error> {
        let events = RouteSocket::open()?;
        events.set_receive_buffer(options.receive_buffer)?;
        for group in [Group::Link, Group::Ipv4Address, Group::Ipv6Address] {
            events.join(group)?;
        }
        let requests = Requests::open()?;
        let hints = open_hints()?;
        let (sender, snapshots) = watch::channel(Arc::default());
        let task = Task {
            events,
            hints,
            hints_joined: false,
            requests,
            table: Table::default(),
            resync_at: Some(Instant::now()),
            sender,
        };
        Ok(Self { snapshots, task: tokio::spawn(task.run()) })
    }

    /// The present state and every later one; states that follow fast upon each other are delivered as the last one.
    /// The first is empty and not `complete`.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Waits until following is no longer possible, and says why. After that the last snapshot stays as it was.
    pub async fn stopped(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(error) => error,
            Err(ended) => Error::Ended(ended.to_string()),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A socket of its own for what happens in pods' namespaces: if a pod floods it, no notification of this namespace is
/// lost, and all that is lost is the shortcut.
fn open_hints() -> Result<Option<RouteSocket>, Error> {
    let hints = RouteSocket::open()?;
    match hints.listen_to_all_namespaces() {
        Ok(()) => Ok(Some(hints)),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            info!(
                "without CAP_NET_BROADCAST addresses of new pods are looked for at intervals of 5 ms to 1 s"
            );
            Ok(None)
        }
        Err(e) => Err(Error::socket("setsockopt(NETLINK_LISTEN_ALL_NSID)", e)),
    }
}

struct Task {
    events: RouteSocket,
    hints: Option<RouteSocket>,
    /// Only while some link has nobody behind it, for what happens inside the pods is none of our business otherwise.
    hints_joined: bool,
    requests: Requests,
    table: Table,
    /// When to dump everything (again).
    resync_at: Option<Instant>,
    sender: watch::Sender<Arc<Snapshot>>,
}

enum Wake {
    Event(io::Result<Datagram>),
    Hint(io::Result<Datagram>),
    Timer,
}

impl Task {
    async fn run(mut self) -> Error {
        loop {
            if let Err(error) = self.step().await {
                return error;
            }
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        match self.wait().await {
            Wake::Event(received) => {
                self.take_event(received)?;
                self.drain_events(BATCH)?;
            }
            Wake::Hint(received) => {
                self.take_hint(received)?;
                self.drain_hints()?;
            }
            Wake::Timer => {}
        }
        let has_dumped = match self.resync_at {
            Some(at) if at <= Instant::now() => self.resync().await?,
            _ => false,
        };
        self.reread_doubtful().await?;
        // Before the look: what is set after the look is then announced.
        self.subscribe_to_hints()?;
        self.look().await?;
        self.reread_doubtful().await?;
        if has_dumped {
            self.table.set_complete();
        }
        self.publish();
        Ok(())
    }

    async fn wait(&mut self) -> Wake {
        let Self { events, hints, table, resync_at, .. } = self;
        let next = [*resync_at, table.next_look()].into_iter().flatten().min();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let hint = async {
            match hints {
                Some(socket) => socket.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            received = events.receive() => Wake::Event(received),
            () = timer => Wake::Timer,
            received = hint => Wake::Hint(received),
        }
    }

    fn take_event(&mut self, received: io::Result<Datagram>) -> Result<(), Error> {
        match received {
            Ok(datagram) => {
                let now = Instant::now();
                for message in datagram.messages {
                    self.table.apply(message.content, now);
                }
                Ok(())
            }
            Err(e) if is_overrun(&e) => {
                debug!("notifications of links and addresses were lost: everything is read again");
                self.resync_at = Some(Instant::now());
                Ok(())
            }
            Err(e) => Err(Error::socket("recvmsg", e)),
        }
    }

    fn drain_events(&mut self, at_most: usize) -> Result<(), Error> {
        for _ in 0..at_most {
            let Some(received) = self.events.try_receive().transpose() else { break };
            self.take_event(received)?;
        }
        Ok(())
    }

    fn take_hint(&mut self, received: io::Result<Datagram>) -> Result<(), Error> {
        let now = Instant::now();
        match received {
            Ok(Datagram { messages, netns_id: Some(netns_id) }) => {
                for message in messages {
                    if let Content::Address(record) = message.content {
                        self.table.hurry(Some((netns_id, record.ifindex)), now);
                    }
                }
            }
            Ok(_) => {}
            Err(e) if is_overrun(&e) => self.table.hurry(None, now),
            Err(e) => return Err(Error::socket("recvmsg", e)),
        }
        Ok(())
    }

    fn drain_hints(&mut self) -> Result<(), Error> {
        for _ in 0..BATCH {
            let Some(received) = self.hints.as_mut().and_then(|socket| socket.try_receive().transpose())
            else {
                break;
            };
            self.take_hint(received)?;
        }
        Ok(())
    }

    /// Dumps everything; `false` if that is to be tried again.
    async fn resync(&mut self) -> Result<bool, Error> {
        self.drain_events(usize::MAX)?;
        self.resync_at = None;
        let dumped = async { Ok((self.requests.links().await?, self.requests.addresses().await?)) };
        match dumped.await {
            Ok((links, addresses)) => {
                let now = Instant::now();
                self.table.resync(links, addresses, now);
                self.table.hurry(None, now);
                Ok(true)
            }
            Err(error @ Error::Interrupted { .. }) => {
                debug!("{error}");
                self.resync_at = Some(Instant::now() + RETRY);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn reread_doubtful(&mut self) -> Result<(), Error> {
        for ifindex in self.table.take_doubtful() {
            match self.requests.link(ifindex).await {
                Ok(record) => self.table.reread(ifindex, record, Instant::now()),
                Err(error @ (Error::Refused { .. } | Error::Interrupted { .. })) => warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn subscribe_to_hints(&mut self) -> Result<(), Error> {
        let is_waiting = self.table.is_waiting();
        let Some(hints) = self.hints.as_ref().filter(|_| is_waiting != self.hints_joined) else {
            return Ok(());
        };
        for group in ADDRESS_GROUPS {
            if is_waiting { hints.join(group)? } else { hints.leave(group)? }
        }
        self.hints_joined = is_waiting;
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Error> {
        for ask in self.table.take_due(Instant::now()) {
            match self.requests.peer(&ask).await {
                Ok(answer) => self.table.answer(&ask, answer),
                // The link or its namespace may be on its way out; if not, the next look will tell.
                Err(error @ (Error::Refused { .. } | Error::Interrupted { .. })) => {
                    debug!(ifindex = ask.ifindex, "{error}");
                    self.table.doubt(ask.ifindex);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let snapshot = self.table.snapshot();
        self.sender.send_if_modified(|current| {
            let is_new = **current != snapshot;
            if is_new {
                *current = Arc::new(snapshot);
            }
            is_new
        });
    }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}
