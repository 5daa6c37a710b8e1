//! What a folder of a policy repository looks like: workloads without addresses, objects that are not there, nodes.

use portcullis::matrix::{By, Options};
use portcullis_common::Verdict;

use crate::folder::{Asked, Folder};

/// A pod of `shop` that runs as an account.
fn pod(name: &str, account: &str, rest: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}, \
         spec: {{serviceAccountName: {account}}}{rest}}}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {spec}}}\n"
    )
}

fn identity_policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: portcullis.dev/v1alpha1, kind: IdentityPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {spec}}}\n"
    )
}

const FROM_API: &str =
    "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}";

#[test]
fn workloads_stand_for_their_pods_and_the_diagonal_is_another_of_them() {
    let workload = |kind: &str, version: &str, name: &str| {
        format!(
            "---\n{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}, namespace: shop}}, spec: {{template: \
             {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: c, ports: [{{containerPort: 5432}}]}}]}}}}}}}}\n"
        )
    };
    let mut text = policy("db", FROM_API) + &pod("web", "web", "");
    text += &workload("StatefulSet", "apps/v1", "db");
    text += &workload("Deployment", "apps/v1", "api");
    text += "---\n{apiVersion: batch/v1, kind: CronJob, metadata: {name: night, namespace: shop}, spec: {jobTemplate: {spec: \
             {template: {metadata: {labels: {app: api}}, spec: {hostNetwork: false}}}}}}\n";
    let asked = Folder::new(&[("all.yaml", &text)]).ask(&Options::default());
    assert_eq!(asked.ports(), ["TCP/5432"], "a port without a name, of a workload");
    // A StatefulSet's pods do not reach each other by this policy; only a pod reaches itself.
    let wanted = "\
..I. shop/cronjob/night
..I. shop/deployment/api
..I. shop/statefulset/db
..I. shop/web
";
    let closed = wanted.replace(
        "..I. shop/cronjob/night\n..I. shop/deployment/api",
        ".... shop/cronjob/night\n.... shop/deployment/api",
    );
    assert_eq!(asked.shown(), closed);
    assert_eq!(asked.problems(), [""; 0]);
    assert_eq!(
        asked.note("no ServiceAccount"),
        "no ServiceAccount in the folder, taken for one with no labels: shop/web"
    );
    assert_eq!(
        asked.note("no Namespace"),
        "no Namespace in the folder, taken for one with no labels but its name: shop"
    );
}

#[test]
fn a_pod_reaches_itself_whatever_policies_say_and_where_a_pod_runs_plays_no_part() {
    let closed = policy("closed", "{policyTypes: [Ingress, Egress]}");
    let placed = |node: &str| {
        pod("a", "default", "")
            + &pod("b", "default", "").replace("spec: {", &format!("spec: {{nodeName: {node}, "))
    };
    for text in [placed("one"), placed("two")] {
        assert_eq!(Asked::about(&(text + &closed), "TCP/80").shown(), ".X shop/a\nX. shop/b\n");
    }
}

#[test]
fn names_are_in_the_order_of_namespace_and_name() {
    let text = pod("b", "default", "")
        + &pod("a-1", "default", "")
        + &pod("a", "default", "").replace("shop", "shop-2")
        + &pod("a", "default", "");
    let asked = Asked::about(&text, "TCP/80");
    assert_eq!(asked.found.names, ["shop/a", "shop/a-1", "shop/b", "shop-2/a"]);
}

#[test]
fn audit_is_shown_and_counts_as_allowed_and_what_is_off_is_not_there() {
    let audited = |mode: &str| {
        policy("p", FROM_API)
            .replace("name: p,", &format!("name: p, annotations: {{portcullis.dev/mode: {mode}}},"))
    };
    let pods = pod("api", "default", "") + &pod("db", "default", "") + &pod("web", "default", "");
    for (mode, shown) in [("audit", ".a."), ("\"off\"", "..."), ("enforce", ".I.")] {
        let asked = Asked::about(&(pods.clone() + &audited(mode)), "TCP/80");
        assert_eq!(asked.found.tables[0].1.shown[2], shown, "{mode}");
        let wanted = if mode == "enforce" { ".X." } else { "..." };
        assert_eq!(asked.found.tables[0].1.combined[2], wanted, "{mode}");
    }
    let config = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: portcullis, namespace: portcullis-system}, data: {mode: audit}}\n";
    let asked = Asked::about(&(pods + &policy("p", FROM_API) + config), "TCP/80");
    assert_eq!(asked.found.tables[0].1.combined[2], ".X.");
    asked.note("sets mode audit for the whole cluster");
}

