//! Enforce, Audit and Off, of policies and namespaces, and the default verdict.

use super::*;

fn shop() -> Cluster {
    Cluster::new([pod("shop", "db").ip("10.0.0.1"), pod("shop", "web").ip("10.0.0.2")])
}

const WEB: &str = "10.0.0.2";
const CLOSED: &str = "{ingress: [{ports: [{port: 80}]}]}";

#[test]
fn the_most_lenient_of_policy_and_namespace_wins() {
    for (namespace, policy, wanted) in [
        (None, None, Deny),
        (Some("enforce"), Some("Enforce"), Deny),
        (Some("audit"), None, Audit),
        (None, Some("AUDIT"), Audit),
        (Some("Audit"), Some("enforce"), Audit),
        (Some("enforce"), Some("audit"), Audit),
        (Some("off"), Some("audit"), Allow),
        (Some("audit"), Some("off"), Allow),
        (None, Some("off"), Allow),
    ] {
        let label = namespace.map(|mode| ("portcullis.dev/mode", mode));
        let cluster = shop().namespace("shop", label.as_slice());
        let by_annotation = cluster.clone().np_mode("shop/p", policy, CLOSED).compile();
        assert_eq!(by_annotation.verdict("db", Ingress, WEB, "tcp/81"), wanted, "{namespace:?} {policy:?}");
        assert_eq!(by_annotation.verdict("db", Ingress, WEB, "tcp/80"), Allow);
        let mode = match policy.map(str::to_lowercase).as_deref() {
            Some("audit") => "mode: Audit, ",
            Some("off") => "mode: Off, ",
            _ => "",
        };
        let by_field =
            cluster.idp("shop/p", &format!("{{{mode}subject: {{}}, ingress: {{rules: []}}}}")).compile();
        assert_eq!(by_field.verdict("db", Ingress, WEB, "tcp/81"), wanted, "{namespace:?} {policy:?}");
        assert!(by_field.desired.problems.is_empty() && by_annotation.desired.problems.is_empty());
    }
}

#[test]
fn a_mode_that_is_not_understood_enforces_and_is_reported() {
    let compiled = shop()
        .namespace("shop", &[("portcullis.dev/mode", "adit")])
        .np_mode("shop/p", Some("of"), CLOSED)
        .compile();
    assert_eq!(compiled.verdict("db", Ingress, WEB, "tcp/81"), Deny);
    let places: Vec<(&str, &str)> =
        compiled.desired.problems.iter().map(|p| (p.object.as_str(), p.field.as_str())).collect();
    assert_eq!(
        places,
        [
            ("Namespace shop", "metadata.labels[portcullis.dev/mode]"),
            ("NetworkPolicy shop/p", "metadata.annotations[portcullis.dev/mode]")
        ]
    );
}

#[test]
fn enforced_and_audited_policies_together() {
    // Enforced: 80 and 81. Audited: isolates with 80 only, and would add 443.
    let enforced = "{ingress: [{ports: [{port: 80}, {port: 81}]}]}";
    let deny = "{mode: Audit, subject: {}, ingress: {rules: [
        {action: Deny, from: [{pods: {}}], protocols: [{tcp: {destinationPort: {number: 81}}}]},
        {action: Accept, from: [{pods: {}}], protocols: [{tcp: {destinationPort: {number: 443}}}]}]}}";
    let compiled = shop().np("shop/enforced", enforced).idp("shop/audited", deny).compile();
    let decision = |port| compiled.decision("db", Ingress, WEB, port);
    assert_eq!(decision("tcp/80"), (Allow, Reason::Policy, "NetworkPolicy shop/enforced ingress[0]"));
    assert_eq!(decision("tcp/81"), (Audit, Reason::Policy, "IdentityPolicy shop/audited ingress[0]"));
    // E denies: what the audited policy would allow does not count.
    assert_eq!(
        decision("tcp/443"),
        (Deny, Reason::Policy, "NetworkPolicy shop/enforced ingress (isolation)")
    );
    assert_eq!(decision("icmp").0, Deny);
}

#[test]
fn an_audited_isolation_alone_audits_what_it_would_deny() {
    let compiled = shop().np_mode("shop/p", Some("audit"), CLOSED).compile();
    let audited = (Audit, Reason::Policy, "NetworkPolicy shop/p ingress (isolation)");
    assert_eq!(compiled.decision("db", Ingress, WEB, "tcp/81"), audited);
    assert_eq!(compiled.verdict("db", Ingress, WEB, "tcp/80"), Allow);
}

