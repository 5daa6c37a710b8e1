//! Host-side interfaces of pods, from rtnetlink, with any CNI.
//!
//! [`Watcher`] follows the links and addresses of this network namespace and asks the kernel which addresses stand at
//! the far end of each veth; [`classify`] says which of those links are endpoints. Nothing here knows a pod: an address
//! becomes a pod by the API, elsewhere.
//!
//! Invariant: who is behind a link is found once in its life. A pod with `NET_ADMIN` can change its own addresses, its
//! MAC and the namespace that its end is in; none of that changes a link that has been bound.

mod classify;
mod error;
mod requests;
mod socket;
mod table;
mod watcher;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

pub use classify::{Classification, classify};
pub use error::Error;
pub use watcher::{Options, Watcher};

/// A MAC address.
pub type Mac = [u8; 6];

/// What the watcher knows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every interface of this network namespace, by its index.
    pub links: BTreeMap<u32, Link>,
    /// Every address that this network namespace listens at because of an address of an interface: that one, the broadcast
    /// address of its network, and its network's subnet-router anycast address.
    pub host_addresses: BTreeSet<IpAddr>,
    /// The UDP ports that tunnels of this network namespace take encapsulated packets at.
    pub tunnel_ports: BTreeSet<u16>,
    /// The first dump has been read, and each link that was in it has been asked once who is behind it.
    pub complete: bool,
}

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index; the kernel may give it to another link later, which then has another `appeared`.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: LinkKind,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// MAC of this side.
    pub mac: Option<Mac>,
    /// The other end of a veth or netkit pair, if that is in another network namespace.
    pub peer: Option<PeerLink>,
    /// When the watcher first saw it: the start of the time until its programs are attached.
    pub appeared: Instant,
}

/// The other end of a veth or netkit pair, in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// Id of that namespace as this namespace numbers it; the kernel reuses it after the namespace's end.
    pub netns_id: i32,
    /// Its interface index there.
    pub ifindex: u32,
    /// Its MAC; absent until the link is bound, and for devices without one.
    pub mac: Option<Mac>,
    /// Its addresses, IPv4 first, when they were first found. Until one is there that is not IPv6 link-local, the
    /// list is what the last look saw; from then on it does not change.
    pub addresses: Vec<IpAddr>,
}

/// Kind of an interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A veth: the only kind whose host side every packet of a pod crosses in our hooks.
    Veth,
    /// A netkit pair.
    Netkit,
    /// An ipvlan or ipvtap device.
    Ipvlan,
    /// A macvlan or macvtap device.
    Macvlan,
    /// A bridge.
    Bridge,
    /// Another kind, by the kernel's name for it; empty for a physical or loopback device.
    Other(String),
}

impl LinkKind {
    fn from_kernel(kind: &str) -> Self {
        match kind {
            "veth" => Self::Veth,
            "netkit" => Self::Netkit,
            "ipvlan" | "ipvtap" => Self::Ipvlan,
            "macvlan" | "macvtap" => Self::Macvlan,
            "bridge" => Self::Bridge,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
            Self::Ipvlan => "ipvlan",
            Self::Macvlan => "macvlan",
            Self::Bridge => "bridge",
            Self::Other(kind) if kind.is_empty() => "device",
            Self::Other(kind) => kind,
        })
    }
}

/// Whether an address can say who is behind a link. Every interface gives itself an IPv6 link-local address.
fn names_a_pod(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}
