//! What splits classes and what does not, and that wildcards and exact rows agree with the policies for every class.

use std::collections::BTreeSet;

use portcullis_common::Kind;
use portcullis_common::identity::PEER_UNKNOWN;
use portcullis_common::policy::{evaluate, wildcard_of};

use super::*;

/// Pods of one account with a unique label each, and `tier` on the first two.
fn replicas() -> Cluster {
    let pods = (1..=6).map(|i| {
        let pod = pod("shop", &format!("p{i}"))
            .sa("api")
            .ip(&format!("10.0.0.{i}"))
            .label("unique", &i.to_string());
        let pod = pod.port("http", protocol::TCP, if i % 2 == 0 { 80 } else { 8080 });
        if i <= 2 { pod.label("tier", "front") } else { pod }
    });
    Cluster::new(pods)
}

fn peers(compiled: &Compiled) -> Vec<u32> {
    (1..=6).map(|i| compiled.peer(&format!("10.0.0.{i}"))).collect()
}

fn distinct<T: Ord>(items: impl IntoIterator<Item = T>) -> usize {
    items.into_iter().collect::<BTreeSet<T>>().len()
}

#[test]
fn unique_labels_and_unused_ports_make_no_class() {
    let compiled =
        replicas().np("shop/p", "{podSelector: {matchLabels: {tier: none}}, ingress: [{}]}").compile();
    assert_eq!(distinct(peers(&compiled)), 1);
    assert_eq!(distinct(compiled.desired.pods.values().map(|pod| pod.subject)), 1);
    assert_eq!(compiled.desired.subjects.len(), 1);
}

#[test]
fn classes_are_split_by_what_policies_distinguish() {
    let front = "{podSelector: {matchLabels: {tier: front}}, ingress: [{from: [{podSelector: {matchLabels: {tier: front}}}]}]}";
    let compiled = replicas().np("shop/p", front).compile();
    let numbers = peers(&compiled);
    assert_eq!(distinct(numbers.iter().copied()), 2);
    assert_eq!((numbers[0], numbers[2]), (numbers[1], numbers[5]));
    assert_eq!(distinct(compiled.desired.pods.values().map(|pod| pod.subject)), 2);
    // The same selector, written differently in another policy, splits no further.
    let again =
        "{egress: [{to: [{podSelector: {matchExpressions: [{key: tier, operator: In, values: [front]}]}}]}]}";
    let compiled = replicas().np("shop/p", front).np("shop/q", again).compile();
    assert_eq!(distinct(peers(&compiled)), 2);
}

#[test]
fn named_ports_split_peers_for_egress_rules_and_subjects_for_ingress_rules() {
    let egress = "{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}";
    let compiled = replicas().np("shop/p", egress).compile();
    assert_eq!(distinct(peers(&compiled)), 2);
    assert_eq!(distinct(compiled.desired.pods.values().map(|pod| pod.subject)), 1);
    let compiled = replicas().np("shop/p", "{ingress: [{ports: [{port: http}]}]}").compile();
    assert_eq!(distinct(peers(&compiled)), 1);
    assert_eq!(distinct(compiled.desired.pods.values().map(|pod| pod.subject)), 2);
    // Off is not in force.
    let compiled = replicas().np_mode("shop/p", Some("off"), egress).compile();
    assert_eq!(distinct(peers(&compiled)), 1);
}

#[test]
fn addresses_of_a_pod_fall_into_the_blocks_of_each() {
    let dual = || {
        Cluster::new([
            pod("shop", "a").ip("10.0.0.1").ip("fd00::1"),
            pod("shop", "b").ip("10.0.0.2").ip("fd00::2"),
            pod("shop", "c").ip("10.0.0.3").ip("fd00::3"),
        ])
    };
    let compiled = dual().compile();
    assert_eq!(compiled.peer("10.0.0.2"), compiled.peer("fd00::2"), "no block tells them apart");
    let compiled = dual().np("shop/p", "{ingress: [{from: [{ipBlock: {cidr: 'fd00::2/128'}}]}]}").compile();
    assert_ne!(compiled.peer("10.0.0.2"), compiled.peer("fd00::2"));
    assert_eq!(compiled.peer("10.0.0.2"), compiled.peer("fd00::3"));
    assert_eq!(
        compiled.allowed_peers("a", Ingress, "tcp/1", &["10.0.0.2", "fd00::2", "fd00::3"]),
        ["fd00::2"]
    );
    assert_eq!(
        compiled.maps.identity(ip("fd00::2")).principal,
        compiled.maps.identity(ip("10.0.0.2")).principal
    );
}

