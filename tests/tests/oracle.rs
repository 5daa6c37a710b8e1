//! The compiler against truth that nobody here wrote (tables by an independent evaluator), and against a plain reference
//! evaluator on the same clusters and on random ones in which rare fields are frequent. Every verdict is read from the
//! lowered maps by the procedure that runs in the kernel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis::api::Entity;
use portcullis::identity::Numbers;
use portcullis::model::{Labels, Namespace, NetworkPolicy, Object, Pod, ServiceAccount, World};
use portcullis::policy::{Desired, HostMaps, compile};
use portcullis_common::policy::PortKey;
use portcullis_common::{Direction, Verdict};
use portcullis_tests::random::services::PORT;
use portcullis_tests::random::{OTHERS, Rng};
use portcullis_tests::reference::{self, End, Owner, Question, services};
use serde::Deserialize;

const TRUTH: &str = include_str!("../data/networkpolicy-truth.json");
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the file")]
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

    fn verdict(&self, subject: &Pod, direction: Direction, peer: IpAddr, protocol: u8, port: u16) -> Verdict {
        let subject = self.desired.pods[&subject.uid].subject;
        self.maps.decide(subject, direction, peer, PortKey::new(protocol, port)).verdict
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
                    let ask = |direction, subject: &Pod, peer: &Pod| {
                        let address = peer.addresses[0];
                        let peer = End { address, owner: Owner::Pod(peer) };
                        let question = Question { world: &world, direction, subject, peer, protocol, port };
                        let compiled = compiled.verdict(subject, direction, address, protocol, port);
                        assert_ne!(compiled, Verdict::Audit);
                        (compiled == Verdict::Allow, reference::allowed(&question))
                    };
                    let (ingress, plain_ingress) = ask(Direction::Ingress, to, from);
                    let (egress, plain_egress) = ask(Direction::Egress, from, to);
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
                    assert_eq!([plain_ingress, plain_egress], wanted[..2], "reference, {place}");
                    cells += 3;
                }
            }
        }
    }
    println!("{cells} cells of {} steps compared", steps.len());
    assert_eq!(cells, 200_052, "all of them");
}

/// Whose an address of a random world is; the addresses of finished pods are nobody's.
fn owner(world: &World, address: IpAddr) -> Owner<'_> {
    let owns = |pod: &&Pod| !pod.host_network && !pod.finished && pod.addresses.contains(&address);
    match address {
        _ if world.pods.values().any(|pod| owns(&pod)) => Owner::Pod(world.pods.values().find(owns).unwrap()),
        IpAddr::V4(a) if a.octets() == [172, 18, 0, 1] => Owner::Entity(Entity::Host),
        IpAddr::V4(a) if a.octets() == [172, 18, 0, 2] => Owner::Entity(Entity::Node),
        IpAddr::V4(a) if a.octets()[..3] == [10, 0, 0] => Owner::Entity(Entity::Unmanaged),
        IpAddr::V6(a) if a.segments()[..4] == [0xfd00, 0, 0, 0] => Owner::Entity(Entity::Unmanaged),
        _ => Owner::Entity(Entity::World),
    }
}

