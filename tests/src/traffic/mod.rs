//! Real sockets inside namespaces: clients that connect, exchange and ping, and servers that echo.
//!
//! Every client call has a deadline, and says with an error that the other side did not answer; which answer was
//! expected is the test's business.

mod server;

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::time::Duration;

use socket2::SockRef;

pub use server::{Echo, tcp_echo, udp_echo};

use crate::netns::Namespace;

impl Namespace {
    /// Opens a TCP connection from inside the namespace.
    pub fn tcp_connect(&self, to: SocketAddr, deadline: Duration) -> anyhow::Result<Connection> {
        self.run(|| Ok(Connection { stream: TcpStream::connect_timeout(&to, deadline)? }))
    }

    /// Connects, sends a byte and waits for its echo.
    pub fn tcp_exchange(&self, to: SocketAddr, deadline: Duration) -> anyhow::Result<()> {
        self.tcp_connect(to, deadline)?.exchange(deadline)?;
        Ok(())
    }

    /// Sends one datagram and waits for its echo.
    pub fn udp_exchange(&self, to: SocketAddr, deadline: Duration) -> anyhow::Result<()> {
        self.run(|| Ok(udp_exchange(to, deadline)?))
    }

    /// Sends one datagram, and waits for nothing.
    pub fn udp_send(&self, to: SocketAddr, data: &[u8]) -> anyhow::Result<()> {
        self.run(|| Ok(udp_socket(to)?.send(data).map(drop)?))
    }

    /// Sends one ICMP echo request and waits for the reply.
    pub fn ping(&self, to: IpAddr, deadline: Duration) -> anyhow::Result<()> {
        self.run(|| Ok(ping(to, deadline)?))
    }

    /// Starts a TCP server inside the namespace that returns what it gets.
    pub fn tcp_echo(&self, at: SocketAddr) -> anyhow::Result<Echo> {
        self.run(|| Ok(tcp_echo(at)?))
    }

    /// Starts a UDP server inside the namespace that returns what it gets.
    pub fn udp_echo(&self, at: SocketAddr) -> anyhow::Result<Echo> {
        self.run(|| Ok(udp_echo(at)?))
    }
}

/// A long-lived TCP connection to an echo server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Sends a byte; succeeds as soon as the kernel has taken it.
    pub fn send(&mut self, byte: u8) -> Result<()> {
        self.stream.write_all(&[byte])
    }

    /// Waits for a byte.
    pub fn receive(&mut self, deadline: Duration) -> Result<u8> {
        self.stream.set_read_timeout(Some(deadline))?;
        let mut byte = [0];
        self.stream.read_exact(&mut byte).map_err(|error| silence(error, "the byte"))?;
        Ok(byte[0])
    }

    /// Sends a byte and waits for its echo.
    pub fn exchange(&mut self, deadline: Duration) -> Result<()> {
        self.send(b'x')?;
        match self.receive(deadline)? {
            b'x' => Ok(()),
            other => {
                Err(Error::new(ErrorKind::InvalidData, format!("got byte {other} back, not the one sent")))
            }
        }
    }

    /// Ends it at once with a reset.
    pub fn reset(self) -> Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// The client's address and port.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.stream.local_addr()
    }
}

/// A socket of the current namespace that is connected, so that an ICMP error is seen and nobody else's datagram is taken
/// for the answer.
pub fn udp_socket(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((any(to.ip()), 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Sends one datagram from the current namespace and waits for its echo.
pub fn udp_exchange(to: SocketAddr, deadline: Duration) -> Result<()> {
    let socket = udp_socket(to)?;
    socket.set_read_timeout(Some(deadline))?;
    socket.send(b"portcullis")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).map_err(|error| silence(error, "the datagram"))?;
    if &buffer[..length] == b"portcullis" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidData, "another datagram than the one sent came back"))
}

/// Sends one ICMP echo request from the current namespace and waits for the reply.
pub fn ping(to: IpAddr, deadline: Duration) -> Result<()> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8_u8, 0_u8),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    // SAFETY: a system call without pointers.
    let descriptor = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: a datagram socket that was just made and that nobody else owns. A ping socket does what the standard
    // library's UDP socket asks of it: connect, send, receive.
    let socket = unsafe { UdpSocket::from_raw_fd(descriptor) };
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(deadline))?;
    // Type, code, checksum and id (the kernel sets both), sequence number, data.
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'c'])?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).map_err(|error| silence(error, "the echo reply"))?;
    if length == 10 && buffer[0] == reply && buffer[6..10] == [0, 1, b'p', b'c'] {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidData, format!("not the echo reply: {:?}", &buffer[..length])))
}

fn any(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// A read that ran into its deadline reports `WouldBlock`, which tells a reader of a test's output nothing.
fn silence(error: Error, what: &str) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock => Error::new(ErrorKind::TimedOut, format!("{what} did not come in time")),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn servers_echo_and_count_what_they_received() {
        let tcp = tcp_echo("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut connection = Connection { stream: TcpStream::connect_timeout(&tcp.address(), SOON).unwrap() };
        connection.exchange(SOON).unwrap();
        connection.exchange(SOON).unwrap();
        assert_eq!((tcp.connections(), tcp.received()), (1, 2));

        let udp = udp_echo("[::1]:0".parse().unwrap()).unwrap();
        udp_exchange(udp.address(), SOON).unwrap();
        assert_eq!(udp.received(), 10);
    }

    #[test]
    fn nothing_listens_after_the_server_is_dropped() {
        let server = tcp_echo("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        drop(server);
        let refused = TcpStream::connect_timeout(&address, SOON).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn silence_is_a_time_out() {
        let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = udp_exchange(mute.local_addr().unwrap(), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
}
