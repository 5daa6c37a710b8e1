//! Servers on threads of their own that end when they are dropped.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

/// How often a waiting thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);

/// A server that returns what it gets, and counts it: a test can tell "nothing arrived" from "no answer came".
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    connections: AtomicU64,
    received: AtomicU64,
}

impl Echo {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far (TCP).
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A server thread that panicked has closed its socket, which is all that matters here.
            let _ = thread.join();
        }
    }
}

/// How many connections may wait to be accepted. The standard library's 128 are too few for a hundred clients on a busy
/// machine: the kernel drops the SYNs of the others, which looks as if they were denied.
const BACKLOG: i32 = 4096;

/// Starts a TCP echo server in the current namespace.
pub fn tcp_echo(at: SocketAddr) -> Result<Echo> {
    let listener = TcpListener::bind(at)?;
    let socket = SockRef::from(&listener);
    socket.listen(BACKLOG)?;
    socket.set_read_timeout(Some(LOOK))?;
    let address = listener.local_addr()?;
    let shared = Arc::new(Shared::default());
    let thread = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            let mut connections = Vec::new();
            while !shared.end.load(Ordering::SeqCst) {
                // It waits for as long as a read would; what fails was given up by the client meanwhile, or is a pause.
                let Ok((stream, _)) = listener.accept() else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&shared);
                // A thread that has ended keeps its stack until it is joined or forgotten.
                connections.retain(|connection: &JoinHandle<_>| !connection.is_finished());
                connections.push(thread::spawn(move || serve(stream, &shared)));
            }
            for connection in connections {
                let _ = connection.join();
            }
        }
    });
    Ok(Echo { address, shared, thread: Some(thread) })
}

/// Echoes one connection until it ends, fails, or the server does.
fn serve(mut stream: TcpStream, shared: &Shared) {
    if stream.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    while !shared.end.load(Ordering::SeqCst) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                shared.received.fetch_add(length as u64, Ordering::SeqCst);
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if is_pause(error.kind()) => {}
            Err(_) => return,
        }
    }
}

/// Starts a UDP echo server in the current namespace.
pub fn udp_echo(at: SocketAddr) -> Result<Echo> {
    let socket = UdpSocket::bind(at)?;
    socket.set_read_timeout(Some(LOOK))?;
    let address = socket.local_addr()?;
    let shared = Arc::new(Shared::default());
    let thread = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            let mut buffer = vec![0; 65_535];
            while !shared.end.load(Ordering::SeqCst) {
                // Errors here are ICMP answers to an echo whose client has gone, or a pause.
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    shared.received.fetch_add(length as u64, Ordering::SeqCst);
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        }
    });
    Ok(Echo { address, shared, thread: Some(thread) })
}

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
