//! Reading a whole map with few system calls (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6 and later), which aya does not have:
//! a scrape of the metrics counts maps of 100,000 entries.

use std::io;
use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::Pod;
use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::DatapathError;

/// Elements asked for in one call.
const CHUNK: usize = 4096;
/// Elements of one hash bucket at most: a call that cannot take a whole bucket is repeated with more room.
const MOST: usize = 1 << 20;
/// The kernel's cursor: a bucket number for hashes, a key for tries. No key of ours is larger.
const CURSOR: usize = 64;

/// Calls `each` with every element of a pinned map. Elements that come or go meanwhile may be missed or seen.
///
/// # Errors
/// If the map is not there, has another layout, or the kernel refuses.
pub fn for_each<K: Pod, V: Pod>(
    pin: &Path,
    name: &str,
    each: &mut dyn FnMut(K, V),
) -> Result<(), DatapathError> {
    let failed = |error: &dyn std::fmt::Display| DatapathError::map("read", name, error);
    let map = MapData::from_pin(pin).map_err(|error| failed(&error))?;
    let info = map.info().map_err(|error| failed(&error))?;
    // The kernel writes elements of the map's own sizes into our buffers.
    if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
        return Err(failed(&"it has another layout"));
    }
    let fd = u32::try_from(map.fd().as_fd().as_raw_fd()).unwrap_or(u32::MAX);
    let mut room = CHUNK;
    let (mut keys, mut values) = buffers::<K, V>(room);
    let mut cursor = [0u8; CURSOR];
    let mut first = true;
    loop {
        let mut next = [0u8; CURSOR];
        let (count, result) = lookup(fd, (!first).then_some(&cursor), &mut next, &mut keys, &mut values);
        let last = match result {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                Some(libc::ENOSPC) if room < MOST => {
                    room *= 4;
                    (keys, values) = buffers(room);
                    continue;
                }
                // The key at the cursor went away several times in a row: go on after what was read.
                Some(libc::EINTR) if count > 0 => false,
                _ => return Err(failed(&error)),
            },
        };
        for (key, value) in keys.iter().zip(&values).take(count) {
            each(*key, *value);
        }
        if last || count == 0 {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}

fn buffers<K: Pod, V: Pod>(room: usize) -> (Vec<K>, Vec<V>) {
    // SAFETY: `Pod` types of the map layouts are integers and arrays of them: zero is a valid value.
    unsafe { (vec![mem::zeroed(); room], vec![mem::zeroed(); room]) }
}

fn lookup<K, V>(
    fd: u32,
    from: Option<&[u8; CURSOR]>,
    next: &mut [u8; CURSOR],
    keys: &mut [K],
    values: &mut [V],
) -> (usize, io::Result<()>) {
    // SAFETY: zero is a valid value of this union of plain structs.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.batch.map_fd = fd;
    attr.batch.in_batch = from.map_or(0, |cursor| cursor.as_ptr() as u64);
    attr.batch.out_batch = next.as_mut_ptr() as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    // SAFETY: the attribute is of the size given; keys and values have room for `count` elements of the map's sizes,
    // which the caller compared, and a cursor for the largest key.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_long,
            &raw mut attr,
            mem::size_of::<bpf_attr>(),
        )
    };
    let result = if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // A call that failed early leaves the count as it was asked for.
    let told = match &result {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => 0,
        // SAFETY: the kernel wrote the count into this field.
        _ => unsafe { attr.batch.count as usize },
    };
    (told.min(keys.len()), result)
}
