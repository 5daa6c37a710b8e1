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
