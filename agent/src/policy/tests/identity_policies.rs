//! `IdentityPolicy`, field by field.

use super::*;

fn shop() -> Cluster {
    Cluster::new([
        pod("shop", "db").sa("db").ip("10.0.0.1").port("sql", protocol::TCP, 5432),
        pod("shop", "api").sa("api").ip("10.0.0.2").label("app", "api").port("dns", protocol::UDP, 5300),
        pod("shop", "web").sa("web").ip("10.0.0.3").port("dns", protocol::TCP, 53),
        pod("ops", "cron").sa("api").ip("10.0.1.4").on("there"),
    ])
    .here()
    .namespace("ops", &[("team", "ops")])
    .account("shop", "web", &[("tier", "front")])
    .account("ops", "api", &[("tier", "front")])
}

const API: &str = "10.0.0.2";
const WEB: &str = "10.0.0.3";
const CRON: &str = "10.0.1.4";
const HERE: &str = "172.18.0.2";
const THERE: &str = "172.18.0.3";
const NOBODY: &str = "10.0.0.99";
const WORLD: &str = "203.0.113.9";
const EVERYONE: [&str; 7] = [API, WEB, CRON, HERE, THERE, NOBODY, WORLD];
const NONE: [&str; 0] = [];

fn rule(action: &str, peers: &str, more: &str) -> String {
    let subject = "serviceAccounts: {names: [db]}";
    format!("{{subject: {{{subject}}}, ingress: {{rules: [{{action: {action}, from: [{peers}]{more}}}]}}}}")
}

#[test]
fn each_kind_of_peer_matches_those_it_names() {
    for (peer, wanted) in [
        ("{serviceAccounts: {}}", &[API, WEB][..]),
        ("{serviceAccounts: {names: [api, ghost]}}", &[API]),
        ("{serviceAccounts: {selector: {matchLabels: {tier: front}}}}", &[WEB]),
        ("{serviceAccounts: {names: [api], selector: {matchLabels: {tier: front}}}}", &[]),
        ("{serviceAccounts: {namespaces: {}}}", &[API, WEB, CRON]),
        ("{serviceAccounts: {namespaces: {}, names: [api]}}", &[API, CRON]),
        ("{serviceAccounts: {namespaces: {}, selector: {matchLabels: {tier: front}}}}", &[WEB, CRON]),
        (
            "{serviceAccounts: {namespaces: {}, names: [api], selector: {matchLabels: {tier: front}}}}",
            &[CRON],
        ),
        ("{serviceAccounts: {namespaces: {matchLabels: {team: ops}}}}", &[CRON]),
        ("{pods: {}}", &[API, WEB]),
        ("{pods: {selector: {matchLabels: {app: api}}}}", &[API]),
        ("{pods: {namespaces: {matchLabels: {team: ops}}}}", &[CRON]),
        ("{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.2/32]}}", &[WEB, CRON, NOBODY]),
        ("{entities: [host]}", &[HERE]),
        ("{entities: [node]}", &[THERE]),
        ("{entities: [world]}", &[WORLD]),
        ("{entities: [unmanaged]}", &[NOBODY]),
        ("{entities: [node, world]}, {serviceAccounts: {names: [web]}}", &[WEB, THERE, WORLD]),
    ] {
        let compiled = shop().idp("shop/p", &rule("Accept", peer, "")).compile();
        assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), wanted, "{peer}");
        assert_eq!(compiled.desired.problems, [], "{peer}");
        assert_eq!(compiled.verdict("db", Egress, WEB, "tcp/1"), Allow, "the other direction is not touched");
        assert_eq!(compiled.verdict("api", Ingress, WEB, "tcp/1"), Allow, "other accounts are not touched");
        if peer == "{entities: [host]}" {
            continue;
        }
        // A Deny of the same peers, without isolation, is the complement.
        let deny = rule("Deny", peer, "").replace("ingress: {", "ingress: {isolate: false, ");
        let compiled = shop().idp("shop/p", &deny).compile();
        let rest: Vec<&str> = EVERYONE.into_iter().filter(|peer| !wanted.contains(peer)).collect();
        assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), rest, "deny {peer}");
        assert_eq!(compiled.desired.problems, [], "{peer}");
    }
}

