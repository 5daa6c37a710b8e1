//! Packet bytes and metadata from the socket buffer.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use portcullis_common::judge::Metadata;
use portcullis_common::packet::{Head, Packet};

/// A socket buffer at a TC hook; the data starts at the Ethernet header.
#[derive(Clone, Copy)]
pub struct Skb {
    skb: *mut __sk_buff,
    data: *const u8,
    end: *const u8,
}

impl Skb {
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: the kernel passes a valid context, and the verifier checks every access to it.
        let (data, end) =
            unsafe { ((*skb).data as usize as *const u8, (*skb).data_end as usize as *const u8) };
        Self { skb, data, end }
    }

    /// The ethertype in host order; a VLAN tag is in the metadata, not here.
    #[inline(always)]
    pub fn ethertype(&self) -> u16 {
        // SAFETY: as in `new`.
        u16::from_be(unsafe { (*self.skb).protocol } as u16)
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as in `new`.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    pub fn metadata(&self, fragment: bool) -> Metadata {
        // SAFETY: as in `new`; `sk` is only compared with null.
        unsafe {
            Metadata {
                ingress_ifindex: (*self.skb).ingress_ifindex,
                tc_index: (*self.skb).tc_index,
                has_socket: !(*self.skb).__bindgen_anon_2.sk.is_null(),
                fragment,
            }
        }
    }

    /// Marks the packet with the slot of the endpoint that sent it: the one piece of metadata that we write.
    #[inline(always)]
    pub fn stamp(&self, slot: u32) {
        // SAFETY: as in `new`; `tc_index` is writable for TC programs.
        unsafe { (*self.skb).tc_index = slot + 1 };
    }
}

impl Packet for Skb {
    type Head = Linear;

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as in `new`.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn head(&self, bytes: usize) -> Option<Linear> {
        if self.data.wrapping_add(bytes) > self.end { None } else { Some(Linear { data: self.data }) }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all N bytes or fails.
        unsafe {
            if bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) == 0 {
                Some(bytes.assume_init())
            } else {
                None
            }
        }
    }
}

/// The linear part, its length checked.
#[derive(Clone, Copy)]
pub struct Linear {
    data: *const u8,
}

impl Head for Linear {
    #[inline(always)]
    fn u8(&self, offset: usize) -> u8 {
        // SAFETY: `Skb::head` compared with the end; the verifier checks it again.
        unsafe { *self.data.add(offset) }
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> u16 {
        // SAFETY: as above. BPF on the architectures that we build for reads unaligned words; the aligned load keeps
        // the compiler from taking it to bytes.
        u16::from_be(unsafe { *self.data.add(offset).cast::<u16>() })
    }

    #[inline(always)]
    fn u32_be(&self, offset: usize) -> u32 {
        // SAFETY: as above.
        unsafe { *self.data.add(offset).cast::<u32>() }
    }

    #[inline(always)]
    fn words_be(&self, offset: usize) -> [u32; 2] {
        // SAFETY: as above.
        let both = unsafe { *self.data.add(offset).cast::<u64>() };
        [both as u32, (both >> 32) as u32]
    }
}
