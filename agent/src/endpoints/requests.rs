//! Questions to the kernel and their answers, over a socket that receives nothing else.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;

use super::error::Error;
use super::socket::RouteSocket;
use super::table::{Answer, Ask};
use super::wire::{AddressRecord, Content, LinkRecord, Question};

/// Every change of the kind that is dumped cuts a dump, so under churn one attempt is not enough.
const DUMP_ATTEMPTS: u32 = 8;

/// The questions that the watcher has.
pub(super) struct Requests {
    socket: RouteSocket,
    sequence: u32,
}

impl Requests {
    /// Opens the socket, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let socket = RouteSocket::open()?;
        socket.check_strictly()?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Every link of this namespace.
    pub async fn links(&mut self) -> Result<Vec<LinkRecord>, Error> {
        let contents = self.ask(Question::Links).await?;
        Ok(contents.into_iter().filter_map(link_of).collect())
    }

    /// One link of this namespace; `None` if it is gone.
    pub async fn link(&mut self, ifindex: u32) -> Result<Option<LinkRecord>, Error> {
        match self.ask(Question::Link { ifindex, netns_id: None }).await {
            Ok(contents) => Ok(contents.into_iter().find_map(link_of)),
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every address of this namespace.
    pub async fn addresses(&mut self) -> Result<Vec<AddressRecord>, Error> {
        let mut records = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let contents = self.ask(Question::Addresses { family }).await?;
            records.extend(contents.iter().filter_map(address_of));
        }
        Ok(records)
    }

    /// Who is at the other end of a link.
    pub async fn peer(&mut self, ask: &Ask) -> Result<Answer, Error> {
        let Ask { netns_id, peer_ifindex, .. } = *ask;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let question = Question::PeerAddresses { family, netns_id, ifindex: peer_ifindex };
            for record in self.ask(question).await?.iter().filter_map(address_of) {
                // Without IPv6 in the kernel the second question is answered with IPv4 addresses too.
                if record.ifindex == peer_ifindex && !addresses.contains(&record.address) {
                    addresses.push(record.address);
                }
            }
        }
        // After the addresses, for it shows whether they were this link's peer's: the kernel reuses namespace ids.
        let question = Question::Link { ifindex: peer_ifindex, netns_id: Some(netns_id) };
        let peer = self.ask(question).await?.into_iter().find_map(link_of);
        Ok(Answer {
            linked_to: peer.as_ref().and_then(|link| link.linked_to),
            mac: peer.and_then(|link| link.mac),
            addresses,
        })
    }

    async fn ask(&mut self, question: Question) -> Result<Vec<Content>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(contents) = self.ask_once(question).await? {
                return Ok(contents);
            }
        }
        Err(Error::Interrupted { request: question.describe(), times: DUMP_ATTEMPTS })
    }

    /// The answer; `None` if a change cut it.
    async fn ask_once(&mut self, question: Question) -> Result<Option<Vec<Content>>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&question.encode(self.sequence)).map_err(|e| Error::socket("sendto", e))?;
        let mut contents = Vec::new();
        let mut was_interrupted = false;
        loop {
            let datagram = self.socket.receive().await.map_err(|e| Error::socket("recvmsg", e))?;
            for message in datagram.messages {
                if message.sequence != self.sequence {
                    continue;
                }
                was_interrupted |= message.interrupted;
                match message.content {
                    Content::End(0) => return Ok((!was_interrupted).then_some(contents)),
                    Content::End(code) => {
                        let source = io::Error::from_raw_os_error(code);
                        return Err(Error::Refused { request: question.describe(), source });
                    }
                    content => contents.push(content),
                }
                if !question.is_dump() {
                    return Ok(Some(contents));
                }
            }
        }
    }
}

fn link_of(content: Content) -> Option<LinkRecord> {
    if let Content::Link(record) = content { Some(record) } else { None }
}

fn address_of(content: &Content) -> Option<AddressRecord> {
    if let Content::Address(record) = content { Some(*record) } else { None }
}
