//! What the API server would refuse and a folder can contain: from the manifests through the compiler to the verdict. Each
//! case is one mistake in a policy about `shop/db`, in a rule that would let everybody in; it must be named with file,
//! document, object and field, and let nobody in.

use portcullis::matrix::Options;

use crate::folder::{Asked, Folder};

/// Pods: `db` that the policies select, `web` beside it, and `far` in another namespace; no objects but these.
const PODS: &str = "\
{apiVersion: v1, kind: List, items: [
  {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.0.0.1},
    spec: {containers: [{name: c, ports: [{name: sql, containerPort: 80}]}]}},
  {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.2}},
  {apiVersion: v1, kind: Pod, metadata: {name: far, namespace: ops, labels: {app: web}}, status: {podIP: 10.0.1.3}}]}
";

/// A policy of `shop` after its type.
fn ask(api_version: &str, kind: &str, rest: &str) -> Asked {
    let policy = format!("# its\n---\napiVersion: {api_version}\nkind: {kind}\n{rest}\n");
    let ports = vec!["TCP/80".parse().unwrap()];
    Folder::new(&[("pods.yaml", PODS), ("policy.yaml", &policy)])
        .ask(&Options { ports, ..Options::default() })
}

/// Nobody reaches `db`, everybody else is reached as before, and the mistake is named.
fn check(asked: &Asked, object: &str, field: &str, case: &str) {
    assert_eq!(asked.found.names, ["ops/far", "shop/db", "shop/web"]);
    let ingress = &asked.tables("TCP/80").ingress;
    let column = |at: usize| ingress.iter().map(|row| row.as_bytes()[at] as char).collect::<String>();
    assert_eq!(column(1), "X.X", "{case}: {:?}", asked.problems());
    assert_eq!(column(0), "...", "{case}: a foreign namespace is not closed by it");
    let place = format!("policy.yaml: document 1 ({object}), line ");
    let field = format!("field `{field}`: ");
    let problems = asked.problems();
    let named = |problem: &String| problem.starts_with(&place) && problem.contains(&field);
    assert!(
        problems.iter().any(named),
        "{case}: no problem begins with {place:?} and has {field:?}: {problems:#?}"
    );
}

fn check_network_policy(spec: &str, field: &str) {
    let rest = format!("metadata: {{name: p, namespace: shop}}\nspec: {spec}");
    let asked = ask("networking.k8s.io/v1", "NetworkPolicy", &rest);
    check(&asked, "NetworkPolicy shop/p", field, spec);
    assert_eq!(asked.problems().len(), 1, "said once: {spec}: {:#?}", asked.problems());
}

fn db(rest: &str) -> String {
    format!("{{podSelector: {{matchLabels: {{app: db}}}}, {rest}}}")
}

#[test]
fn a_peer_that_means_nothing_lets_nobody_in() {
    for (peer, field) in [
        ("{}", ""),
        ("null", ""),
        ("everybody", ""),
        ("{ipBlock: {}}", ".ipBlock.cidr"),
        ("{ipBlock: {cidr: ten}}", ".ipBlock.cidr"),
        ("{ipBlock: {cidr: 10.0.0.0}}", ".ipBlock.cidr"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", ".ipBlock.cidr"),
        ("{ipBlock: {cidr: 'fd00::/129'}}", ".ipBlock.cidr"),
        ("{ipBlock: {cidr: 0}}", ".ipBlock.cidr"),
        ("{ipBlock: {cidr: 0.0.0.0/0, except: [10.9.0.0]}}", ".ipBlock.except[0]"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}", ".ipBlock.except[0]"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}", ".ipBlock.except[0]"),
        ("{ipBlock: {cidr: 0.0.0.0/0, except: 10.9.0.0/16}}", ".ipBlock.except"),
        ("{ipBlock: {cidr: 0.0.0.0/0, exept: [10.9.0.0/16]}}", ".ipBlock.exept"),
        ("{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}", ".ipBlock"),
        ("{namespaceSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}", ".ipBlock"),
        ("{namespaceSelector: {}, serviceAccountSelector: {}}", ".serviceAccountSelector"),
        ("{namespaceSelector: all}", ".namespaceSelector"),
        ("{namespaceSelector: {matchLabels: [a]}}", ".namespaceSelector.matchLabels"),
        ("{namespaceSelector: {matchLabel: {a: b}}}", ".namespaceSelector.matchLabel"),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: notin, values: [b]}]}}",
            ".namespaceSelector.matchExpressions[0].operator",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}",
            ".namespaceSelector.matchExpressions[0].operator",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a}]}}",
            ".namespaceSelector.matchExpressions[0].operator",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{operator: DoesNotExist}]}}",
            ".namespaceSelector.matchExpressions[0].key",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: NotIn}]}}",
            ".namespaceSelector.matchExpressions[0].values",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: In, values: []}]}}",
            ".namespaceSelector.matchExpressions[0].values",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}}",
            ".namespaceSelector.matchExpressions[0].values",
        ),
    ] {
        check_network_policy(
            &db(&format!("ingress: [{{from: [{peer}]}}]")),
            &format!("spec.ingress[0].from[0]{field}"),
        );
    }
}

