//! What can be asked of a random world.

use std::net::IpAddr;

use portcullis::api::Entity;
use portcullis::model::{Pod, World};
use portcullis_common::Direction;

use super::OTHERS;
use crate::reference::{End, Owner, Question};

/// Destination ports that policies of these worlds tell apart, and ICMP.
pub fn ports() -> Vec<(u8, u16)> {
    let ports = [0, 53, 79, 80, 81, 443];
    let ports = [6, 17, 132].into_iter().flat_map(|protocol| ports.map(|port| (protocol, port)));
    ports.chain([(1, 0)]).collect()
}

/// Whose an address of a random world is; the addresses of finished pods are nobody's.
pub fn owner(world: &World, address: IpAddr) -> Owner<'_> {
    let owns = |pod: &&Pod| !pod.host_network && !pod.finished && pod.addresses.contains(&address);
    match address {
        _ if world.pods.values().any(|pod| owns(&pod)) => Owner::Pod(world.pods.values().find(owns).unwrap()),
        IpAddr::V4(a) if a.octets() == [172, 18, 0, 1] => Owner::Entity(Entity::Host),
        IpAddr::V4(a) if a.octets() == [172, 18, 0, 2] => Owner::Entity(Entity::Node),
        IpAddr::V4(a) if a.octets()[..3] == [10, 0, 0] => Owner::Entity(Entity::Unmanaged),
        IpAddr::V6(a) if a.segments()[..4] == [0xfd00, 0, 0, 0] => Owner::Entity(Entity::Unmanaged),
        _ => Owner::Entity(Entity::World),
    }
}

/// Every question: each pod that has policies, every address, both directions, every port.
pub fn all(world: &World) -> impl Iterator<Item = Question<'_>> {
    let pods = || world.pods.values().filter(|pod| !pod.host_network);
    let others = OTHERS.iter().map(|text| text.parse().unwrap());
    let addresses: Vec<IpAddr> = others.chain(pods().flat_map(|pod| pod.addresses.clone())).collect();
    let peers: Vec<End<'_>> =
        addresses.into_iter().map(|address| End { address, owner: owner(world, address) }).collect();
    let ports = ports();
    pods().filter(|pod| !pod.finished).flat_map(move |subject| {
        let ports = ports.clone();
        peers.clone().into_iter().flat_map(move |peer| {
            ports.clone().into_iter().flat_map(move |(protocol, port)| {
                Direction::ALL.iter().map(move |&direction| Question {
                    world,
                    direction,
                    subject,
                    peer,
                    protocol,
                    port,
                })
            })
        })
    })
}

/// A question without its world, so that it can be asked of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// UID of the pod whose policies are asked.
    pub subject: String,
    /// Direction, as it sees it.
    pub direction: Direction,
    /// The other address.
    pub peer: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

impl Asked {
    /// The same question without its world.
    pub fn of(question: &Question<'_>) -> Self {
        let Question { subject, direction, peer, protocol, port, .. } = question;
        Self {
            subject: subject.uid.clone(),
            direction: *direction,
            peer: peer.address,
            protocol: *protocol,
            port: *port,
        }
    }

    /// The question of a world; `None` if the pod is not there, or not one with policies.
    pub fn of_world<'a>(&self, world: &'a World) -> Option<Question<'a>> {
        let subject = world.pods.get(&self.subject)?;
        let named = world.namespaces.contains_key(&subject.namespace)
            && world
                .service_accounts
                .contains_key(&(subject.namespace.clone(), subject.service_account.clone()));
        if !named || subject.host_network || subject.finished {
            return None;
        }
        let peer = End { address: self.peer, owner: owner(world, self.peer) };
        let Self { direction, protocol, port, .. } = *self;
        Some(Question { world, direction, subject, peer, protocol, port })
    }
}
