//! Which processor a thread runs on.

use std::io::{Error, Result};

/// Keeps this thread on one processor.
///
/// # Errors
/// If there is no such processor, or it may not be used.
pub fn stay_on(processor: usize) -> Result<()> {
    // SAFETY: a set of bits is valid when it is zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the macro writes into the set alone; a number beyond it changes nothing.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the kernel reads the set, whose size is given; zero is this thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } != 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// The processors that this thread may use, in order.
///
/// # Errors
/// If the kernel does not say.
pub fn allowed() -> Result<Vec<usize>> {
    // SAFETY: a set of bits is valid when it is zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the set, whose size is given; zero is this thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the macro reads the set alone.
    let is_set = |processor: &usize| unsafe { libc::CPU_ISSET(*processor, &set) };
    Ok((0..8 * size_of::<libc::cpu_set_t>()).filter(is_set).collect())
}