/// Compares every question that can be asked of a world, and counts the answers by verdict.
fn compare(
    seed: u64,
    world: &World,
    wanted: impl Fn(&Question<'_>) -> Verdict,
    counts: &mut [u64; 3],
) -> usize {
    let compiled = Compiled::new(world);
    let pods = || world.pods.values().filter(|pod| !pod.host_network);
    let others = OTHERS.iter().map(|text| text.parse().unwrap());
    let addresses: Vec<IpAddr> = others.chain(pods().flat_map(|pod| pod.addresses.clone())).collect();
    let ports = [0, 53, 79, 80, 81, 443];
    let ports = [6, 17, 132].into_iter().flat_map(|protocol| ports.map(|port| (protocol, port)));
    let ports: Vec<(u8, u16)> = ports.chain([(1, 0)]).collect();
    for subject in pods().filter(|pod| !pod.finished) {
        for &address in &addresses {
            let peer = End { address, owner: owner(world, address) };
            for &(protocol, port) in &ports {
                for &direction in Direction::ALL {
                    let question = Question { world, direction, subject, peer, protocol, port };
                    let wanted = wanted(&question);
                    let got = compiled.verdict(subject, direction, address, protocol, port);
                    assert_eq!(
                        got, wanted,
                        "seed {seed}: {direction} of {}/{} with {peer:?}, protocol {protocol} port {port}\n{world:#?}",
                        subject.namespace, subject.name
                    );
                    counts[wanted as usize] += 1;
                }
            }
        }
    }
    compiled.desired.problems.len()
}

fn check_counts(what: &str, counts: [u64; 3], seen: &[Verdict], problems: usize) {
    let all: u64 = counts.iter().sum();
    println!(
        "{all} cells of {what} compared: {counts:?} allowed, denied, audited; {problems} problems reported"
    );
    for &verdict in seen {
        assert!(counts[verdict as usize] > all / 50, "{verdict} is too rare to say anything: {counts:?}");
    }
    assert!(problems > 100, "what cannot be understood is frequent in these worlds");
}

#[test]
fn random_network_policies_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut problems) = ([0; 3], 0);
    for seed in 0..250 {
        let world = Rng(seed).world();
        let wanted = |question: &Question<'_>| {
            if reference::allowed(question) { Verdict::Allow } else { Verdict::Deny }
        };
        problems += compare(seed, &world, wanted, &mut counts);
    }
    check_counts("random network policies", counts, &[Verdict::Allow, Verdict::Deny], problems);
}

#[test]
fn random_identity_policies_and_modes_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut problems) = ([0; 3], 0);
    for seed in 0..250 {
        let world = Rng(seed).world_with_identities();
        problems += compare(seed, &world, reference::identity::verdict, &mut counts);
    }
    check_counts("random identity policies", counts, Verdict::ALL, problems);
}

#[test]
fn random_services_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut compiled_sets) = ([0; 3], 0);
    for seed in 0..250 {
        let mut world = Rng(seed).world_with_identities();
        Rng(seed).add_services(&mut world);
        let compiled = Compiled::new(&world);
        compiled_sets += compiled.desired.sets.len();
        for subject in world.pods.values().filter(|pod| compiled.desired.pods.contains_key(&pod.uid)) {
            let number = compiled.desired.pods[&subject.uid].subject;
            for service in world.services.values() {
                let port = &service.ports[0];
                let cluster = service.cluster_addresses.iter().map(|address| (*address, PORT, true));
                let external = service.external_addresses.iter().map(|address| (*address, PORT, false));
                let node: Option<IpAddr> = "172.18.0.1".parse().ok();
                let nodes = node.zip(port.node_port).map(|(address, port)| (address, port, false));
                for (address, number_of_port, keeps_source) in cluster.chain(external).chain(nodes) {
                    let asked = (service, port);
                    let of = |address| owner(&world, address);
                    let wanted =
                        services::verdict(&world, subject, asked, address.is_ipv4(), keeps_source, of);
                    let question = (port.protocol, number_of_port);
                    let (got, _) = compiled.maps.decide_egress(number, address, question);
                    assert_eq!(
                        got.verdict, wanted,
                        "seed {seed}: {}/{} to {address}\n{world:#?}",
                        subject.namespace, subject.name
                    );
                    counts[wanted as usize] += 1;
                }
            }
        }
    }
    println!("{counts:?} flows to services allowed, denied, audited; {compiled_sets} compiled sets");
    assert!(counts.iter().all(|count| *count > 500) && compiled_sets > 50, "{counts:?} {compiled_sets}");
}

#[test]
fn the_same_world_compiles_to_the_same_maps_and_numbers_survive_a_restart() {
    for seed in 0..50 {
        let mut world = Rng(seed).world_with_identities();
        Rng(seed).add_services(&mut world);
        let mut numbers = Numbers::default();
        let first = compile(&world, &mut numbers);
        assert_eq!(first, compile(&world, &mut numbers));
        assert_eq!(numbers.unused().count(), 0);
        let mut after = Numbers::default();
        after.load(numbers.entries());
        assert_eq!(first, compile(&world, &mut after));
        // From other numbers the result is the same but for the numbers.
        compile(&Rng(seed + 1000).world_with_identities(), &mut after);
        let again = compile(&world, &mut after);
        assert_eq!(first, again, "what was not freed keeps its number");
    }
}
