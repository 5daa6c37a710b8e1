//! Verdict events: what the ring buffer carries.

use crate::abi::{Addr6, map_type};

/// One verdict, as the kernel saw it. IPv4 addresses are stored in the first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Index of the endpoint's interface.
    pub ifindex: u32,
    /// Number of the rule that decided, or `0`.
    pub rule: u32,
    /// Principal that opened, or tries to open, the flow.
    pub source_principal: u32,
    /// Principal that it is opened to.
    pub destination_principal: u32,
    /// Source address of the packet.
    pub source: Addr6,
    /// Destination address of the packet.
    pub destination: Addr6,
    /// Source port, host order; the id of an ICMP echo.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Transport protocol.
    pub protocol: u8,
    /// IP version, 4 or 6; `0` where the packet is neither.
    pub family: u8,
    /// A [`crate::Direction`].
    pub direction: u8,
    /// A [`crate::Verdict`].
    pub verdict: u8,
    /// A [`crate::Reason`].
    pub reason: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// `1` if the packet goes against the way its flow was opened: then the source principal has the packet's
    /// destination address.
    pub reply: u8,
    /// Explicit padding, zero.
    pub pad: u8,
}

map_type!(
    Event,
    72,
    time_ns = 0,
    ifindex = 8,
    source = 24,
    destination = 40,
    source_port = 56,
    protocol = 64,
    reason = 68,
    reply = 70
);
