//! Connections between ports that had one before, and such as both ends open.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::raw::Tap;
use portcullis_tests::{Namespace, Pod, eventually};
use socket2::{Domain, Socket, Type};

use super::stage::{Family, PRIVATE, SOON, Stage};

/// A socket at a port of a pod, for connections out of it.
fn at_port(pod: &Pod, family: Family, port: u16) -> Result<Socket> {
    let at = SocketAddr::new(family.of(pod), port);
    pod.ns.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        Ok(socket)
    })
}

/// Begins to connect, and does not wait.
fn begin(socket: &Socket, to: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => Ok(other?),
    }
}

pub fn a_new_connection_on_the_ports_of_an_old_one_is_denied_once_it_is_forbidden(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let [api, db, _] = stage.pods();
    let mut tap = Tap::at(&db.ns, "eth0")?;
    let ports = [stage.port(Family::V4)?, stage.port(Family::V6)?];
    stage.open_private_port(false)?;
    for (family, port) in Family::BOTH.into_iter().zip(ports) {
        let [from, to] = [api, db].map(|pod| family.of(pod).to_string());
        let syn = Packet::tcp(&from, port, &to, PRIVATE, flags::SYN).sequence(7, 0);
        let syn = stage.on_link(api, Some(db), syn)?.bytes();
        stage.repelled(api, &[syn.clone(), syn], &[("policy", 2)], &mut tap)?;
    }
    stage.intruder_goes_on()?;
    // The same with ordinary sockets, once the old ones are closed: the database does not hear of that either.
    let denied = stage.agent.dropped("policy")?;
    stage.hang_up()?;
    eventually("the resets to be dropped", || {
        stage.agent.dropped("policy").is_ok_and(|now| now >= denied + 2)
    })?;
    let heard = stage.heard();
    for (family, port) in Family::BOTH.into_iter().zip(ports) {
        let denied = stage.agent.dropped("policy")?;
        let socket = at_port(api, family, port)?;
        begin(&socket, SocketAddr::new(family.of(db), PRIVATE))?;
        eventually("the SYN to be dropped", || stage.agent.dropped("policy").is_ok_and(|now| now > denied))?;
    }
    ensure!(stage.heard() == heard, "the database took a connection");
    stage.open_private_port(true)?;
    for family in Family::BOTH {
        let at = SocketAddr::new(family.of(db), PRIVATE);
        api.ns.tcp_exchange(at, SOON).context("the API is let in again")?;
    }
    Ok(())
}

/// Keeps a pod from refusing what it does not know yet.
fn refuse_nothing(ns: &Namespace) -> Result<()> {
    Family::BOTH
        .into_iter()
        .try_for_each(|family| ns.firewall(family.tables(), "-A OUTPUT -p tcp --tcp-flags RST RST -j DROP"))
}

pub fn a_connection_that_both_ends_open_works_where_each_may_open_one(stage: &mut Stage<'_>) -> Result<()> {
    let [api, _, intruder] = stage.pods();
    refuse_nothing(&intruder.ns)?;
    let mut tap = Tap::at(&intruder.ns, "eth0")?;
    for family in Family::BOTH {
        let (one, other) = (at_port(api, family, 7001)?, at_port(intruder, family, 7002)?);
        let [at_one, at_other] =
            [(api, 7001), (intruder, 7002)].map(|(pod, port)| SocketAddr::new(family.of(pod), port));
        begin(&one, at_other)?;
        // Nobody listens: the SYN comes to nothing, and is waited for an answer to.
        let ports = [7001_u16.to_be_bytes(), 7002_u16.to_be_bytes()].concat();
        eventually("the SYN", || {
            let seen = tap.seen().map(<[_]>::to_vec).unwrap_or_default();
            seen.iter().any(|frame| frame.windows(4).any(|window| window == ports))
        })?;
        other.connect_timeout(&at_one.into(), SOON).context("the other end opens it, too")?;
        eventually("both ends to agree", || one.peer_addr().is_ok())?;
        one.set_nonblocking(false)?;
        let mut streams = [TcpStream::from(one), TcpStream::from(other)];
        for _ in 0..2 {
            streams[0].write_all(b"x")?;
            streams[1].set_read_timeout(Some(SOON))?;
            streams[1].read_exact(&mut [0]).context("a byte")?;
            streams.reverse();
        }
    }
    stage.goes_on()
}
