//! What a monitor writes to standard output: what is wanted, by a thread of its own, so that a reader that pauses does not
//! keep this process from giving the ring buffer to an agent.

use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::cli::output::{self, Format};
use crate::monitor::{EventRecord, Filter, Lost, Record, event_line, missed_line};

/// Lines that wait to be written at most.
const WAITING: usize = 1024;

/// Writes what is wanted.
#[derive(Debug)]
pub struct Printer {
    format: Format,
    filter: Filter,
    /// How many events are still to be shown, if not all.
    left: Option<u64>,
    /// Whether it waits for the reader: while an agent runs, which does not wait for this process.
    pub patient: bool,
    out: SyncSender<String>,
    writer: JoinHandle<io::Result<()>>,
    /// Missed and not told yet.
    unsaid: Unsaid,
}

#[derive(Debug, Default)]
struct Unsaid {
    queue: u64,
    kernel: u64,
}

fn write_lines(lines: &Receiver<String>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    while let Ok(line) = lines.recv() {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

impl Printer {
    /// Starts the thread. `count`: after so many events nothing more is wanted.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(format: Format, filter: Filter, count: Option<u64>) -> io::Result<Self> {
        let (out, lines) = sync_channel(WAITING);
        let writer = std::thread::Builder::new().name("output".to_owned());
        let writer = writer.spawn(move || write_lines(&lines))?;
        Ok(Self { format, filter, left: count, patient: true, out, writer, unsaid: Unsaid::default() })
    }

    /// Waits until everything is written. That nobody reads any more is no error.
    ///
    /// # Errors
    /// What the system says otherwise.
    pub fn finish(self) -> io::Result<()> {
        let Self { out, writer, .. } = self;
        drop(out);
        match writer.join() {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether nothing more is wanted.
    pub fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// Says what can be expected of allowed flows, to who asked for them.
    pub fn explain(&self, sample: u32) {
        if !self.filter.verdicts.iter().any(|verdict| verdict == "allow") {
            return;
        }
        output::note(&match sample {
            0 => "allowed flows are not reported: the agent does it with --sample N, for one in N new ones"
                .to_owned(),
            1 => "every allowed new flow is reported (--sample of the agent)".to_owned(),
            n => format!("one in {n} allowed new flows is reported (--sample of the agent)"),
        });
    }

    /// Shows an event if it is wanted; `json`: the event as it came.
    pub fn event(&mut self, event: &EventRecord, json: impl FnOnce() -> String) {
        if self.is_done() || !self.filter.matches(event) {
            return;
        }
        let line = match self.format {
            Format::Table => event_line(event),
            Format::Json => json(),
        };
        if !self.tell_missed() || !self.offer(line) {
            self.unsaid.queue += 1;
            return;
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
    }

    /// Says how many events were missed.
    pub fn missed(&mut self, count: u64, at: Lost) {
        match at {
            Lost::Kernel => self.unsaid.kernel += count,
            Lost::Queue => self.unsaid.queue += count,
        }
        self.tell_missed();
    }

    /// Whether everything that was missed is said.
    fn tell_missed(&mut self) -> bool {
        let Unsaid { queue, kernel } = self.unsaid;
        let mut said = |count: u64, at: Lost| {
            count == 0 || {
                let line = match self.format {
                    Format::Table => missed_line(count, at),
                    Format::Json => Record::Missed { count, at }.text(),
                };
                self.offer(line)
            }
        };
        let queue_said = said(queue, Lost::Queue);
        let kernel_said = queue_said && said(kernel, Lost::Kernel);
        if queue_said {
            self.unsaid.queue = 0;
        }
        if kernel_said {
            self.unsaid.kernel = 0;
        }
        kernel_said
    }

    /// Hands a line to the writer; `false` if it has no room.
    fn offer(&mut self, line: String) -> bool {
        let sent = if self.patient {
            self.out.send(line).map_err(|_| false)
        } else {
            self.out.try_send(line).map_err(|error| matches!(error, TrySendError::Full(_)))
        };
        match sent {
            Ok(()) => true,
            Err(true) => false,
            Err(false) => {
                // The writer has ended: nobody reads.
                self.left = Some(0);
                true
            }
        }
    }
}