#[test]
fn a_port_that_means_nothing_lets_nobody_in() {
    for (port, field) in [
        ("{port: 80, endPort: 79}", ".endPort"),
        ("{port: sql, endPort: 90}", ".endPort"),
        ("{endPort: 90}", ".endPort"),
        ("{port: 1, endPort: 65536}", ".endPort"),
        ("{port: 80, endPort: '90'}", ".endPort"),
        ("{port: 0}", ".port"),
        ("{port: 70000}", ".port"),
        ("{port: '80'}", ".port"),
        ("{port: [80]}", ".port"),
        ("{port: 80, protocol: tcp}", ".protocol"),
        ("{port: 80, protocol: HTTP}", ".protocol"),
        ("{protocol: ''}", ".protocol"),
        ("{port: 80, proto: UDP}", ".proto"),
        ("{ports: [80]}", ".ports"),
        ("80", ""),
        ("null", ""),
    ] {
        check_network_policy(
            &db(&format!("ingress: [{{ports: [{port}]}}]")),
            &format!("spec.ingress[0].ports[0]{field}"),
        );
    }
}

#[test]
fn a_rule_or_policy_that_means_nothing_lets_nobody_in() {
    for (rest, field) in [
        ("ingress: [{form: [{podSelector: {}}]}]", "spec.ingress[0].form"),
        ("ingress: [{from: {podSelector: {}}}]", "spec.ingress[0].from"),
        ("ingress: [{ports: 80}]", "spec.ingress[0].ports"),
        ("ingress: [all]", "spec.ingress[0]"),
        ("ingress: [null]", "spec.ingress[0]"),
        ("ingress: {from: []}", "spec.ingress"),
        ("ingress: all", "spec.ingress"),
        ("ingress: [{}], policyTypes: [ingress]", "spec.policyTypes[0]"),
        ("ingress: [{}], policyTypes: Ingress", "spec.policyTypes"),
        ("ingress: [{}], policyTypes: [null]", "spec.policyTypes[0]"),
        ("ingres: [{}]", "spec.ingres"),
        ("ingress: [{}], defaultAllow: true", "spec.defaultAllow"),
    ] {
        check_network_policy(&db(rest), field);
    }
    for (spec, field) in [
        ("{podSelector: {matchLabels: {app: 1}}, ingress: [{}]}", "spec.podSelector.matchLabels.app"),
        ("{podSelector: {matchLabel: {app: db}}, ingress: [{}]}", "spec.podSelector.matchLabel"),
        ("{podSelector: db, ingress: [{}]}", "spec.podSelector"),
        (
            "{podSelector: {matchExpressions: [{key: app, operator: Is, values: [db]}]}, ingress: [{}]}",
            "spec.podSelector.matchExpressions[0].operator",
        ),
        ("everything", "spec"),
        ("[{}]", "spec"),
    ] {
        check_network_policy(spec, field);
    }
}

#[test]
fn lists_that_are_null_mean_what_lists_that_are_absent_mean() {
    for (rest, wanted) in [
        ("ingress: null", "X.X"),
        ("ingress: [], egress: null, policyTypes: null", "X.X"),
        ("ingress: [{from: null, ports: null}]", "..."),
        ("ingress: [{from: [{namespaceSelector: {matchLabels: null, matchExpressions: null}}]}]", "..."),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: null}}]}]", "X.."),
    ] {
        let text = format!("metadata: {{name: p, namespace: shop}}\nspec: {}", db(rest));
        let asked = ask("networking.k8s.io/v1", "NetworkPolicy", &text);
        assert_eq!(asked.problems(), [""; 0], "{rest}");
        let ingress = &asked.tables("TCP/80").ingress;
        let column: String = ingress.iter().map(|row| row.as_bytes()[1] as char).collect();
        assert_eq!(column, wanted, "{rest}");
    }
}

#[test]
fn a_policy_of_a_type_that_does_not_exist_closes_its_namespace() {
    let spec = db("ingress: [{}]");
    for version in ["networking.k8s.io/v1beta1", "extensions/v1beta1", "v1"] {
        let asked =
            ask(version, "NetworkPolicy", &format!("metadata: {{name: p, namespace: shop}}\nspec: {spec}"));
        check(&asked, "NetworkPolicy shop/p", "apiVersion", version);
    }
    let spec = "{subject: {}, ingress: {rules: [{action: Accept, from: [{pods: {}}]}]}}";
    for version in ["portcullis.dev/v1", "portcullis.dev/v1beta1", "v1"] {
        let asked =
            ask(version, "IdentityPolicy", &format!("metadata: {{name: p, namespace: shop}}\nspec: {spec}"));
        check(&asked, "IdentityPolicy shop/p", "apiVersion", version);
    }
    let rest = format!("metadata: {{namespace: shop}}\nspec: {}", db("ingress: [{ports: [{port: 81}]}]"));
    let asked = ask("networking.k8s.io/v1", "NetworkPolicy", &rest);
    check(&asked, "NetworkPolicy", "metadata.name", "a policy without a name");
}

