//! Programs of somebody else, which the tests put before and behind ours on a hook: that both go on, that the one behind is
//! shown what ours let pass and nothing else, and that it finds the metadata that the first one had written.
#![no_std]
#![no_main]

#[path = "../object.rs"]
mod object;

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

/// What a program saw.
#[repr(C)]
pub struct Seen {
    /// Packets.
    packets: u64,
    /// Their bytes.
    bytes: u64,
    /// Which metadata was not what [`before`] writes in some of them: a bit a field, in the order in which it writes them.
    changed: u64,
}

/// Of [`before`] and of [`behind`].
#[btf_map]
pub static SEEN: Array<Seen, 2> = Array::new();

const MARK: u32 = 0x5eed;
const PRIORITY: u32 = 5;
const QUEUE: u32 = 0;
/// The kernel keeps sixteen bits of it.
const CLASS: u32 = 0x0102;
const OWN: [u32; 5] = [1, 2, 3, 4, 5];

/// Writes the metadata that a program may, but for `tc_index`, and counts.
#[classifier]
pub fn before(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel passes a valid context, and these fields are writable for TC programs. Each by itself: the verifier
    // takes no access to two fields at once.
    unsafe {
        write_volatile(&raw mut (*skb).mark, MARK);
        write_volatile(&raw mut (*skb).priority, PRIORITY);
        write_volatile(&raw mut (*skb).queue_mapping, QUEUE);
        write_volatile(&raw mut (*skb).tc_classid, CLASS);
        for (i, own) in OWN.into_iter().enumerate() {
            write_volatile(&raw mut (*skb).cb[i], own);
        }
    }
    count(skb, 0, 0);
    TC_ACT_UNSPEC
}

/// Counts what came by ours.
#[classifier]
pub fn behind(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: as in `before`.
    let same = unsafe {
        [
            read_volatile(&raw const (*skb).mark) == MARK,
            read_volatile(&raw const (*skb).priority) == PRIORITY,
            read_volatile(&raw const (*skb).queue_mapping) == QUEUE,
            read_volatile(&raw const (*skb).tc_classid) == CLASS,
        ]
    };
    let mut changed = 0;
    for (i, same) in same.into_iter().enumerate() {
        changed |= u64::from(!same) << i;
    }
    for (i, own) in OWN.into_iter().enumerate() {
        // SAFETY: as in `before`.
        let same = unsafe { read_volatile(&raw const (*skb).cb[i]) } == own;
        changed |= u64::from(!same) << (4 + i);
    }
    count(skb, 1, changed);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn count(skb: *mut __sk_buff, at: u32, changed: u64) {
    let Some(seen) = SEEN.get_ptr_mut(at) else { return };
    // SAFETY: an element of an array map. The tests ask when nothing is on its way; a lost addition would fail them.
    unsafe {
        (*seen).packets += 1;
        (*seen).bytes += u64::from((*skb).len);
        (*seen).changed |= changed;
    }
}
