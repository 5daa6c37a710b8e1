//! An array of the kernel in this process's memory: a scrape of the metrics reads the flow tables of all endpoints, element by
//! element, and a system call for each would take a second.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::ptr::{NonNull, read_volatile};

use aya::Pod;
use aya::maps::{MapData, MapType};

use super::DatapathError;

/// A pinned array that was made with `BPF_F_MMAPABLE`, for reading. The kernel's programs write it at any time.
#[derive(Debug)]
pub struct Mapped<V> {
    memory: NonNull<libc::c_void>,
    bytes: usize,
    entries: u32,
    /// Bytes from one element to the next.
    stride: usize,
    _values: PhantomData<V>,
}

impl<V: Pod> Mapped<V> {
    /// Maps a pinned array.
    ///
    /// # Errors
    /// If it is not there, has another layout, or the kernel refuses.
    pub fn open(pin: &Path) -> Result<Self, DatapathError> {
        let failed =
            |error: &dyn std::fmt::Display| DatapathError::map("open", pin.display().to_string(), error);
        let map = MapData::from_pin(pin).map_err(|error| failed(&error))?;
        let info = map.info().map_err(|error| failed(&error))?;
        if !matches!(info.map_type(), Ok(MapType::Array)) || info.value_size() as usize != size_of::<V>() {
            return Err(failed(&"it has another layout"));
        }
        // The kernel rounds elements up to eight bytes (kernel/bpf/arraymap.c).
        let stride = size_of::<V>().next_multiple_of(8);
        let entries = info.max_entries();
        let bytes = stride * entries as usize;
        // SAFETY: new memory, which nobody else has; the kernel checks the descriptor and the length.
        let memory = unsafe {
            let descriptor = map.fd().as_fd().as_raw_fd();
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, descriptor, 0)
        };
        let memory = (memory != libc::MAP_FAILED).then(|| NonNull::new(memory)).flatten();
        let memory = memory.ok_or_else(|| failed(&io::Error::last_os_error()))?;
        Ok(Self { memory, bytes, entries, stride, _values: PhantomData })
    }

    /// How many elements there are.
    pub const fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// A copy of an element, of which a part may be older than another one; `None` beyond the last one.
    pub fn get(&self, index: u32) -> Option<V> {
        if index >= self.entries {
            return None;
        }
        // SAFETY: inside of the mapped memory, which lives as long as this, and aligned: it begins a page, and no value needs more
        // than eight bytes. Any bits are a value of a `Pod` type. Volatile, because others write.
        Some(unsafe {
            read_volatile(self.memory.as_ptr().byte_add(self.stride * index as usize).cast::<V>())
        })
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length, and nothing that was given out points into it.
        unsafe { libc::munmap(self.memory.as_ptr(), self.bytes) };
    }
}
