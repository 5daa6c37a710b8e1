//! From the objects of the API to the trimmed ones.
//!
//! Both sources use these conversions, so an object means the same wherever it comes from. What decides about identity
//! and cannot be read (an address, a CIDR, a named port) is an error that names the field, never a guess.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portcullis_common::policy::protocol;

use super::cluster_config::ClusterConfig;
use super::objects::{
    ClusterIdentityPolicy, EndpointPort, EndpointSlice, IdentityPolicy, Labels, Namespace, NetworkPolicy,
    Node, Object, Pod, Service, ServiceAccount, ServiceCidr, ServicePort, TargetPort,
};
use super::tunnels;
use crate::api;

/// Label that every namespace carries with its own name as the value.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Label and value by which the pods of our agents are known.
const AGENT_LABEL: &str = "app.kubernetes.io/name";
const AGENT_NAME: &str = "portcullis";
/// Label of an endpoint slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A field of an object that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The field must be there.
    #[error("field `{field}` is missing")]
    Missing {
        /// Path of the field.
        field: String,
    },
    /// The field's value is not of the form that it must have.
    #[error("field `{field}`: `{value}` is not {expected}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
        /// What it should have been, with an article.
        expected: &'static str,
    },
}

impl ConvertError {
    /// Path of the field.
    pub fn field(&self) -> &str {
        match self {
            Self::Missing { field } | Self::Invalid { field, .. } => field,
        }
    }

    fn invalid(field: String, value: &impl ToString, expected: &'static str) -> Self {
        Self::Invalid { field, value: value.to_string(), expected }
    }
}

impl TryFrom<core::Pod> for Pod {
    type Error = ConvertError;

    fn try_from(pod: core::Pod) -> Result<Self, ConvertError> {
        let (namespace, name) = (namespace(&pod.metadata), name(&pod.metadata)?);
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        Ok(Self {
            uid: text(pod.metadata.uid.clone()).unwrap_or_else(|| format!("{namespace}/{name}")),
            service_account: text(spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned()),
            node: spec.node_name.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or(false),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            running: is_running(&status, &pod.metadata),
            addresses: pod_addresses(&status)?,
            sandbox_started: sandbox_started(&status, &pod.metadata),
            named_ports: named_ports(&spec)?,
            judges: is_ready_agent(&status, &pod.metadata),
            routes: asks_to_route(&pod.metadata),
            labels: labels(pod.metadata),
            namespace,
            name,
        })
    }
}

fn asks_to_route(metadata: &ObjectMeta) -> bool {
    let asked = metadata.annotations.as_ref().and_then(|annotations| annotations.get(api::ROUTES_KEY));
    asked.is_some_and(|value| value == "true")
}

impl TryFrom<core::Namespace> for Namespace {
    type Error = ConvertError;

    fn try_from(object: core::Namespace) -> Result<Self, ConvertError> {
        let name = name(&object.metadata)?;
        let mut labels = labels(object.metadata);
        // The API server sets it whatever the manifest says: a namespace must not pass for another one.
        labels.insert(NAMESPACE_NAME.to_owned(), name.clone());
        Ok(Self { name, labels })
    }
}

impl TryFrom<core::ServiceAccount> for ServiceAccount {
    type Error = ConvertError;

    fn try_from(object: core::ServiceAccount) -> Result<Self, ConvertError> {
        Ok(Self {
            namespace: namespace(&object.metadata),
            name: name(&object.metadata)?,
            labels: labels(object.metadata),
        })
    }
}

impl TryFrom<core::Node> for Node {
    type Error = ConvertError;

    fn try_from(object: core::Node) -> Result<Self, ConvertError> {
        let spec = object.spec.unwrap_or_default();
        let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
        let pod_cidrs = match spec.pod_cidrs {
            Some(cidrs) if !cidrs.is_empty() => cidrs
                .iter()
                .enumerate()
                .map(|(i, cidr)| parse_cidr(format!("spec.podCIDRs[{i}]"), cidr))
                .collect::<Result<_, _>>()?,
            _ => match text(spec.pod_cidr) {
                Some(cidr) => vec![parse_cidr("spec.podCIDR".to_owned(), &cidr)?],
                None => Vec::new(),
            },
        };
        Ok(Self {
            name: name(&object.metadata)?,
            tunnel_addresses: tunnels::addresses(&object.metadata, &pod_cidrs),
            labels: labels(object.metadata),
            // Some providers put host names here as well; those say nothing about packets.
            addresses: addresses
                .iter()
                .filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"))
                .filter_map(|a| a.address.parse::<IpAddr>().ok())
                .map(|address| address.to_canonical())
                .collect(),
            pod_cidrs,
        })
    }
}

