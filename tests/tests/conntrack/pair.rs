//! TCP connections of which both ends are in hand, so that either may speak first.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::Namespace;

use super::{NEVER, SOON};

/// Both ends of a TCP connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    pub what: String,
}

/// Who speaks.
#[derive(Clone, Copy, Debug)]
pub enum Speaker {
    Client,
    Server,
}

impl Pair {
    /// Opens a connection to an address that leads to `listen` in the server's namespace.
    pub fn open(client: &Namespace, to: SocketAddr, server: &Namespace, listen: SocketAddr) -> Result<Self> {
        let what = format!("from {} to {to}", client.label());
        let listener = server.run(|| Ok(TcpListener::bind(listen)?))?;
        let client = client
            .run(|| Ok(TcpStream::connect_timeout(&to, SOON)?))
            .with_context(|| format!("opening a connection {what}"))?;
        let (server, _) = listener.accept()?;
        let mut pair = Self { client, server, what };
        pair.talk(SOON)?;
        Ok(pair)
    }

    /// One byte, by whoever speaks.
    pub fn say(&mut self, speaker: Speaker, deadline: Duration) -> Result<()> {
        let (from, to) = match speaker {
            Speaker::Client => (&mut self.client, &mut self.server),
            Speaker::Server => (&mut self.server, &mut self.client),
        };
        let said = (|| {
            from.write_all(b"x")?;
            to.set_read_timeout(Some(deadline))?;
            to.read_exact(&mut [0])
        })();
        said.with_context(|| format!("the {speaker:?} of the connection {}", self.what))
    }

    /// One byte each way.
    pub fn talk(&mut self, deadline: Duration) -> Result<()> {
        self.say(Speaker::Client, deadline)?;
        self.say(Speaker::Server, deadline)
    }

    /// That nothing gets through, whoever speaks.
    pub fn is_cut(&mut self) -> Result<()> {
        for speaker in [Speaker::Client, Speaker::Server] {
            ensure!(self.say(speaker, NEVER).is_err(), "{speaker:?} got through: {}", self.what);
        }
        Ok(())
    }
}
