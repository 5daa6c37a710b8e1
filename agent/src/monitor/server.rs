//! The agent's side: events become lines once, for all monitors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use portcullis_common::event::Event;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use super::queue::Queue;
use super::{Clock, Hello, Names, Record};
use crate::state::State;

/// Pause after a connection that could not be accepted: descriptors are used up, say.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Inner {
    names: Names,
    queues: Vec<Arc<Queue>>,
}

/// The monitors that listen now; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Monitors {
    inner: Arc<Mutex<Inner>>,
}

impl Monitors {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Names and the list of queues are replaced whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names for the numbers in events.
    pub fn name(&self, state: Arc<State>) {
        let names = Names::new(state);
        self.inner().names = names;
    }

    /// Hands events to every monitor.
    pub fn take(&self, events: &[Event]) {
        let inner = self.inner();
        if inner.queues.is_empty() {
            return;
        }
        let clock = Clock::now();
        let line = |event| Record::Event(Box::new(inner.names.record(event, clock))).line();
        let lines: Vec<Bytes> = events.iter().map(line).collect();
        for queue in &inner.queues {
            queue.push(&lines);
        }
    }

    /// Tells every monitor that the kernel did not send this many events.
    pub fn add_unsent(&self, count: u64) {
        if count > 0 {
            for queue in &self.inner().queues {
                queue.add_unsent(count);
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner().queues.len()
    }

    /// Whether nobody listens.
    pub fn is_empty(&self) -> bool {
        self.inner().queues.is_empty()
    }

    fn add(&self) -> Arc<Queue> {
        let queue = Arc::new(Queue::default());
        self.inner().queues.push(Arc::clone(&queue));
        queue
    }

    fn remove(&self, queue: &Arc<Queue>) {
        self.inner().queues.retain(|other| !Arc::ptr_eq(other, queue));
    }
}

/// Takes connections for ever. `before` is called before a monitor is added: what was counted until then is not its.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    monitors: Monitors,
    hello: Hello,
    mut before: impl FnMut(),
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "cannot wait for monitors"),
    };
    let hello = Record::Agent(hello).line();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        before();
        let queue = monitors.add();
        let (monitors, hello) = (monitors.clone(), hello.clone());
        tokio::spawn(async move {
            tell(stream, hello, &queue).await;
            monitors.remove(&queue);
        });
    }
}

/// Writes to one monitor until it is gone.
async fn tell(stream: UnixStream, hello: Bytes, queue: &Queue) {
    let (mut reading, mut writing) = stream.into_split();
    let told = async {
        let mut lines = vec![hello];
        while writing.write_all(&lines.concat()).await.is_ok() {
            lines = queue.take().await;
        }
    };
    let gone = async {
        // A monitor has nothing to say; its end is seen by reading.
        let mut ignored = [0; 64];
        while !matches!(reading.read(&mut ignored).await, Ok(0) | Err(_)) {}
    };
    tokio::select! {
        () = told => {}
        () = gone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::record::tests::denied;
    use crate::monitor::socket;
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn every_monitor_hears_everything_and_one_that_goes_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let monitors = Monitors::default();
        let hello = Hello { node: "node-1".to_owned(), ..Hello::default() };
        let (listener, _file) = socket::bind(folder.path()).unwrap();
        tokio::spawn(serve(listener, monitors.clone(), hello, || ()));
        let mut streams = Vec::new();
        for _ in 0..2 {
            let stream = socket::connect(folder.path()).await.unwrap().unwrap();
            streams.push(BufReader::new(stream).lines());
        }
        until(|| monitors.len() == 2).await;
        monitors.take(&[denied()]);
        monitors.add_unsent(2);
        for stream in &mut streams {
            let mut line = async || {
                let line = stream.next_line().await.unwrap().unwrap();
                serde_json::from_str::<Record>(&line).unwrap()
            };
            assert!(matches!(line().await, Record::Agent(hello) if hello.node == "node-1"));
            assert!(matches!(line().await, Record::Event(event) if event.verdict == "deny"));
            assert!(matches!(line().await, Record::Missed { count: 2, .. }));
        }
        streams.pop();
        until(|| monitors.len() == 1).await;
        streams.pop();
        until(|| monitors.is_empty()).await;
    }
}
