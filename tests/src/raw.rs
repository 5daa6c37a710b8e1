//! Raw sockets at an interface: frames that are sent as they are, and a view of those that arrive.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;

use crate::netns::{Namespace, interface_index};

/// A raw socket at an interface of the namespace that it was opened in.
#[derive(Debug)]
pub struct Raw(File);

impl Raw {
    /// With a header that says how much of a packet is to be linear, if it is `parted`.
    pub fn open(interface: &str, parted: bool) -> Result<Self> {
        let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        ensure!(fd >= 0, "a raw socket: {}", Error::last_os_error());
        // SAFETY: a descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain integers and arrays; zero is a value of each.
        let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        place.sll_family = u16::try_from(libc::AF_PACKET)?;
        place.sll_protocol = protocol;
        place.sll_ifindex = i32::try_from(interface_index(interface)?)?;
        let length = u32::try_from(size_of_val(&place))?;
        // SAFETY: the address lives as long as the call, and its length is its own.
        let bound = unsafe { libc::bind(fd, (&raw const place).cast(), length) };
        ensure!(bound == 0, "binding to {interface}: {}", Error::last_os_error());
        let raw = Self(socket.into());
        if parted {
            raw.switch_on(libc::PACKET_VNET_HDR).context("PACKET_VNET_HDR")?;
        }
        Ok(raw)
    }

    fn switch_on(&self, option: i32) -> Result<()> {
        let on = 1i32;
        let length = u32::try_from(size_of_val(&on))?;
        let fd = self.0.as_raw_fd();
        // SAFETY: a number that lives as long as the call, with its length.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), length) };
        ensure!(set == 0, "{}", Error::last_os_error());
        Ok(())
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let sent = self.0.write(frame).with_context(|| format!("sending {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "{sent} of {} bytes", frame.len());
        Ok(())
    }

    /// With so many bytes in the linear part, and the rest in pages.
    pub fn send_parted(&mut self, frame: &[u8], linear: u16) -> Result<()> {
        // `struct virtio_net_hdr`: flags, kind of segmentation, length of the headers, three more words.
        let mut bytes = vec![0u8; 10];
        bytes[2..4].copy_from_slice(&linear.to_ne_bytes());
        bytes.extend(frame);
        self.send(&bytes)
    }
}

/// Everything that arrives at an interface since this was made; what is sent there is left out.
#[derive(Debug)]
pub struct Tap {
    raw: Raw,
    seen: Vec<Vec<u8>>,
}

impl Tap {
    /// At an interface of a namespace.
    pub fn at(ns: &Namespace, interface: &str) -> Result<Self> {
        let raw = ns.run(|| Raw::open(interface, false))?;
        raw.switch_on(libc::PACKET_IGNORE_OUTGOING).context("PACKET_IGNORE_OUTGOING")?;
        SockRef::from(&raw.0).set_nonblocking(true)?;
        Ok(Self { raw, seen: Vec::new() })
    }

    /// The frames so far, in their order.
    pub fn seen(&mut self) -> Result<&[Vec<u8>]> {
        let mut frame = vec![0; 1 << 16];
        loop {
            match self.raw.0.read(&mut frame) {
                Ok(length) => self.seen.push(frame[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(&self.seen),
                Err(error) => return Err(error).context("reading frames"),
            }
        }
    }

    /// Whether this frame has arrived. The Ethernet header and what a router changes are not looked at.
    pub fn saw(&mut self, frame: &[u8]) -> Result<bool> {
        // From the addresses on: behind the checksum of IPv4, and the hop limit of IPv6.
        let lasting = match frame.get(12..14) {
            Some([0x08, 0x00]) => &frame[26..],
            Some([0x86, 0xdd]) => &frame[22..],
            _ => frame.get(14..).context("less than an Ethernet header")?,
        };
        Ok(self.seen()?.iter().any(|seen| seen.ends_with(lasting)))
    }
}
