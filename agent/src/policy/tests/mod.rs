//! The compiler on small clusters of plain objects; every verdict is read from the lowered maps.

mod addresses;
mod classes;
mod cluster_identity_policies;
mod identity_policies;
mod modes;
mod network_policies;
mod services;
mod specification;
mod tiers;

use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::policy::{PortKey, protocol};
use portcullis_common::{Direction, Reason, Verdict};

use super::{Desired, HostMaps, compile};
use crate::identity::Numbers;
use crate::model::{
    ClusterIdentityPolicy, IdentityPolicy, Labels, Namespace, NetworkPolicy, Node, Object, Pod,
    ServiceAccount, World,
};

use portcullis_common::Direction::{Egress, Ingress};
use portcullis_common::Verdict::{Allow, Audit, Deny};

/// A pod that runs as `default` and is its own UID.
fn pod(namespace: &str, name: &str) -> Pod {
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        uid: name.into(),
        service_account: "default".into(),
        ..Pod::default()
    }
}

impl Pod {
    fn sa(self, name: &str) -> Self {
        Self { service_account: name.into(), ..self }
    }
    fn ip(mut self, address: &str) -> Self {
        self.addresses.push(address.parse().unwrap());
        self
    }
    fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
    fn port(mut self, name: &str, protocol: u8, port: u16) -> Self {
        self.named_ports.push((name.into(), protocol, port));
        self
    }
    fn on(self, node: &str) -> Self {
        Self { node: node.into(), ..self }
    }
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        labels: Labels::new(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        tunnel_addresses: Vec::new(),
        pod_cidrs: pod_cidrs.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A world under construction. Namespaces and accounts that pods name exist without being asked for.
#[derive(Clone, Default)]
struct Cluster(World);

impl Cluster {
    fn new(pods: impl IntoIterator<Item = Pod>) -> Self {
        pods.into_iter().fold(Self::default(), Self::pod)
    }
    /// This node is `here`, with a pod range.
    fn here(mut self) -> Self {
        self.0.settings.node_name = "here".into();
        self.node(node("here", &["172.18.0.2", "fd18::2"], &["10.0.0.0/24"])).node(node(
            "there",
            &["172.18.0.3"],
            &["10.0.1.0/24"],
        ))
    }
    fn pod(mut self, pod: Pod) -> Self {
        let (namespace, account) = (pod.namespace.clone(), pod.service_account.clone());
        self.0.namespaces.entry(namespace.clone()).or_insert_with(|| Namespace {
            labels: labels(&[("kubernetes.io/metadata.name", &namespace)]),
            name: namespace.clone(),
        });
        let object =
            ServiceAccount { namespace: namespace.clone(), name: account.clone(), labels: Labels::new() };
        self.0.service_accounts.entry((namespace, account)).or_insert(object);
        self.0.apply(Object::Pod(pod));
        self
    }
    fn node(mut self, node: Node) -> Self {
        self.0.apply(Object::Node(node));
        self
    }
    fn namespace(mut self, name: &str, pairs: &[(&str, &str)]) -> Self {
        self.0.apply(Object::Namespace(Namespace { name: name.into(), labels: labels(pairs) }));
        self
    }
    fn account(mut self, namespace: &str, name: &str, pairs: &[(&str, &str)]) -> Self {
        let (namespace, name) = (namespace.into(), name.into());
        self.0.apply(Object::ServiceAccount(ServiceAccount { namespace, name, labels: labels(pairs) }));
        self
    }
    /// A `NetworkPolicy` from the YAML of its spec.
    fn np(self, name: &str, spec: &str) -> Self {
        self.np_mode(name, None, spec)
    }
    fn np_mode(mut self, name: &str, mode: Option<&str>, spec: &str) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        self.0.apply(Object::NetworkPolicy(NetworkPolicy {
            namespace: namespace.into(),
            name: name.into(),
            mode: mode.map(str::to_owned),
            spec: serde_saphyr::from_str(spec).unwrap(),
        }));
        self
    }
    /// An `IdentityPolicy` from the YAML of its spec.
    fn idp(mut self, name: &str, spec: &str) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        self.0.apply(Object::IdentityPolicy(IdentityPolicy {
            namespace: namespace.into(),
            name: name.into(),
            generation: 1,
            spec: serde_saphyr::from_str(spec).unwrap(),
        }));
        self
    }
    /// A `ClusterIdentityPolicy` from the YAML of its spec.
    fn cidp(mut self, name: &str, spec: &str) -> Self {
        let spec = serde_saphyr::from_str(spec).unwrap();
        let policy = ClusterIdentityPolicy { name: name.into(), generation: 1, spec };
        self.0.apply(Object::ClusterIdentityPolicy(policy));
        self
    }
    fn default_deny(mut self) -> Self {
        self.0.settings.default_verdict = Deny;
        self
    }
    fn compile(&self) -> Compiled {
        let desired = compile(&self.0, &mut Numbers::default());
        Compiled { maps: HostMaps::new(&desired), desired }
    }
}

struct Compiled {
    desired: Desired,
    maps: HostMaps,
}

/// `tcp/80`, `udp/53`, `icmp`.
fn key(text: &str) -> PortKey {
    let (name, port) = text.split_once('/').unwrap_or((text, "0"));
    let number = match name {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "sctp" => protocol::SCTP,
        "icmp" => protocol::ICMP,
        other => panic!("{other}"),
    };
    PortKey::new(number, port.parse().unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Compiled {
    fn decision(&self, pod: &str, direction: Direction, peer: &str, port: &str) -> (Verdict, Reason, &str) {
        let subject = self.desired.pods[pod].subject;
        let decision = self.maps.decide(subject, direction, ip(peer), key(port));
        let rule = if decision.rule == 0 { "" } else { self.desired.names.rules[&decision.rule].as_str() };
        (decision.verdict, decision.reason, rule)
    }
    fn verdict(&self, pod: &str, direction: Direction, peer: &str, port: &str) -> Verdict {
        self.decision(pod, direction, peer, port).0
    }
    /// The ports of a list that are allowed.
    fn allowed<'p>(&self, pod: &str, direction: Direction, peer: &str, ports: &[&'p str]) -> Vec<&'p str> {
        ports.iter().copied().filter(|port| self.verdict(pod, direction, peer, port) == Allow).collect()
    }
    /// The peers of a list that are allowed on a port.
    fn allowed_peers<'p>(
        &self,
        pod: &str,
        direction: Direction,
        port: &str,
        peers: &[&'p str],
    ) -> Vec<&'p str> {
        peers.iter().copied().filter(|peer| self.verdict(pod, direction, peer, port) == Allow).collect()
    }
    /// Fields of the problems.
    fn fields(&self) -> Vec<&str> {
        self.desired.problems.iter().map(|problem| problem.field.as_str()).collect()
    }
    fn peer(&self, address: &str) -> u32 {
        self.desired.ipcache[&ip(address)].peer
    }
    fn prefix(&self, prefix: &str) -> portcullis_common::Identity {
        self.desired.cidrs[&prefix.parse::<IpNet>().unwrap()]
    }
}
