//! The two programs that `cargo xtask bench` compares ours with: one that does nothing, and the least that any packet
//! filter with flows and counters has to do: parse, one LRU lookup, one per-CPU array update.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use portcullis_common::flow::FlowKey4;
use portcullis_common::packet::{ETHERNET, Head, Packet, ethertype};

use crate::skb::Skb;

#[btf_map]
pub static LIMIT_FLOWS: LruHashMap<FlowKey4, u32, 4096> = LruHashMap::new();
#[btf_map]
pub static LIMIT_COUNTERS: PerCpuArray<[u64; 2], 1024> = PerCpuArray::new();

/// Does nothing.
#[classifier]
pub fn bench_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Parses an IPv4 packet with ports, looks up its flow, counts.
#[classifier]
pub fn bench_limit(ctx: TcContext) -> i32 {
    const IP: usize = ETHERNET as usize;
    let skb = Skb::new(ctx.skb.skb);
    if skb.ethertype() != ethertype::IPV4 {
        return TC_ACT_UNSPEC;
    }
    let Some(head) = skb.head(IP + 24) else { return TC_ACT_UNSPEC };
    if head.u8(IP) != 0x45 {
        return TC_ACT_UNSPEC;
    }
    let key = FlowKey4 {
        local_be: head.u32_be(IP + 12),
        remote_be: head.u32_be(IP + 16),
        local_port: head.u16(IP + 20),
        remote_port: head.u16(IP + 22),
        protocol: head.u8(IP + 9),
        echo_opener: 0,
        pad: [0; 2],
    };
    // SAFETY: copied at once.
    let Some(&slot) = (unsafe { LIMIT_FLOWS.get(key) }) else { return TC_ACT_UNSPEC };
    if let Some(counters) = LIMIT_COUNTERS.get_ptr_mut(slot) {
        // SAFETY: this CPU's copy of a map value.
        unsafe {
            (*counters)[0] += 1;
            (*counters)[1] += u64::from(skb.length());
        }
    }
    TC_ACT_UNSPEC
}
