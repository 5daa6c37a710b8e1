//! The compiler against truth that nobody here wrote (tables by an independent evaluator), and against a plain reference
//! evaluator on the same clusters and on random ones in which rare fields are frequent. Every verdict is read from the
//! lowered maps by the procedure that runs in the kernel.

mod reference;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portcullis::identity::Numbers;
use portcullis::model::{Labels, Namespace, NetworkPolicy, Node, Object, Pod, ServiceAccount, World};
use portcullis::policy::{Desired, HostMaps, compile};
use portcullis_common::policy::PortKey;
use portcullis_common::{Direction, Verdict};
use reference::End;
use serde::Deserialize;

const TRUTH: &str = include_str!("data/networkpolicy-truth.json");
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

#[derive(Deserialize)]
struct Step {
    case: u32,
    step: u32,
    description: String,
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<StepPod>,
    policies: Vec<k8s_openapi::api::networking::v1::NetworkPolicy>,
    ingress: Table,
    egress: Table,
    combined: Table,
}

type Table = BTreeMap<String, Vec<String>>;

#[derive(Deserialize)]
struct StepPod {
    namespace: String,
    name: String,
    labels: Labels,
    ip: IpAddr,
}

impl Step {
    fn world(&self) -> World {
        let mut world = World::default();
        for (name, labels) in &self.namespaces {
            add_namespace(&mut world, name, labels.clone());
        }
        for pod in &self.pods {
            let ports = [80, 81].into_iter().flat_map(|port| {
                PROTOCOLS
                    .map(|(name, protocol)| (format!("serve-{port}-{}", name.to_lowercase()), protocol, port))
            });
            world.apply(Object::Pod(Pod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: format!("{}/{}", pod.namespace, pod.name),
                service_account: "default".into(),
                labels: pod.labels.clone(),
                addresses: vec![pod.ip],
                named_ports: ports.collect(),
                ..Pod::default()
            }));
        }
        for policy in &self.policies {
            world.apply(Object::NetworkPolicy(NetworkPolicy {
                namespace: policy.metadata.namespace.clone().unwrap(),
                name: policy.metadata.name.clone().unwrap(),
                mode: None,
                spec: policy.spec.clone().unwrap(),
            }));
        }
        world
    }
}

fn add_namespace(world: &mut World, name: &str, labels: Labels) {
    world.apply(Object::Namespace(Namespace { name: name.into(), labels }));
    world.apply(Object::ServiceAccount(ServiceAccount {
        namespace: name.into(),
        name: "default".into(),
        labels: Labels::new(),
    }));
}

/// A compiled world, asked by pod.
struct Compiled {
    desired: Desired,
    maps: HostMaps,
}

impl Compiled {
    fn new(world: &World) -> Self {
        let desired = compile(world, &mut Numbers::default());
        Self { maps: HostMaps::new(&desired), desired }
    }

    fn allows(&self, subject: &Pod, direction: Direction, peer: IpAddr, protocol: u8, port: u16) -> bool {
        let subject = self.desired.pods[&subject.uid].subject;
        match self.maps.decide(subject, direction, peer, PortKey::new(protocol, port)).verdict {
            Verdict::Allow => true,
            Verdict::Deny => false,
            Verdict::Audit => panic!("nothing is audited here"),
        }
    }
}

#[test]
fn every_cell_of_the_truth_tables_holds() {
    let steps: Vec<Step> = serde_json::from_str(TRUTH).unwrap();
    assert_eq!(steps.len(), 155, "all of them are there");
    let mut cells = 0;
    for step in &steps {
        let world = step.world();
        let compiled = Compiled::new(&world);
        let pods: Vec<&Pod> =
            step.pods.iter().map(|pod| &world.pods[&format!("{}/{}", pod.namespace, pod.name)]).collect();
        assert_eq!(compiled.desired.problems, [], "case {} step {}", step.case, step.step);
        assert!(step.ingress.keys().eq(step.egress.keys()) && step.ingress.keys().eq(step.combined.keys()));
        for key in step.ingress.keys() {
            let (name, port) = key.split_once('/').unwrap();
            let protocol = PROTOCOLS.iter().find(|(n, _)| *n == name).unwrap().1;
            let port: u16 = port.parse().unwrap();
            for (i, from) in pods.iter().enumerate() {
                for (j, to) in pods.iter().enumerate().filter(|(j, _)| *j != i) {
                    let truth = |table: &Table| match table[key][i].as_bytes()[j] {
                        b'.' => true,
                        b'X' => false,
                        other => panic!("unknown cell {other}"),
                    };
                    let (source, destination) = (from.addresses[0], to.addresses[0]);
                    let ingress = compiled.allows(to, Direction::Ingress, source, protocol, port);
                    let egress = compiled.allows(from, Direction::Egress, destination, protocol, port);
                    let source = End { pod: Some(from), address: source };
                    let destination = End { pod: Some(to), address: destination };
                    let plain = [
                        reference::ingress_allowed(&world, to, source, protocol, port),
                        reference::egress_allowed(&world, from, destination, protocol, port),
                    ];
                    let wanted = [truth(&step.ingress), truth(&step.egress), truth(&step.combined)];
                    let place = format!(
                        "case {} step {} ({}): {}/{} -> {}/{} {key}",
                        step.case,
                        step.step,
                        step.description,
                        from.namespace,
                        from.name,
                        to.namespace,
                        to.name
                    );
                    assert_eq!([ingress, egress, ingress && egress], wanted, "compiled, {place}");
                    assert_eq!(plain, wanted[..2], "reference, {place}");
                    cells += 3;
                }
            }
        }
    }
    println!("{cells} cells of {} steps compared", steps.len());
    assert_eq!(cells, 200_052, "all of them");
}

