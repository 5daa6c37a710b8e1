//! `ClusterIdentityPolicy`: subjects, tiers, priorities, actions, modes, and what becomes of what is unclear.

use super::*;

fn city() -> Cluster {
    Cluster::new([
        pod("shop", "db").sa("db").ip("10.0.0.1").port("sql", protocol::TCP, 5432),
        pod("shop", "api").sa("api").ip("10.0.0.2").label("app", "api").port("dns", protocol::UDP, 5300),
        pod("shop", "web").sa("web").ip("10.0.0.3").port("dns", protocol::TCP, 53),
        pod("ops", "cron").sa("api").ip("10.0.0.4"),
        pod("ops", "far").sa("far").ip("10.0.1.5").on("there"),
    ])
    .here()
    .namespace("shop", &[("team", "shop"), ("kubernetes.io/metadata.name", "shop")])
    .namespace("ops", &[("team", "ops")])
    .account("shop", "web", &[("tier", "front")])
    .account("ops", "api", &[("tier", "front")])
}

const DB: &str = "10.0.0.1";
const API: &str = "10.0.0.2";
const WEB: &str = "10.0.0.3";
const CRON: &str = "10.0.0.4";
const FAR: &str = "10.0.1.5";
const HERE: &str = "172.18.0.2";
const THERE: &str = "172.18.0.3";
const NOBODY: &str = "10.0.0.99";
const WORLD: &str = "203.0.113.9";
const EVERYONE: [&str; 8] = [API, WEB, CRON, FAR, HERE, THERE, NOBODY, WORLD];
/// Every address, so every peer.
const ALL: &str = "{ipBlock: {cidr: 0.0.0.0/0}}";

/// A policy about the ingress of the account `db`.
fn db(tier: &str, priority: i32, rules: &str) -> String {
    format!(
        "{{tier: {tier}, priority: {priority}, subject: {{namespaces: {{matchLabels: {{team: shop}}}},
            serviceAccounts: {{names: [db]}}}}, ingress: {{rules: [{rules}]}}}}"
    )
}

fn rule(action: &str, peers: &str, port: u16) -> String {
    format!(
        "{{action: {action}, from: [{peers}], protocols: [{{tcp: {{destinationPort: {{number: {port}}}}}}}]}}"
    )
}

#[test]
fn each_kind_of_peer_matches_those_it_names_in_every_namespace_that_is_selected() {
    for (peer, wanted) in [
        ("{serviceAccounts: {namespaces: {}}}", &[API, WEB, CRON, FAR][..]),
        ("{serviceAccounts: {namespaces: {}, names: [api]}}", &[API, CRON]),
        ("{serviceAccounts: {namespaces: {matchLabels: {team: ops}}}}", &[CRON, FAR]),
        ("{serviceAccounts: {namespaces: {}, selector: {matchLabels: {tier: front}}}}", &[WEB, CRON]),
        ("{pods: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}}", &[API, WEB]),
        ("{pods: {namespaces: {}, selector: {matchLabels: {app: api}}}}", &[API]),
        ("{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.2/32]}}", &[WEB, CRON, FAR, NOBODY]),
        ("{entities: [node, unmanaged]}, {entities: [world]}", &[THERE, NOBODY, WORLD]),
    ] {
        for (action, default, denies) in
            [("Accept", Deny, false), ("Deny", Allow, true), ("Pass", Deny, true)]
        {
            let cluster = city().cidp("p", &db("Admin", 1, &rule(action, peer, 1)));
            // Behind a Pass is the default, not the next policy of the tier.
            let mut cluster = cluster.cidp("q", &db("Admin", 2, &rule("Accept", ALL, 1)));
            cluster.0.settings.default_verdict = default;
            let compiled = cluster.compile();
            assert_eq!(compiled.desired.problems, [], "{peer}");
            let matched = |peer: &&str| {
                let (verdict, _, rule) = compiled.decision("db", Ingress, peer, "tcp/1");
                let by_first =
                    if denies { verdict == Deny } else { rule.starts_with("ClusterIdentityPolicy p ") };
                assert!(by_first || verdict == Allow && rule == "ClusterIdentityPolicy q ingress[0]");
                by_first
            };
            assert_eq!(EVERYONE.into_iter().filter(matched).collect::<Vec<_>>(), wanted, "{action} {peer}");
            assert_eq!(compiled.verdict("db", Ingress, WEB, "tcp/2"), default, "no rule is about the port");
            assert_eq!(compiled.verdict("db", Egress, WEB, "tcp/1"), default, "the other direction");
            assert_eq!(compiled.verdict("api", Ingress, WEB, "tcp/1"), default, "another account");
        }
    }
}

