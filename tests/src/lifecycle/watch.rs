//! Connections tried without a pause while something happens: what must pass and does not, or passes and must not, is
//! found whenever it is.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Namespace;
use crate::poll::eventually;

/// How long a permitted connection may take: the machine is busy, and a lost SYN comes again after a second. That none
/// was denied is what the counters say.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a forbidden one is waited for before the next.
const SILENCE: Duration = Duration::from_millis(200);
/// Between two tries of what passes.
const PACE: Duration = Duration::from_millis(30);
/// How many surprises of a line are kept in words.
const WORDS: usize = 3;

/// What is expected of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every new connection is answered.
    Permitted,
    /// No new connection is.
    Forbidden,
    /// One connection is answered all the time.
    Established,
}

/// Connections from one place to one address.
#[derive(Debug)]
pub struct Line {
    /// What is expected.
    pub kind: Kind,
    /// From whose network.
    pub from: Namespace,
    /// To an echo server there.
    pub to: SocketAddr,
}

/// Lines that are tried until this is finished or dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    lines: Vec<Tried>,
}

/// A line that is tried: in words, its kind, what was seen, and the thread that tries it.
type Tried = (String, Kind, Arc<Seen>, Option<JoinHandle<()>>);

#[derive(Debug, Default)]
struct Seen {
    tries: AtomicU64,
    slowest: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// What a watch saw.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sum {
    /// Permitted connections, all of them answered.
    pub connections: u64,
    /// Exchanges over established connections, all of them answered.
    pub exchanges: u64,
    /// Forbidden connections, none of them answered.
    pub forbidden: u64,
    /// The longest that a permitted one took.
    pub slowest: Duration,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { connections, exchanges, forbidden, slowest } = self;
        write!(
            f,
            "{connections} permitted connections and {exchanges} exchanges over old ones all answered (slowest \
             {} ms), {forbidden} forbidden ones all refused",
            slowest.as_millis()
        )
    }
}

impl Watch {
    /// Starts, and waits until each line was right once.
    pub fn start(lines: Vec<Line>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let lines = lines.into_iter().map(|line| {
            let what = format!("{:?} {} -> {}", line.kind, line.from.label(), line.to);
            let (kind, seen, stop) = (line.kind, Arc::new(Seen::default()), Arc::clone(&stop));
            let thread = thread::spawn({
                let seen = Arc::clone(&seen);
                move || {
                    if let Err(error) = line.from.run(|| line.go(&stop, &seen, start)) {
                        seen.surprise(start, &format!("{error:#}"));
                    }
                }
            });
            (what, kind, seen, Some(thread))
        });
        let watch = Self { stop: Arc::clone(&stop), lines: lines.collect() };
        eventually("each line of the traffic to be tried", || {
            watch.lines.iter().all(|(_, _, seen, _)| seen.tries.load(Ordering::SeqCst) > 0)
                || watch.check().is_err()
        })?;
        watch.check()?;
        Ok(watch)
    }

    /// Fails if anything was wrong so far.
    pub fn check(&self) -> Result<()> {
        let mut words = String::new();
        for (what, _, seen, _) in &self.lines {
            let wrong = seen.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            if !wrong.is_empty() {
                let tries = seen.tries.load(Ordering::SeqCst);
                words.extend([format!("\n  {what}: {} of {tries} wrong: {}", wrong.len(), first(&wrong))]);
            }
        }
        if !words.is_empty() {
            bail!("traffic was misjudged:{words}");
        }
        Ok(())
    }

    /// Stops, and fails if anything was wrong.
    pub fn finish(mut self) -> Result<Sum> {
        self.end();
        self.check()?;
        let mut sum = Sum::default();
        for (what, kind, seen, _) in &self.lines {
            let tries = seen.tries.load(Ordering::SeqCst);
            if tries == 0 {
                bail!("nothing was tried: {what}");
            }
            *match kind {
                Kind::Permitted => &mut sum.connections,
                Kind::Forbidden => &mut sum.forbidden,
                Kind::Established => &mut sum.exchanges,
            } += tries;
            sum.slowest = sum.slowest.max(Duration::from_millis(seen.slowest.load(Ordering::SeqCst)));
        }
        Ok(sum)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for (_, _, seen, thread) in &mut self.lines {
            if thread.take().is_some_and(|thread| thread.join().is_err()) {
                seen.wrong.lock().unwrap_or_else(PoisonError::into_inner).push("panicked".to_owned());
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

fn first(wrong: &[String]) -> String {
    wrong.iter().take(WORDS).cloned().collect::<Vec<_>>().join("; ")
}

impl Seen {
    fn surprise(&self, start: Instant, what: &str) {
        let at = start.elapsed().as_secs_f64();
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(format!("at {at:.2} s: {what}"));
    }

    fn took(&self, start: Instant) {
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.slowest.fetch_max(took, Ordering::SeqCst);
    }
}

impl Line {
    fn go(&self, stop: &AtomicBool, seen: &Seen, start: Instant) -> Result<()> {
        let mut old = match self.kind {
            Kind::Established => Some(self.from.tcp_connect(self.to, PATIENCE).context("connecting")?),
            _ => None,
        };
        while !stop.load(Ordering::SeqCst) {
            let begun = Instant::now();
            match (self.kind, &mut old) {
                (Kind::Forbidden, _) => {
                    if TcpStream::connect_timeout(&self.to, SILENCE).is_ok() {
                        seen.surprise(start, "a forbidden connection was answered");
                    }
                }
                (_, None) => {
                    match TcpStream::connect_timeout(&self.to, PATIENCE) {
                        Ok(_) => seen.took(begun),
                        Err(error) => seen.surprise(start, &error.to_string()),
                    }
                    thread::sleep(PACE);
                }
                (_, Some(old)) => {
                    // One that is cut says nothing more.
                    old.exchange(PATIENCE).context("a connection was lost")?;
                    seen.took(begun);
                    thread::sleep(PACE);
                }
            }
            seen.tries.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}
