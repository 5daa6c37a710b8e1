//! A pod that lies about its address: packets written by hand, and another pod's address on its own interface.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::{Agent, Namespace, eventually_within};
use socket2::{Domain, Protocol as Number, Socket, Type};

use super::expectations::{How, Protocol, Spoof};
use super::readings;
use super::shop::Shop;

/// How long the effect of a lie may take to be seen.
const PATIENCE: Duration = Duration::from_secs(3);
/// Why the kernel drops such packets.
const REASON: &str = "spoofed-source";
const PAYLOAD: &[u8] = b"not from me";

/// Shows that the lie would work: without an agent it must arrive, over both families.
pub fn rehearse(shop: &Shop, spoof: &Spoof) -> Result<()> {
    for v6 in [false, true] {
        let target = shop.find_one(&spoof.to)?;
        let server = shop.server(target, spoof.port)?;
        let before = server.received();
        tell(shop, spoof, v6)?;
        eventually_within(PATIENCE, "a packet with a false source, which nobody stops yet", || {
            server.received() > before
        })?;
    }
    Ok(())
}

/// Lies past the agent, over both families, and says what became of it.
pub fn observe(shop: &Shop, agent: &Agent<'_>, spoof: &Spoof) -> Result<Vec<&'static str>> {
    [false, true].into_iter().map(|v6| observe_one(shop, agent, spoof, v6)).collect()
}

fn observe_one(shop: &Shop, agent: &Agent<'_>, spoof: &Spoof, v6: bool) -> Result<&'static str> {
    let server = shop.server(shop.find_one(&spoof.to)?, spoof.port)?;
    let (received, dropped) = (server.received(), readings::drops(agent, REASON)?);
    tell(shop, spoof, v6)?;
    let mut failure = None;
    let counted =
        eventually_within(PATIENCE, "the drop to be counted", || match readings::drops(agent, REASON) {
            Ok(now) => now > dropped,
            Err(error) => {
                failure = Some(error);
                true
            }
        });
    if let Some(error) = failure {
        return Err(error);
    }
    Ok(match (server.received() > received, counted.is_ok()) {
        (true, _) => "arrived",
        (false, true) => "dropped",
        (false, false) => "lost, and not counted",
    })
}

/// Sends one datagram with a false source.
fn tell(shop: &Shop, spoof: &Spoof, v6: bool) -> Result<()> {
    let Spoof { from, pretends, to, port, how, why: _ } = spoof;
    ensure!(port.protocol == Protocol::Udp, "lies are told over UDP, not {port}");
    let liar = shop.find_one(from)?;
    let ns = shop.ns(liar.host())?;
    let pretended = SocketAddr::new(shop.find_one(pretends)?.address(v6), 40_000);
    let to = SocketAddr::new(shop.find_one(to)?.address(v6), port.number);
    match how {
        How::Raw => ns.run(|| Ok(send_raw(pretended, to)?)),
        How::Address => with_address(ns, pretended.ip(), || {
            ns.run(|| {
                let socket = UdpSocket::bind((pretended.ip(), 0))?;
                socket.send_to(PAYLOAD, to)?;
                Ok(())
            })
        }),
    }
    .with_context(|| format!("{from} sending to {to} as {pretended}"))
}

/// Gives an interface another address for a while.
fn with_address(ns: &Namespace, address: IpAddr, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let (prefix, flags) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
    ns.ip(&format!("addr add {address}/{prefix} dev eth0{flags}"))?;
    let result = body();
    ns.ip(&format!("addr del {address}/{prefix} dev eth0"))?;
    result
}

fn send_raw(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    // `IPPROTO_RAW`: whoever sends writes the header.
    let socket = Socket::new(domain, Type::RAW, Some(Number::from(libc::IPPROTO_RAW)))?;
    // The port of a raw IPv6 address must be 0: it is in the packet already.
    socket.send_to(&datagram(from, to), &SocketAddr::new(to.ip(), 0).into())?;
    Ok(())
}

/// An IP packet with a UDP datagram.
fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let length = u16::try_from(8 + PAYLOAD.len()).unwrap_or(u16::MAX);
    let mut udp = Vec::new();
    for field in [from.port(), to.port(), length, 0] {
        udp.extend(field.to_be_bytes());
    }
    udp.extend(PAYLOAD);
    let mut packet = Vec::new();
    let addresses: Vec<u8> = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // Version and header length, type of service, total length, id, fragment, time to live, protocol; the
            // kernel fills in lengths and checksum.
            packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
            [from.octets(), to.octets()].concat()
        }
        (from, to) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([17, 64]);
            [from, to].map(octets).concat()
        }
    };
    let sum = checksum(&[&addresses, &[0, 17], &length.to_be_bytes(), &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    packet.extend(addresses);
    packet.extend(udp);
    packet
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The internet checksum; every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // A UDP checksum of zero would say that there is none.
    match !u16::try_from(sum).unwrap_or(0) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_has_a_right_checksum() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:53"), ("[fd00::1]:1", "[fd00::2]:53")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = datagram(from, to);
            let (addresses, udp) = if to.is_ipv4() { (12..20, 20) } else { (8..40, 40) };
            let length = u16::try_from(packet.len() - udp).unwrap().to_be_bytes();
            // With the checksum in place the sum is all ones, whose complement, zero, is written as all ones too.
            assert_eq!(checksum(&[&packet[addresses], &[0, 17], &length, &packet[udp..]]), 0xffff);
            assert_eq!(packet[udp..udp + 4], [0, 1, 0, 53]);
        }
    }
}
