//! `portcullis monitor`: verdict events as they happen. While an agent runs it hands them on; otherwise this process reads
//! the kernel's ring buffer itself, until an agent comes.

mod printer;

use std::cell::RefCell;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use portcullis_common::{Direction, Reason, Verdict};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::names::Names as NamesFile;
use super::output::{self, Format};
use super::{Outcome, Paths};
use crate::datapath::{Claim, DatapathError, EventSource, Events, Reader, sys};
use crate::monitor::{Clock, Filter, Hello, Lost, Names, PortFilter, Principal, Record, socket};
use printer::Printer;

/// How often it looks whether an agent has come, the reader has gone, or the kernel has missed something.
const LOOK: Duration = Duration::from_millis(200);
/// How many looks an agent may take from its lock to its socket.
const STARTING: u32 = 25;

/// What `monitor` takes.
#[derive(Clone, Debug, Args)]
#[command(after_help = NOTES)]
pub struct MonitorArgs {
    /// Only these verdicts; can be repeated
    #[arg(long, value_name = "VERDICT",
          value_parser = PossibleValuesParser::new(Verdict::ALL.iter().map(|v| v.name())), help_heading = "Filters")]
    verdict: Vec<String>,
    /// Only this direction, seen from the pod
    #[arg(long, value_name = "DIRECTION",
          value_parser = PossibleValuesParser::new(Direction::ALL.iter().map(|d| d.name())), help_heading = "Filters")]
    direction: Option<String>,
    /// Only events with this identity on either side: NAMESPACE/ACCOUNT, host, node, world or unmanaged; can be repeated
    #[arg(long, value_name = "IDENTITY", help_heading = "Filters")]
    identity: Vec<Principal>,
    /// Only events with this identity as the source; can be repeated
    #[arg(long, value_name = "IDENTITY", help_heading = "Filters")]
    from: Vec<Principal>,
    /// Only events with this identity as the destination; can be repeated
    #[arg(long, value_name = "IDENTITY", help_heading = "Filters")]
    to: Vec<Principal>,
    /// Only events with this namespace on either side; can be repeated
    #[arg(long, value_name = "NAME", help_heading = "Filters")]
    namespace: Vec<String>,
    /// Only events to this port, such as 80 or TCP/80; can be repeated
    #[arg(long, value_name = "[PROTOCOL/]PORT", help_heading = "Filters")]
    port: Vec<PortFilter>,
    /// Only events with this reason; can be repeated
    #[arg(long, value_name = "REASON", hide_possible_values = true,
          value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|r| r.name())), help_heading = "Filters")]
    reason: Vec<String>,
    /// Stop after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

const NOTES: &str = "\
Filters that are repeated fit if one of them does; different filters must all fit.

Denied packets and new audited flows are events, up to --event-rate of the agent a second and CPU. Allowed new flows are \
events only where the agent runs with --sample N, and then one in N. What was missed is told on a line of its own, counted \
before the filters.

With -o json each line is an object, {\"type\": \"event\", ..} or {\"type\": \"missed\", \"count\": N, \"at\": ..}. Events are \
missed at \"kernel\" (over the rate, or no room in the kernel's buffer) or at \"queue\" (this monitor reads too slowly).

Without an agent the events come from the kernel, with the names that the last agent left; then only one monitor at a time \
can have them.

Examples:
  portcullis monitor --verdict deny --namespace shop
  portcullis monitor --from shop/api --to world --port TCP/443
  portcullis monitor --reason no-flow --count 10 -o json";

impl MonitorArgs {
    fn filter(&self) -> Filter {
        Filter {
            verdicts: self.verdict.clone(),
            direction: self.direction.clone(),
            reasons: self.reason.clone(),
            identities: self.identity.clone(),
            from: self.from.clone(),
            to: self.to.clone(),
            namespaces: self.namespace.clone(),
            ports: self.port.clone(),
        }
    }
}

/// Runs the command.
pub fn run(args: &MonitorArgs, format: Format, paths: &Paths) -> anyhow::Result<Outcome> {
    let printer = RefCell::new(Printer::start(format, args.filter(), args.count)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watched = runtime.block_on(watch(&printer, paths));
    let written = printer.into_inner().finish().context("cannot write the events");
    watched.and(written).map(|()| Outcome::Good)
}

/// Why one way of getting events is over.
enum End {
    /// Nobody wants more.
    Enough,
    /// The agent has ended.
    AgentGone,
    /// An agent has come, and this is the connection to it.
    AgentCame(UnixStream),
}

async fn watch(printer: &RefCell<Printer>, paths: &Paths) -> anyhow::Result<()> {
    let mut agent = connect(&paths.run_dir).await?;
    loop {
        let end = match agent.take() {
            Some(stream) => follow_agent(printer, stream, &paths.run_dir).await?,
            None => follow_kernel(printer, paths).await?,
        };
        match end {
            End::Enough => return Ok(()),
            End::AgentGone => {
                output::note("the agent has ended");
                agent = connect(&paths.run_dir).await?;
            }
            End::AgentCame(stream) => agent = Some(stream),
        }
    }
}

async fn connect(run_dir: &Path) -> anyhow::Result<Option<UnixStream>> {
    let stream = socket::connect(run_dir).await;
    stream.with_context(|| format!("cannot connect to the agent at {}", socket::path(run_dir).display()))
}

/// Shows what an agent sends, until it ends.
async fn follow_agent(printer: &RefCell<Printer>, stream: UnixStream, run_dir: &Path) -> anyhow::Result<End> {
    printer.borrow_mut().patient = true;
    let mut lines = BufReader::new(stream).lines();
    let mut look = looks();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                // An agent that is killed may leave half a line, or a reset.
                let Ok(Some(line)) = line else { return Ok(End::AgentGone) };
                let Ok(record) = serde_json::from_str::<Record>(&line) else { continue };
                let mut printer = printer.borrow_mut();
                match record {
                    Record::Agent(Hello { version, node, sample, .. }) => {
                        let socket = socket::path(run_dir);
                        output::note(&format!("events of the agent {version} of {node}, by {}", socket.display()));
                        printer.explain(sample);
                    }
                    Record::Event(event) => printer.event(&event, || line),
                    Record::Missed { count, at } => printer.missed(count, at),
                    Record::Unknown => {}
                }
                if printer.is_done() {
                    return Ok(End::Enough);
                }
            }
            _ = look.tick() => if stdout_is_closed() { return Ok(End::Enough) },
        }
    }
}