/// A small generator (splitmix64): the same seed gives the same world everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
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
        let port = self.maybe(80, |rng| match rng.chance(35) {
            true => IntOrString::String(rng.pick(&["http", "dns", "admin", "80", ""]).to_string()),
            false => IntOrString::Int(*rng.pick(&[1, 53, 80, 81, 443, 8080, 65535, 0, -1, 65536])),
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

    fn world(&mut self) -> World {
        let mut world = World::default();
        world.settings.node_name = "here".into();
        world.settings.pod_cidrs = vec!["10.0.0.0/24".parse().unwrap()];
        for name in ["x", "y", "z"] {
            let labels = self.labels();
            add_namespace(&mut world, name, labels);
        }
        for (i, name) in ["here", "there"].into_iter().enumerate() {
            let addresses = vec![IpAddr::from([172, 18, 0, u8::try_from(i).unwrap() + 1])];
            let pod_cidrs = vec!["fd00::/64".parse().unwrap()];
            world.apply(Object::Node(Node {
                name: name.into(),
                labels: Labels::new(),
                addresses,
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
                service_account: "default".into(),
                labels,
                node: if self.chance(80) { "here".into() } else { String::new() },
                host_network,
                finished: !host_network && self.chance(10),
                addresses,
                sandbox_started: i64::from(i),
                named_ports,
            }));
        }
        for i in 0..=self.below(4) {
            let policy = self.policy(format!("policy{i}"));
            world.apply(Object::NetworkPolicy(policy));
        }
        world
    }
}

#[test]
fn random_worlds_are_judged_as_the_reference_judges_them() {
    const WORLDS: u64 = 300;
    let others: Vec<IpAddr> = [
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
    ]
    .map(|text| text.parse().unwrap())
    .into();
    let (mut cells, mut denied, mut reported) = (0u64, 0u64, 0usize);
    for seed in 0..WORLDS {
        let world = Rng(seed).world();
        let compiled = Compiled::new(&world);
        reported += compiled.desired.problems.len();
        let has_address = |pod: &&Pod| !pod.host_network && !pod.finished;
        let pods: Vec<&Pod> = world.pods.values().filter(has_address).collect();
        let mut ends: Vec<End<'_>> = others.iter().map(|&address| End { pod: None, address }).collect();
        for pod in world.pods.values().filter(|pod| !pod.host_network) {
            // The address of a finished pod is nobody's.
            let pod_or_none = (!pod.finished).then_some(pod);
            ends.extend(pod.addresses.iter().map(|&address| End { pod: pod_or_none, address }));
        }
        for subject in pods {
            for &peer in &ends {
                for protocol in [6, 17, 132, 1] {
                    for port in [0, 53, 79, 80, 81, 443, 65535] {
                        let questions = [
                            (
                                Direction::Ingress,
                                reference::ingress_allowed(&world, subject, peer, protocol, port),
                            ),
                            (
                                Direction::Egress,
                                reference::egress_allowed(&world, subject, peer, protocol, port),
                            ),
                        ];
                        for (direction, wanted) in questions {
                            let got = compiled.allows(subject, direction, peer.address, protocol, port);
                            assert_eq!(
                                got, wanted,
                                "seed {seed}: {direction} of {}/{} with {peer:?}, protocol {protocol} port {port}\n{:#?}",
                                subject.namespace, subject.name, world.network_policies
                            );
                            cells += 1;
                            denied += u64::from(!wanted);
                        }
                        if protocol == 1 {
                            break; // no ports
                        }
                    }
                }
            }
        }
    }
    println!(
        "{cells} cells of {WORLDS} random worlds compared, {denied} denied, {reported} problems reported"
    );
    assert!(
        denied > cells / 10 && denied < cells * 9 / 10,
        "{denied} of {cells} denied: the worlds say nothing"
    );
    assert!(reported > 100, "what cannot be understood is frequent in these worlds");
}

#[test]
fn the_same_world_compiles_to_the_same_maps_and_numbers_survive_a_restart() {
    for seed in 0..50 {
        let world = Rng(seed).world();
        let mut numbers = Numbers::default();
        let first = compile(&world, &mut numbers);
        assert_eq!(first, compile(&world, &mut numbers));
        assert_eq!(numbers.unused().count(), 0);
        let mut after = Numbers::default();
        after.load(numbers.entries());
        assert_eq!(first, compile(&world, &mut after));
        // From other numbers the result is the same but for the numbers.
        compile(&Rng(seed + 1000).world(), &mut after);
        let again = compile(&world, &mut after);
        assert_eq!(first, again, "what was not freed keeps its number");
    }
}
