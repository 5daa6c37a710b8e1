//! `NetworkPolicy`, field by field.

use super::*;

/// `db` in `shop` with peers: `web` (app=web) and `job` (no label) in `shop`, `far` (app=web) in `ops`, nodes, world, and
/// an address of the pod range that nobody has.
fn shop() -> Cluster {
    Cluster::new([
        pod("shop", "db").ip("10.0.0.1").label("app", "db").port("sql", protocol::TCP, 5432),
        pod("shop", "web").ip("10.0.0.2").label("app", "web").port("http", protocol::TCP, 80),
        pod("shop", "job").ip("10.0.0.3").port("http", protocol::TCP, 8080).port("http", protocol::UDP, 8081),
        pod("ops", "far").ip("10.0.1.4").label("app", "web").on("there"),
        Pod { host_network: true, ..pod("shop", "hosted").ip("172.18.0.3").label("app", "web").on("there") },
    ])
    .here()
    .namespace("ops", &[("team", "ops")])
}

const WEB: &str = "10.0.0.2";
const JOB: &str = "10.0.0.3";
const FAR: &str = "10.0.1.4";
const HERE: &str = "172.18.0.2";
const THERE: &str = "172.18.0.3";
const NOBODY: &str = "10.0.0.99";
const WORLD: &str = "203.0.113.9";
const WORLD6: &str = "2001:db8::9";
const EVERYONE: [&str; 8] = [WEB, JOB, FAR, HERE, THERE, NOBODY, WORLD, WORLD6];

fn from(peer: &str) -> String {
    format!("{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{peer}]}}]}}")
}

#[test]
fn each_kind_of_peer_matches_those_it_names() {
    for (peer, wanted) in [
        ("{podSelector: {matchLabels: {app: web}}}", &[WEB][..]),
        ("{podSelector: {}}", &[WEB, JOB]),
        ("{namespaceSelector: {}}", &[WEB, JOB, FAR]),
        ("{namespaceSelector: {matchLabels: {team: ops}}}", &[FAR]),
        ("{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}", &[WEB, FAR]),
        ("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: db}}}", &[]),
        ("{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}", &[JOB]),
        ("{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}", &[JOB]),
        ("{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}", &[WEB]),
        ("{ipBlock: {cidr: 10.0.0.0/24}}", &[WEB, JOB, NOBODY]),
        ("{ipBlock: {cidr: 10.0.0.77/24, except: [10.0.0.2/31]}}", &[NOBODY]),
        ("{ipBlock: {cidr: 172.18.0.0/16}}", &[HERE, THERE]),
        ("{ipBlock: {cidr: 0.0.0.0/0}}", &[WEB, JOB, FAR, HERE, THERE, NOBODY, WORLD]),
        ("{ipBlock: {cidr: '::/0'}}", &[WORLD6]),
        ("{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}", &[HERE, THERE, WORLD]),
    ] {
        let compiled = shop().np("shop/p", &from(peer)).compile();
        assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/5432", &EVERYONE), wanted, "{peer}");
        assert_eq!(compiled.desired.problems, [], "{peer}");
        // The same peers the other way round.
        let spec = from(peer).replace("ingress", "policyTypes: [Egress], egress").replace("from", "to");
        let compiled = shop().np("shop/p", &spec).compile();
        assert_eq!(compiled.allowed_peers("db", Egress, "tcp/5432", &EVERYONE), wanted, "egress {peer}");
        assert_eq!(
            compiled.allowed_peers("db", Ingress, "tcp/5432", &EVERYONE),
            EVERYONE,
            "untouched: {peer}"
        );
    }
}