#[test]
fn subjects_are_of_every_namespace_that_is_selected_and_accounts_narrow_them() {
    for (subject, wanted) in [
        ("{namespaces: {}}", &["db", "api", "web", "cron"][..]),
        ("{namespaces: {matchLabels: {team: ops}}}", &["cron"]),
        (
            "{namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}, serviceAccounts: {}}",
            &["db", "api", "web"],
        ),
        ("{namespaces: {}, serviceAccounts: {names: [api]}}", &["api", "cron"]),
        ("{namespaces: {}, serviceAccounts: {selector: {matchLabels: {tier: front}}}}", &["web", "cron"]),
        (
            "{namespaces: {matchLabels: {team: shop}}, serviceAccounts: {names: [api, web], selector: {matchLabels: {tier: front}}}}",
            &["web"],
        ),
        ("{namespaces: {matchLabels: {team: nobody}}}", &[]),
    ] {
        let spec = format!(
            "{{tier: Admin, priority: 0, subject: {subject}, egress: {{rules: [{{action: Deny, to: [{{entities: [world]}}]}}]}}}}"
        );
        let compiled = city().cidp("p", &spec).compile();
        assert_eq!(compiled.desired.problems, [], "{subject}");
        let denied = |name: &&str| compiled.verdict(name, Egress, WORLD, "tcp/1") == Deny;
        assert_eq!(
            ["db", "api", "web", "cron"].into_iter().filter(denied).collect::<Vec<_>>(),
            wanted,
            "{subject}"
        );
    }
}

#[test]
fn a_remote_pod_that_the_policy_is_about_is_held_to_its_egress_here() {
    let spec = "{tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {team: ops}}},
        egress: {rules: [{action: Deny, to: [{pods: {namespaces: {matchLabels: {team: shop}}}}]}]}}";
    let compiled = city().cidp("p", spec).compile();
    let far = compiled.desired.ipcache[&ip(FAR)];
    assert_ne!(far.subject, 0);
    assert_eq!(compiled.maps.decide(far.subject, Egress, ip(DB), key("tcp/1")).verdict, Deny);
    assert_eq!(compiled.maps.decide(far.subject, Egress, ip(CRON), key("tcp/1")).verdict, Allow);
}

#[test]
fn the_namespace_cannot_override_the_admin_tier_and_is_not_overridden_by_the_baseline() {
    let own = "{subject: {serviceAccounts: {names: [db]}}, ingress: {rules: [
        {name: mine, action: Accept, from: [{pods: {}}]}, {name: not-mine, action: Deny, from: [{entities: [node]}]}]}}";
    let admin =
        [rule("Deny", ALL, 1), rule("Accept", ALL, 2), rule("Pass", ALL, 3), rule("Deny", ALL, 3)].join(", ");
    let baseline = [
        rule("Deny", ALL, 1),
        rule("Accept", ALL, 3),
        rule("Deny", ALL, 4),
        rule("Pass", ALL, 5),
        rule("Deny", ALL, 5),
    ]
    .join(", ");
    let outer = city().cidp("first", &db("Admin", 7, &admin)).cidp("last", &db("Baseline", 0, &baseline));
    let with = outer.clone().idp("shop/own", own).compile();
    let rules = |compiled: &Compiled, peer, port| {
        let (verdict, _, rule) = compiled.decision("db", Ingress, peer, port);
        (verdict, rule.to_owned())
    };
    let own = |verdict, what: &str| (verdict, format!("IdentityPolicy shop/own ingress {what}"));
    for (port, web, there) in [
        ("tcp/1", (Deny, "ClusterIdentityPolicy first ingress[0]".into()), None),
        ("tcp/2", (Allow, "ClusterIdentityPolicy first ingress[1]".into()), None),
        ("tcp/3", own(Allow, "mine"), Some(own(Deny, "not-mine"))),
        ("tcp/4", own(Allow, "mine"), Some(own(Deny, "not-mine"))),
        ("icmp", own(Allow, "mine"), Some(own(Deny, "not-mine"))),
    ] {
        assert_eq!(rules(&with, WEB, port), web, "{port}");
        assert_eq!(rules(&with, THERE, port), there.unwrap_or(web), "{port}");
        let isolated = rules(&with, WORLD, port);
        assert!(port < "tcp/3" || isolated == own(Deny, "(isolation)"), "{port}: {isolated:?}");
    }
    // Where no policy of the namespace isolates, the Baseline has its say, and then the default.
    let without = outer.clone().compile();
    assert_eq!(rules(&without, WEB, "tcp/3"), (Allow, "ClusterIdentityPolicy last ingress[1]".into()));
    assert_eq!(rules(&without, WEB, "tcp/4"), (Deny, "ClusterIdentityPolicy last ingress[2]".into()));
    assert_eq!(rules(&without, WEB, "tcp/5"), (Allow, String::new()), "passed on to the default");
    assert_eq!(rules(&outer.default_deny().compile(), WEB, "tcp/5").0, Deny, "passed on to the default");
}

