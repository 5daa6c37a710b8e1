//! The trimmed objects.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicySpec;

use super::cluster_config::ClusterConfig;
use crate::api::{ClusterIdentityPolicySpec, IdentityPolicySpec};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A kind that a source delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `v1` Pod.
    Pod,
    /// `v1` Namespace.
    Namespace,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `v1` Node.
    Node,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice,
    /// `networking.k8s.io/v1` `ServiceCIDR`.
    ServiceCidr,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `portcullis.dev/v1alpha1` IdentityPolicy.
    IdentityPolicy,
    /// `portcullis.dev/v1alpha1` ClusterIdentityPolicy.
    ClusterIdentityPolicy,
    /// `v1` ConfigMap named [`ClusterConfig::NAME`].
    ClusterConfig,
}

impl ObjectKind {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceCidr => "ServiceCIDR",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::IdentityPolicy => "IdentityPolicy",
            Self::ClusterIdentityPolicy => "ClusterIdentityPolicy",
            Self::ClusterConfig => "ConfigMap",
        }
    }
}

/// What names an object: kind, namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace, or empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    /// `NetworkPolicy shop/db`, `Node n1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        let slash = if namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {namespace}{slash}{name}", kind.name())
    }
}

/// An object of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A service account.
    ServiceAccount(ServiceAccount),
    /// A node.
    Node(Node),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// A range of cluster addresses of services.
    ServiceCidr(ServiceCidr),
    /// A network policy.
    NetworkPolicy(NetworkPolicy),
    /// An identity policy.
    IdentityPolicy(IdentityPolicy),
    /// An identity policy of the whole cluster.
    ClusterIdentityPolicy(ClusterIdentityPolicy),
    /// What holds for the whole cluster.
    ClusterConfig(ClusterConfig),
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of the API of its own")]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; two pods of the same name differ in it. The manifests source uses `namespace/name` where a file gives none.
    pub uid: String,
    /// `spec.serviceAccountName`, `default` where absent.
    pub service_account: String,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`; empty while unscheduled, and in manifests that do not say.
    pub node: String,
    /// `spec.hostNetwork`: the pod is its node.
    pub host_network: bool,
    /// Phase `Succeeded` or `Failed`: the addresses in its status may belong to another pod by now.
    pub finished: bool,
    /// Phase `Running`, not being deleted, and its sandbox is there: so its interface must be, too.
    pub running: bool,
    /// `status.podIPs`, or `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// Seconds since the epoch at which its sandbox started: `lastTransitionTime` of condition
    /// `PodReadyToStartContainers` (when `True`), else `status.startTime`, else creation, else 0. Decides who owns an
    /// address that two pods claim.
    pub sandbox_started: i64,
    /// Named ports of containers and restartable init containers: name, IANA protocol number, port.
    pub named_ports: Vec<(String, u8, u16)>,
    /// It looks like an agent of ours that is ready: label `app.kubernetes.io/name: portcullis`, condition `Ready`. It
    /// is one if it is in our namespace too ([`Settings::namespace`](super::Settings)). Never set for other pods, so that
    /// their readiness
    /// changes nothing here.
    pub judges: bool,
    /// Annotation [`crate::api::ROUTES_KEY`]: it asks to forward packets of others.
    pub routes: bool,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

/// A service account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceAccount {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` that are addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its overlay network, from annotations.
    pub tunnel_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, or `spec.podCIDR`.
    pub pod_cidrs: Vec<IpNet>,
}

/// A service, as far as it has addresses of its own: headless ones and those of type `ExternalName` keep nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `spec.clusterIPs`, or `spec.clusterIP`.
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.externalIPs`, and the load balancer's addresses unless their `ipMode` is `Proxy`.
    pub external_addresses: Vec<IpAddr>,
    /// `spec.externalTrafficPolicy: Local`: what comes from outside goes to pods of the node that it came to, and keeps
    /// its source address.
    pub external_local: bool,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`. Only the manifests source uses it, for services that no `EndpointSlice` belongs to.
    pub selector: Labels,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Name, empty where there is none.
    pub name: String,
    /// IANA protocol number.
    pub protocol: u8,
    /// The port of the service's addresses.
    pub port: u16,
    /// The port of every node's addresses.
    pub node_port: Option<u16>,
    /// The port of the endpoints. Only the manifests source uses it.
    pub target: TargetPort,
}

/// The port of the endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same for all of them.
    Number(u16),
    /// The port that each of them has given that name.
    Name(String),
}

/// Endpoints of a service. Whether they are ready plays no part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSlice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The service, from the label `kubernetes.io/service-name`; empty where there is none.
    pub service: String,
    /// The ports of all addresses.
    pub ports: Vec<EndpointPort>,
    /// Every address that is listed.
    pub addresses: Vec<IpAddr>,
}

/// A port of an endpoint slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name, the same as that of the service's port; empty where there is none.
    pub name: String,
    /// IANA protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// A range from which services get their cluster addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceCidr {
    /// Name.
    pub name: String,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkPolicy {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Value of the annotation [`crate::api::MODE_KEY`], as written.
    pub mode: Option<String>,
    /// The specification, as the API defines it.
    pub spec: NetworkPolicySpec,
}

/// An IdentityPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityPolicy {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.generation`: which state of the specification this is; `0` where nothing counts them.
    pub generation: i64,
    /// The specification.
    pub spec: IdentityPolicySpec,
}

/// A ClusterIdentityPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterIdentityPolicy {
    /// Name.
    pub name: String,
    /// `metadata.generation`, as in an [`IdentityPolicy`].
    pub generation: i64,
    /// The specification.
    pub spec: ClusterIdentityPolicySpec,
}

impl Object {
    /// What names the object.
    pub fn key(&self) -> ObjectKey {
        let (kind, namespace, name) = match self {
            Self::Pod(o) => (ObjectKind::Pod, o.namespace.as_str(), &o.name),
            Self::Namespace(o) => (ObjectKind::Namespace, "", &o.name),
            Self::ServiceAccount(o) => (ObjectKind::ServiceAccount, o.namespace.as_str(), &o.name),
            Self::Node(o) => (ObjectKind::Node, "", &o.name),
            Self::Service(o) => (ObjectKind::Service, o.namespace.as_str(), &o.name),
            Self::EndpointSlice(o) => (ObjectKind::EndpointSlice, o.namespace.as_str(), &o.name),
            Self::ServiceCidr(o) => (ObjectKind::ServiceCidr, "", &o.name),
            Self::NetworkPolicy(o) => (ObjectKind::NetworkPolicy, o.namespace.as_str(), &o.name),
            Self::IdentityPolicy(o) => (ObjectKind::IdentityPolicy, o.namespace.as_str(), &o.name),
            Self::ClusterIdentityPolicy(o) => (ObjectKind::ClusterIdentityPolicy, "", &o.name),
            Self::ClusterConfig(o) => (ObjectKind::ClusterConfig, o.namespace.as_str(), &o.name),
        };
        ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() }
    }
}
