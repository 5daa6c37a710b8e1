//! The programs that `cargo xtask bench` compares ours with: one that does nothing, and the least that any packet filter
//! with flows and counters has to do: parse, one LRU lookup, one per-CPU array update. The kernel compares keys by eight
//! bytes and the rest byte by byte, so what that least is depends on the key.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use portcullis_common::flow::{FlowKey as _, FlowKey4};
use portcullis_common::packet::{ETHERNET, Head, Packet, ethertype};

use crate::skb::{Linear, Skb};

#[btf_map]
pub static LIMIT_FLOWS: LruHashMap<FlowKey4, u32, 4096> = LruHashMap::new();
/// A table that all endpoints share: the key has the interface, too.
#[btf_map]
pub static SHARED_FLOWS: LruHashMap<SharedKey, u32, 4096> = LruHashMap::new();
#[btf_map]
pub static LIMIT_COUNTERS: PerCpuArray<[u64; 2], 1024> = PerCpuArray::new();

/// Twenty bytes, as in the design's measurements.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SharedKey {
    source_be: u32,
    destination_be: u32,
    ports_be: u32,
    protocol: u32,
    ifindex: u32,
}

/// Does nothing.
#[classifier]
pub fn bench_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Parses an IPv4 packet with ports, looks up its flow, counts.
#[classifier]
pub fn bench_limit(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    let Some(head) = ipv4(&skb) else { return TC_ACT_UNSPEC };
    let [source, destination] = head.words_be(IP + 12);
    let key = FlowKey4::build(source, destination, head.ports(IP + 20), head.u8(IP + 9), 0);
    // SAFETY: copied at once.
    if let Some(&slot) = unsafe { LIMIT_FLOWS.get(key) } {
        count(&skb, slot);
    }
    TC_ACT_UNSPEC
}

/// As [`bench_limit`], with one table for all endpoints.
#[classifier]
pub fn bench_limit_shared(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    let Some(head) = ipv4(&skb) else { return TC_ACT_UNSPEC };
    let key = SharedKey {
        source_be: head.u32_be(IP + 12),
        destination_be: head.u32_be(IP + 16),
        ports_be: head.u32_be(IP + 20),
        protocol: u32::from(head.u8(IP + 9)),
        ifindex: skb.ifindex(),
    };
    // SAFETY: copied at once.
    if let Some(&slot) = unsafe { SHARED_FLOWS.get(key) } {
        count(&skb, slot);
    }
    TC_ACT_UNSPEC
}

const IP: usize = ETHERNET as usize;

#[inline(always)]
fn ipv4(skb: &Skb) -> Option<Linear> {
    if skb.ethertype() != ethertype::IPV4 {
        return None;
    }
    skb.head(IP + 24).filter(|head| head.u8(IP) == 0x45)
}

#[inline(always)]
fn count(skb: &Skb, slot: u32) {
    if let Some(counters) = LIMIT_COUNTERS.get_ptr_mut(slot) {
        // SAFETY: this CPU's copy of a map value.
        unsafe {
            (*counters)[0] += 1;
            (*counters)[1] += u64::from(skb.length());
        }
    }
}