#[test]
fn a_deny_of_the_namespace_that_isolates_nothing_leaves_the_rest_to_the_baseline() {
    let own =
        "{subject: {}, ingress: {isolate: false, rules: [{action: Deny, from: [{entities: [world]}]}]}}";
    let compiled = city()
        .idp("shop/own", own)
        .cidp("last", &db("Baseline", 0, "{action: Accept, from: [{entities: [world]}]}, {action: Deny, from: [{pods: {namespaces: {}}}]}"))
        .compile();
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &EVERYONE), [HERE, THERE, NOBODY]);
}

#[test]
fn a_lower_number_comes_first_and_equal_ones_go_by_name_whatever_the_order_of_events() {
    let policies = [
        ("m", db("Admin", 5, &rule("Deny", ALL, 1))),
        ("b", db("Admin", 5, &[rule("Accept", ALL, 1), rule("Accept", ALL, 2)].join(", "))),
        (
            "a",
            db("Admin", 6, &[rule("Deny", ALL, 2), rule("Deny", ALL, 3), rule("Accept", ALL, 3)].join(", ")),
        ),
        ("z", db("Admin", 1000, &rule("Accept", ALL, 3))),
        ("zz", db("Baseline", 0, &rule("Accept", ALL, 3))),
    ];
    let orders: [Vec<usize>; 3] = [(0..5).collect(), (0..5).rev().collect(), vec![2, 4, 1, 3, 0]];
    for order in orders {
        let cluster = order.iter().fold(city(), |cluster, &at| cluster.cidp(policies[at].0, &policies[at].1));
        let compiled = cluster.compile();
        let got = ["tcp/1", "tcp/2", "tcp/3"].map(|port| compiled.decision("db", Ingress, WEB, port));
        assert_eq!(
            got,
            [
                (Allow, Reason::Policy, "ClusterIdentityPolicy b ingress[0]"),
                (Allow, Reason::Policy, "ClusterIdentityPolicy b ingress[1]"),
                (Deny, Reason::Policy, "ClusterIdentityPolicy a ingress[1]"),
            ]
        );
    }
}

#[test]
fn named_ports_are_those_of_the_destination_in_every_namespace() {
    let ingress = db(
        "Admin",
        0,
        "{action: Deny, from: [{entities: [world]}], protocols: [{destinationNamedPort: sql}]}",
    );
    let egress = "{tier: Admin, priority: 1, subject: {namespaces: {}, serviceAccounts: {names: [db]}}, egress: {rules: [
        {action: Deny, to: [{pods: {namespaces: {}}}], protocols: [{destinationNamedPort: dns}]}]}}";
    let compiled = city().cidp("in", &ingress).cidp("out", egress).compile();
    let ports = ["tcp/5432", "tcp/53", "udp/5300", "icmp"];
    assert_eq!(compiled.allowed("db", Ingress, WORLD, &ports), ["tcp/53", "udp/5300", "icmp"]);
    assert_eq!(compiled.allowed("db", Egress, API, &ports), ["tcp/5432", "tcp/53", "icmp"]);
    assert_eq!(compiled.allowed("db", Egress, WEB, &ports), ["tcp/5432", "udp/5300", "icmp"]);
    assert_eq!(compiled.allowed("db", Egress, CRON, &ports), ports);
}