#[test]
fn who_takes_no_part_is_named() {
    let host = pod("host", "default", "").replace("spec: {", "spec: {hostNetwork: true, ");
    let text = pod("a", "default", "")
        + &host
        + &pod("done", "default", ", status: {phase: Succeeded, podIP: 10.0.0.9}")
        + &pod("old", "default", ", status: {podIP: 10.0.0.9, startTime: '2026-01-01T00:00:00Z'}")
        + &pod("new", "default", ", status: {podIP: 10.0.0.9, startTime: '2026-01-02T00:00:00Z'}")
        + &pod("x", "default", "").replace("namespace: shop", "namespace: bad")
        + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: bad, labels: [a]}}\n"
        + &"---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n".repeat(2)
        + "---\n{apiVersion: crd.example.org/v1, kind: GlobalNetworkPolicy, metadata: {name: g}}\n";
    let asked = Asked::about(&text, "TCP/80");
    assert_eq!(asked.found.names, ["shop/a", "shop/new"]);
    assert_eq!(asked.note("hostNetwork").rsplit(": ").next(), Some("shop/host"));
    assert_eq!(asked.note("finished").rsplit(": ").next(), Some("shop/done"));
    assert_eq!(asked.note("has the address").rsplit(": ").next(), Some("shop/old"));
    assert_eq!(asked.note("Namespace is not understood").rsplit(": ").next(), Some("bad/x"));
    asked.note("GlobalNetworkPolicy g: this kind decides nothing");
    assert_eq!(
        asked.problems().len(),
        2,
        "a Namespace that is unclear, one that is there twice: {:?}",
        asked.problems()
    );
}

#[test]
fn by_principal_a_cell_is_what_holds_for_all_pods_of_both() {
    let text = pod("db-0", "db", "").replace("app: db-0", "app: db")
        + &pod("api-0", "api", "")
        + &pod("api-1", "api", "").replace("labels: {", "labels: {front: 'yes', ")
        + &policy(
            "db",
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {front: 'yes'}}}]}]}",
        )
        + &identity_policy(
            "api",
            "{subject: {serviceAccounts: {names: [api]}}, ingress: {rules: [{action: Accept, from: [{serviceAccounts: {names: [api]}}]}]}}",
        );
    let options = Options { by: By::Principal, ports: vec!["TCP/80".parse().unwrap()], ..Options::default() };
    let asked = Folder::new(&[("all.yaml", &text)]).ask(&options);
    // `db` has one pod here; another one of the same account would be denied as any other.
    assert_eq!(asked.shown(), ".~ shop/api\nII shop/db\n");
    assert_eq!(asked.found.tables[0].1.combined, [".~", "XX"]);
    let pods = Folder::new(&[("all.yaml", &text)]).ask(&Options { by: By::Pod, ..options });
    assert_eq!(pods.shown(), "..I shop/api-0\n... shop/api-1\nII. shop/db-0\n");
}

#[test]
fn the_default_ports_are_those_that_policies_and_containers_name() {
    let ports = "{podSelector: {}, ingress: [{ports: [{port: 443}, {port: 8000, endPort: 8010, protocol: UDP}, {port: web}, {protocol: SCTP}]}]}";
    let web = pod("web", "default", "").replace(
        "spec: {",
        "spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}, {containerPort: 9}]}], ",
    );
    let asked = Folder::new(&[("all.yaml", &(web.clone() + &policy("p", ports)))]).ask(&Options::default());
    assert_eq!(asked.ports(), ["TCP/9", "TCP/443", "TCP/8080", "UDP/8000", "UDP/8010"]);
    let bare = Folder::new(&[("all.yaml", &pod("a", "default", ""))]).ask(&Options::default());
    assert_eq!(bare.ports(), ["TCP/80"]);
    bare.note("no policy and no container names a port");
}

