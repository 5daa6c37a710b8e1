//! The few system calls that aya has no wrapper for, each behind a safe function.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type};

/// Magic number of bpffs (`BPF_FS_MAGIC`, include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// Whether a folder is on a BPF file system.
///
/// # Errors
/// What `statfs` says.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: zero is a valid value for this plain struct, and the path ends with a zero byte.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: as above; the kernel writes the struct.
    if unsafe { libc::statfs(text.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The field is signed or not, as the C library likes.
    Ok(i128::from(stat.f_type) == i128::from(BPF_FS_MAGIC))
}

/// Kernel timer ticks a second: the coarse clocks advance once a tick.
///
/// # Errors
/// What `clock_getres` says.
pub fn ticks_per_second() -> io::Result<u32> {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes the struct.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let nanoseconds = u32::try_from(resolution.tv_nsec).unwrap_or(0).max(1);
    Ok((1_000_000_000 + nanoseconds / 2) / nanoseconds)
}

/// Major and minor number of the running kernel's version; `None` if they cannot be read.
pub fn kernel_version() -> Option<(u32, u32)> {
    static FOUND: std::sync::OnceLock<Option<(u32, u32)>> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| version_of(&std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?))
}

/// Whether a test run of a program keeps the packets of its CPU waiting (6.11 and later). Before, one of them could interrupt
/// it and write into the work area that it uses.
pub fn has_exclusive_test_runs() -> bool {
    kernel_version().is_some_and(|found| found >= (6, 11))
}

/// Major and minor number in the name of a kernel's release.
pub fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Waits until no program run that began before the call can still be under way: the kernel implements the command as an
/// RCU grace period (`synchronize_rcu`, kernel/sched/membarrier.c), and TC programs run inside RCU sections. Kernels with
/// CPUs in `nohz_full` refuse the command; there an update of a map of maps waits for the same.
///
/// # Errors
/// What `membarrier`, and then `bpf`, says.
pub fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    static SAID: std::sync::Once = std::sync::Once::new();
    // SAFETY: no pointers are passed.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    SAID.call_once(|| tracing::info!(%error, "membarrier is refused: a map of maps is updated instead"));
    grace_period_by_map()
}

/// A grace period by way of a map of maps of its own: the kernel returns from an update of one only when no program can
/// still use the map that was replaced (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c).
///
/// # Errors
/// What `bpf` says.
pub fn grace_period_by_map() -> io::Result<()> {
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    let array = NewMap { name: c"", kind, key: 4, value: 4, entries: 1, flags: 0 };
    let inner = create_map(&array, None)?;
    let outer = NewMap { kind: bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, ..array };
    let outer = create_map(&outer, Some(&inner))?;
    let (key, value) = (0u32, inner.as_raw_fd());
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = u32::try_from(outer.as_raw_fd()).unwrap_or(u32::MAX);
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw const value) as u64;
    // SAFETY: the key and the value that it points to are four bytes, as the map has them, and live through the call.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// A map to be made, without a description of its types.
#[derive(Clone, Copy, Debug)]
pub struct NewMap<'a> {
    /// At most 15 characters of it are kept.
    pub name: &'a CStr,
    /// What it is.
    pub kind: bpf_map_type,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// How many there can be.
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// Makes a map; one of maps holds those that are like `inner`.
///
/// # Errors
/// What `bpf` says.
pub fn create_map(map: &NewMap<'_>, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.__bindgen_anon_1.map_type = map.kind as u32;
    attr.__bindgen_anon_1.key_size = map.key;
    attr.__bindgen_anon_1.value_size = map.value;
    attr.__bindgen_anon_1.max_entries = map.entries;
    attr.__bindgen_anon_1.map_flags = map.flags;
    // SAFETY: the whole union was written above, and every value of these bytes is valid.
    let name = unsafe { &mut attr.__bindgen_anon_1.map_name };
    // The last byte stays zero.
    for (to, from) in name[..15].iter_mut().zip(map.name.to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    if let Some(inner) = inner {
        attr.__bindgen_anon_1.inner_map_fd = u32::try_from(inner.as_raw_fd()).unwrap_or(u32::MAX);
    }
    // SAFETY: the attribute holds no pointers.
    let fd = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The system call.
///
/// # Safety
/// What the attribute points to must be as the command wants it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is of the size given; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            mem::size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes the lock of a folder for as long as the returned file lives; `None` if another process has it.
///
/// # Errors
/// What `open` or `flock` says.
pub fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = File::open(folder)?;
    // SAFETY: a file descriptor that lives through the call.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(Some(file));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

/// As [`lock`], but tries again for a moment: a `status` that looks whether an agent runs holds it for microseconds.
///
/// # Errors
/// As [`lock`].
pub fn lock_patiently(folder: &Path) -> io::Result<Option<File>> {
    for _ in 0..20 {
        if let Some(file) = lock(folder)? {
            return Ok(Some(file));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(None)
}

/// Ids of the TCX programs on a hook of an interface, in the order in which they run.
///
/// `BPF_PROG_QUERY`; needs `CAP_NET_ADMIN`. (aya's query also opens each program, which needs `CAP_SYS_ADMIN`.)
///
/// # Errors
/// What `bpf` says; `EINVAL` where the kernel has no TCX.
pub fn tcx_programs(ifindex: u32, egress: bool) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let kind = if egress { bpf_attach_type::BPF_TCX_EGRESS } else { bpf_attach_type::BPF_TCX_INGRESS };
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = kind as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = 64;
    // SAFETY: the attribute is of the size given, and the array it points to of the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_PROG_QUERY as libc::c_long,
            &raw mut attr,
            mem::size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel wrote the count into this field.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(ids[..count.min(64)].to_vec())
}

/// Whether the kernel has TCX (6.6 and later).
pub fn has_tcx() -> bool {
    // The loopback interface is always index 1 of a network namespace.
    tcx_programs(1, false).is_ok()
}

/// The name of an interface.
pub fn interface_name(ifindex: u32) -> Option<String> {
    let mut buffer = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call requires.
    let name = unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr().cast()) };
    if name.is_null() {
        return None;
    }
    let end = buffer.iter().position(|&b| b == 0)?;
    String::from_utf8(buffer[..end].to_vec()).ok()
}

/// Deletes an element of a map with 32-bit keys. (aya has no delete for arrays of maps.)
///
/// # Errors
/// What `bpf` says; `ENOENT` if there is none.
pub fn delete_element(map: std::os::fd::BorrowedFd<'_>, key: u32) -> io::Result<()> {
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX);
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    // SAFETY: the attribute is of the size given, and the key it points to lives through the call and is four bytes,
    // as the caller's map wants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_DELETE_ELEM as libc::c_long,
            &raw mut attr,
            mem::size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