impl TryFrom<core::Service> for Service {
    type Error = ConvertError;

    fn try_from(object: core::Service) -> Result<Self, ConvertError> {
        let (namespace, name) = (namespace(&object.metadata), name(&object.metadata)?);
        let spec = object.spec.unwrap_or_default();
        let cluster: Vec<_> = match spec.cluster_ips {
            Some(ips) if !ips.is_empty() => {
                ips.into_iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip)).collect()
            }
            _ => text(spec.cluster_ip).map(|ip| ("spec.clusterIP".to_owned(), ip)).into_iter().collect(),
        };
        // No proxy serves a service without a cluster address, whatever else it says.
        let served = spec.type_.as_deref() != Some("ExternalName")
            && cluster.iter().any(|(_, ip)| !ip.is_empty() && ip != "None");
        if !served {
            return Ok(Self { namespace, name, ..Self::default() });
        }
        let external = spec.external_ips.into_iter().flatten().enumerate();
        let external = external.map(|(i, ip)| (format!("spec.externalIPs[{i}]"), ip));
        let ingress = object.status.and_then(|status| status.load_balancer).and_then(|lb| lb.ingress);
        let ingress = ingress.into_iter().flatten().enumerate().filter_map(|(i, ingress)| {
            // In mode `Proxy` packets reach the load balancer itself: an address like any other.
            let here = ingress.ip_mode.as_deref() != Some("Proxy");
            let ip = text(ingress.ip).filter(|_| here)?;
            Some((format!("status.loadBalancer.ingress[{i}].ip"), ip))
        });
        Ok(Self {
            namespace,
            name,
            cluster_addresses: parse_addresses(cluster)?,
            external_addresses: parse_addresses(external.chain(ingress))?,
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            ports: service_ports(spec.ports.as_deref().unwrap_or_default())?,
            selector: spec.selector.unwrap_or_default(),
        })
    }
}

impl TryFrom<discovery::EndpointSlice> for EndpointSlice {
    type Error = ConvertError;

    fn try_from(object: discovery::EndpointSlice) -> Result<Self, ConvertError> {
        let mut ports = Vec::new();
        for (i, port) in object.ports.iter().flatten().enumerate() {
            // Proxies pass over a port without a number as well.
            let Some(number) = port.port else { continue };
            let field = |field: &str| format!("ports[{i}].{field}");
            ports.push(EndpointPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: parse_protocol(field("protocol"), port.protocol.as_deref())?,
                port: parse_port(field("port"), number)?,
            });
        }
        let addresses = match object.address_type.as_str() {
            // Names of hosts say nothing about packets.
            "FQDN" => Vec::new(),
            _ => parse_addresses(object.endpoints.into_iter().enumerate().flat_map(|(i, endpoint)| {
                let addresses = endpoint.addresses.into_iter().enumerate();
                addresses.map(move |(j, ip)| (format!("endpoints[{i}].addresses[{j}]"), ip))
            }))?,
        };
        let service = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).cloned();
        Ok(Self {
            namespace: namespace(&object.metadata),
            name: name(&object.metadata)?,
            service: service.unwrap_or_default(),
            ports,
            addresses,
        })
    }
}

impl TryFrom<networking::ServiceCIDR> for ServiceCidr {
    type Error = ConvertError;

    fn try_from(object: networking::ServiceCIDR) -> Result<Self, ConvertError> {
        let cidrs = object.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        let cidrs = cidrs.iter().enumerate().map(|(i, cidr)| parse_cidr(format!("spec.cidrs[{i}]"), cidr));
        Ok(Self { name: name(&object.metadata)?, cidrs: cidrs.collect::<Result<_, _>>()? })
    }
}

impl TryFrom<networking::NetworkPolicy> for NetworkPolicy {
    type Error = ConvertError;

