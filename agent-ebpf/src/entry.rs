//! A place of a flow table in the kernel.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};
use core::mem::size_of;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use portcullis_common::flow::{Flow, FlowKey};
use portcullis_common::process::FlowRef;
use portcullis_common::table::{FlowEntry, Place};

/// A place of a flow table. Everything is read and written word by word, because other CPUs write.
#[derive(Clone, Copy)]
pub struct Entry<K>(pub *mut FlowEntry<K>);

/// The last word of a key that no packet has: the upper bytes of every other one are zero.
const NOBODY: u64 = u64::MAX;

impl<K: FlowKey> Entry<K> {
    /// A key is words and nothing else. The last one says whose the others are.
    const LAST: usize = size_of::<K>() / size_of::<u64>() - 1;

    /// A word of the entry's key.
    ///
    /// # Safety
    /// There is such a word.
    #[inline(always)]
    unsafe fn word(&self, index: usize) -> *mut u64 {
        // SAFETY: inside of a map value by the caller's promise.
        unsafe { addr_of_mut!((*self.0).key).cast::<u64>().add(index) }
    }

    /// Writes the last word of the key after everything that was written before, and before everything that is written after
    /// it, on processors that change the order of writes, too.
    #[inline(always)]
    fn exchange_last(&self, word: u64) {
        // SAFETY: an aligned word of a map value.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(self.word(Self::LAST), word) };
    }
}

impl<K: FlowKey> FlowRef<K> for Entry<K> {
    #[inline(always)]
    fn load(&self) -> Flow {
        let flow = self.glance();
        // SAFETY: the pointer is to a map value, checked by the verifier.
        let (origin, timeout) = unsafe {
            let flow = addr_of_mut!((*self.0).flow);
            (read_volatile(addr_of!((*flow).origin)), read_volatile(addr_of!((*flow).timeout)))
        };
        Flow { origin, timeout, ..flow }
    }

    #[inline(always)]
    fn glance(&self) -> Flow {
        // SAFETY: as in `load`.
        unsafe {
            let flow = addr_of_mut!((*self.0).flow);
            // First, as it is written last: what is read after it is as new.
            let revision = read_volatile(addr_of!((*flow).revision));
            // Verdict, opener, state and padding in one word.
            let [verdict, opener, state, pad] =
                read_volatile(addr_of!((*flow).verdict).cast::<u32>()).to_ne_bytes();
            Flow {
                version: 0,
                revision,
                last_seen: read_volatile(addr_of!((*flow).last_seen)),
                timeout: 0,
                slot: read_volatile(addr_of!((*flow).slot)),
                origin: 0,
                verdict,
                opener,
                state,
                pad,
            }
        }
    }

    #[inline(always)]
    fn is_still(&self, key: &K) -> bool {
        self.holds(key)
    }

    #[inline(always)]
    fn touch(&self, now: u64) {
        // SAFETY: as in `load`; one aligned word.
        unsafe { write_volatile(addr_of_mut!((*self.0).flow.last_seen), now) };
    }

    #[inline(always)]
    fn advance(&self, state: u8, timeout: u32) {
        // SAFETY: as in `load`.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).flow.timeout), timeout);
            write_volatile(addr_of_mut!((*self.0).flow.state), state);
        }
    }
}

impl<K: FlowKey> Place<K> for Entry<K> {
    #[inline(always)]
    fn version(&self) -> u32 {
        // SAFETY: as in `load`.
        unsafe { read_volatile(addr_of!((*self.0).flow.version)) }
    }

    #[inline(always)]
    fn holds(&self, key: &K) -> bool {
        let key = (key as *const K).cast::<u64>();
        // The word first that is written last: the others are those of the same key then, or of a later one. One branch for
        // all, which is less for the verifier.
        let mut differs = 0;
        for index in (0..=Self::LAST).rev() {
            // SAFETY: a word of both keys.
            differs |= unsafe { read_volatile(self.word(index)) ^ *key.add(index) };
        }
        differs == 0
    }

    #[inline(always)]
    fn left(&self, now: u64) -> i64 {
        // SAFETY: as in `load`.
        let (last_seen, timeout) = unsafe {
            (
                read_volatile(addr_of!((*self.0).flow.last_seen)),
                read_volatile(addr_of!((*self.0).flow.timeout)),
            )
        };
        timeout as i64 - now.wrapping_sub(last_seen) as i64
    }

    #[inline(always)]
    fn claim(&self, version: u32) -> bool {
        // SAFETY: an aligned word of a map value.
        unsafe {
            atomic_cxchg::<u32, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(
                addr_of_mut!((*self.0).flow.version),
                version,
                version.wrapping_add(1),
            )
            .1
        }
    }

    #[inline(always)]
    fn vacate(&self) {
        self.exchange_last(NOBODY);
    }

    #[inline(always)]
    fn fill(&self, key: &K, flow: &Flow) {
        // SAFETY: as in `load`.
        unsafe {
            let into = addr_of_mut!((*self.0).flow);
            write_volatile(addr_of_mut!((*into).last_seen), flow.last_seen);
            write_volatile(addr_of_mut!((*into).timeout), flow.timeout);
            write_volatile(addr_of_mut!((*into).slot), flow.slot);
            write_volatile(addr_of_mut!((*into).origin), flow.origin);
            let life = u32::from_ne_bytes([flow.verdict, flow.opener, flow.state, 0]);
            write_volatile(addr_of_mut!((*into).verdict).cast::<u32>(), life);
            // What makes the rest valid comes after it.
            write_volatile(addr_of_mut!((*into).revision), flow.revision);
        }
        let key = (key as *const K).cast::<u64>();
        for index in 0..Self::LAST {
            // SAFETY: a word of both keys.
            unsafe { write_volatile(self.word(index), *key.add(index)) };
        }
        // SAFETY: as above.
        self.exchange_last(unsafe { *key.add(Self::LAST) });
    }

    #[inline(always)]
    fn release(&self, version: u32) {
        // SAFETY: as in `load`.
        unsafe {
            atomic_xchg::<u32, { AtomicOrdering::AcqRel }>(addr_of_mut!((*self.0).flow.version), version);
        }
    }
}
