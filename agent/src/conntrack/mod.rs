//! What the kernel's connection tracking knows of TCP connections: who opened them, and what their packets look like on
//! both sides of address translation.
//!
//! Invariants: only what conntrack saw from its first packet on is believed. It also picks up connections midway, and then
//! takes whoever it sees first for the opener: such an entry says nothing. Where the kernel tracks nothing, nothing is
//! known, and that is no error.

mod client;
mod error;
mod views;
mod wire;

pub use client::{Client, Dumped};
pub use error::Error;
pub use views::{Places, View, views};

use std::net::{IpAddr, SocketAddr};

/// Addresses and ports of the packets of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends them.
    pub source: SocketAddr,
    /// Who gets them.
    pub destination: SocketAddr,
}

impl Tuple {
    /// A tuple of one IP version; `None` if the addresses are of two.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Option<Self> {
        (source.is_ipv4() == destination.is_ipv4()).then_some(Self { source, destination })
    }

    /// Who sends the packets.
    pub const fn sender(&self) -> IpAddr {
        self.source.ip()
    }
}

/// A live TCP connection that was tracked from its first packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The opener's packets before any translation.
    pub original: Tuple,
    /// The answers before any translation.
    pub reply: Tuple,
    /// The last packet of its handshake has not come by: it may have been the one that had no flow.
    pub half_open: bool,
}
