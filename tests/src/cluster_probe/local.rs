//! Probes of processes that are in no pod: plain sockets, opened in a network namespace.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Socket, Type};

use super::{Outcome, Probe, Protocol};
use crate::netns::Namespace;

/// Sends all at once, from an address of the namespace or the one that the kernel takes.
pub fn send_all(
    ns: &Namespace,
    from: Option<IpAddr>,
    probes: &[&Probe],
    timeout: Duration,
) -> Result<Vec<Outcome>> {
    // Threads are in the namespace of the one that starts them.
    ns.run(|| {
        thread::scope(|scope| {
            let running: Vec<_> =
                probes.iter().map(|probe| scope.spawn(move || send(from, probe, timeout))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Outcome>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            Ok(running.into_iter().map(join).collect())
        })
    })
}

fn send(from: Option<IpAddr>, probe: &Probe, timeout: Duration) -> Outcome {
    match try_send(from, probe, timeout) {
        Ok(()) => Outcome::Answer,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silence,
            _ => Outcome::Other(error.to_string()),
        },
    }
}

fn try_send(from: Option<IpAddr>, probe: &Probe, timeout: Duration) -> Result<(), Error> {
    let domain = if probe.to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let kind = match probe.protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let mut socket = Socket::new(domain, kind, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&probe.to.into(), timeout)?;
    if probe.protocol == Protocol::Udp {
        socket.set_read_timeout(Some(timeout))?;
        // What the test server answers with its name, and an echo with the same.
        socket.write_all(b"hostname\n")?;
        let mut answer = [0; 512];
        if socket.read(&mut answer)? == 0 {
            return Err(Error::other("an empty answer"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_probe::Source;
    use crate::traffic::{tcp_echo, udp_echo};

    #[test]
    fn answers_refusals_and_silence_are_told_apart() {
        let soon = Duration::from_secs(5);
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let (tcp, udp) = (tcp_echo(at.parse().unwrap()).unwrap(), udp_echo(at.parse().unwrap()).unwrap());
            let probe = |protocol, to| Probe { from: Source::Node(0), protocol, to };
            for one in [probe(Protocol::Tcp, tcp.address()), probe(Protocol::Udp, udp.address())] {
                assert_eq!(send(None, &one, soon), Outcome::Answer);
                assert_eq!(send(Some(one.to.ip()), &one, soon), Outcome::Answer);
                // A port that nobody can be given.
                let nobody = Probe { to: SocketAddr::new(one.to.ip(), 1), ..one };
                assert_eq!(send(None, &nobody, soon), Outcome::Refused);
            }
        }
        let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let probe = Probe { from: Source::Node(0), protocol: Protocol::Udp, to: mute.local_addr().unwrap() };
        assert_eq!(send(None, &probe, Duration::from_millis(50)), Outcome::Silence);
    }
}
