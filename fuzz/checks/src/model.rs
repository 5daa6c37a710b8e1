//! The rules once more, for one set-up and in the plainest way: what may pass at all.
//!
//! It shares no code with the walk, and knows neither revisions nor states nor time-outs: it errs only by permitting.
//! Whatever passes must be permitted here: from the pod's own address, readable, and by a pair and port that policy
//! allows or belonging to something that was opened so.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use portcullis_common::Direction;

use crate::reading::{Ip, is_link_local, is_multicast, is_of_the_link, read};

/// A conversation: the pod's address, the other, the pod's port, the other, protocol, and of an echo who asked.
type Key = (IpAddr, IpAddr, u16, u16, u8, Option<Direction>);
/// What fragments of a datagram have in common: addresses, identification, protocol, hook.
type Datagram = (IpAddr, IpAddr, u32, u8, Direction);

/// The set-up, in words that have nothing to do with maps.
#[derive(Clone, Debug)]
pub struct Rules {
    /// MAC address of the pod.
    pub mac: [u8; 6],
    /// Addresses of the pod.
    pub pod: Vec<IpAddr>,
    /// Addresses of the node.
    pub host: Vec<IpAddr>,
    /// Addresses of the one peer that it may talk with.
    pub friend: Vec<IpAddr>,
    /// Addresses of pods, of the node, and those that may be of pods: who is asked for by its own address is a neighbour.
    pub neighbours: Vec<IpAddr>,
    /// Protocols and destination ports of that talk, either way. Ports are not looked at where there are none.
    pub ports: fn(u8, u16) -> bool,
}

/// The rules, and what was opened under them.
#[derive(Debug)]
pub struct Model {
    rules: Rules,
    opened: HashSet<Key>,
    datagrams: HashMap<Datagram, HashSet<What>>,
}

/// What a packet is, as far as rules tell packets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    /// A protocol with ports, or without; whether it is TCP that opens nothing.
    Talk { source: u16, destination: u16, late: bool },
    /// An echo.
    Echo { id: u16, request: bool },
    /// Neighbour discovery; whom an advertisement is about.
    Neighbour { about: Option<IpAddr> },
    /// Listener's messages.
    Listener,
    /// Messages of routers.
    Router,
    /// An error about another packet.
    Error,
}