    fn try_from(object: networking::NetworkPolicy) -> Result<Self, ConvertError> {
        let annotations = object.metadata.annotations.as_ref();
        Ok(Self {
            namespace: namespace(&object.metadata),
            name: name(&object.metadata)?,
            mode: annotations.and_then(|all| all.get(api::MODE_KEY)).cloned(),
            spec: object.spec.unwrap_or_default(),
        })
    }
}

impl TryFrom<api::IdentityPolicy> for IdentityPolicy {
    type Error = ConvertError;

    fn try_from(object: api::IdentityPolicy) -> Result<Self, ConvertError> {
        Ok(Self {
            namespace: namespace(&object.metadata),
            name: name(&object.metadata)?,
            generation: object.metadata.generation.unwrap_or_default(),
            spec: object.spec,
        })
    }
}

impl TryFrom<api::ClusterIdentityPolicy> for ClusterIdentityPolicy {
    type Error = ConvertError;

    fn try_from(object: api::ClusterIdentityPolicy) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name(&object.metadata)?,
            generation: object.metadata.generation.unwrap_or_default(),
            spec: object.spec,
        })
    }
}

macro_rules! object_from {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(object)
            }
        }
    )*};
}

object_from!(
    Pod,
    Namespace,
    ServiceAccount,
    Node,
    Service,
    EndpointSlice,
    ServiceCidr,
    NetworkPolicy,
    IdentityPolicy,
    ClusterIdentityPolicy,
    ClusterConfig
);

pub(super) fn name(metadata: &ObjectMeta) -> Result<String, ConvertError> {
    text(metadata.name.clone()).ok_or_else(|| ConvertError::Missing { field: "metadata.name".to_owned() })
}

pub(super) fn namespace(metadata: &ObjectMeta) -> String {
    text(metadata.namespace.clone()).unwrap_or_else(|| "default".to_owned())
}

fn labels(metadata: ObjectMeta) -> Labels {
    metadata.labels.unwrap_or_default()
}

/// The API does not tell an empty text from an absent one.
fn text(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.is_empty())
}

fn is_running(status: &core::PodStatus, metadata: &ObjectMeta) -> bool {
    let no_sandbox = |condition: &core::PodCondition| {
        condition.type_ == "PodReadyToStartContainers" && condition.status == "False"
    };
    status.phase.as_deref() == Some("Running")
        && metadata.deletion_timestamp.is_none()
        && !status.conditions.iter().flatten().any(no_sandbox)
}

fn pod_addresses(status: &core::PodStatus) -> Result<Vec<IpAddr>, ConvertError> {
    match &status.pod_ips {
        Some(ips) if !ips.is_empty() => ips
            .iter()
            .enumerate()
            .map(|(i, ip)| parse_address(format!("status.podIPs[{i}].ip"), &ip.ip))
            .collect(),
        _ => match status.pod_ip.as_deref() {
            None | Some("") => Ok(Vec::new()),
            Some(ip) => Ok(vec![parse_address("status.podIP".to_owned(), ip)?]),
        },
    }
}

/// An address as it is in packets: one mapped into IPv6 is the IPv4 address.
fn parse_address(field: String, value: &str) -> Result<IpAddr, ConvertError> {
    match value.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => Err(ConvertError::invalid(field, &value, "an IP address")),
    }
}

fn parse_addresses(fields: impl IntoIterator<Item = (String, String)>) -> Result<Vec<IpAddr>, ConvertError> {
    fields.into_iter().map(|(field, ip)| parse_address(field, &ip)).collect()
}

fn parse_protocol(field: String, value: Option<&str>) -> Result<u8, ConvertError> {
    match value {
        None | Some("" | "TCP") => Ok(protocol::TCP),
        Some("UDP") => Ok(protocol::UDP),
        Some("SCTP") => Ok(protocol::SCTP),
        Some(other) => Err(ConvertError::invalid(field, &other, "TCP, UDP or SCTP")),
    }
}

fn parse_port(field: String, value: i32) -> Result<u16, ConvertError> {
    let port = u16::try_from(value).ok().filter(|port| *port != 0);
    port.ok_or_else(|| ConvertError::invalid(field, &value, "a port from 1 to 65535"))
}

