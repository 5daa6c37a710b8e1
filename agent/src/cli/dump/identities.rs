//! Who is behind every address.

use portcullis_common::Kind;
use serde::Serialize;

use super::{Context, Part};
use crate::cli::names::Names;
use crate::cli::table::Table;
use crate::datapath::AddressEntry;

/// An address or prefix.
#[derive(Clone, Debug, Serialize)]
struct Record {
    /// An address, or a prefix for addresses that have no entry of their own.
    address: String,
    principal: String,
    principal_number: u32,
    /// `pod`, `host`, `node`, `world`, `unmanaged` or `service`.
    kind: &'static str,
    peer_class: String,
    peer_class_number: u32,
    /// The subject class whose egress rows this node checks for the address; `0`: none.
    egress_subject_number: u32,
    pod: Option<String>,
}

fn record(entry: &AddressEntry, names: &Names) -> Record {
    let AddressEntry { net, exact, identity } = entry;
    Record {
        address: if *exact { net.addr().to_string() } else { net.to_string() },
        principal: names.principal(identity.principal),
        principal_number: identity.principal,
        kind: Kind::from_number(identity.kind).map_or("unknown", Kind::name),
        peer_class: names.peer(identity.peer),
        peer_class_number: identity.peer,
        egress_subject_number: identity.subject,
        pod: if *exact { names.pod(net.addr()).map(str::to_owned) } else { None },
    }
}

pub fn part(context: &Context) -> anyhow::Result<Part> {
    let entries = context.reader.addresses()?;
    let records: Vec<Record> = entries.iter().map(|entry| record(entry, &context.names)).collect();
    let header = ["ADDRESS", "PRINCIPAL", "KIND", "PEER-CLASS", "POD"];
    let table = Table::of(&header, &records, |r| {
        vec![
            r.address.clone(),
            r.principal.clone(),
            r.kind.to_owned(),
            r.peer_class.clone(),
            r.pod.clone().unwrap_or_default(),
        ]
    });
    Ok(Part { name: "identities", tables: vec![table], json: serde_json::to_value(&records)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::Identity;

    #[test]
    fn prefixes_keep_their_length_and_fields_their_names() {
        let entry = |net: &str, exact| AddressEntry {
            net: net.parse().unwrap(),
            exact,
            identity: Identity::new(16, 20, Kind::Pod),
        };
        let names = Names::default();
        assert_eq!(record(&entry("10.0.0.1/32", true), &names).address, "10.0.0.1");
        assert_eq!(record(&entry("fd00::/32", false), &names).address, "fd00::/32");
        assert_eq!(record(&entry("10.0.0.1/32", false), &names).address, "10.0.0.1/32");
        let fields = super::super::fields(&record(&entry("10.0.0.1/32", true), &names));
        assert_eq!(
            fields.join(" "),
            "address egress_subject_number kind peer_class peer_class_number pod principal principal_number"
        );
    }
}