#[test]
fn what_cannot_be_understood_matches_nothing_and_is_reported() {
    for (peer, field) in [
        ("{}", "spec.ingress[0].from[0]"),
        ("{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}", "spec.ingress[0].from[0].ipBlock"),
        ("{ipBlock: {cidr: 0.0.0.0/0}, namespaceSelector: {}}", "spec.ingress[0].from[0].ipBlock"),
        ("{ipBlock: {cidr: ten}}", "spec.ingress[0].from[0].ipBlock.cidr"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", "spec.ingress[0].from[0].ipBlock.cidr"),
        ("{ipBlock: {cidr: 0.0.0.0/0, except: [x]}}", "spec.ingress[0].from[0].ipBlock.except[0]"),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/24, 11.0.0.0/8]}}",
            "spec.ingress[0].from[0].ipBlock.except[1]",
        ),
        ("{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/8']}}", "spec.ingress[0].from[0].ipBlock.except[0]"),
        (
            "{podSelector: {matchExpressions: [{key: app, operator: Is, values: [web]}]}}",
            "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator",
        ),
        (
            "{podSelector: {}, namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: []}]}}",
            "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0].values",
        ),
    ] {
        let compiled = shop().np("shop/p", &from(peer)).compile();
        assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/5432", &EVERYONE), [""; 0], "{peer}");
        assert_eq!(compiled.fields(), [field], "{peer}");
        assert_eq!(compiled.desired.problems[0].object, "NetworkPolicy shop/p");
        // A good peer beside it still matches.
        let beside = from(&format!("{peer}, {{podSelector: {{matchLabels: {{app: web}}}}}}"));
        let compiled = shop().np("shop/p", &beside).compile();
        assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/5432", &EVERYONE), [WEB], "{peer}");
    }
}

#[test]
fn an_absent_or_empty_list_of_peers_is_every_source() {
    for rules in ["[{}]", "[{from: []}]", "[{from: null, ports: []}]"] {
        let compiled = shop().np("shop/p", &format!("{{podSelector: {{}}, ingress: {rules}}}")).compile();
        assert_eq!(compiled.allowed_peers("db", Ingress, "icmp", &EVERYONE), EVERYONE, "{rules}");
        assert_eq!(compiled.decision("db", Ingress, WORLD, "icmp").2, "NetworkPolicy shop/p ingress[0]");
    }
}

#[test]
fn policy_types_say_which_directions_are_isolated() {
    for (spec, ingress, egress) in [
        ("{}", Deny, Allow),
        ("{ingress: []}", Deny, Allow),
        ("{egress: []}", Deny, Allow),
        ("{egress: [{ports: [{port: 1}]}]}", Deny, Deny),
        ("{policyTypes: []}", Deny, Allow),
        ("{policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]}", Deny, Allow),
        ("{policyTypes: [Egress]}", Allow, Deny),
        ("{policyTypes: [Egress], ingress: [{ports: [{port: 1}]}]}", Allow, Deny),
        ("{policyTypes: [Ingress, Egress]}", Deny, Deny),
        // A type that is not understood isolates, and the rules of its direction do not count.
        ("{policyTypes: [egress], ingress: [{}], egress: [{}]}", Deny, Deny),
        ("{policyTypes: [Egress, Both], egress: [{}]}", Deny, Allow),
    ] {
        let compiled = shop().np("shop/p", spec).compile();
        let got = [Ingress, Egress].map(|direction| compiled.verdict("db", direction, WEB, "tcp/80"));
        assert_eq!(got, [ingress, egress], "{spec}");
    }
}

#[test]
fn a_subject_that_is_not_understood_isolates_the_namespace_and_allows_nothing() {
    let spec = "{podSelector: {matchExpressions: [{key: app, operator: Is}]}, ingress: [{}]}";
    let compiled = shop().np("shop/p", spec).compile();
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/80", &EVERYONE), [""; 0]);
    assert_eq!(compiled.allowed_peers("job", Ingress, "tcp/80", &EVERYONE), [""; 0]);
    assert_eq!(compiled.fields(), ["spec.podSelector.matchExpressions[0].operator"]);
}

const PORTS: [&str; 14] = [
    "tcp/1",
    "tcp/79",
    "tcp/80",
    "tcp/81",
    "tcp/8080",
    "tcp/5432",
    "tcp/65535",
    "udp/80",
    "udp/81",
    "udp/8081",
    "sctp/80",
    "icmp",
    "tcp/0",
    "udp/0",
];

#[test]
fn ports_in_all_their_forms() {
    for (port, wanted) in [
        ("{port: 80}", &["tcp/80"][..]),
        ("{port: 80, protocol: UDP}", &["udp/80"]),
        ("{port: 80, protocol: SCTP}", &["sctp/80"]),
        ("{protocol: UDP}", &["udp/80", "udp/81", "udp/8081", "udp/0"]),
        ("{}", &["tcp/1", "tcp/79", "tcp/80", "tcp/81", "tcp/8080", "tcp/5432", "tcp/65535", "tcp/0"]),
        ("{port: 80, endPort: 8080}", &["tcp/80", "tcp/81", "tcp/8080", "tcp/5432"]),
        ("{port: 80, endPort: 80}", &["tcp/80"]),
        ("{port: 79, endPort: 81, protocol: UDP}", &["udp/80", "udp/81"]),
        (
            "{port: 1, endPort: 65535}",
            &["tcp/1", "tcp/79", "tcp/80", "tcp/81", "tcp/8080", "tcp/5432", "tcp/65535"],
        ),
        ("{port: 80}, {port: 81}, {port: 79, endPort: 80}", &["tcp/79", "tcp/80", "tcp/81"]),
        ("{port: sql}", &["tcp/5432"]),
        ("{port: sql, protocol: UDP}", &[]),
        ("{port: http}", &[]),
    ] {
        let compiled = shop().np("shop/p", &format!("{{ingress: [{{ports: [{port}]}}]}}")).compile();
        assert_eq!(compiled.allowed("db", Ingress, WEB, &PORTS), wanted, "{port}");
        assert_eq!(compiled.desired.problems, [], "{port}");
    }
}