#[test]
fn audited_guardrails_are_weighed_with_what_is_enforced() {
    let audited = |spec: &str| spec.replacen('{', "{mode: Audit, ", 1);
    let admin = audited(&db(
        "Admin",
        0,
        &[rule("Deny", ALL, 1), rule("Pass", ALL, 2), rule("Accept", ALL, 3)].join(", "),
    ));
    let baseline = audited(&db("Baseline", 0, &rule("Deny", ALL, 5)));
    let enforced =
        db("Admin", 1, &[rule("Accept", ALL, 1), rule("Accept", ALL, 2), rule("Deny", ALL, 3)].join(", "));
    let own = "{subject: {}, ingress: {isolate: false, rules: [{action: Deny, from: [{pods: {}}],
        protocols: [{tcp: {destinationPort: {number: 2}}}]}]}}";
    let cluster = city().cidp("a", &admin).cidp("b", &baseline).cidp("e", &enforced).idp("shop/own", own);
    let decide = |compiled: &Compiled, port| {
        let (verdict, _, rule) = compiled.decision("db", Ingress, WEB, port);
        (verdict, rule.to_owned())
    };
    let compiled = cluster.compile();
    assert_eq!(decide(&compiled, "tcp/1"), (Audit, "ClusterIdentityPolicy a ingress[0]".into()));
    assert_eq!(
        decide(&compiled, "tcp/2"),
        (Audit, "IdentityPolicy shop/own ingress[0]".into()),
        "passed to it"
    );
    assert_eq!(decide(&compiled, "tcp/3"), (Deny, "ClusterIdentityPolicy e ingress[2]".into()), "E denies");
    assert_eq!(decide(&compiled, "tcp/5"), (Audit, "ClusterIdentityPolicy b ingress[0]".into()));
    // The mode of the subject's namespace counts too; the most lenient wins.
    let lenient =
        cluster.clone().namespace("shop", &[("team", "shop"), ("portcullis.dev/mode", "audit")]).compile();
    assert_eq!(decide(&lenient, "tcp/3").0, Allow, "all are audited now, and the Accept comes first");
    assert_eq!(decide(&lenient, "tcp/1").0, Audit);
    let off =
        cluster.clone().namespace("shop", &[("team", "shop"), ("portcullis.dev/mode", "off")]).compile();
    assert_eq!(["tcp/1", "tcp/2", "tcp/3", "tcp/5"].map(|port| decide(&off, port).0), [Allow; 4]);
    // A policy that is off is not there.
    let off = cluster.cidp("a", &admin.replace("Audit", "Disabled")).compile();
    assert_eq!(decide(&off, "tcp/1"), (Allow, "ClusterIdentityPolicy e ingress[0]".into()));
    assert_eq!(decide(&off, "tcp/2").0, Allow);
}

#[test]
fn a_deny_of_host_on_ingress_has_no_effect_and_is_reported() {
    let spec = db("Admin", 0, "{action: Deny, from: [{entities: [host, node]}]}");
    let compiled = city().cidp("p", &spec).compile();
    assert_eq!(compiled.fields(), ["spec.ingress.rules[0].from[0].entities"]);
    assert_eq!(compiled.allowed_peers("db", Ingress, "tcp/1", &[HERE, THERE]), [HERE]);
}

#[test]
fn an_unclear_part_of_a_rule_narrows_access_whatever_the_action() {
    let open = db("Admin", 900, &format!("{{action: Accept, from: [{ALL}]}}"));
    for (peers, protocols, field, deny_reaches) in [
        ("{}", "[{tcp: {}}]", "from[0]", &[("tcp/1", true), ("udp/1", false)][..]),
        ("{entities: [world]}, {pods: {}}", "[{tcp: {}}]", "from[1].pods.namespaces", &[("tcp/1", true)]),
        (
            "{serviceAccounts: {names: [api]}}",
            "[{tcp: {}}]",
            "from[0].serviceAccounts.namespaces",
            &[("tcp/1", true)],
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}",
            "[{tcp: {}}]",
            "from[0].ipBlock.except[0]",
            &[("tcp/1", true)],
        ),
        ("", "[{tcp: {}}]", "from", &[("tcp/1", true)]),
        ("{pods: {namespaces: {}}}", "[{}, {tcp: {}}]", "protocols[0]", &[("tcp/1", true), ("icmp", true)]),
        ("{pods: {namespaces: {}}}", "[]", "protocols", &[("tcp/1", true), ("icmp", true)]),
    ] {
        for action in ["Accept", "Deny", "Pass"] {
            let spec =
                db("Admin", 0, &format!("{{action: {action}, from: [{peers}], protocols: {protocols}}}"));
            let compiled = city().cidp("p", &spec).cidp("open", &open).compile();
            assert_eq!(compiled.fields(), [format!("spec.ingress.rules[0].{field}")], "{action}");
            for (port, denied) in deny_reaches {
                let wanted = if *denied && action != "Accept" { Deny } else { Allow };
                assert_eq!(compiled.verdict("db", Ingress, WEB, port), wanted, "{action} {field} {port}");
            }
        }
    }
    // Beside a clear part an unclear one of an Accept takes nothing away.
    let spec =
        db("Admin", 0, "{action: Accept, from: [{}, {entities: [world]}], protocols: [{}, {udp: {}}]}");
    let compiled = city().cidp("p", &spec).default_deny().compile();
    assert_eq!(compiled.allowed("db", Ingress, WORLD, &["tcp/1", "udp/1"]), ["udp/1"]);
    assert_eq!(compiled.allowed("db", Ingress, WEB, &["tcp/1", "udp/1"]), [""; 0]);
}