#[test]
fn subjects_by_name_by_selector_and_both() {
    for (subject, wanted) in [
        ("{}", &["db", "api", "web"][..]),
        ("{serviceAccounts: {}}", &["db", "api", "web"]),
        ("{serviceAccounts: {names: [db, web]}}", &["db", "web"]),
        ("{serviceAccounts: {selector: {matchLabels: {tier: front}}}}", &["web"]),
        ("{serviceAccounts: {names: [db, web], selector: {matchLabels: {tier: front}}}}", &["web"]),
        ("{serviceAccounts: {names: [db], selector: {matchLabels: {tier: front}}}}", &[]),
    ] {
        let compiled =
            shop().idp("shop/p", &format!("{{subject: {subject}, egress: {{rules: []}}}}")).compile();
        let isolated = |name: &&str| compiled.verdict(name, Egress, WORLD, "tcp/1") == Deny;
        assert_eq!(
            ["db", "api", "web"].into_iter().filter(isolated).collect::<Vec<_>>(),
            wanted,
            "{subject}"
        );
        let cron = compiled.desired.ipcache[&ip(CRON)];
        assert_eq!(cron.subject, 0, "another namespace");
    }
}

#[test]
fn an_unclear_peer_narrows_access_whatever_the_action() {
    for (peers, field) in [
        ("{}", "from[0]"),
        ("{entities: [node], pods: {}}", "from[0]"),
        ("{entities: []}", "from[0].entities"),
        ("{serviceAccounts: {names: []}}", "from[0].serviceAccounts.names"),
        ("{ipBlock: {cidr: x}}", "from[0].ipBlock.cidr"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}", "from[0].ipBlock.except[0]"),
        (
            "{pods: {selector: {matchExpressions: [{key: a, operator: X}]}}}",
            "from[0].pods.selector.matchExpressions[0].operator",
        ),
        (
            "{serviceAccounts: {namespaces: {matchExpressions: [{key: a, operator: In}]}}}",
            "from[0].serviceAccounts.namespaces.matchExpressions[0].values",
        ),
        ("", "from"),
    ] {
        for action in ["Accept", "Deny"] {
            // Beside it another policy lets everybody in.
            let cluster = shop().idp("shop/p", &rule(action, peers, ", protocols: [{tcp: {}}]"));
            let both = cluster.clone().np("shop/open", "{ingress: [{}]}").compile();
            assert_eq!(
                cluster.compile().allowed_peers("db", Ingress, "tcp/1", &EVERYONE),
                NONE,
                "{action} {peers}"
            );
            let wanted = if action == "Deny" { &NONE[..] } else { &EVERYONE };
            assert_eq!(both.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), wanted, "{action} {peers}");
            assert_eq!(
                both.allowed_peers("db", Ingress, "udp/1", &EVERYONE),
                EVERYONE,
                "only on the rule's ports"
            );
            assert_eq!(both.fields(), [format!("spec.ingress.rules[0].{field}")], "{action} {peers}");
        }
    }
}

const PORTS: [&str; 9] =
    ["tcp/53", "tcp/5431", "tcp/5432", "tcp/5440", "tcp/5441", "udp/53", "udp/5300", "sctp/5432", "icmp"];

#[test]
fn protocols_in_all_their_forms() {
    for (protocols, wanted) in [
        ("", &PORTS[..]),
        (", protocols: [{tcp: {}}]", &["tcp/53", "tcp/5431", "tcp/5432", "tcp/5440", "tcp/5441"]),
        (", protocols: [{udp: {}}, {sctp: {}}]", &["udp/53", "udp/5300", "sctp/5432"]),
        (", protocols: [{tcp: {destinationPort: {number: 5432}}}]", &["tcp/5432"]),
        (
            ", protocols: [{tcp: {destinationPort: {range: {start: 5432, end: 5440}}}}]",
            &["tcp/5432", "tcp/5440"],
        ),
        (", protocols: [{destinationNamedPort: sql}]", &["tcp/5432"]),
        (", protocols: [{destinationNamedPort: dns}]", &[]),
    ] {
        let compiled = shop().idp("shop/p", &rule("Accept", "{pods: {}}", protocols)).compile();
        assert_eq!(compiled.allowed("db", Ingress, API, &PORTS), wanted, "{protocols}");
        assert_eq!(compiled.desired.problems, [], "{protocols}");
        let compiled = shop()
            .np("shop/open", "{ingress: [{}]}")
            .idp("shop/p", &rule("Deny", "{pods: {}}", protocols))
            .compile();
        let rest: Vec<&str> = PORTS.into_iter().filter(|port| !wanted.contains(port)).collect();
        assert_eq!(
            compiled.allowed("db", Ingress, API, &PORTS),
            rest,
            "Deny wins over a NetworkPolicy: {protocols}"
        );
        assert_eq!(compiled.allowed("db", Ingress, WORLD, &PORTS), PORTS);
    }
}