impl Model {
    /// Nothing was opened yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, opened: HashSet::new(), datagrams: HashMap::new() }
    }

    /// Forgets what was opened.
    pub fn forget(&mut self) {
        self.opened.clear();
        self.datagrams.clear();
    }

    /// Whether a packet may pass; `passed` says whether it did, and so opened what it opens.
    pub fn may_pass(&mut self, hook: Direction, frame: &[u8], ingress: u32, passed: bool) -> bool {
        if hook == Direction::Egress && frame[6..12] != self.rules.mac {
            return false;
        }
        let version = match [frame[12], frame[13]] {
            [8, 6] => return hook == Direction::Ingress || self.rules.may_say(&frame[14..]),
            [8, 0] => 4,
            [0x86, 0xdd] => 6,
            _ => return false,
        };
        let Some(ip) = read(version, &frame[14..], false) else { return false };
        let datagram = |id| (ip.source, ip.destination, id, ip.protocol, hook);
        let whats: Vec<What> = match ip.fragment {
            Some((id, offset)) if offset > 0 => {
                if ip.protocol == 6 && offset < 20 {
                    return false;
                }
                self.datagrams.get(&datagram(id)).into_iter().flatten().copied().collect()
            }
            _ => what(&ip).into_iter().collect(),
        };
        if let Some((id, 0)) = ip.fragment {
            self.datagrams.entry(datagram(id)).or_default().extend(&whats);
        }
        let mut may = false;
        for what in whats {
            may |= self.may(hook, &ip, what, ingress, passed);
        }
        may
    }

    fn may(&mut self, hook: Direction, ip: &Ip, what: What, ingress: u32, passed: bool) -> bool {
        let rules = &self.rules;
        let outwards = hook == Direction::Egress;
        let own = |address: &IpAddr| rules.pod.contains(address);
        let sent_here = own(&ip.source);
        let to_group = is_multicast(ip.destination);
        match what {
            What::Router => return !outwards && is_link_local(ip.source) && ip.hops == 255,
            What::Neighbour { about } if outwards => {
                let from = rules.may_claim(ip.source) && about.is_none_or(|about| rules.may_claim(about));
                let near =
                    to_group || is_link_local(ip.destination) || rules.neighbours.contains(&ip.destination);
                if near {
                    return from;
                }
            }
            What::Neighbour { .. } if own(&ip.destination) || to_group || is_link_local(ip.destination) => {
                return true;
            }
            What::Listener if to_group && (ip.hops == 1 || is_of_the_link(ip.destination)) => {
                return !outwards || sent_here || is_link_local(ip.source) || ip.source.is_unspecified();
            }
            _ => {}
        }
        if outwards && (!sent_here || ip.destination.is_loopback()) {
            return false;
        }
        if !outwards && !own(&ip.destination) && !to_group {
            return false;
        }
        let Some(key) = key(hook, ip, what) else { return false };
        let known = self.opened.contains(&key);
        let permitted = match what {
            What::Error | What::Talk { late: true, .. } | What::Echo { request: false, .. } => false,
            _ => rules.permit(hook, ip, &key, ingress),
        };
        if permitted && passed && !to_group {
            self.opened.insert(key);
        }
        let opens =
            ip.protocol == 6 && matches!(what, What::Talk { late: false, .. }) && ip.fragment.is_none();
        permitted || (known && !opens)
    }
}

/// The IPv6 address in sixteen bytes.
fn address(bytes: &[u8]) -> IpAddr {
    <[u8; 16]>::try_from(bytes).unwrap().into()
}

impl Rules {
    /// Whether the pod may tell neighbours that it has an address. No link-local one is known to be the node's here.
    fn may_claim(&self, address: IpAddr) -> bool {
        self.pod.contains(&address) || is_link_local(address) || address.is_unspecified()
    }

    /// Whether the pod may send an ARP packet, without its Ethernet header.
    fn may_say(&self, arp: &[u8]) -> bool {
        let Some(([0, 1, 8, 0, 6, 4, _, _], rest)) = arp.split_first_chunk::<8>() else { return false };
        let Some((mac, rest)) = rest.split_first_chunk::<6>() else { return false };
        let Some((sender, rest)) = rest.split_first_chunk::<4>() else { return false };
        *mac == self.mac && rest.len() >= 10 && self.may_claim(IpAddr::from(*sender))
    }

    /// Whether a packet may open a conversation.
    fn permit(&self, hook: Direction, ip: &Ip, key: &Key, ingress: u32) -> bool {
        let port = if hook == Direction::Egress { key.3 } else { key.2 };
        let friendly = |address: &IpAddr| self.friend.contains(address) && (self.ports)(ip.protocol, port);
        if hook == Direction::Egress {
            return self.pod.contains(&ip.destination) || friendly(&ip.destination);
        }
        let host = self.host.contains(&ip.source);
        if host || self.pod.contains(&ip.source) {
            // Made by the node, or sent by the pod itself; anything else with these addresses is from outside.
            return (host && ingress == 0) || ingress == 1;
        }
        friendly(&ip.source)
    }
}

fn what(ip: &Ip) -> Option<What> {
    let body = &ip.body;
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let v6 = ip.source.is_ipv6();
    Some(match ip.protocol {
        6 => {
            let header = usize::from(*body.get(12)? >> 4) * 4;
            if header < 20 || header > body.len() {
                return None;
            }
            What::Talk { source: port(0)?, destination: port(2)?, late: body[13] & 0x12 != 2 }
        }
        17 | 132 | 136 | 33 => {
            body.get(..if matches!(ip.protocol, 17 | 136) { 8 } else { 12 })?;
            What::Talk { source: port(0)?, destination: port(2)?, late: false }
        }
        1 if !v6 => icmp(ip)?,
        58 if v6 => icmp(ip)?,
        2 if ip.fragment.is_none() && !v6 => What::Listener,
        _ => PLAIN,
    })
}