#[test]
fn blocks_see_the_ranges_that_are_given_and_a_note_says_so() {
    let block = policy(
        "p",
        "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.7.0.0/16]}}]}]}",
    );
    let text = pod("a", "default", "") + &pod("b", "default", "") + &block;
    let folder = Folder::new(&[("all.yaml", &text)]);
    let ports = vec!["TCP/80".parse().unwrap()];
    let options = Options { ports: ports.clone(), ..Options::default() };
    let asked = folder.ask(&options);
    assert_eq!(asked.shown(), ".. shop/a\n.. shop/b\n");
    asked.note(
        "2 pods without an address in the folder got one of 10.244.0.0/16, and rules with ipBlock look at it",
    );
    let asked = folder.ask(&Options { pod_cidrs: vec!["10.7.0.0/16".parse().unwrap()], ..options });
    assert_eq!(asked.shown(), ".I shop/a\n.. shop/b\n");
    let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.7.1.0/24}}\n";
    assert_eq!(Asked::about(&(text + node), "TCP/80").shown(), ".I shop/a\n.. shop/b\n");
}

#[test]
fn ip_versions_that_do_not_agree_are_shown_and_said() {
    let status = |v4: &str, v6: &str| format!(", status: {{podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}");
    let text = pod("a", "default", &status("10.0.0.1", "fd00::1"))
        + &pod("b", "default", &status("10.0.0.2", "fd00::2"))
        + &pod("c", "default", ", status: {podIPs: [{ip: 10.0.0.3}]}")
        + &pod("d", "default", ", status: {podIPs: [{ip: 'fd00::4'}]}")
        + &policy(
            "p",
            "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        );
    let asked = Asked::about(&text, "TCP/80");
    assert_eq!(asked.shown(), ".4.. shop/a\n.... shop/b\n...- shop/c\n.I-. shop/d\n");
    assert_eq!(asked.found.tables[0].1.combined, ["....", "....", "...X", ".XX."]);
    asked.note("1 cell pass over IPv4 and not over IPv6, which counts as allowed; the first: shop/a to shop/b on TCP/80");
    asked.note("2 cells have no IP version in common");
}

#[test]
fn the_default_verdict_is_that_of_the_flag() {
    let folder = Folder::new(&[("all.yaml", &(pod("a", "default", "") + &pod("b", "default", "")))]);
    let asked = folder.ask(&Options { default_verdict: Verdict::Deny, ..Options::default() });
    assert_eq!(asked.shown(), ".X shop/a\nX. shop/b\n");
}

#[test]
fn hundreds_of_pods_take_seconds() {
    let mut text = String::new();
    for i in 0..500 {
        text += &pod(&format!("p{i}"), &format!("a{}", i % 50), "")
            .replace("labels: {", &format!("labels: {{tier: t{}, ", i % 25));
    }
    for i in 0..100 {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{tier: t{}}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{tier: t{}}}}}}}], ports: \
             [{{port: {}}}]}}]}}",
            i % 25,
            i % 7,
            80 + i % 3
        );
        text += &policy(&format!("n{i}"), &spec);
    }
    let folder = Folder::new(&[("all.yaml", &text)]);
    let start = std::time::Instant::now();
    let asked = folder.ask(&Options::default());
    let took = start.elapsed();
    println!("500 pods, 100 policies, 3 ports: {took:?}");
    assert_eq!(asked.ports(), ["TCP/80", "TCP/81", "TCP/82"]);
    let denied = asked.found.tables[0]
        .1
        .combined
        .iter()
        .flat_map(|row| row.bytes())
        .filter(|cell| *cell == b'X')
        .count();
    assert!(denied > 100_000 && denied < 249_500, "{denied}");
    assert!(took.as_secs() < 60, "{took:?}, without optimisation and on a busy machine");
}
