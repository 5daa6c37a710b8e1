//! The thread of the verdict events: from the ring buffer to the log, to the monitors, and to who asks conntrack about packets
//! without a flow, so that none of them waits for the programming of maps, nor the other way round.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use portcullis_common::event::Event;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::denials::Denials;
use super::recall::{self, Lost};
use crate::cli::AgentArgs;
use crate::datapath::{Claim, EventSource, Events, Reader};
use crate::monitor::socket::{self, SocketFile};
use crate::monitor::{self, FORMAT, Hello, Monitors};

/// How often the kernel's count of missed events is looked at, and the ring buffer is asked for while another process has it.
const LOOK: Duration = Duration::from_millis(200);
/// How many looks a monitor may take to give the ring buffer back before it is said.
const PATIENT: u32 = 10;

/// Who is told of events.
#[derive(Debug)]
pub struct Readers {
    /// The log.
    pub denials: Denials,
    /// The monitors.
    pub monitors: Monitors,
    /// Takes packets without a flow.
    pub lost: mpsc::Sender<Lost>,
}

impl Readers {
    /// A log and no monitors yet.
    pub fn new(lost: mpsc::Sender<Lost>) -> Self {
        Self { denials: Denials::start(), monitors: Monitors::default(), lost }
    }
}

/// The thread; with this goes the socket of the monitors.
#[derive(Debug)]
pub struct EventThread {
    _socket: Option<SocketFile>,
}

/// Starts it. The socket is there when this returns: by it a monitor that reads the ring buffer itself knows that an agent
/// has come.
///
/// # Errors
/// If there is no thread to be had, or the kernel's counter cannot be read.
pub fn start(args: &AgentArgs, source: EventSource, readers: Readers) -> anyhow::Result<EventThread> {
    let hello = Hello {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: args.node_name()?,
        sample: args.sample,
    };
    let monitors = readers.monitors.clone();
    let missed = Missed::new(Reader::open(&args.paths.bpffs)?, monitors.clone())?;
    let (listener, file) = match socket::bind(&args.paths.run_dir) {
        Ok((listener, file)) => (Some(listener), Some(file)),
        Err(error) => {
            let path = socket::path(&args.paths.run_dir);
            warn!(%error, path = %path.display(), "no socket for `portcullis monitor`");
            (None, None)
        }
    };
    std::thread::Builder::new().name("events".to_owned()).spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            if let Some(listener) = listener {
                let missed = missed.clone();
                tokio::spawn(monitor::serve(listener, monitors.clone(), hello, move || missed.look()));
            }
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(LOOK).await;
                    missed.look();
                }
            });
            if let Err(error) = read(source, &readers).await {
                error!(%error, "verdict events are not read any more");
            }
            // Monitors are told what is missed all the same.
            std::future::pending().await
        })
    })?;
    Ok(EventThread { _socket: file })
}

/// Reads the ring buffer for ever.
async fn read(source: EventSource, readers: &Readers) -> anyhow::Result<()> {
    let events = claim(source).await?;
    let handle = |events: &[Event]| {
        recall::take(events, &readers.lost);
        readers.monitors.take(events);
        readers.denials.take(events);
        true
    };
    Ok(events.run(handle).await?)
}

/// The ring buffer, as soon as nobody else reads it.
async fn claim(mut source: EventSource) -> anyhow::Result<Events> {
    for look in 0_u32.. {
        source = match source.claim()? {
            Claim::Ours(events) => {
                if look > PATIENT {
                    info!("verdict events are read again");
                }
                return Ok(events);
            }
            Claim::Taken(source) => source,
        };
        if look == PATIENT {
            warn!(
                "another process reads the verdict events, such as a `portcullis monitor` with another --run-dir: they are not \
                 logged until it ends"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("another process never stopped reading")
}

/// The kernel's count of events that it did not send, and how much of it the monitors know.
#[derive(Clone, Debug)]
struct Missed {
    counter: Arc<Mutex<(Reader, u64)>>,
    monitors: Monitors,
}

impl Missed {
    fn new(reader: Reader, monitors: Monitors) -> anyhow::Result<Self> {
        let told = reader.missed_events().context("looking at what was missed before")?;
        Ok(Self { counter: Arc::new(Mutex::new((reader, told))), monitors })
    }

    /// Tells what has come to it since the last look.
    fn look(&self) {
        let mut counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        let (reader, told) = &mut *counter;
        match reader.missed_events() {
            Ok(count) => {
                self.monitors.add_unsent(count.saturating_sub(*told));
                *told = count;
            }
            // Five times a second: not for every log.
            Err(error) => debug!(%error, "cannot tell how many verdict events are missed"),
        }
    }
}
