//! A non-blocking netlink route socket whose messages come with the namespace they are from.
//!
//! It exists because the id of the sending namespace (`NETLINK_LISTEN_ALL_NSID`) is ancillary data, which `netlink-sys`
//! does not hand out. Invariant: only messages of the kernel itself get through.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::error::Error;
use super::wire::{Message, messages};

/// The kernel fills dump replies up to 32 KiB, and a notification without VF lists is far smaller.
const BUFFER_BYTES: usize = 64 * 1024;

/// Notifications that a socket subscribes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Group {
    Link = 1,
    Ipv4Address = 5,
    Ipv6Address = 9,
}

/// One received datagram.
#[derive(Debug)]
pub(super) struct Datagram {
    /// What it says; empty if it was not the kernel's.
    pub messages: Vec<Message>,
    /// The namespace that it is from, if that is another one.
    pub netns_id: Option<i32>,
}

/// A netlink route socket in the network namespace of the thread that opened it.
pub(super) struct RouteSocket {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl RouteSocket {
    /// Opens and binds a socket.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(|e| Error::socket("socket(AF_NETLINK)", e))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(|e| Error::socket("bind(AF_NETLINK)", e))?;
        socket.set_non_blocking(true).map_err(|e| Error::socket("ioctl(FIONBIO)", e))?;
        // SAFETY: `Socket` owns its descriptor and returns the same one until it is dropped, and it is never moved out.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let socket = socket.map_err(|e| Error::socket("epoll_ctl", e.into()))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Turns on strict checking: without it the kernel ignores which namespace or index a dump asks for.
    pub fn check_strictly(&self) -> Result<(), Error> {
        let set = self.socket.get_ref().set_netlink_get_strict_chk(true);
        set.map_err(|e| Error::socket("setsockopt(NETLINK_GET_STRICT_CHK)", e))
    }

    /// Sets the size of the receive buffer, above the system's limit too; it needs `CAP_NET_ADMIN`, as what follows.
    pub fn set_receive_buffer(&self, bytes: u32) -> Result<(), Error> {
        let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        let length = libc::socklen_t::try_from(mem::size_of_val(&value)).unwrap_or(0);
        // SAFETY: the descriptor is open while `self` lives, and the pointer is to an int of the given length.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const value).cast(),
                length,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(Error::socket("setsockopt(SO_RCVBUFFORCE)", io::Error::last_os_error()))
        }
    }

    /// Also delivers notifications of the other namespaces that have an id here; it needs `CAP_NET_BROADCAST`.
    pub fn listen_to_all_namespaces(&self) -> io::Result<()> {
        self.socket.get_ref().set_listen_all_namespaces(true)
    }

    /// Subscribes.
    pub fn join(&self, group: Group) -> Result<(), Error> {
        let joined = self.socket.get_ref().add_membership(group as u32);
        joined.map_err(|e| Error::socket("setsockopt(NETLINK_ADD_MEMBERSHIP)", e))
    }

    /// Ends a subscription.
    pub fn leave(&self, group: Group) -> Result<(), Error> {
        let left = self.socket.get_ref().drop_membership(group as u32);
        left.map_err(|e| Error::socket("setsockopt(NETLINK_DROP_MEMBERSHIP)", e))
    }

    /// Sends a request to the kernel.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.get_ref().send_to(message, &kernel, 0).map(drop)
    }

    /// Waits for a datagram.
    pub async fn receive(&mut self) -> io::Result<Datagram> {
        let Self { socket, buffer } = self;
        loop {
            let mut guard = socket.readable().await?;
            if let Ok(result) = guard.try_io(|socket| receive_from(socket.get_ref(), buffer)) {
                return result;
            }
        }
    }

    /// A datagram that is there already, if any.
    pub fn try_receive(&mut self) -> io::Result<Option<Datagram>> {
        match receive_from(self.socket.get_ref(), &mut self.buffer) {
            Ok(datagram) => Ok(Some(datagram)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Room for ancillary data, aligned as its headers must be.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn receive_from(socket: &Socket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = Control([0; 64]);
    // SAFETY: both are plain C structures for which all zeroes is a valid value.
    let (mut sender, mut header): (libc::sockaddr_nl, libc::msghdr) = unsafe { mem::zeroed() };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    header.msg_name = (&raw mut sender).cast();
    header.msg_namelen = libc::socklen_t::try_from(mem::size_of_val(&sender)).unwrap_or(0);
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in the header is to a live local or to the caller's buffer, with its true length.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        // What was cut off is lost as surely as what found no room, and is found again in the same way.
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    // SAFETY: the kernel has just filled the header and its ancillary data, both of which still live.
    let netns_id = unsafe { sending_namespace(&header) };
    let bytes = buffer.get(..length).filter(|_| sender.nl_pid == 0).unwrap_or_default();
    Ok(Datagram { messages: messages(bytes).collect(), netns_id })
}

/// The namespace id in a message's ancillary data.
///
/// # Safety
///
/// The header must be one that `recvmsg` filled, with its control buffer still alive and aligned for `cmsghdr`.
unsafe fn sending_namespace(header: &libc::msghdr) -> Option<i32> {
    // SAFETY: as this function requires.
    let mut entry = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !entry.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside the control buffer.
        let (level, kind) = unsafe { ((*entry).cmsg_level, (*entry).cmsg_type) };
        if level == libc::SOL_NETLINK && kind == libc::NETLINK_LISTEN_ALL_NSID {
            // SAFETY: the kernel puts an int there for this type; it may be unaligned.
            return Some(unsafe { libc::CMSG_DATA(entry).cast::<i32>().read_unaligned() });
        }
        // SAFETY: `entry` is a header of this message.
        entry = unsafe { libc::CMSG_NXTHDR(header, entry) };
    }
    None
}
