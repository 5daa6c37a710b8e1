//! One try to talk: a real socket with a given source address, and what came of it.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use portcullis_tests::Namespace;
use socket2::{Domain, Protocol as Number, SockAddr, Socket, Type};

use super::expectations::{Port, Protocol};

/// From an address of the current namespace to another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub from: IpAddr,
    pub to: IpAddr,
    pub port: Port,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// What was sent came back. The socket stays open, so that the kernel's flow is not closed before it is read.
    Echo {
        /// The own port, or the id of an ICMP echo.
        local: u16,
        /// The open socket.
        _socket: Socket,
    },
    /// The other side answered that nobody listens: the packet did arrive.
    Refused,
    /// Nothing came back.
    Silence,
    /// The own kernel failed.
    Broken(Error),
}

impl Outcome {
    /// Whether packets went through, whatever was at the other end.
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Echo { .. } | Self::Refused)
    }
}

/// Sends probes from a namespace, all at once.
pub fn send_all(ns: &Namespace, probes: &[Probe], deadline: Duration) -> anyhow::Result<Vec<Outcome>> {
    // Threads are in the namespace of the one that starts them.
    ns.run(|| {
        thread::scope(|scope| {
            let running: Vec<_> =
                probes.iter().map(|probe| scope.spawn(move || send(probe, deadline))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Outcome>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            Ok(running.into_iter().map(join).collect())
        })
    })
}

/// Sends one probe from the current namespace.
fn send(probe: &Probe, deadline: Duration) -> Outcome {
    match exchange(probe, deadline) {
        Ok((local, socket)) => Outcome::Echo { local, _socket: socket },
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silence,
            _ => Outcome::Broken(error),
        },
    }
}

fn exchange(probe: &Probe, deadline: Duration) -> Result<(u16, Socket)> {
    let &Probe { from, to, port: Port { protocol, number } } = probe;
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let (kind, transport) = match (protocol, to.is_ipv4()) {
        (Protocol::Tcp, _) => (Type::STREAM, Number::TCP),
        (Protocol::Udp, _) => (Type::DGRAM, Number::UDP),
        (Protocol::Icmp, true) => (Type::DGRAM, Number::ICMPV4),
        (Protocol::Icmp, false) => (Type::DGRAM, Number::ICMPV6),
    };
    let mut socket = Socket::new(domain, kind, Some(transport))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    let to = SockAddr::from(SocketAddr::new(to, number));
    if protocol == Protocol::Tcp {
        socket.connect_timeout(&to, deadline)?;
    } else {
        socket.connect(&to)?;
    }
    socket.set_read_timeout(Some(deadline))?;
    if protocol == Protocol::Icmp {
        ping(&socket, domain)?;
    } else {
        echo(&mut socket)?;
    }
    let local = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
    Ok((local, socket))
}

fn echo(socket: &mut Socket) -> Result<()> {
    let sent = b"portcullis";
    socket.write_all(sent)?;
    let mut received = [0; 10];
    socket.read_exact(&mut received)?;
    if &received == sent { Ok(()) } else { Err(Error::other("something else than was sent came back")) }
}

fn ping(socket: &Socket, domain: Domain) -> Result<()> {
    let (request, reply) = if domain == Domain::IPV4 { (8, 0) } else { (128, 129) };
    // Type, code, checksum and id (the kernel sets both), sequence number, data.
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'c'])?;
    let mut buffer = [MaybeUninit::new(0_u8); 16];
    let length = socket.recv(&mut buffer)?;
    // SAFETY: every byte was initialised above.
    let received = buffer.map(|byte| unsafe { byte.assume_init() });
    if length == 10 && received[0] == reply && received[6..10] == [0, 1, b'p', b'c'] {
        return Ok(());
    }
    Err(Error::other("something else than the echo reply came back"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn probe(address: SocketAddr, protocol: Protocol) -> Probe {
        Probe { from: address.ip(), to: address.ip(), port: Port { protocol, number: address.port() } }
    }

    #[test]
    fn an_echo_a_refusal_and_silence_are_told_apart() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let tcp = portcullis_tests::traffic::tcp_echo(at.parse().unwrap()).unwrap();
            let udp = portcullis_tests::traffic::udp_echo(at.parse().unwrap()).unwrap();
            let probes = [probe(tcp.address(), Protocol::Tcp), probe(udp.address(), Protocol::Udp)];
            for probe in &probes {
                assert!(matches!(send(probe, SOON), Outcome::Echo { local: 1.., .. }), "{probe:?}");
            }
            // Not the ports that were just closed: they are of the ephemeral range, and a parallel test, or the very
            // socket that connects to them, may be given them.
            let nobody = SocketAddr::new(tcp.address().ip(), 1);
            for probe in [probe(nobody, Protocol::Tcp), probe(nobody, Protocol::Udp)] {
                assert!(matches!(send(&probe, SOON), Outcome::Refused), "{probe:?}");
            }
        }
        let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let probe = probe(mute.local_addr().unwrap(), Protocol::Udp);
        assert!(matches!(send(&probe, Duration::from_millis(50)), Outcome::Silence));
    }
}