#[test]
fn an_identity_policy_that_means_nothing_lets_nobody_in() {
    let subject = "subject: {serviceAccounts: {names: [default]}}";
    let accept = |rest: &str| format!("{{{subject}, ingress: {{rules: [{{action: Accept, {rest}}}]}}}}");
    let everyone = "from: [{pods: {namespaces: {}}}]";
    for (spec, field) in [
        (accept("from: [{}]"), "spec.ingress.rules[0].from[0]"),
        (accept("from: [{pods: {}, entities: [node]}]"), "spec.ingress.rules[0].from[0]"),
        (accept("from: [{ipBlock: {cidr: 10.0.0.0/99}}]"), "spec.ingress.rules[0].from[0].ipBlock.cidr"),
        (accept("from: [{entities: [everyone]}]"), "spec.ingress.rules[0].from[0].entities[0]"),
        (
            accept("from: [{serviceAccounts: {names: []}}]"),
            "spec.ingress.rules[0].from[0].serviceAccounts.names",
        ),
        (accept("from: []"), "spec.ingress.rules[0].from"),
        (accept(&format!("{everyone}, protocols: [{{}}]")), "spec.ingress.rules[0].protocols[0]"),
        (
            accept(&format!("{everyone}, protocols: [{{icmp: {{}}}}]")),
            "spec.ingress.rules[0].protocols[0].icmp",
        ),
        (accept(&format!("{everyone}, ports: [80]")), "spec.ingress.rules[0].ports"),
        (
            accept(&format!(
                "{everyone}, protocols: [{{tcp: {{destinationPort: {{range: {{start: 90, end: 80}}}}}}}}]"
            )),
            "spec.ingress.rules[0].protocols[0].tcp.destinationPort.range",
        ),
        (accept(everyone).replace("Accept", "Permit"), "spec.ingress.rules[0].action"),
        (accept(everyone).replace("names: [default]", "names: []"), "spec.subject.serviceAccounts.names"),
        (accept(everyone).replace(subject, "subject: {pods: {}}"), "spec.subject.pods"),
        (accept(everyone).replace(subject, "mode: Enforce"), "spec"),
        ("all".to_owned(), "spec"),
    ] {
        let rest = format!("metadata: {{name: p, namespace: shop}}\nspec: {spec}");
        let asked = ask("portcullis.dev/v1alpha1", "IdentityPolicy", &rest);
        check(&asked, "IdentityPolicy shop/p", field, &spec);
    }
}

#[test]
fn of_policies_with_the_same_name_one_counts_and_both_places_are_named() {
    let policy = |rest: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {}\n",
            db(rest)
        )
    };
    let (closed, open) = (policy("ingress: []"), policy("ingress: [{}]"));
    let options = Options { ports: vec!["TCP/80".parse().unwrap()], ..Options::default() };
    let one_file =
        Folder::new(&[("pods.yaml", PODS), ("policy.yaml", &format!("{closed}{open}"))]).ask(&options);
    let two_files =
        Folder::new(&[("pods.yaml", PODS), ("a.yaml", &closed), ("policy.yaml", &open)]).ask(&options);
    for (asked, what, document) in [
        (one_file, "is already defined in this file", 2),
        (two_files, "is also defined in a.yaml, document 1", 1),
    ] {
        let ingress = &asked.tables("TCP/80").ingress;
        assert_eq!(ingress, &[".X.", "...", ".X."], "the first one counts, and closes");
        let problems = asked.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let start = format!("policy.yaml: document {document} (NetworkPolicy shop/p), line ");
        assert!(problems[0].starts_with(&start) && problems[0].contains(what), "{problems:?}");
        assert!(problems[0].contains("field `metadata.name`"), "{problems:?}");
    }
}

#[test]
fn beyond_the_limits_of_a_document_nothing_is_opened_and_the_rest_is_shown() {
    // More unclear parts than are narrowed one by one: the whole policy is closed.
    let peers: Vec<String> = (0..100).map(|i| format!("{{cluster: c{i}}}")).collect();
    let many = db(&format!("ingress: [{{from: [{}]}}, {{}}]", peers.join(", ")));
    let rest = format!("metadata: {{name: p, namespace: shop}}\nspec: {many}");
    let asked = ask("networking.k8s.io/v1", "NetworkPolicy", &rest);
    assert_eq!(asked.tables("TCP/80").ingress.len(), 3);
    assert!(!asked.problems().is_empty());
    // Deeper than a document may be: it cannot be read, and the other documents and files are.
    let deep =
        format!("metadata: {{name: p, namespace: shop}}\nspec: {}{}", "[".repeat(200), "]".repeat(200));
    let asked = ask("networking.k8s.io/v1", "NetworkPolicy", &deep);
    assert_eq!(asked.found.names, ["ops/far", "shop/db", "shop/web"]);
    assert!(asked.problems()[0].starts_with("policy.yaml: document 1"), "{:?}", asked.problems());
}