fn service_ports(ports: &[core::ServicePort]) -> Result<Vec<ServicePort>, ConvertError> {
    let port = |(i, port): (usize, &core::ServicePort)| {
        let field = |field: &str| format!("spec.ports[{i}].{field}");
        let number = parse_port(field("port"), port.port)?;
        Ok(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: parse_protocol(field("protocol"), port.protocol.as_deref())?,
            port: number,
            node_port: match port.node_port {
                None | Some(0) => None,
                Some(port) => Some(parse_port(field("nodePort"), port)?),
            },
            target: match &port.target_port {
                // The API server fills in the service's own port.
                None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
                Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(number),
                Some(IntOrString::Int(target)) => {
                    TargetPort::Number(parse_port(field("targetPort"), *target)?)
                }
                Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
            },
        })
    };
    ports.iter().enumerate().map(port).collect()
}

fn is_ready_agent(status: &core::PodStatus, metadata: &ObjectMeta) -> bool {
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(AGENT_LABEL));
    label.is_some_and(|value| value == AGENT_NAME)
        && status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn parse_cidr(field: String, value: &str) -> Result<IpNet, ConvertError> {
    value.parse().map_err(|_| ConvertError::invalid(field, &value, "a CIDR such as 10.0.0.0/24"))
}

fn sandbox_started(status: &core::PodStatus, metadata: &ObjectMeta) -> i64 {
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "PodReadyToStartContainers" && c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref());
    let time = ready.or(status.start_time.as_ref()).or(metadata.creation_timestamp.as_ref());
    time.map_or(0, |Time(time)| time.as_second())
}