/// A protocol without ports.
const PLAIN: What = What::Talk { source: 0, destination: 0, late: false };

fn icmp(ip: &Ip) -> Option<What> {
    let head = ip.body.get(..8)?;
    let quiet = ip.fragment.is_none() && head[1] == 0 && ip.hops == 255;
    if ip.protocol == 58 && matches!(head[0], 133 | 135 | 136) && quiet && ip.body.len() > 128 {
        return None;
    }
    let id = u16::from_be_bytes([head[4], head[5]]);
    Some(match (ip.protocol, head[0]) {
        (1, 8 | 13 | 15 | 17) | (58, 128 | 139) => What::Echo { id, request: true },
        (1, 0 | 14 | 16 | 18) | (58, 129 | 140) => What::Echo { id, request: false },
        (1, 3 | 11 | 12) | (58, 1..=4) => What::Error,
        (1, 5 | 9) | (58, 134 | 137) => What::Router,
        (58, 136) if quiet => What::Neighbour { about: Some(address(ip.body.get(8..24)?)) },
        (58, 133 | 135) if quiet => What::Neighbour { about: None },
        (58, 130 | 131 | 132 | 143) if ip.hops == 1 => What::Listener,
        _ => PLAIN,
    })
}

/// The conversation that a packet belongs to.
fn key(hook: Direction, ip: &Ip, what: What) -> Option<Key> {
    let (from, to, protocol, source, destination, asked) = match what {
        What::Talk { source, destination, .. } => {
            (ip.source, ip.destination, ip.protocol, source, destination, None)
        }
        What::Echo { id, request } => {
            let asked = if request { hook } else { hook.opposite() };
            (ip.source, ip.destination, ip.protocol, id, id, Some(asked))
        }
        What::Error => {
            // About a packet that its receiver sent: read the other way round it goes as the error goes.
            let version = if ip.source.is_ipv4() { 4 } else { 6 };
            let inner = read(version, ip.body.get(8..)?, true)?;
            if inner.source != ip.destination
                || (version == 4 && inner.fragment.is_some_and(|(_, at)| at > 0))
            {
                return None;
            }
            let port = |at: usize| Some(u16::from_be_bytes([*inner.body.get(at)?, *inner.body.get(at + 1)?]));
            let (own, other) = (inner.destination, ip.destination);
            match inner.protocol {
                6 | 17 | 132 | 136 | 33 => (own, other, inner.protocol, port(2)?, port(0)?, None),
                protocol if protocol == if version == 4 { 1 } else { 58 } => {
                    let id = port(4)?;
                    let request = match (protocol, inner.body[0]) {
                        (1, 8) | (58, 128) => true,
                        (1, 0) | (58, 129) => false,
                        _ => return None,
                    };
                    let asked = if request { hook.opposite() } else { hook };
                    (own, other, inner.protocol, id, id, Some(asked))
                }
                _ => (own, other, inner.protocol, 0, 0, None),
            }
        }
        What::Neighbour { .. } | What::Listener | What::Router => {
            (ip.source, ip.destination, ip.protocol, 0, 0, None)
        }
    };
    Some(orient(hook, from, to, protocol, source, destination, asked))
}

/// From the pod's point of view.
fn orient(
    hook: Direction,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    source: u16,
    destination: u16,
    asked: Option<Direction>,
) -> Key {
    match hook {
        Direction::Egress => (from, to, source, destination, protocol, asked),
        Direction::Ingress => (to, from, destination, source, protocol, asked),
    }
}
