//! The set-up of the fuzzers and of random packets: the pod talks with one peer on TCP and UDP 80, on TCP 8000 to 8010 and
//! by every protocol without ports, and with nobody else. Once as maps, and once as the model's rules.

use std::net::IpAddr;

use portcullis_common::abi::{Addr6, Endpoint, endpoint_flags};
use portcullis_common::policy::{Decision, PortKey, wildcard_of};
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};

use crate::Tables;
use crate::model::Rules;

/// MAC address of the pod.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const POD: [&str; 2] = ["10.0.0.2", "fd00::2"];
const FRIEND: [&str; 2] = ["10.0.0.3", "fd00::3"];
const STRANGER: [&str; 2] = ["10.0.0.4", "fd00::4"];
const HOST: [&str; 2] = ["10.0.0.1", "fd00::1"];
const NODE: [&str; 2] = ["10.0.9.1", "fd00:9::1"];
const UNMANAGED: [&str; 2] = ["10.0.0.255", "fd00::"];
/// Subject class of the pod, and peer classes.
const SUBJECT: u32 = 1;
const API: u32 = 16;
const WEB: u32 = 17;
const INTRUDER: u32 = 18;

fn addresses(of: [&str; 2]) -> impl Iterator<Item = IpAddr> {
    of.into_iter().map(|address| address.parse().unwrap())
}

/// The maps.
pub fn tables() -> Tables {
    let mut tables = Tables::default();
    let known = [
        (POD, API, Kind::Pod),
        (FRIEND, WEB, Kind::Pod),
        (STRANGER, INTRUDER, Kind::Pod),
        (HOST, Kind::Host as u32, Kind::Host),
        (NODE, Kind::Node as u32, Kind::Node),
        (UNMANAGED, Kind::Unmanaged as u32, Kind::Unmanaged),
    ];
    for (of, number, kind) in known {
        tables.addresses.extend(addresses(of).map(|address| (address, Identity::new(number, number, kind))));
    }
    let [allow, deny] = [Verdict::Allow, Verdict::Deny].map(|verdict| Decision::new(verdict, Reason::Policy));
    let steps = [
        (PortKey::FIRST, deny),
        (PortKey::new(6, 80), allow),
        (PortKey::new(6, 81), deny),
        (PortKey::new(6, 8000), allow),
        (PortKey::new(6, 8011), deny),
        (PortKey::new(17, 80), allow),
        (PortKey::new(17, 81), deny),
        (PortKey::OTHER, allow),
    ];
    for &direction in Direction::ALL {
        for kind in Kind::ALL {
            tables.add_row(SUBJECT, direction as u32, wildcard_of(kind), &[(PortKey::FIRST, deny)]);
        }
        tables.add_row(SUBJECT, direction as u32, WEB, &steps);
    }
    tables
}

/// The endpoint.
pub fn endpoint() -> Endpoint {
    let mut endpoint = Endpoint {
        ifindex: 1,
        flags: endpoint_flags::KNOWN | endpoint_flags::CHECK_MAC,
        principal: API,
        subject: SUBJECT,
        mac: MAC,
        ..Endpoint::default()
    };
    for address in addresses(POD) {
        match address {
            IpAddr::V4(a) => endpoint.addr4_be[0] = u32::from_ne_bytes(a.octets()),
            IpAddr::V6(a) => endpoint.addr6[0] = Addr6::from_bytes(a.octets()),
        }
    }
    endpoint
}

/// The rules, in words that have nothing to do with maps.
pub fn rules() -> Rules {
    Rules {
        mac: MAC,
        pod: addresses(POD).collect(),
        host: addresses(HOST).collect(),
        friend: addresses(FRIEND).collect(),
        neighbours: [POD, FRIEND, STRANGER, HOST, UNMANAGED].into_iter().flat_map(addresses).collect(),
        ports: |protocol, port| match protocol {
            6 => port == 80 || (8000..=8010).contains(&port),
            17 => port == 80,
            132 => false,
            _ => true,
        },
    }
}
