//! Ctrl-C ends a command between two steps, so that everything that it made is removed on the usual way out.
//!
//! The signals are blocked, in every thread and in the programs that the command starts: a terminal sends them to all of
//! them, and an `ip` that dies halfway would leave behind what nobody knows of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io, mem, ptr, thread};

use anyhow::{Context, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The command was interrupted by a signal.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Waits for signals from now on; `what` has made the things that are removed then. To be called before the first
/// thread starts.
pub fn watch(what: &'static str) -> Result<()> {
    // SAFETY: a set of signals is plain data, valid when zeroed, and written by `sigemptyset` before it is used.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` outlives each call; none keeps the pointer.
    let result = unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result)).context("blocking signals (pthread_sigmask)");
    }
    thread::spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are to locals that outlive the call.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
                return;
            }
            if !INTERRUPTED.swap(true, Ordering::SeqCst) {
                eprintln!("\ninterrupted: removing everything that {what} made ..");
            }
        }
    });
    Ok(())
}

/// Whether a signal has come.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}
