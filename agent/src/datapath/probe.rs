//! Trying out what the kernel lets this process do: cheap real operations that leave nothing behind.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use aya::EbpfLoader;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};
use portcullis_common::Direction;
use portcullis_common::abi::names;

use super::error::DatapathError;
use super::sizes::{Shape, Sizes};
use super::{OBJECT, attach};

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `bpf_jiffies64()`: helper 118 (include/uapi/linux/bpf.h), Linux 5.6 and later.
const CALL_JIFFIES64: u64 = 0x85 | 118 << 32;
/// `exit`
const EXIT: u64 = 0x95;

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is of the size given; what it points to lives in the callers, through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, mem::size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes a file descriptor over.
fn own(fd: libc::c_long) -> io::Result<File> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else closes it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Creates a map of one word, and lets it go.
///
/// # Errors
/// What `bpf` says; `EPERM` without `CAP_BPF`.
pub fn create_map() -> io::Result<()> {
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.__bindgen_anon_1.map_type = ARRAY;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = 4;
    attr.__bindgen_anon_1.max_entries = 1;
    bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr).and_then(own).map(drop)
}

/// The low half of the kernel's tick counter, which flows are stamped with. It is not to be had in user space, so a
/// program of two instructions is asked.
///
/// # Errors
/// What `bpf` says when the program is loaded or run.
pub fn jiffies() -> io::Result<u32> {
    let program = [CALL_JIFFIES64, EXIT];
    let packet = [0u8; 64];
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    attr.__bindgen_anon_3.insn_cnt = 2;
    attr.__bindgen_anon_3.insns = program.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"Apache-2.0".as_ptr() as u64;
    let program = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).and_then(own)?;
    // SAFETY: as above.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.test.prog_fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = 64;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel wrote the program's result into this field.
    Ok(unsafe { attr.test.retval })
}

/// A program that this kernel's verifier took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name in the object.
    pub name: &'static str,
    /// How many instructions the verifier followed, over all branches. A million is the most that it does.
    pub instructions: Option<u32>,
}

/// Loads both programs with small maps that nobody else sees, and lets them go: whether this kernel's verifier takes
/// them from this process, and how much work they are to it.
///
/// # Errors
/// What the kernel says.
pub fn load_programs() -> Result<Vec<Verified>, DatapathError> {
    let sizes = Sizes {
        ipcache_size: 1,
        cidrs_size: 1,
        services_size: 1,
        subjects_size: 1,
        rows_size: 1,
        ports_size: 1,
        counters_size: 1,
        flows_size: 1,
    };
    let mut loader = EbpfLoader::new();
    for name in names::ALL {
        if let Some(shape) = Shape::wanted(name, &sizes) {
            loader.map_max_entries(name, shape.entries);
        }
    }
    let mut object = loader.load(OBJECT)?;
    let mut verified = Vec::new();
    for &direction in Direction::ALL {
        attach::load(&mut object, direction)?;
        let info = attach::classifier(&mut object, direction)?.info();
        let instructions = info.ok().and_then(|info| info.verified_instruction_count());
        verified.push(Verified { name: attach::program_name(direction), instructions });
    }
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_go_on_as_fast_as_the_clock_says() {
        let hz = super::super::sys::ticks_per_second().unwrap();
        let start = std::time::Instant::now();
        let before = jiffies().unwrap();
        while start.elapsed() < std::time::Duration::from_millis(300) {
            std::thread::yield_now();
        }
        let passed = f64::from(jiffies().unwrap().wrapping_sub(before)) / f64::from(hz);
        let clock = start.elapsed().as_secs_f64();
        assert!((passed - clock).abs() < 0.1, "{passed} s of ticks in {clock} s");
    }

    #[test]
    fn this_kernel_takes_the_programs() {
        create_map().unwrap();
        let verified = load_programs().unwrap();
        assert_eq!(verified.len(), 2, "{verified:?}");
    }
}
