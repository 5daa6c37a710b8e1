//! Questions about a random world, asked of the loaded programs: which packet asks it, and what must come of that packet.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use portcullis::api::Entity;
use portcullis_common::{Direction, Verdict};

use super::questions::Asked;
use crate::loaded::{Judged, Loaded, Opening};
use crate::reference::{End, Owner, Question, identity};

/// An interface that is no endpoint's: what comes in by it comes from outside of the node.
const UPLINK: u32 = 0xffff;

/// A packet that asks a question, and what must be counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The flow.
    pub opening: Opening,
    /// Interface that it comes in by.
    pub ingress_ifindex: u32,
    /// What the reference says.
    pub wanted: Judged,
}

/// The packet of a question, with what the reference says; `None` where no packet can ask it: the pod has no address of the
/// family, or the other address is its own or nobody's.
pub fn case(question: &Question<'_>) -> Option<Case> {
    let Question { world, direction, subject, peer, mut protocol, port } = *question;
    let own = *subject.addresses.iter().find(|own| own.is_ipv4() == peer.address.is_ipv4())?;
    if peer.address.is_unspecified() || subject.addresses.contains(&peer.address) {
        return None;
    }
    if protocol == 1 && peer.address.is_ipv6() {
        protocol = 58;
    }
    let question = Question { protocol, ..*question };
    let judged = |verdict| Judged { verdict, direction };
    let case = |source, destination, ingress_ifindex, wanted| Case {
        opening: Opening { source, destination, protocol, port },
        ingress_ifindex,
        wanted,
    };
    if direction == Direction::Egress {
        return Some(case(own, peer.address, 0, judged(identity::verdict(&question))));
    }
    let into = |ingress_ifindex, wanted| case(peer.address, own, ingress_ifindex, wanted);
    Some(match peer.owner {
        // What the node itself sends to its own pods is always allowed.
        Owner::Entity(Entity::Host) => into(0, judged(Verdict::Allow)),
        Owner::Entity(_) => into(UPLINK, judged(identity::verdict(&question))),
        Owner::Pod(sender) => {
            let receives = identity::verdict(&question);
            let end = End { address: own, owner: Owner::Pod(subject) };
            let direction = Direction::Egress;
            let sends = Question { world, direction, subject: sender, peer: end, protocol, port };
            // The sender's policies are asked again, and count where they deny.
            let denied = receives != Verdict::Deny && identity::verdict(&sends) == Verdict::Deny;
            let wanted = if denied { Judged { verdict: Verdict::Deny, direction } } else { judged(receives) };
            into(UPLINK, wanted)
        }
    })
}

/// Sends the packet of a case to the pod that is asked, and fails if something else comes of it.
///
/// # Errors
/// The difference, or that the programs cannot be asked.
pub fn send(loaded: &mut Loaded, places: &[String], asked: &Asked, case: &Case) -> Result<()> {
    let principal = |address: IpAddr| loaded.desired.identity(address).principal;
    let pair = (principal(case.opening.source), principal(case.opening.destination));
    let place = places.iter().position(|uid| *uid == asked.subject).context("a pod without an interface")?;
    let found = loaded.open(asked.direction, place, &case.opening, pair, case.ingress_ifindex)?;
    ensure!(found == case.wanted, "the loaded programs say {found:?}, the reference says {:?}", case.wanted);
    Ok(())
}
