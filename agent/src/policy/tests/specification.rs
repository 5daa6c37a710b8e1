//! Sentences of the NetworkPolicy API reference that no other test holds. `agent/tests/specification.rs` has all of them,
//! and which test holds which.

use super::*;

/// `db`, `web` and `job` in `shop` and `far` in `ops`.
fn shop() -> Cluster {
    Cluster::new([
        pod("shop", "db").ip("10.0.0.1").ip("fd00::1").label("app", "db"),
        pod("shop", "web").ip("10.0.0.2").ip("fd00::2").label("app", "web"),
        pod("shop", "job").ip("10.0.0.3").ip("fd00::3"),
        pod("ops", "far").ip("10.0.1.4").ip("fd00:0:0:1::4").label("app", "web"),
    ])
}

const WEB: &str = "10.0.0.2";
const JOB: &str = "10.0.0.3";
const FAR: &str = "10.0.1.4";
const PODS: [&str; 3] = [WEB, JOB, FAR];

/// The peers that `db` may talk to in a direction, by a rule of its own.
fn peers_of_rule(direction: Direction, rule: &str, port: &str) -> Vec<&'static str> {
    let spec = match direction {
        Ingress => format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{}]}}",
            rule.replace("SIDE", "from")
        ),
        Egress => format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Egress], egress: [{}]}}",
            rule.replace("SIDE", "to")
        ),
    };
    let compiled = shop().np("shop/p", &spec).compile();
    assert_eq!(compiled.desired.problems, [], "{spec}");
    compiled.allowed_peers("db", direction, port, &PODS)
}

#[test]
fn a_rule_allows_what_matches_both_a_peer_and_a_port_of_it() {
    let rule = "{SIDE: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}";
    for direction in [Ingress, Egress] {
        assert_eq!(peers_of_rule(direction, rule, "tcp/80"), [WEB]);
        assert_eq!(peers_of_rule(direction, rule, "tcp/81"), [""; 0]);
        assert_eq!(peers_of_rule(direction, rule, "udp/80"), [""; 0]);
    }
}

#[test]
fn the_peers_of_a_rule_are_alternatives_and_so_are_its_ports() {
    let rule = "{SIDE: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.0.1.0/24}}], \
                ports: [{port: 80}, {port: 53, protocol: UDP}]}";
    for direction in [Ingress, Egress] {
        for port in ["tcp/80", "udp/53"] {
            assert_eq!(peers_of_rule(direction, rule, port), [WEB, FAR], "{direction} {port}");
        }
        assert_eq!(peers_of_rule(direction, rule, "tcp/53"), [""; 0]);
    }
}

#[test]
fn an_absent_or_empty_list_is_every_peer_or_port_and_one_with_an_item_is_not() {
    for direction in [Ingress, Egress] {
        for rule in ["{}", "{SIDE: [], ports: []}", "{SIDE: null, ports: null}"] {
            assert_eq!(peers_of_rule(direction, rule, "sctp/9"), PODS, "{direction} {rule}");
        }
        assert_eq!(peers_of_rule(direction, "{ports: [{port: 80}]}", "tcp/80"), PODS);
        assert_eq!(peers_of_rule(direction, "{ports: [{port: 80}]}", "tcp/81"), [""; 0]);
        let one = "{SIDE: [{podSelector: {matchLabels: {app: web}}}]}";
        assert_eq!(peers_of_rule(direction, one, "tcp/81"), [WEB]);
    }
}

#[test]
fn an_absent_or_empty_pod_selector_is_every_pod_of_the_namespace_and_no_other() {
    for spec in ["{}", "{podSelector: {}}", "{podSelector: null}", "{podSelector: {matchLabels: {}}}"] {
        let compiled = shop().np("shop/p", spec).compile();
        let isolated = |pod: &&&str| compiled.verdict(pod, Ingress, "203.0.113.9", "tcp/80") == Deny;
        assert_eq!(
            ["db", "web", "job", "far"].iter().filter(isolated).collect::<Vec<_>>(),
            [&"db", &"web", &"job"]
        );
    }
}

#[test]
fn a_pod_that_no_policy_selects_is_open_and_one_that_a_policy_selects_is_closed_but_for_its_rules() {
    let spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]}";
    let compiled = shop().np("shop/p", spec).compile();
    for direction in [Ingress, Egress] {
        assert_eq!(compiled.allowed_peers("web", direction, "tcp/80", &[JOB, FAR]), [JOB, FAR]);
        assert_eq!(compiled.allowed_peers("db", direction, "tcp/80", &PODS), [""; 0]);
    }
    let both = shop()
        .np("shop/p", spec)
        .np("shop/q", "{ingress: [{from: [{podSelector: {}}]}], egress: [{ports: [{port: 443}]}]}")
        .compile();
    assert_eq!(both.allowed_peers("db", Ingress, "tcp/80", &PODS), [WEB, JOB], "the rules of both add up");
    assert_eq!(both.allowed("db", Egress, FAR, &["tcp/80", "tcp/443"]), ["tcp/443"]);
}

#[test]
fn a_null_selector_of_a_peer_selects_nothing_by_itself() {
    for peer in ["{podSelector: null}", "{namespaceSelector: null, podSelector: null}"] {
        let spec = format!("{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{peer}]}}]}}");
        let compiled = shop().np("shop/p", &spec).compile();
        assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/80", &PODS), [""; 0], "{peer}");
        assert_eq!(compiled.fields(), ["spec.ingress[0].from[0]"]);
    }
}

#[test]
fn blocks_of_both_ip_versions_and_their_exceptions_hold() {
    let allowed = |block: &str| {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{{ipBlock: {block}}}]}}]}}"
        );
        let compiled = shop().np("shop/p", &spec).compile();
        assert_eq!(compiled.desired.problems, []);
        let peers = ["192.168.1.9", "192.168.2.9", "2001:db8::9", "2001:db8:0:1::9", "10.0.0.2", "fd00::2"];
        compiled.allowed_peers("db", Ingress, "tcp/80", &peers)
    };
    assert_eq!(allowed("{cidr: 192.168.1.0/24}"), ["192.168.1.9"]);
    assert_eq!(allowed("{cidr: '2001:db8::/64'}"), ["2001:db8::9"]);
    assert_eq!(allowed("{cidr: 192.168.0.0/16, except: [192.168.1.0/24]}"), ["192.168.2.9"]);
    assert_eq!(allowed("{cidr: '2001:db8::/32', except: ['2001:db8::/64']}"), ["2001:db8:0:1::9"]);
    assert_eq!(allowed("{cidr: 'fd00::/64', except: ['fd00::1/128']}"), ["fd00::2"]);
}