#[test]
fn unclear_protocols_narrow_access_whatever_the_action() {
    for (protocols, field) in [
        ("[]", ""),
        ("[{}]", "[0]"),
        ("[{tcp: {}, udp: {}}]", "[0]"),
        ("[{tcp: {destinationPort: {}}}]", "[0].tcp.destinationPort"),
        ("[{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]", "[0].tcp.destinationPort"),
        ("[{tcp: {destinationPort: {number: 0}}}]", "[0].tcp.destinationPort.number"),
        ("[{udp: {destinationPort: {number: 65536}}}]", "[0].udp.destinationPort.number"),
        ("[{sctp: {destinationPort: {range: {start: 0, end: 5}}}}]", "[0].sctp.destinationPort.range.start"),
        ("[{tcp: {destinationPort: {range: {start: 6, end: 5}}}}]", "[0].tcp.destinationPort.range"),
        ("[{destinationNamedPort: ''}]", "[0].destinationNamedPort"),
    ] {
        for action in ["Accept", "Deny"] {
            let more = format!(", protocols: {protocols}");
            let compiled = shop()
                .np(
                    "shop/open",
                    "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/31}}]}, {from: [{podSelector: {}}]}]}",
                )
                .idp("shop/p", &rule(action, "{serviceAccounts: {names: [api]}}", &more))
                .compile();
            let wanted = if action == "Deny" { &[][..] } else { &PORTS };
            assert_eq!(compiled.allowed("db", Ingress, API, &PORTS), wanted, "{action} {protocols}");
            assert_eq!(
                compiled.allowed("db", Ingress, WEB, &PORTS),
                PORTS,
                "its peer only: {action} {protocols}"
            );
            assert_eq!(compiled.allowed("db", Ingress, WORLD, &PORTS), NONE);
            assert_eq!(
                compiled.fields(),
                [format!("spec.ingress.rules[0].protocols{field}")],
                "{action} {protocols}"
            );
        }
    }
}

#[test]
fn a_good_protocol_beside_an_unclear_one_still_accepts() {
    let more = ", protocols: [{}, {tcp: {destinationPort: {number: 53}}}]";
    let compiled = shop().idp("shop/p", &rule("Accept", "{pods: {}}", more)).compile();
    assert_eq!(compiled.allowed("db", Ingress, API, &PORTS), ["tcp/53"]);
}

#[test]
fn named_ports_on_egress_are_those_of_the_peer_and_peers_without_ports_have_none() {
    let spec = |action: &str, isolate| {
        let peers = "[{pods: {}}, {entities: [world, node, host]}, {ipBlock: {cidr: 10.0.0.0/8}}]";
        let rule = format!("{{action: {action}, to: {peers}, protocols: [{{destinationNamedPort: dns}}]}}");
        format!("{{subject: {{}}, egress: {{isolate: {isolate}, rules: [{rule}]}}}}")
    };
    let accept = shop().idp("shop/p", &spec("Accept", true)).compile();
    assert_eq!(accept.allowed("db", Egress, API, &PORTS), ["udp/5300"]);
    assert_eq!(accept.allowed("db", Egress, WEB, &PORTS), ["tcp/53"]);
    for peer in [WORLD, HERE, THERE, NOBODY] {
        assert_eq!(accept.allowed("db", Egress, peer, &PORTS), NONE, "{peer}");
    }
    let deny = shop().idp("shop/p", &spec("Deny", false)).compile();
    let without = |port: &str| PORTS.into_iter().filter(|p| *p != port).collect::<Vec<_>>();
    assert_eq!(deny.allowed("db", Egress, API, &PORTS), without("udp/5300"));
    assert_eq!(deny.allowed("db", Egress, WEB, &PORTS), without("tcp/53"));
    for peer in [WORLD, HERE, THERE, NOBODY] {
        assert_eq!(deny.allowed("db", Egress, peer, &PORTS), PORTS, "nothing to deny at {peer}");
    }
}

