//! The frontends of services, and what stands behind each.

use portcullis_common::Kind;
use portcullis_common::service::{SERVICE_COMPILED, Service, ServiceEntry, ServiceKey};
use serde::Serialize;

use super::{Context, Part};
use crate::cli::names::Names;
use crate::cli::table::Table;
use crate::policy::{protocol_name, service_address};

/// A frontend.
#[derive(Clone, Debug, Serialize)]
struct Record {
    /// An address, or `0.0.0.0` or `::` for those of every node.
    address: String,
    protocol: &'static str,
    port: u16,
    /// `shop/web:http`; of several services with this frontend all of them.
    service: Option<String>,
    /// The endpoints are more than are listed: their peer class stands for all of them.
    compiled: bool,
    endpoints: Vec<EndpointRecord>,
}

/// Endpoints that policies cannot tell apart.
#[derive(Clone, Debug, Serialize)]
struct EndpointRecord {
    principal: String,
    principal_number: u32,
    /// As of an identity; `service` where the endpoints are compiled.
    kind: &'static str,
    peer_class: String,
    peer_class_number: u32,
    /// The port that the proxy sends to; `0` where the endpoints are compiled.
    port: u16,
    /// Their node judges the flow again, so that one of these is enough.
    judged_again: bool,
}

fn endpoint(entry: &ServiceEntry, names: &Names) -> EndpointRecord {
    EndpointRecord {
        principal: names.principal(entry.principal),
        principal_number: entry.principal,
        kind: Kind::from_number(entry.kind).map_or("unknown", Kind::name),
        peer_class: names.peer(entry.peer),
        peer_class_number: entry.peer,
        port: entry.port,
        judged_again: entry.is_judged_again(),
    }
}

fn record(key: &ServiceKey, service: &Service, names: &Names) -> Record {
    let compiled = service.count == SERVICE_COMPILED;
    let count = if compiled { 1 } else { service.count as usize };
    Record {
        address: service_address(key).to_string(),
        protocol: protocol_name(key.protocol),
        port: key.port,
        service: names.service(key).map(str::to_owned),
        compiled,
        endpoints: service.entries.iter().take(count).map(|entry| endpoint(entry, names)).collect(),
    }
}

fn cells(record: &Record) -> Vec<String> {
    let address: Option<std::net::IpAddr> = record.address.parse().ok();
    let address = if address.is_some_and(|address| address.is_unspecified()) {
        let version = if address.is_some_and(|address| address.is_ipv4()) { 4 } else { 6 };
        format!("every node (IPv{version})")
    } else {
        record.address.clone()
    };
    let endpoints: Vec<String> = record
        .endpoints
        .iter()
        .map(|endpoint| {
            let again = if endpoint.judged_again { " (judged again)" } else { "" };
            if record.compiled {
                endpoint.peer_class.clone()
            } else {
                format!("{}:{}{again}", endpoint.principal, endpoint.port)
            }
        })
        .collect();
    vec![
        record.service.clone().unwrap_or_default(),
        address,
        format!("{}/{}", record.protocol, record.port),
        if endpoints.is_empty() { "none".to_owned() } else { endpoints.join(", ") },
    ]
}

pub fn part(context: &Context) -> anyhow::Result<Part> {
    let services = context.reader.services()?;
    let frontends = services.iter().filter(|(key, _)| !key.is_exposed());
    let records: Vec<Record> = frontends.map(|(key, service)| record(key, service, &context.names)).collect();
    let table = Table::of(&["SERVICE", "ADDRESS", "PORT", "ENDPOINTS"], &records, cells);
    Ok(Part { name: "services", tables: vec![table], json: serde_json::to_value(&records)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::service_key;

    #[test]
    fn a_frontend_lists_its_endpoints_and_fields_keep_their_names() {
        let key = service_key("0.0.0.0".parse().unwrap(), 6, 30080);
        let mut service = Service { count: 2, ..Service::default() };
        service.entries[0] = ServiceEntry { peer: 20, principal: 17, port: 8080, kind: 1, flags: 1 };
        service.entries[1] = ServiceEntry { peer: 4, principal: 4, port: 80, kind: 4, flags: 0 };
        let names = Names::default();
        let full = record(&key, &service, &names);
        assert_eq!(cells(&full), ["", "every node (IPv4)", "TCP/30080", "#17:8080 (judged again), world:80"]);
        assert_eq!(super::super::fields(&full).join(" "), "address compiled endpoints port protocol service");
        assert_eq!(
            super::super::fields(&full.endpoints[0]).join(" "),
            "judged_again kind peer_class peer_class_number port principal principal_number"
        );
        service.count = 0;
        assert_eq!(cells(&record(&key, &service, &names))[3], "none");
        service.count = SERVICE_COMPILED;
        assert_eq!(cells(&record(&key, &service, &names))[3], "#20");
    }
}