fn named_ports(spec: &core::PodSpec) -> Result<Vec<(String, u8, u16)>, ConvertError> {
    let mut ports = Vec::new();
    let containers = spec.containers.iter().map(|c| (c, false));
    let init = spec.init_containers.iter().flatten().map(|c| (c, true));
    for (index, (container, is_init)) in containers.enumerate().chain(init.enumerate()) {
        if is_init && container.restart_policy.as_deref() != Some("Always") {
            continue;
        }
        let list = if is_init { "initContainers" } else { "containers" };
        for (i, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = text(port.name.clone()) else { continue };
            let field = |field: &str| format!("spec.{list}[{index}].ports[{i}].{field}");
            let protocol = parse_protocol(field("protocol"), port.protocol.as_deref())?;
            let number = parse_port(field("containerPort"), port.container_port)?;
            ports.push((name, protocol, number));
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Result<Pod, ConvertError> {
        Pod::try_from(serde_json::from_value::<core::Pod>(value).unwrap())
    }

    #[test]
    fn a_pod_keeps_what_decides_about_identity() {
        let full = pod(json!({
            "metadata": {"name": "db-0", "namespace": "shop", "uid": "u1", "labels": {"app": "db"},
                "annotations": {api::ROUTES_KEY: "true"},
                "creationTimestamp": "1970-01-01T00:00:01Z"},
            "spec": {
                "serviceAccountName": "db", "nodeName": "n1", "hostNetwork": true,
                "containers": [
                    {"name": "c", "ports": [{"name": "sql", "containerPort": 5432}, {"containerPort": 1}]},
                    {"name": "d", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
                "initContainers": [
                    {"name": "i", "ports": [{"name": "gone", "containerPort": 9}]},
                    {"name": "s", "restartPolicy": "Always",
                        "ports": [{"name": "side", "containerPort": 7, "protocol": "SCTP"}]}],
            },
            "status": {"phase": "Failed", "podIP": "10.0.0.9",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "::ffff:10.0.0.2"}],
                "startTime": "1970-01-01T00:00:02Z",
                "conditions": [{"type": "PodReadyToStartContainers", "status": "True",
                    "lastTransitionTime": "1970-01-01T00:00:03Z"}]},
        }));
        let expected = Pod {
            namespace: "shop".into(),
            name: "db-0".into(),
            uid: "u1".into(),
            service_account: "db".into(),
            labels: [("app".into(), "db".into())].into(),
            node: "n1".into(),
            host_network: true,
            finished: true,
            running: false,
            addresses: vec![
                "10.0.0.1".parse().unwrap(),
                "fd00::1".parse().unwrap(),
                "10.0.0.2".parse().unwrap(),
            ],
            sandbox_started: 3,
            named_ports: vec![("sql".into(), 6, 5432), ("dns".into(), 17, 53), ("side".into(), 132, 7)],
            judges: false,
            routes: true,
        };
        assert_eq!(full, Ok(expected));
    }

    #[test]
    fn what_a_pod_does_not_say_has_the_defaults_of_the_api() {
        let bare =
            pod(json!({"metadata": {"name": "a"}, "status": {"phase": "Running", "podIP": "10.0.0.9"}}));
        let expected = Pod {
            running: true,
            namespace: "default".into(),
            name: "a".into(),
            uid: "default/a".into(),
            service_account: "default".into(),
            addresses: vec!["10.0.0.9".parse().unwrap()],
            ..Pod::default()
        };
        assert_eq!(bare, Ok(expected));
        let empty = pod(json!({"metadata": {"name": "a", "namespace": "", "uid": ""},
            "spec": {"containers": [], "serviceAccountName": ""}, "status": {"podIP": "", "podIPs": []}}));
        let empty = empty.unwrap();
        assert_eq!((empty.namespace.as_str(), empty.uid.as_str()), ("default", "default/a"));
        assert_eq!((empty.service_account.as_str(), empty.addresses.len()), ("default", 0));
    }

    #[test]
    fn the_sandbox_started_when_the_best_known_field_says() {
        let ready = |status: &str| {
            json!({"type": "PodReadyToStartContainers", "status": status,
            "lastTransitionTime": "1970-01-01T00:00:03Z"})
        };
        let other = json!({"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:09Z"});
        let start = json!("1970-01-01T00:00:02Z");
        let created = json!("1970-01-01T00:00:01Z");
        for (conditions, start, created, expected) in [
            (json!([other, ready("True")]), &start, &created, 3),
            (json!([other, ready("False")]), &start, &created, 2),
            (json!([{"type": "PodReadyToStartContainers", "status": "True"}]), &start, &created, 2),
            (json!([]), &json!(null), &created, 1),
            (json!(null), &json!(null), &json!(null), 0),
        ] {
            let pod = pod(json!({"metadata": {"name": "a", "creationTimestamp": created},
                "status": {"startTime": start, "conditions": conditions}}));
            assert_eq!(pod.unwrap().sandbox_started, expected, "{conditions} {start} {created}");
        }
    }

    #[test]
    fn a_pod_runs_from_its_sandbox_on_until_it_is_deleted() {
        let condition = |status: &str| json!([{"type": "PodReadyToStartContainers", "status": status}]);
        for (phase, deleted, conditions, running) in [
            ("Running", json!(null), json!(null), true),
            ("Running", json!(null), condition("True"), true),
            ("Running", json!(null), condition("False"), false),
            ("Running", json!("1970-01-01T00:00:01Z"), condition("True"), false),
            ("Pending", json!(null), condition("True"), false),
            ("Succeeded", json!(null), json!(null), false),
        ] {
            let object = json!({"metadata": {"name": "a", "deletionTimestamp": deleted},
                "status": {"phase": phase, "conditions": conditions}});
            assert_eq!(pod(object.clone()).unwrap().running, running, "{object}");
        }
    }

    #[test]
    fn every_phase_but_the_final_ones_is_unfinished() {
        for (phase, finished) in [
            ("Pending", false),
            ("Running", false),
            ("Unknown", false),
            ("Succeeded", true),
            ("Failed", true),
        ] {
            let pod = pod(json!({"metadata": {"name": "a"}, "status": {"phase": phase}})).unwrap();
            assert_eq!(pod.finished, finished, "{phase}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_read_is_named() {
        let port = |port: serde_json::Value| json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}, {"name": "d", "ports": [port]}]}});
        for (object, field, message) in [
            (json!({"metadata": {}}), "metadata.name", "field `metadata.name` is missing"),
            (
                json!({"metadata": {"name": "a"}, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0"}]}}),
                "status.podIPs[1].ip",
                "field `status.podIPs[1].ip`: `10.0.0` is not an IP address",
            ),
            (
                json!({"metadata": {"name": "a"}, "status": {"podIP": "x"}}),
                "status.podIP",
                "field `status.podIP`: `x` is not an IP address",
            ),
            (
                port(json!({"name": "p", "containerPort": 65536})),
                "spec.containers[1].ports[0].containerPort",
                "field `spec.containers[1].ports[0].containerPort`: `65536` is not a port from 1 to 65535",
            ),
            (
                port(json!({"name": "p", "containerPort": 6, "protocol": "tcp"})),
                "spec.containers[1].ports[0].protocol",
                "field `spec.containers[1].ports[0].protocol`: `tcp` is not TCP, UDP or SCTP",
            ),
        ] {
            let error = pod(object).unwrap_err();
            assert_eq!((error.field(), error.to_string().as_str()), (field, message));
        }
    }

    #[test]
    fn a_namespace_carries_its_own_name_as_a_label_whatever_it_says() {
        for labels in [json!(null), json!({NAMESPACE_NAME: "kube-system"})] {
            let object = json!({"metadata": {"name": "shop", "labels": labels}});
            let object: core::Namespace = serde_json::from_value(object).unwrap();
            let labels = Namespace::try_from(object).unwrap().labels;
            assert_eq!(labels, Labels::from([(NAMESPACE_NAME.into(), "shop".into())]));
        }
    }

    #[test]
    fn a_node_has_the_addresses_that_are_addresses_and_its_pod_ranges() {
        let node = |spec: serde_json::Value| {
            let object = json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}, "spec": spec, "status": {"addresses": [
                {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "ExternalIP", "address": "lb.example"}, {"type": "ExternalIP", "address": "2001:db8::1"}]}});
            Node::try_from(serde_json::from_value::<core::Node>(object).unwrap())
        };
        let both =
            node(json!({"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]})).unwrap();
        assert_eq!(both.addresses, ["192.0.2.1", "2001:db8::1"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert_eq!(both.pod_cidrs, ["10.1.0.0/24", "fd00:1::/64"].map(|a| a.parse::<IpNet>().unwrap()));
        assert_eq!(both.labels.get("zone").map(String::as_str), Some("a"));
        let single = node(json!({"podCIDR": "10.9.0.0/24"})).unwrap();
        assert_eq!(single.pod_cidrs, ["10.9.0.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(node(json!({})).unwrap().pod_cidrs, []);
        let bad = node(json!({"podCIDRs": ["10.1.0.0/24", "10.1.0.0/33"]})).unwrap_err();
        assert_eq!(bad.field(), "spec.podCIDRs[1]");
    }

    #[test]
    fn policies_keep_their_specification_and_mode() {
        let object = json!({"metadata": {"name": "p", "annotations": {api::MODE_KEY: "Audit"}},
            "spec": {"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "80"}, {"port": 80}]}]}});
        let spec = serde_json::from_value(object["spec"].clone()).unwrap();
        let policy =
            NetworkPolicy::try_from(serde_json::from_value::<networking::NetworkPolicy>(object).unwrap());
        let expected =
            NetworkPolicy { namespace: "default".into(), name: "p".into(), mode: Some("Audit".into()), spec };
        assert_eq!(policy, Ok(expected));

        let object = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "IdentityPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"subject": {}}});
        let policy =
            IdentityPolicy::try_from(serde_json::from_value::<api::IdentityPolicy>(object).unwrap()).unwrap();
        assert_eq!((policy.namespace.as_str(), policy.name.as_str()), ("shop", "p"));
        assert_eq!(Object::from(policy).key().kind, crate::model::ObjectKind::IdentityPolicy);
    }

    #[test]
    fn only_a_ready_pod_with_our_label_may_judge() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let unready = json!([{"type": "Ready", "status": "False"}]);
        for (label, conditions, judges) in [
            ("portcullis", &ready, true),
            ("portcullis", &unready, false),
            ("portcullis", &json!(null), false),
            ("web", &ready, false),
        ] {
            let pod = pod(json!({"metadata": {"name": "a", "labels": {AGENT_LABEL: label}},
                "status": {"conditions": conditions}}));
            assert_eq!(pod.unwrap().judges, judges, "{label} {conditions}");
        }
    }

    fn service(value: serde_json::Value) -> Result<Service, ConvertError> {
        Service::try_from(serde_json::from_value::<core::Service>(value).unwrap())
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_keeps_its_addresses_and_ports() {
        let full = service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "externalIPs": ["192.0.2.7"], "selector": {"app": "web"}, "externalTrafficPolicy": "Local",
                "ports": [
                    {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
                    {"name": "same", "port": 9, "protocol": "SCTP", "nodePort": 0}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"},
                {"hostname": "lb.example"}, {"ip": "198.51.100.3"}]}},
        }));
        let port = |name: &str, protocol, port, node_port, target| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port,
            target,
        };
        let expected = Service {
            namespace: "shop".into(),
            name: "web".into(),
            cluster_addresses: addresses(&["10.96.0.1", "fd00::1"]),
            external_addresses: addresses(&["192.0.2.7", "198.51.100.1", "198.51.100.3"]),
            external_local: true,
            ports: vec![
                port("http", 6, 80, Some(30080), TargetPort::Name("web".into())),
                port("dns", 17, 53, None, TargetPort::Number(5353)),
                port("same", 132, 9, None, TargetPort::Number(9)),
            ],
            selector: [("app".into(), "web".into())].into(),
        };
        assert_eq!(full, Ok(expected));
        let single = service(json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.9"}})).unwrap();
        assert_eq!(single.cluster_addresses, addresses(&["10.96.0.9"]));
    }

    #[test]
    fn a_service_that_no_proxy_serves_keeps_no_address() {
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["192.0.2.7"], "ports": ports}),
            json!({"type": "ExternalName", "externalName": "a.example", "externalIPs": ["192.0.2.7"], "ports": ports}),
            json!({"type": "ClusterIP", "clusterIP": "", "externalIPs": ["192.0.2.7"], "ports": ports}),
        ] {
            let service = service(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap();
            assert_eq!(
                service,
                Service { namespace: "default".into(), name: "a".into(), ..Service::default() }
            );
        }
    }

    #[test]
    fn a_slice_lists_every_address_whatever_its_condition() {
        let slice = |value: serde_json::Value| {
            EndpointSlice::try_from(serde_json::from_value::<discovery::EndpointSlice>(value).unwrap())
        };
        let full = slice(json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "any"}, {"port": 53, "protocol": "UDP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false, "terminating": true}},
                {"addresses": ["10.0.0.2", "10.0.0.3"]}]}));
        let expected = EndpointSlice {
            namespace: "shop".into(),
            name: "web-x".into(),
            service: "web".into(),
            ports: vec![
                EndpointPort { name: "http".into(), protocol: 6, port: 8080 },
                EndpointPort { name: String::new(), protocol: 17, port: 53 },
            ],
            addresses: addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        };
        assert_eq!(full, Ok(expected));
        let names = slice(json!({"metadata": {"name": "n"}, "addressType": "FQDN",
            "endpoints": [{"addresses": ["a.example"]}]}));
        assert!(names.unwrap().addresses.is_empty());
        let bad = slice(json!({"metadata": {"name": "n"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0"]}]}));
        assert_eq!(bad.unwrap_err().field(), "endpoints[1].addresses[0]");
    }

    #[test]
    fn a_field_of_a_service_that_cannot_be_read_is_named() {
        for (spec, field) in [
            (json!({"clusterIP": "10.96"}), "spec.clusterIP"),
            (json!({"clusterIPs": ["10.96.0.1", "x"]}), "spec.clusterIPs[1]"),
            (json!({"clusterIP": "10.96.0.1", "externalIPs": ["x"]}), "spec.externalIPs[0]"),
            (json!({"clusterIP": "10.96.0.1", "ports": [{"port": 0}]}), "spec.ports[0].port"),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1, "nodePort": -1}]}),
                "spec.ports[0].nodePort",
            ),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1, "targetPort": 65536}]}),
                "spec.ports[0].targetPort",
            ),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1, "protocol": "GRE"}]}),
                "spec.ports[0].protocol",
            ),
        ] {
            let error = service(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap_err();
            assert_eq!(error.field(), field);
        }
        let range = json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00::/108"]}});
        let range =
            ServiceCidr::try_from(serde_json::from_value::<networking::ServiceCIDR>(range).unwrap()).unwrap();
        assert_eq!(range.cidrs, ["10.96.0.0/12", "fd00::/108"].map(|cidr| cidr.parse::<IpNet>().unwrap()));
        let range = json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0"]}});
        let range = ServiceCidr::try_from(serde_json::from_value::<networking::ServiceCIDR>(range).unwrap());
        assert_eq!(range.unwrap_err().field(), "spec.cidrs[0]");
    }
}
