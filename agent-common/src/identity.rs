//! Identities: what the kernel finds behind an address.

use crate::abi::map_type;

/// What kind of thing an address belongs to. Rows for "any address of this kind" use it as a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A pod that is known, with its own address (not hostNetwork).
    Pod = 1,
    /// This node.
    Host = 2,
    /// Another node.
    Node = 3,
    /// Outside the cluster.
    World = 4,
    /// An address of the pod range that no known pod claims.
    Unmanaged = 5,
    /// An address that stands for the endpoints of a service, or lies in a range of such addresses.
    Service = 6,
}

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 6] =
        [Self::Pod, Self::Host, Self::Node, Self::World, Self::Unmanaged, Self::Service];

    /// The kind behind a stored number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Pod),
            2 => Some(Self::Host),
            3 => Some(Self::Node),
            4 => Some(Self::World),
            5 => Some(Self::Unmanaged),
            6 => Some(Self::Service),
            _ => None,
        }
    }

    /// The name of the reserved principal of this kind; pods have principals of their own.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Host => "host",
            Self::Node => "node",
            Self::World => "world",
            Self::Unmanaged => "unmanaged",
            Self::Service => "service",
        }
    }

    /// The reserved principal number of this kind; `0` for pods, which have numbers from [`FIRST_PRINCIPAL`] on. A
    /// service is nobody: what is sent to it counts for who stands behind it, and where nobody does as `unmanaged`.
    pub const fn principal(self) -> u32 {
        match self {
            Self::Pod => 0,
            Self::Service => Self::Unmanaged as u32,
            other => other as u32,
        }
    }
}

/// The first principal number that a service account can get. Below are the reserved principals, numbered as their
/// [`Kind`]; `0` is nobody.
pub const FIRST_PRINCIPAL: u32 = 16;

/// The peer class of addresses of which only the kind is known, and the first number a real class can get.
///
/// `PEER_UNKNOWN` is what masqueraded traffic from outside gets: the address on the packet is the node's, the real one
/// is gone. The compiler writes rows for it as for a world address that is in no CIDR block but those that contain
/// every address.
pub const PEER_UNKNOWN: u32 = 1;
/// The first peer class number that a definition can get.
pub const FIRST_PEER: u32 = 16;
/// The first subject class number that a definition can get; `0` means that nothing is programmed.
pub const FIRST_SUBJECT: u32 = 1;

/// Value of the address maps: who is behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[repr(C)]
pub struct Identity {
    /// Number of the principal, for counters and people.
    pub principal: u32,
    /// Number of the peer class, for rows.
    pub peer: u32,
    /// Number of the subject class whose *egress* rows this node holds for the address; `0`: none. It lets the
    /// destination's node check the source's egress policy.
    pub subject: u32,
    /// A [`Kind`].
    pub kind: u8,
    /// [`identity_flags`].
    pub flags: u8,
    /// Explicit padding, zero.
    pub pad: [u8; 2],
}

map_type!(Identity, 16, principal = 0, peer = 4, subject = 8, kind = 12, flags = 13);

/// Bits of [`Identity::flags`].
pub mod identity_flags {
    /// Of a service's address: it is one on the ports of the service only, and otherwise what the address without the
    /// service is (an external address or a load balancer's, which exist outside as well).
    pub const BORROWED: u8 = 1;
}

impl Identity {
    /// The identity of addresses about which nothing is known: outside, in no block.
    pub const WORLD: Self = Self {
        principal: Kind::World as u32,
        peer: PEER_UNKNOWN,
        subject: 0,
        kind: Kind::World as u8,
        flags: 0,
        pad: [0; 2],
    };

    /// An identity without egress rows.
    pub const fn new(principal: u32, peer: u32, kind: Kind) -> Self {
        Self { principal, peer, subject: 0, kind: kind as u8, flags: 0, pad: [0; 2] }
    }
}
