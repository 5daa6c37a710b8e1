//! Random worlds from a seed, in which rare fields and mistakes are frequent.

pub mod changes;
mod cluster;
mod identity;
pub mod manifests;
pub mod objects;
pub mod packets;
pub mod questions;
pub mod services;
pub mod shrink;

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portcullis::model::{Labels, Namespace, NetworkPolicy, Node, Object, Pod, ServiceAccount, World};

/// Addresses of these worlds that are no pod's: of this node, of another, of the pod ranges, of the outside.
pub const OTHERS: [&str; 11] = [
    "172.18.0.1",
    "172.18.0.2",
    "10.0.0.200",
    "10.0.1.7",
    "10.9.9.9",
    "192.0.2.1",
    "203.0.113.5",
    "0.0.0.0",
    "fd00::77",
    "2001:db8::1",
    "::",
];
const CIDRS: [&str; 14] = [
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.3/24",
    "10.0.1.0/24",
    "10.0.0.4/30",
    "10.0.0.5/32",
    "0.0.0.0/0",
    "::/0",
    "fd00::/64",
    "fd00::4/126",
    "192.0.2.0/24",
    "172.18.0.0/16",
    "10.0.0.0/33",
    "nonsense",
];

/// A small generator (splitmix64): the same seed gives the same world everywhere.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    /// Whether something of so many percent happens.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn maybe<T>(&mut self, percent: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.chance(percent).then(|| make(self))
    }

    fn list<T>(&mut self, up_to: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(up_to + 1)).map(|_| make(self)).collect()
    }

    fn labels(&mut self) -> Labels {
        let pairs = self.list(3, |rng| {
            (rng.pick(&["app", "tier", "zone"]).to_string(), rng.pick(&["a", "b", ""]).to_string())
        });
        pairs.into_iter().collect()
    }

    fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    fn selector(&mut self) -> LabelSelector {
        let match_labels = self.maybe(40, Self::labels);
        let match_expressions = self.maybe(40, |rng| {
            rng.list(2, |rng| {
                let operator = *rng.pick(&[
                    "In",
                    "In",
                    "NotIn",
                    "NotIn",
                    "Exists",
                    "DoesNotExist",
                    "DoesNotExist",
                    "Gt",
                ]);
                let wants_values = operator.ends_with("In");
                let values = rng.list(2, |rng| rng.pick(&["a", "b", ""]).to_string());
                let values = if rng.chance(95) && !wants_values { None } else { Some(values) };
                LabelSelectorRequirement {
                    key: rng.pick(&["app", "tier", "zone", "other"]).to_string(),
                    operator: operator.into(),
                    values,
                }
            })
        });
        LabelSelector { match_expressions, match_labels }
    }

    fn peer(&mut self) -> NetworkPolicyPeer {
        let mut peer = NetworkPolicyPeer::default();
        let block = self.chance(45);
        if block {
            let except = self.maybe(50, |rng| rng.list(2, |rng| rng.pick(&CIDRS[..13]).to_string()));
            peer.ip_block = Some(IPBlock { cidr: self.pick(&CIDRS).to_string(), except });
        }
        if !block || self.chance(5) {
            peer.namespace_selector = self.maybe(50, Self::selector);
            peer.pod_selector = self.maybe(60, Self::selector);
        }
        peer
    }

    fn port(&mut self) -> NetworkPolicyPort {
        let protocol =
            self.maybe(70, |rng| rng.pick(&["TCP", "TCP", "UDP", "SCTP", "tcp", "ICMP"]).to_string());
        let port = self.maybe(80, |rng| {
            if rng.chance(35) {
                IntOrString::String(rng.pick(&["http", "dns", "admin", "80", ""]).to_string())
            } else {
                IntOrString::Int(*rng.pick(&[1, 53, 80, 81, 443, 8080, 65535, 0, -1, 65536]))
            }
        });
        let end_port = self.maybe(30, |rng| *rng.pick(&[80, 81, 443, 9000, 65535, 1, 0, 70000]));
        NetworkPolicyPort { end_port, port, protocol }
    }

    fn policy(&mut self, name: String) -> NetworkPolicy {
        let ingress = self.maybe(70, |rng| {
            rng.list(3, |rng| NetworkPolicyIngressRule {
                from: rng.maybe(80, |rng| rng.list(3, Self::peer)),
                ports: rng.maybe(60, |rng| rng.list(3, Self::port)),
            })
        });
        let egress = self.maybe(70, |rng| {
            rng.list(3, |rng| NetworkPolicyEgressRule {
                to: rng.maybe(80, |rng| rng.list(3, Self::peer)),
                ports: rng.maybe(60, |rng| rng.list(3, Self::port)),
            })
        });
        let types: [&[&str]; 8] = [
            &["Ingress"],
            &["Egress"],
            &["Ingress", "Egress"],
            &["Egress", "Ingress"],
            &[],
            &["ingress"],
            &["Egress"],
            &["Egress", "Other"],
        ];
        let policy_types = self.maybe(50, |rng| rng.pick(&types).iter().map(ToString::to_string).collect());
        let pod_selector = self.maybe(60, Self::selector);
        let namespace = self.pick(&["x", "y", "z"]).to_string();
        NetworkPolicy {
            namespace,
            name,
            mode: None,
            spec: NetworkPolicySpec { egress, ingress, pod_selector, policy_types },
        }
    }

    /// With `NetworkPolicies` only, all enforced.
    pub fn world(&mut self) -> World {
        let mut world = World::default();
        world.settings.node_name = "here".into();
        world.settings.pod_cidrs = vec!["10.0.0.0/24".parse().unwrap()];
        for name in ["x", "y", "z"] {
            let labels = self.labels();
            world.apply(Object::Namespace(Namespace { name: name.into(), labels }));
            for account in ["default", "api", "web"] {
                let (namespace, name, labels) = (name.into(), account.into(), self.labels());
                world.apply(Object::ServiceAccount(ServiceAccount { namespace, name, labels }));
            }
        }
        for (i, name) in ["here", "there"].into_iter().enumerate() {
            let addresses = vec![IpAddr::from([172, 18, 0, u8::try_from(i).unwrap() + 1])];
            let pod_cidrs = vec!["fd00::/64".parse().unwrap()];
            let tunnel_addresses = Vec::new();
            world.apply(Object::Node(Node {
                name: name.into(),
                labels: Labels::new(),
                addresses,
                tunnel_addresses,
                pod_cidrs,
            }));
        }
        for i in 0..9u8 {
            let host_network = self.chance(10);
            let address = |host| IpAddr::from(if host { [172, 18, 0, 1] } else { [10, 0, 0, i + 1] });
            let mut addresses = vec![address(host_network)];
            if !host_network && self.chance(50) {
                addresses.push(format!("fd00::{}", i + 1).parse().unwrap());
            }
            let mut named_ports = self.list(3, |rng| {
                (
                    rng.pick(&["http", "dns", "admin"]).to_string(),
                    *rng.pick(&[6, 17, 132]),
                    *rng.pick(&[80, 81, 443, 53]),
                )
            });
            named_ports.dedup();
            let labels = self.labels();
            world.apply(Object::Pod(Pod {
                namespace: self.pick(&["x", "y", "z"]).to_string(),
                name: format!("p{i}"),
                uid: format!("uid{i}"),
                service_account: self.pick(&["default", "api", "web"]).to_string(),
                labels,
                node: if self.chance(80) { "here".into() } else { String::new() },
                host_network,
                finished: !host_network && self.chance(10),
                running: true,
                addresses,
                sandbox_started: i64::from(i),
                named_ports,
                judges: false,
                routes: false,
            }));
        }
        for i in 0..=self.below(4) {
            let policy = self.policy(format!("policy{i}"));
            world.apply(Object::NetworkPolicy(policy));
        }
        world
    }
}