/// Shows what the kernel's ring buffer has, until an agent comes.
async fn follow_kernel(printer: &RefCell<Printer>, paths: &Paths) -> anyhow::Result<End> {
    let reader = Reader::open(&paths.bpffs)?;
    let events = match claim(reader.events()?, paths).await? {
        Claimed::Events(events) => events,
        Claimed::Instead(end) => return Ok(end),
    };
    output::note(&format!(
        "no agent runs: reading the events of {} from the kernel, with the names of the last agent",
        paths.bpffs.display()
    ));
    printer.borrow_mut().explain(reader.sample()?);
    printer.borrow_mut().patient = false;
    let names = Names::new(Arc::new(NamesFile::load(&paths.run_dir).into_state()));
    let mut told = reader.missed_events()?;
    let mut tell_missed = || -> Result<(), DatapathError> {
        let count = reader.missed_events()?;
        printer.borrow_mut().missed(count.saturating_sub(told), Lost::Kernel);
        told = count;
        Ok(())
    };
    let mut running = pin!(events.run(|events| {
        let clock = Clock::now();
        let mut printer = printer.borrow_mut();
        for event in events {
            let event = names.record(event, clock);
            printer.event(&event, || Record::Event(Box::new(event.clone())).text());
        }
        !printer.is_done()
    }));
    let mut look = looks();
    loop {
        tokio::select! {
            ended = &mut running => {
                ended.context("cannot wait for events")?;
                return Ok(End::Enough);
            }
            _ = look.tick() => {
                let agent = connect(&paths.run_dir).await?;
                tell_missed()?;
                if let Some(stream) = agent {
                    // It waits until this process gives the ring buffer back, which the end of this function does.
                    output::note("an agent has come");
                    return Ok(End::AgentCame(stream));
                }
                if stdout_is_closed() || printer.borrow().is_done() {
                    return Ok(End::Enough);
                }
                if !reader.is_pinned() {
                    bail!("the maps in {} were taken away: nothing is enforced any more", paths.bpffs.display());
                }
            }
        }
    }
}

enum Claimed {
    Events(Events),
    Instead(End),
}

/// Waits until nobody else reads the ring buffer.
async fn claim(mut source: EventSource, paths: &Paths) -> anyhow::Result<Claimed> {
    let mut said = false;
    for look in 0_u32.. {
        if agent_runs(&paths.bpffs)? {
            if look == STARTING {
                bail!(
                    "an agent works on {}, and there is no {}: name its folder with --run-dir",
                    paths.bpffs.display(),
                    socket::path(&paths.run_dir).display()
                );
            }
        } else {
            source = match source.claim()? {
                Claim::Ours(events) => return Ok(Claimed::Events(events)),
                Claim::Taken(source) => source,
            };
            if !said {
                output::note(
                    "no agent runs, and another monitor reads the kernel's events: waiting for its end, or an agent",
                );
                said = true;
            }
        }
        sleep(LOOK).await;
        if let Some(stream) = connect(&paths.run_dir).await? {
            return Ok(Claimed::Instead(End::AgentCame(stream)));
        }
        if stdout_is_closed() {
            break;
        }
    }
    Ok(Claimed::Instead(End::Enough))
}

/// Whether an agent has the lock of the folder.
fn agent_runs(bpffs: &Path) -> anyhow::Result<bool> {
    let lock = sys::lock(bpffs).with_context(|| format!("cannot look at {}", bpffs.display()))?;
    Ok(lock.is_none())
}

fn looks() -> tokio::time::Interval {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Whether the reader of a pipe has gone: seen without an event to write.
fn stdout_is_closed() -> bool {
    let mut asked = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
    // SAFETY: one struct, as the count says, that lives through the call.
    let found = unsafe { libc::poll(&raw mut asked, 1, 0) };
    found > 0 && asked.revents & (libc::POLLERR | libc::POLLNVAL) != 0
}
