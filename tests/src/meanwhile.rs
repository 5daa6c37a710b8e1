//! Packets in flight while something changes.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use portcullis::datapath::{find_filter, sys};
use portcullis_common::Direction;

use crate::packets::{Packet, flags};

/// Runs SYNs from 10.0.0.4 to port 80 of 10.0.0.2 against the attached program on a thread of its own while `change` runs;
/// returns how many passed and how many were dropped.
///
/// # Panics
/// If no program is attached to interface 1, or the kernel refuses to run it.
pub fn probed_meanwhile(change: impl FnOnce()) -> (u64, u64) {
    // What goes to the pod leaves the host by its interface.
    let ids = if sys::has_tcx() {
        sys::tcx_programs(1, true).expect("the kernel answers")
    } else {
        find_filter(1, Direction::Ingress).expect("the kernel answers").into_iter().collect()
    };
    let program = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| ids.contains(&program.id()))
        .expect("the attached program");
    let fd = program.fd().expect("the kernel answers");
    let (done, passed, dropped) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = 1u16;
            while !done.load(Relaxed) {
                port = port.wrapping_add(1).max(1);
                let packet = Packet::tcp("10.0.0.4", port, "10.0.0.2", 80, flags::SYN).bytes();
                let count = if test_run(fd.as_fd().as_raw_fd(), &packet) { &passed } else { &dropped };
                count.fetch_add(1, Relaxed);
            }
        });
        // Also if the change panics: the thread would run for ever.
        let _ends = Ends(&done);
        let ran = || passed.load(Relaxed) + dropped.load(Relaxed);
        let wait = |count| {
            while ran() < count {
                std::thread::yield_now();
            }
        };
        wait(1000);
        change();
        wait(ran() + 1000);
    });
    (passed.into_inner(), dropped.into_inner())
}

/// Says that it is over when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// `BPF_PROG_TEST_RUN` of a packet that came in by interface 99; whether it passed.
fn test_run(program: i32, packet: &[u8]) -> bool {
    let mut context = [0u8; 192];
    context[36..40].copy_from_slice(&99u32.to_ne_bytes());
    let mut attr = [0u8; 128];
    attr[0..4].copy_from_slice(&program.to_ne_bytes());
    attr[8..12].copy_from_slice(&u32::try_from(packet.len()).expect("the kernel answers").to_ne_bytes());
    attr[16..24].copy_from_slice(&(packet.as_ptr() as u64).to_ne_bytes());
    attr[32..36].copy_from_slice(&1u32.to_ne_bytes());
    attr[40..44].copy_from_slice(&192u32.to_ne_bytes());
    attr[48..56].copy_from_slice(&(context.as_ptr() as u64).to_ne_bytes());
    // SAFETY: the attribute is as the command wants it, and packet and context live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 10, attr.as_mut_ptr(), attr.len()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    u32::from_ne_bytes(attr[4..8].try_into().expect("the kernel answers")) == u32::MAX
}