#[test]
fn where_the_place_or_the_subject_is_unclear_nothing_is_accepted_and_what_would_be_passed_on_is_denied() {
    let rules = [rule("Accept", ALL, 1), rule("Pass", ALL, 2), rule("Deny", ALL, 3)].join(", ");
    let open = db("Admin", 0, &format!("{{action: Accept, from: [{ALL}]}}"));
    let ports = ["tcp/1", "tcp/2", "tcp/3", "tcp/4"];
    let good = db("Admin", 5, &rules);
    for (spec, field, everyone) in [
        (good.replace("tier: Admin, ", ""), "spec.tier", false),
        (good.replace("priority: 5, ", ""), "spec.priority", false),
        (good.replace("priority: 5, ", "priority: 1001, "), "spec.priority", false),
        (good.replace("priority: 5, ", "priority: -1, "), "spec.priority", false),
        (good.replace("namespaces: {matchLabels: {team: shop}},", ""), "spec.subject.namespaces", true),
        (
            good.replace("{matchLabels: {team: shop}}", "{matchExpressions: [{key: a, operator: In}]}"),
            "spec.subject.namespaces.matchExpressions[0].values",
            true,
        ),
        (good.replace("names: [db]", "names: []"), "spec.subject.serviceAccounts.names", true),
    ] {
        assert_ne!(spec, good);
        let compiled = city().cidp("p", &spec).default_deny().compile();
        assert_eq!(compiled.fields(), [field]);
        assert_eq!(compiled.allowed("db", Ingress, WEB, &ports), [""; 0], "{field}");
        let compiled = city().cidp("p", &spec).cidp("open", &open).compile();
        let first = !everyone;
        let wanted: &[&str] = if first { &["tcp/1", "tcp/4"] } else { &ports };
        assert_eq!(
            compiled.allowed("db", Ingress, WEB, &ports),
            wanted,
            "{field}: only an unclear place is before 0"
        );
        let denied = compiled.verdict("cron", Ingress, WEB, "tcp/2") == Deny;
        assert_eq!(denied, everyone, "{field}: an unclear subject is every pod of the cluster");
    }
    let baseline = db("Baseline", 0, &rules).replace("priority: 0, ", "");
    let compiled = city().cidp("p", &baseline).np("shop/own", "{ingress: [{}]}").compile();
    assert_eq!(compiled.allowed("db", Ingress, WEB, &ports), ports, "its tier is clear, and comes last");
}

#[test]
fn policies_of_the_cluster_are_summarized_with_the_pods_of_every_namespace() {
    let cluster = city().cidp("p", "{mode: Audit, tier: Baseline, priority: 3, subject: {namespaces: {}, serviceAccounts: {names: [api]}},
        egress: {rules: [{action: Pass, to: [{entities: [world]}]}]}}");
    let [summary] = &super::super::summarize(&cluster.0)[..] else { panic!("one policy") };
    assert_eq!(
        (summary.kind, summary.namespace.as_str(), summary.name.as_str()),
        ("ClusterIdentityPolicy", "", "p")
    );
    assert_eq!((summary.mode, summary.pods), (portcullis_common::abi::Mode::Audit, 2));
    assert_eq!(summary.directions, [Egress]);
}
