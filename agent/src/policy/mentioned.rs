//! The ports that policies name: what to ask about when nobody says.

use std::collections::BTreeSet;

use portcullis_common::Direction;
use portcullis_common::policy::{PortKey, protocol};

use super::compile::{namespace_modes, policies_in_force};
use super::ir::{PortMatch, Ports};
use crate::model::World;

/// Protocol and port of every port that a policy in force names by number, both ends of ranges included. Ports by name are
/// those of pods.
pub fn mentioned_ports(world: &World) -> BTreeSet<(u8, u16)> {
    let mut problems = Vec::new();
    let modes = namespace_modes(world, &mut problems);
    let mut ports = BTreeSet::new();
    for policy in policies_in_force(world, &modes, &mut problems) {
        let sections = Direction::ALL.iter().filter_map(|direction| policy.section(*direction));
        for rule in sections.flat_map(|section| &section.rules) {
            let Ports::Any(matches) = &rule.ports else { continue };
            for port in matches {
                if let PortMatch::Range(first, last) = port {
                    // Port 0 has no name: it stands for all of a protocol.
                    ports.extend([*first, *last].into_iter().map(parts).filter(|_| parts(*first).1 != 0));
                }
            }
        }
    }
    ports
}

fn parts(key: PortKey) -> (u8, u16) {
    let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP];
    let port = u16::try_from(key.0 & 0xffff).unwrap_or_default();
    let of = |protocol: &&u8| PortKey::new(**protocol, port) == key;
    (protocols.iter().find(of).copied().unwrap_or_default(), port)
}
