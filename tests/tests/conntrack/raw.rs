//! TCP segments without a connection.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use portcullis_tests::Namespace;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Sends segments as they are told to be, and sees those that come from a port.
pub struct Raw {
    socket: Socket,
    local: Ipv4Addr,
}

impl Raw {
    pub fn new(ns: &Namespace, local: Ipv4Addr) -> Result<Self> {
        // The kernel knows nothing of these connections, and would end them.
        ns.firewall("iptables", "-A OUTPUT -p tcp --tcp-flags RST RST -j DROP")?;
        let socket = ns.run(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?))?;
        Ok(Self { socket, local })
    }

    pub fn send(&self, from: u16, to: (Ipv4Addr, u16), flags: u8) -> Result<()> {
        let mut segment = [0_u8; 20];
        segment[0..2].copy_from_slice(&from.to_be_bytes());
        segment[2..4].copy_from_slice(&to.1.to_be_bytes());
        segment[4..8].copy_from_slice(&1000_u32.to_be_bytes());
        segment[8..12].copy_from_slice(&2000_u32.to_be_bytes());
        segment[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
        // Conntrack takes no segment with a wrong checksum.
        let pseudo = [&self.local.octets()[..], &to.0.octets(), &[0, 6, 0, 20], &segment].concat();
        let words = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.socket.send_to(&segment, &SockAddr::from(SocketAddr::new(to.0.into(), 0)))?;
        Ok(())
    }

    /// Whether a segment between these ports comes in time.
    pub fn sees(&self, from: u16, to: u16, deadline: Duration) -> Result<bool> {
        let until = Instant::now() + deadline;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left))?;
            let mut packet = [0; 2048];
            let Ok(length) = (&self.socket).read(&mut packet) else { continue };
            let segment = packet[..length].get(usize::from(packet[0] & 0x0f) * 4..).unwrap_or_default();
            if segment.len() >= 4 && segment[..2] == from.to_be_bytes() && segment[2..4] == to.to_be_bytes() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
