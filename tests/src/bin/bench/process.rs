//! What a measurement asks of the system: a process of its own for its memory, where what an allocator kept of the one before
//! does not count, the processor's time, and a processor.

use std::process::Command;

/// The word that makes this program measure one world and print figures.
pub const CHILD: &str = "measure-one-world";

/// Runs this program again, and reads the figures that it prints as JSON.
pub fn measure(arguments: &[String]) -> serde_json::Value {
    let program = std::env::current_exe().expect("the path of this program");
    let output =
        Command::new(program).arg(CHILD).args(arguments).output().expect("starting this program again");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("figures")
}

/// Seconds of a processor that this thread has had: what others do on the machine meanwhile does not count.
pub fn seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes the struct.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "the clock of the thread");
    std::time::Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
        .as_secs_f64()
}

/// Gives back to the system what the allocator holds and nobody uses.
pub fn trim() {
    // SAFETY: the call has no pointers, and the allocator may be asked at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes of memory that the process has now, and the most that it had.
pub fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the field");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}
