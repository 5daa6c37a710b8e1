//! The walk on the host over the fixture's maps and endpoint: what the loaded programs are compared with.

use portcullis::policy::Desired;
use portcullis_checks::{Host, Tables};

use crate::fixture::Fixture;

/// The walk over what the fixture desires, with the endpoint as it is in the kernel's map; enforced.
pub fn host(fixture: &Fixture) -> Host {
    Host::new(tables(&fixture.desired), fixture.endpoint())
}

/// The desired maps.
pub fn tables(desired: &Desired) -> Tables {
    let mut tables = Tables::default();
    tables.addresses.extend(desired.ipcache.iter().map(|(address, identity)| (*address, *identity)));
    tables.services.clone_from(&desired.services);
    for (prefix, identity) in &desired.cidrs {
        tables.add_prefix(prefix.addr(), prefix.prefix_len(), *identity);
    }
    for (&subject, rows) in &desired.subjects {
        tables.add_subject(subject);
        for (&(direction, peer), function) in rows.iter() {
            tables.add_row(subject, direction as u32, peer, function.steps());
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use portcullis_checks::shop;
    use portcullis_common::{Direction, Verdict};

    use super::*;
    use crate::packets::{Packet, flags};

    const ALL: [(Direction, u8); 4] = [
        (Direction::Egress, flags::SYN),
        (Direction::Ingress, flags::SYN | flags::ACK),
        (Direction::Egress, flags::ACK),
        (Direction::Ingress, flags::ACK),
    ];

    fn walk(host: &Host, (direction, flags): (Direction, u8)) -> bool {
        let [pod, friend] = ["10.0.0.2", "10.0.0.3"];
        let packet = match direction {
            Direction::Egress => Packet::tcp(pod, 4000, friend, 80, flags),
            Direction::Ingress => Packet::tcp(friend, 80, pod, 4000, flags),
        };
        host.run(direction, &packet.bytes(), 9)
    }

    fn allowed(host: &Host) -> u64 {
        host.pairs().iter().map(|(_, counters)| counters.packets[Verdict::Allow as usize]).sum()
    }

    #[test]
    fn what_was_read_of_a_flow_that_another_took_the_place_of_decides_nothing() {
        // Before a packet of the handshake, and of the open connection: at once, or between two looks.
        for packets in 1..ALL.len() {
            for looks in 0..2 {
                let host = Host::new(shop::tables(), Some(shop::endpoint()));
                assert!(ALL[..packets].iter().all(|packet| walk(&host, *packet)));
                let before = allowed(&host);
                host.replace_after(looks);
                let passed = walk(&host, ALL[packets]);
                // Open, and seen a moment ago: one look is enough.
                let enough = packets == 3 && looks == 1;
                assert_eq!(passed, enough, "packet {packets}, {looks} looks");
                assert_eq!(allowed(&host) - before, u64::from(enough), "packet {packets}, {looks} looks");
            }
        }
    }

    #[test]
    fn what_was_read_of_a_flow_of_before_the_policy_changed_does_not_keep_it() {
        for replaced in [false, true] {
            let mut host = Host::new(shop::tables(), Some(shop::endpoint()));
            assert!(ALL.iter().all(|packet| walk(&host, *packet)));
            host.raise_revision();
            if replaced {
                host.replace_after(0);
            }
            assert_eq!(walk(&host, ALL[2]), !replaced);
        }
    }
}
