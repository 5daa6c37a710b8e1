//! Questions to conntrack over a netfilter netlink socket.
//!
//! The kernel answers inside the system calls, so nothing here waits: a question without an answer is an error.

use std::io;
use std::time::Instant;

use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::error::Error;
use super::wire::{Content, Message, Question, messages};
use super::{Connection, Tuple};

/// The kernel fills dump replies up to 32 KiB.
const BUFFER_BYTES: usize = 64 * 1024;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dumped {
    /// Everything was seen.
    Whole,
    /// The time was up, or nothing more was wanted.
    Cut,
}

impl Client {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the kernel says; see [`Error::is_absence`].
    pub fn open() -> Result<Self, Error> {
        let failed = |call| move |source| Error::Socket { call, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("socket(AF_NETLINK)"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed("bind(AF_NETLINK)"))?;
        socket.set_non_blocking(true).map_err(failed("ioctl(FIONBIO)"))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES], sequence: 0 })
    }

    /// The live connection with this tuple in either direction, if conntrack knows one.
    ///
    /// # Errors
    /// What the kernel says; that there is none is not an error.
    pub fn find(&mut self, tuple: Tuple) -> Result<Option<Connection>, Error> {
        let mut found = None;
        let asked = self.ask(Question::One(tuple), &mut |connection| {
            found = Some(connection);
            true
        });
        match asked {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(found),
        }
    }

    /// Hands over every live connection until `take` returns `false` or the time is up. After a dump that was cut the
    /// client is used up: the rest of it may still be on its way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dump(mut self, until: Instant, mut take: impl FnMut(Connection) -> bool) -> Result<Dumped, Error> {
        self.ask(Question::All, &mut |connection| Instant::now() < until && take(connection))
    }

    /// Asks, and hands over what comes until the answer is complete.
    fn ask(&mut self, question: Question, take: &mut dyn FnMut(Connection) -> bool) -> Result<Dumped, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let kernel = SocketAddr::new(0, 0);
        let sent = self.socket.send_to(&question.encode(self.sequence), &kernel, 0);
        sent.map_err(|source| Error::Socket { call: "sendto", source })?;
        loop {
            let length = self.receive().map_err(|source| Error::Socket { call: "recvfrom", source })?;
            let datagram = self.buffer.get(..length).unwrap_or_default();
            for Message { sequence, content } in messages(datagram) {
                if sequence != self.sequence {
                    continue;
                }
                match content {
                    Content::Connection(connection) => {
                        if !take(connection) {
                            return Ok(Dumped::Cut);
                        }
                    }
                    Content::Other => {}
                    Content::End(0) => return Ok(Dumped::Whole),
                    Content::End(code) => {
                        let source = io::Error::from_raw_os_error(code);
                        return Err(Error::Refused { request: question.describe(), source });
                    }
                }
                if !question.is_dump() {
                    return Ok(Dumped::Whole);
                }
            }
        }
    }

    /// Length of the next datagram of the kernel's own.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            let mut room = self.buffer.as_mut_slice();
            let (length, sender) = self.socket.recv_from(&mut room, libc::MSG_TRUNC)?;
            if length > self.buffer.len() {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            if sender.port_number() == 0 {
                return Ok(length);
            }
        }
    }
}