#[test]
fn exact_rows_only_where_the_function_differs() {
    let count = |spec: &str| {
        let compiled = replicas().np("shop/p", spec).compile();
        let rows = &compiled.desired.subjects[&compiled.desired.pods["p3"].subject];
        let exact =
            |(direction, peer): &&(Direction, u32)| *direction == Ingress && *peer < wildcard_of(Kind::Pod);
        (rows.keys().filter(exact).count(), rows.len())
    };
    assert_eq!(count("{}"), (0, 12));
    assert_eq!(count("{ingress: [{}]}"), (0, 12));
    assert_eq!(count("{ingress: [{from: [{namespaceSelector: {}}]}]}"), (0, 12), "every pod is a kind");
    assert_eq!(count("{ingress: [{from: [{podSelector: {matchLabels: {tier: front}}}]}]}"), (1, 13));
    assert_eq!(count("{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"), (1, 13), "the outside by IPv6");
    assert_eq!(
        count("{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]}"),
        (0, 12)
    );
    assert_eq!(count("{ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}"), (1, 13));
}

#[test]
fn masqueraded_outside_traffic_matches_only_blocks_that_contain_everything() {
    for (blocks, wanted) in [
        ("{ipBlock: {cidr: 0.0.0.0/0}}", Allow),
        ("{ipBlock: {cidr: '::/0'}}", Allow),
        ("{ipBlock: {cidr: 0.0.0.0/1}}, {ipBlock: {cidr: 128.0.0.0/1}}", Deny),
        ("{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}", Deny),
        ("{namespaceSelector: {}}", Deny),
    ] {
        let compiled = replicas().np("shop/p", &format!("{{ingress: [{{from: [{blocks}]}}]}}")).compile();
        let subject = compiled.desired.pods["p1"].subject;
        let got = evaluate(&compiled.maps, subject, Ingress, PEER_UNKNOWN, Kind::World as u8, key("tcp/1"));
        assert_eq!(got.verdict, wanted, "{blocks}");
        assert!(compiled.desired.names.peers.contains_key(&PEER_UNKNOWN));
    }
}

#[test]
fn functions_are_shared() {
    let compiled = replicas()
        .np("shop/p", "{podSelector: {matchLabels: {tier: front}}, ingress: [{ports: [{port: 80}]}]}")
        .np("shop/q", "{policyTypes: [Egress]}")
        .compile();
    let functions = || compiled.desired.subjects.values().flat_map(|rows| rows.values());
    let by_content = distinct(functions().map(|function| (**function).clone()));
    let by_address = distinct(functions().map(std::sync::Arc::as_ptr));
    assert_eq!((by_address, by_content), (3, 3));
}

#[test]
fn numbers_of_what_is_gone_are_unused() {
    let mut numbers = Numbers::default();
    let with = replicas().np("shop/p", "{podSelector: {matchLabels: {tier: front}}, ingress: [{}]}");
    compile(&with.0, &mut numbers);
    let before = numbers.entries().count();
    let desired = compile(&replicas().0, &mut numbers);
    // The subject class and the rule; the isolation is a rule too.
    assert_eq!(numbers.unused().count(), 3, "{:?}", numbers.unused().collect::<Vec<_>>());
    assert_eq!(numbers.entries().count(), before, "nothing is freed by itself");
    assert_eq!(desired.names.rules.len(), 0);
}
