//! Who is behind which address.

use portcullis_common::{Identity, Kind};

use super::*;

fn kind(compiled: &Compiled, address: &str) -> Option<Kind> {
    Kind::from_number(compiled.maps.identity(ip(address)).kind)
}

#[test]
fn pods_nodes_this_host_the_pod_range_and_the_outside() {
    let mut cluster = Cluster::new([pod("shop", "a").sa("api").ip("10.0.0.1").ip("fd00::1")]).here();
    cluster.0.settings.local_addresses = [ip("192.168.7.7"), ip("10.0.0.254")].into();
    cluster.0.settings.pod_cidrs = vec!["fd00::/64".parse().unwrap()];
    let compiled = cluster.compile();
    for (address, wanted) in [
        ("10.0.0.1", Kind::Pod),
        ("fd00::1", Kind::Pod),
        ("172.18.0.2", Kind::Host),
        ("fd18::2", Kind::Host),
        ("192.168.7.7", Kind::Host),
        ("10.0.0.254", Kind::Host),
        ("172.18.0.3", Kind::Node),
        ("10.0.0.9", Kind::Unmanaged),
        ("10.0.1.9", Kind::Unmanaged),
        ("fd00::9", Kind::Unmanaged),
        ("10.0.2.1", Kind::World),
        ("fd01::1", Kind::World),
    ] {
        assert_eq!(kind(&compiled, address), Some(wanted), "{address}");
        let identity = compiled.maps.identity(ip(address));
        let principal = &compiled.desired.names.principals[&identity.principal];
        assert_eq!(principal, if wanted == Kind::Pod { "shop/api" } else { wanted.name() });
        assert!(compiled.desired.names.peers.contains_key(&identity.peer));
    }
    assert_eq!(
        compiled.prefix("0.0.0.0/0"),
        Identity::WORLD,
        "no policy has a block: nothing is known of it"
    );
    assert_eq!(compiled.prefix("::/0"), Identity::WORLD);
}

#[test]
fn a_pod_routes_if_it_asks_for_it_and_its_namespace_allows_it() {
    for (asks, label, wanted) in [
        (true, Some("allowed"), true),
        (true, Some("true"), false),
        (true, None, false),
        (false, Some("allowed"), false),
    ] {
        let gateway = Pod { routes: asks, ..pod("edge", "gw").sa("gw").ip("10.0.0.1") };
        let mut cluster = Cluster::new([gateway]);
        let labels = &mut cluster.0.namespaces.get_mut("edge").expect("the namespace").labels;
        labels.extend(label.map(|value| (crate::api::ROUTING_LABEL.to_owned(), value.to_owned())));
        let compiled = cluster.compile();
        assert_eq!(compiled.desired.pods["gw"].routes, wanted, "asks: {asks}, label: {label:?}");
    }
}

#[test]
fn the_newer_of_two_pods_has_the_address_and_the_older_loses_its_endpoint() {
    let old = Pod { sandbox_started: 1, ..pod("shop", "z-old").sa("api").ip("10.0.0.1").ip("fd00::1") };
    let new = Pod { sandbox_started: 2, ..pod("shop", "new").sa("web").ip("10.0.0.1") };
    for pods in [[old.clone(), new.clone()], [new, old]] {
        let compiled = Cluster::new(pods).compile();
        let principal =
            |address| &compiled.desired.names.principals[&compiled.maps.identity(ip(address)).principal];
        assert_eq!([principal("10.0.0.1"), principal("fd00::1")], ["shop/web", "shop/api"]);
        assert_eq!(compiled.desired.pods["new"].addresses, [ip("10.0.0.1")]);
        assert_eq!(compiled.desired.pods["z-old"].addresses, [ip("fd00::1")]);
    }
}

#[test]
fn a_pod_is_unmanaged_until_its_namespace_and_account_are_known() {
    let full = Cluster::new([pod("shop", "a").sa("api").ip("198.51.100.1")]).np(
        "shop/p",
        "{egress: [{to: [{namespaceSelector: {matchExpressions: [{key: x, operator: NotIn, values: [y]}]}}]}]}",
    );
    let mut no_namespace = full.clone();
    no_namespace.0.namespaces.clear();
    let mut no_account = full.clone();
    no_account.0.service_accounts.clear();
    assert_eq!(kind(&full.compile(), "198.51.100.1"), Some(Kind::Pod));
    for cluster in [no_namespace, no_account] {
        let compiled = cluster
            .pod(pod("ops", "b").ip("10.0.0.2"))
            .np("ops/p", "{ingress: [{from: [{namespaceSelector: {}}]}]}");
        let compiled = compiled.compile();
        // Outside of every pod range, and still known to be a pod's: unmanaged, not the outside.
        assert_eq!(kind(&compiled, "198.51.100.1"), Some(Kind::Unmanaged));
        assert!(!compiled.desired.pods.contains_key("a"));
        assert_eq!(compiled.verdict("b", Ingress, "198.51.100.1", "tcp/1"), Deny, "not any pod");
    }
}