#[test]
fn the_default_verdict_is_the_last_step_and_namespaces_can_be_lenient_about_it() {
    let compiled = shop().default_deny().np("shop/p", CLOSED).compile();
    assert_eq!(compiled.decision("db", Egress, WEB, "tcp/80"), (Deny, Reason::Default, ""));
    assert_eq!(compiled.verdict("db", Ingress, WEB, "tcp/80"), Allow);
    for (mode, wanted) in [("audit", Audit), ("off", Allow)] {
        let cluster = shop().default_deny().namespace("shop", &[("portcullis.dev/mode", mode)]);
        let plain = cluster.compile();
        assert_eq!(plain.decision("db", Ingress, WEB, "tcp/80"), (wanted, Reason::Default, ""), "{mode}");
        let with_policy = cluster.np("shop/p", CLOSED).compile();
        assert_eq!(with_policy.verdict("db", Ingress, WEB, "tcp/80"), Allow, "{mode}");
        assert_eq!(with_policy.verdict("db", Ingress, WEB, "tcp/81"), wanted, "{mode}");
        assert_eq!(with_policy.verdict("db", Egress, WEB, "tcp/81"), wanted, "{mode}");
    }
}

#[test]
fn an_accept_without_isolation_does_not_override_the_default() {
    let spec = "{subject: {}, ingress: {isolate: false, rules: [{action: Accept, from: [{pods: {}}]}]}}";
    let compiled = shop().default_deny().idp("shop/p", spec).compile();
    assert_eq!(compiled.decision("db", Ingress, WEB, "tcp/80"), (Deny, Reason::Default, ""));
}

#[test]
fn the_mode_is_that_of_the_subjects_namespace_not_of_the_peers() {
    let compiled = shop()
        .pod(pod("ops", "far").ip("10.0.1.1"))
        .namespace("ops", &[("portcullis.dev/mode", "off")])
        .np("shop/p", CLOSED)
        .np("ops/p", CLOSED)
        .compile();
    assert_eq!(compiled.verdict("db", Ingress, "10.0.1.1", "tcp/81"), Deny);
    assert_eq!(compiled.verdict("far", Ingress, WEB, "tcp/81"), Allow);
}

#[test]
fn what_is_wrong_with_the_clusters_config_map_is_reported_with_what_holds() {
    use portcullis_common::abi::Mode;

    use crate::model::{ClusterConfig, ModeSetting, Object};
    let mut cluster = shop();
    let unreadable = |before| ModeSetting::Unreadable { text: "adit".to_owned(), before };
    let config = |namespace: &str, mode, keys: &[&str]| {
        Object::ClusterConfig(ClusterConfig {
            namespace: namespace.to_owned(),
            name: ClusterConfig::NAME.to_owned(),
            mode,
            unknown_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        })
    };
    cluster.0.apply(config("portcullis-system", unreadable(Some(Mode::Audit)), &["moed"]));
    cluster.0.apply(config("default", ModeSetting::Unset, &[]));
    let problems: Vec<String> = cluster
        .compile()
        .desired
        .problems
        .into_iter()
        .map(|p| format!("{} {}: {}", p.object, p.field, p.message))
        .collect();
    assert_eq!(
        problems,
        [
            "ConfigMap default/portcullis metadata.namespace: it is not in the namespace of Portcullis, \
             `portcullis-system`: it decides nothing; move it there, or give the agent the right --namespace",
            "ConfigMap portcullis-system/portcullis data.mode: \"adit\" is no mode: what was set before, audit, stays in \
             force; write Enforce, Audit or Disabled",
            "ConfigMap portcullis-system/portcullis data[moed]: this key is not known: it decides nothing; correct it or \
             remove it (known: mode)",
        ]
    );
    cluster.0.delete(&config("portcullis-system", ModeSetting::Unset, &[]).key(), None);
    cluster.0.apply(config("portcullis-system", unreadable(None), &[]));
    let problems = cluster.compile().desired.problems;
    assert!(problems.iter().any(|p| p.message.contains("the agent's flag decides, enforce")), "{problems:?}");
}