#[test]
fn a_deny_of_host_ingress_is_refused_and_the_rest_of_the_rule_holds() {
    let deny =
        rule("Deny", "{entities: [host, node]}", "").replace("ingress: {", "ingress: {isolate: false, ");
    let compiled = shop().idp("shop/p", &deny).compile();
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &[HERE, THERE, WORLD]), [HERE, WORLD]);
    assert_eq!(compiled.fields(), ["spec.ingress.rules[0].from[0].entities"]);
    // Towards the node it is effective.
    let egress = "{subject: {}, egress: {isolate: false, rules: [{action: Deny, to: [{entities: [host]}]}]}}";
    let compiled = shop().idp("shop/p", egress).compile();
    assert_eq!(compiled.allowed_peers("db", Egress, "tcp/1", &[HERE, THERE, WORLD]), [THERE, WORLD]);
    assert_eq!(compiled.desired.problems, []);
}

#[test]
fn isolation_is_the_default_and_can_be_left_out() {
    let accept = rule("Accept", "{serviceAccounts: {names: [api]}}", "");
    let open = accept.replace("ingress: {", "ingress: {isolate: false, ");
    let compiled = shop().idp("shop/p", &accept).compile();
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), [API]);
    let compiled = shop().idp("shop/p", &open).compile();
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), EVERYONE);
    // Its Accept counts as soon as another policy isolates.
    let compiled = shop().idp("shop/p", &open).np("shop/closed", "{}").compile();
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), [API]);
    assert_eq!(
        compiled.decision("db", Ingress, WEB, "tcp/1").2,
        "NetworkPolicy shop/closed ingress (isolation)"
    );
}

#[test]
fn deny_wins_over_accepts_of_every_policy_and_rules_are_named() {
    let spec = "{subject: {}, ingress: {rules: [
        {action: Accept, from: [{pods: {}}]},
        {name: no-web, action: Deny, from: [{serviceAccounts: {names: [web]}}], protocols: [{tcp: {}}]}]}}";
    let compiled = shop().idp("shop/p", spec).np("shop/open", "{ingress: [{}]}").compile();
    let denied = (Deny, Reason::Policy, "IdentityPolicy shop/p ingress no-web");
    assert_eq!(compiled.decision("db", Ingress, WEB, "tcp/1"), denied);
    assert_eq!(compiled.verdict("db", Ingress, WEB, "udp/1"), Allow);
    let compiled = shop().idp("shop/p", spec).compile();
    assert_eq!(compiled.decision("db", Ingress, API, "tcp/1").2, "IdentityPolicy shop/p ingress[0]");
    let isolated = (Deny, Reason::Policy, "IdentityPolicy shop/p ingress (isolation)");
    assert_eq!(compiled.decision("db", Ingress, WORLD, "tcp/1"), isolated);
}

#[test]
fn an_unclear_subject_is_every_account_and_accepts_nothing() {
    for subject in ["{names: []}", "{selector: {matchExpressions: [{key: a, operator: Is}]}}"] {
        let spec = format!(
            "{{subject: {{serviceAccounts: {subject}}}, ingress: {{rules: [
            {{action: Accept, from: [{{pods: {{}}}}]}}, {{action: Deny, from: [{{entities: [world]}}]}}]}}}}"
        );
        let compiled = shop().idp("shop/p", &spec).compile();
        assert_eq!(compiled.allowed_peers("api", Ingress, "tcp/1", &EVERYONE), NONE, "{subject}");
        assert_eq!(compiled.decision("db", Ingress, WORLD, "tcp/1").2, "IdentityPolicy shop/p ingress[1]");
        assert_eq!(compiled.desired.problems.len(), 1);
        let open = shop().idp("shop/p", &spec).np("shop/open", "{ingress: [{}]}").compile();
        assert_eq!(open.allowed_peers("db", Ingress, "tcp/1", &[API, WORLD]), [API], "its Deny holds");
    }
}
