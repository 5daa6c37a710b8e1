//! Packets in memory, for the walk on the host: tests, fuzzers and comparisons. The kernel has its own.

use crate::packet::{Head, Packet};

/// A packet of which the first `linear` bytes can be accessed directly.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    /// All of it, from the Ethernet header on.
    pub bytes: &'a [u8],
    /// How many bytes are linear.
    pub linear: usize,
}

impl<'a> Bytes<'a> {
    /// A packet that is wholly linear.
    pub const fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, linear: bytes.len() }
    }
}

/// The bytes that were asked for and no more: a read beyond them panics, where the verifier would have refused it.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a>(&'a [u8]);

impl Head for Start<'_> {
    fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }
    fn u16(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.0[offset], self.0[offset + 1]])
    }
    fn u32_be(&self, offset: usize) -> u32 {
        let at = |place: usize| self.0[offset + place];
        u32::from_ne_bytes([at(0), at(1), at(2), at(3)])
    }
    fn words_be(&self, offset: usize) -> [u32; 2] {
        [self.u32_be(offset), self.u32_be(offset + 4)]
    }
}

impl<'a> Packet for Bytes<'a> {
    type Head = Start<'a>;
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn head(&self, bytes: usize) -> Option<Start<'a>> {
        (bytes <= self.linear).then(|| Start(&self.bytes[..bytes]))
    }
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let offset = offset as usize;
        self.bytes.get(offset..offset + N)?.try_into().ok()
    }
}
