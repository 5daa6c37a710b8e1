//! Large worlds of plain objects, for measuring the compiler and for tests that count what a change writes.
//!
//! They are made by rule and not by chance: the same scale gives the same world everywhere, and one that is ten times as
//! large differs in nothing but the numbers.

mod hard;
mod policies;

use std::net::IpAddr;

use portcullis::model::{
    EndpointPort, EndpointSlice, Labels, Namespace, Node, Object, Pod, Service, ServiceAccount, ServicePort,
    TargetPort, World,
};

pub use hard::{many_services, one_label_everywhere, one_port};
pub use policies::{network_policy, policy};

/// How large a world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Pods, a hundred of them on this node.
    pub pods: usize,
    /// Service accounts, ten in each namespace.
    pub accounts: usize,
    /// Policies, two thirds of them `NetworkPolicies`.
    pub policies: usize,
    /// Services, each with a slice of ten endpoints.
    pub services: usize,
}

/// Accounts of a namespace.
const ACCOUNTS: usize = 10;
/// Pods of a node.
const PODS: usize = 100;
/// The name of this node.
pub const HERE: &str = "node-0";

/// The name of a namespace.
pub fn namespace(i: usize) -> String {
    format!("team-{i}")
}

fn labels<const N: usize>(pairs: [(&str, String); N]) -> Labels {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

impl Scale {
    /// Namespaces.
    pub const fn namespaces(self) -> usize {
        self.accounts.div_ceil(ACCOUNTS)
    }

    /// The world.
    pub fn world(self) -> World {
        let mut world = World::default();
        HERE.clone_into(&mut world.settings.node_name);
        self.objects().for_each(|object| world.apply(object));
        world
    }

    /// Its objects, in the order in which an API server would be asked for them.
    pub fn objects(self) -> impl Iterator<Item = Object> {
        let namespaces = (0..self.namespaces()).map(move |i| Object::Namespace(self.namespace(i)));
        let accounts = (0..self.accounts).map(|i| {
            Object::ServiceAccount(ServiceAccount {
                namespace: namespace(i / ACCOUNTS),
                name: format!("app-{}", i % ACCOUNTS),
                labels: labels([("tier", format!("tier-{}", i % 3))]),
            })
        });
        let nodes = (0..self.pods.div_ceil(PODS)).map(|i| Object::Node(node(i)));
        let pods = (0..self.pods).map(move |i| Object::Pod(self.pod(i)));
        let services = (0..self.services).flat_map(move |i| self.service(i));
        let policies = (0..self.policies).map(move |i| policy(self, i));
        namespaces.chain(accounts).chain(nodes).chain(pods).chain(services).chain(policies)
    }

    /// A namespace.
    pub fn namespace(self, i: usize) -> Namespace {
        Namespace {
            name: namespace(i),
            labels: labels([("team", format!("t{}", i % 20)), ("kubernetes.io/metadata.name", namespace(i))]),
        }
    }

    /// A pod. Neighbours have different accounts, and a hundred of each namespace's are apart by more than a node.
    pub fn pod(self, i: usize) -> Pod {
        let account = i % self.accounts;
        let app = format!("app-{}", account % ACCOUNTS);
        Pod {
            namespace: namespace(account / ACCOUNTS),
            name: format!("{app}-7d9c6b5f4-{i:06}"),
            uid: format!("5f0c2a3e-8d1b-4a6f-9c2d-{i:012}"),
            service_account: app.clone(),
            labels: labels([
                ("app", app.clone()),
                ("pod-template-hash", "7d9c6b5f4".to_owned()),
                ("version", format!("v{}", i / self.accounts % 2)),
            ]),
            node: format!("node-{}", i / PODS),
            running: true,
            addresses: vec![address(i)],
            sandbox_started: 1_700_000_000 + i64::try_from(i).unwrap_or_default(),
            named_ports: vec![("http".to_owned(), 6, 8080)],
            ..Pod::default()
        }
    }

    /// A service over ten pods of one account, and its slice.
    pub fn service(self, i: usize) -> [Object; 2] {
        let name = format!("web-{i}");
        let namespace = namespace(i % self.accounts / ACCOUNTS);
        let service = Service {
            namespace: namespace.clone(),
            name: name.clone(),
            cluster_addresses: vec![offset([10, 96, 0, 0], i)],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                protocol: 6,
                port: 80,
                node_port: None,
                target: TargetPort::Number(8080),
            }],
            ..Service::default()
        };
        [Object::Service(service), Object::EndpointSlice(self.slice(i, namespace, name))]
    }

    fn slice(self, i: usize, namespace: String, service: String) -> EndpointSlice {
        let members = (0..10).map(|k| (i % self.accounts + k * self.accounts) % self.pods);
        EndpointSlice {
            namespace,
            name: format!("{service}-abcde"),
            service,
            ports: vec![EndpointPort { name: "http".to_owned(), protocol: 6, port: 8080 }],
            addresses: members.map(address).collect(),
        }
    }
}

/// A node with its range of pods' addresses.
fn node(i: usize) -> Node {
    Node {
        name: format!("node-{i}"),
        labels: Labels::new(),
        addresses: vec![offset([172, 16, 0, 0], i)],
        tunnel_addresses: Vec::new(),
        pod_cidrs: Vec::new(),
    }
}

/// The address of a pod.
pub fn address(i: usize) -> IpAddr {
    offset([10, 128, 0, 0], i)
}

fn offset(base: [u8; 4], i: usize) -> IpAddr {
    let number = u32::from_be_bytes(base) + u32::try_from(i).unwrap_or_default();
    IpAddr::from(number.to_be_bytes())
}