#[test]
fn ports_that_make_no_sense_match_nothing() {
    for (port, field) in [
        ("{port: 81, endPort: 80}", "endPort"),
        ("{endPort: 80}", "endPort"),
        ("{port: sql, endPort: 6000}", "endPort"),
        ("{port: 80, endPort: 65536}", "endPort"),
        ("{port: 0}", "port"),
        ("{port: -80}", "port"),
        ("{port: 65536}", "port"),
        ("{port: '80'}", "port"),
        ("{port: 80, protocol: tcp}", "protocol"),
        ("{protocol: ICMP}", "protocol"),
        ("{protocol: ''}", "protocol"),
    ] {
        let compiled = shop().np("shop/p", &format!("{{ingress: [{{ports: [{port}]}}]}}")).compile();
        assert_eq!(compiled.allowed("db", Ingress, WEB, &PORTS), [""; 0], "{port}");
        assert_eq!(compiled.fields(), [format!("spec.ingress[0].ports[0].{field}")], "{port}");
    }
}

#[test]
fn a_named_port_is_that_of_the_destination() {
    let egress = "{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}";
    let compiled = shop().np("shop/p", egress).compile();
    assert_eq!(compiled.allowed("db", Egress, WEB, &PORTS), ["tcp/80"]);
    assert_eq!(
        compiled.allowed("db", Egress, JOB, &PORTS),
        ["tcp/8080"],
        "its UDP port of that name is another"
    );
    for peer in [FAR, HERE, WORLD, NOBODY] {
        assert_eq!(compiled.allowed("db", Egress, peer, &PORTS), [""; 0], "{peer}");
    }
    // Ingress: the ports of the pods that the policy selects, each its own.
    let compiled =
        shop().np("shop/p", "{ingress: [{ports: [{port: http}, {port: http, protocol: UDP}]}]}").compile();
    assert_eq!(compiled.allowed("web", Ingress, JOB, &PORTS), ["tcp/80"]);
    assert_eq!(compiled.allowed("job", Ingress, WEB, &PORTS), ["tcp/8080", "udp/8081"]);
    assert_eq!(compiled.allowed("db", Ingress, WEB, &PORTS), [""; 0]);
}

#[test]
fn policies_add_up_and_the_first_rule_is_named() {
    let compiled = shop()
        .np("shop/a", "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 80}]}]}")
        .np("shop/b", "{ingress: [{ports: [{port: 443}]}, {ports: [{port: 80}, {port: 81}]}]}")
        .np("ops/c", "{}")
        .compile();
    let policy = |rule| (Allow, Reason::Policy, rule);
    assert_eq!(compiled.decision("db", Ingress, WEB, "tcp/80"), policy("NetworkPolicy shop/a ingress[0]"));
    assert_eq!(compiled.decision("db", Ingress, WEB, "tcp/81"), policy("NetworkPolicy shop/b ingress[1]"));
    assert_eq!(compiled.decision("web", Ingress, JOB, "tcp/80"), policy("NetworkPolicy shop/b ingress[1]"));
    let isolated = (Deny, Reason::Policy, "NetworkPolicy shop/a ingress (isolation)");
    assert_eq!(compiled.decision("db", Ingress, WEB, "tcp/82"), isolated);
    assert_eq!(compiled.decision("db", Egress, WEB, "tcp/82"), (Allow, Reason::Default, ""));
}

#[test]
fn network_policies_can_be_left_to_others() {
    let mut cluster = shop().np("shop/p", "{}");
    cluster.0.settings.network_policies = false;
    assert_eq!(cluster.compile().decision("db", Ingress, WEB, "tcp/80"), (Allow, Reason::Default, ""));
}