#[test]
fn an_address_of_a_node_is_the_nodes_whoever_claims_it() {
    let compiled =
        Cluster::new([pod("shop", "a").ip("172.18.0.2").ip("10.0.0.1"), pod("shop", "b").ip("172.18.0.3")])
            .here()
            .node(node("aaa", &["172.18.0.2"], &[]))
            .compile();
    assert_eq!(kind(&compiled, "172.18.0.2"), Some(Kind::Host));
    assert_eq!(kind(&compiled, "172.18.0.3"), Some(Kind::Node));
    assert!(!compiled.desired.pods.contains_key("b"));
}

#[test]
fn an_address_in_an_overlay_is_its_nodes_unless_a_pod_has_it() {
    let far = |tunnels: &[&str]| Node {
        tunnel_addresses: tunnels.iter().map(|address| ip(address)).collect(),
        ..node("there", &["172.18.0.3"], &["10.0.1.0/24"])
    };
    let cluster = Cluster::new([pod("shop", "a").sa("api").ip("10.0.1.5")]).here();
    let compiled = cluster.clone().node(far(&["10.0.1.0", "10.0.1.5"])).compile();
    assert_eq!(kind(&compiled, "10.0.1.0"), Some(Kind::Node));
    assert_eq!(kind(&compiled, "10.0.1.5"), Some(Kind::Pod), "a pod's, whatever an annotation says");
    let own =
        Node { tunnel_addresses: vec![ip("10.0.0.0")], ..node("here", &["172.18.0.2"], &["10.0.0.0/24"]) };
    let compiled = cluster.node(far(&[])).node(own).compile();
    assert_eq!(kind(&compiled, "10.0.0.0"), Some(Kind::Host));
    assert_eq!(kind(&compiled, "10.0.1.0"), Some(Kind::Unmanaged), "it has gone");
}

#[test]
fn only_pods_of_this_node_have_endpoints_and_ingress_rows() {
    let cluster = Cluster::new([
        pod("shop", "mine").ip("10.0.0.1").on("here"),
        pod("shop", "nowhere").ip("10.0.0.2"),
        pod("ops", "theirs").ip("10.0.1.1").on("there"),
        pod("dev", "open").ip("10.0.1.2").on("there"),
        Pod { finished: true, ..pod("shop", "done").ip("10.0.0.3").on("here") },
        Pod { host_network: true, ..pod("shop", "net").ip("172.18.0.2").on("here") },
        pod("shop", "pending").on("here"),
    ])
    .here()
    .np("ops/p", "{policyTypes: [Ingress, Egress], egress: [{ports: [{port: 80}]}]}")
    .np("dev/p", "{policyTypes: [Ingress]}");
    let compiled = cluster.compile();
    assert_eq!(compiled.desired.pods.keys().collect::<Vec<_>>(), ["mine", "nowhere"]);
    let identity = |address| compiled.desired.ipcache[&ip(address)];
    assert_eq!(identity("10.0.0.1").subject, compiled.desired.pods["mine"].subject);
    assert_eq!(identity("10.0.1.2").subject, 0, "no policy acts on its egress");
    let theirs = identity("10.0.1.1").subject;
    let rows = &compiled.desired.subjects[&theirs];
    assert!(rows.keys().all(|(direction, _)| *direction == Egress) && !rows.is_empty());
    let egress = |port| compiled.maps.decide(theirs, Egress, ip("10.0.0.1"), key(port)).verdict;
    assert_eq!([egress("tcp/80"), egress("tcp/81")], [Allow, Deny]);
    let mine = &compiled.desired.subjects[&compiled.desired.pods["mine"].subject];
    assert_eq!(mine.len(), 12, "the wildcard of every kind in both directions");
    assert_eq!(compiled.desired.subjects.len(), 2);
}

#[test]
fn when_subject_numbers_run_out_pods_are_denied_and_it_is_reported() {
    let cluster = Cluster::new([pod("shop", "a").ip("10.0.0.1"), pod("ops", "b").ip("10.0.0.2")])
        .np("ops/p", "{ingress: [{}]}");
    let desired = compile(&cluster.0, &mut Numbers::new(2));
    let subjects: Vec<u32> = desired.pods.values().map(|pod| pod.subject).collect();
    assert!(subjects.contains(&0) && subjects.contains(&1), "{subjects:?}");
    assert_eq!(desired.problems.len(), 1);
    let decision = HostMaps::new(&desired).decide(0, Ingress, ip("10.0.0.1"), key("tcp/1"));
    assert_eq!((decision.verdict, decision.reason), (Deny, Reason::NoPolicy));
}
