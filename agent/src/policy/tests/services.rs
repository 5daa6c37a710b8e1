//! Services: frontends, their endpoints, and what follows for the pods that send to them.

use portcullis_common::service::{EXPOSED, SERVICE_COMPILED, Service, ServiceEntry, ServiceKey};
use portcullis_common::{Identity, Kind};

use super::*;
use crate::model::{
    EndpointPort, EndpointSlice, Service as ServiceObject, ServiceCidr, ServicePort, TargetPort,
};
use crate::policy::service_key;

/// A service `shop/<name>` on TCP port 80, named `http`.
fn service(name: &str, cluster: &[&str]) -> ServiceObject {
    ServiceObject {
        namespace: "shop".into(),
        name: name.into(),
        cluster_addresses: cluster.iter().map(|text| ip(text)).collect(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: protocol::TCP,
            port: 80,
            node_port: None,
            target: TargetPort::Number(80),
        }],
        ..ServiceObject::default()
    }
}

/// Endpoints of `shop/<service>` on TCP `port`, named `http`.
fn slice(service: &str, name: &str, port: u16, addresses: &[&str]) -> EndpointSlice {
    EndpointSlice {
        namespace: "shop".into(),
        name: name.into(),
        service: service.into(),
        ports: vec![EndpointPort { name: "http".into(), protocol: protocol::TCP, port }],
        addresses: addresses.iter().map(|text| ip(text)).collect(),
    }
}

/// An agent of ours that is ready.
fn agent(node: &str) -> Pod {
    Pod { host_network: true, judges: true, ..pod("portcullis-system", &format!("agent-{node}")).on(node) }
}

impl Cluster {
    fn service(mut self, service: ServiceObject) -> Self {
        self.0.apply(Object::Service(service));
        self
    }
    fn slice(mut self, slice: EndpointSlice) -> Self {
        self.0.apply(Object::EndpointSlice(slice));
        self
    }
    fn range(mut self, cidr: &str) -> Self {
        let cidrs = vec![cidr.parse().unwrap()];
        self.0.apply(Object::ServiceCidr(ServiceCidr { name: "kubernetes".into(), cidrs }));
        self
    }
}

impl Compiled {
    fn frontend(&self, address: &str, port: u16) -> Option<&Service> {
        self.desired.services.get(&service_key(ip(address), protocol::TCP, port))
    }
    /// The endpoints of a frontend: principal, target port, whether judged again.
    fn entries(&self, address: &str, port: u16) -> Vec<(&str, u16, bool)> {
        let service = self.frontend(address, port).unwrap();
        let mut entries: Vec<_> = service.entries[..service.count as usize]
            .iter()
            .map(|entry| {
                let principal = self.desired.names.principals[&entry.principal].as_str();
                (principal, entry.port, entry.is_judged_again())
            })
            .collect();
        entries.sort_unstable();
        entries
    }
    /// What a pod of this node may do: the verdict, and the principal that it counts for.
    fn sends(&self, pod: &str, address: &str, port: &str) -> (Verdict, String) {
        let (decision, principal) =
            self.maps.decide_egress(self.desired.pods[pod].subject, ip(address), key_parts(port));
        (decision.verdict, self.desired.names.principals[&principal].clone())
    }
    fn verdicts(&self, pod: &str, address: &str, ports: &[&str]) -> Vec<Verdict> {
        ports.iter().map(|port| self.sends(pod, address, port).0).collect()
    }
}

fn key_parts(text: &str) -> (u8, u16) {
    let (name, port) = text.split_once('/').unwrap_or((text, "0"));
    let number = match name {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "icmp" => protocol::ICMP,
        other => panic!("{other}"),
    };
    (number, port.parse().unwrap())
}

/// `client` here; of `shop/web`'s endpoints one is here, one on a node whose agent judges, one where none does.
fn shop() -> Cluster {
    Cluster::new([
        pod("shop", "client").sa("client").ip("10.0.0.1").ip("fd00::1").on("here"),
        pod("shop", "here").sa("here").label("app", "web").ip("10.0.0.2").on("here"),
        pod("shop", "judged").sa("judged").label("app", "web").ip("10.0.1.2").on("there"),
        pod("shop", "alone").sa("alone").label("app", "web").ip("10.0.2.2").on("alone"),
        agent("there"),
    ])
    .here()
    .range("10.96.0.0/16")
}

fn web(addresses: &[&str]) -> Cluster {
    shop().service(service("web", &["10.96.0.1"])).slice(slice("web", "web-1", 8080, addresses))
}

fn isolated(cluster: Cluster, to: &str) -> Compiled {
    let spec = format!(
        "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{to}], ports: [{{port: 8080}}]}}]}}"
    );
    cluster.np("shop/p", &spec).compile()
}

const WEB: &str = "{podSelector: {matchLabels: {app: web}}}";

#[test]
fn an_endpoint_is_judged_again_where_an_agent_sees_the_pod_s_address() {
    let all = ["10.0.0.2", "10.0.1.2", "10.0.2.2", "172.18.0.3", "172.18.0.2", "10.0.1.77", "192.0.2.1"];
    let mut object = service("web", &["10.96.0.1"]);
    object.external_addresses = vec![ip("192.0.2.80")];
    object.ports[0].node_port = Some(30080);
    let cluster = shop().service(object).slice(slice("web", "web-1", 8080, &all));
    let compiled = cluster.compile();
    let mut wanted = vec![
        ("host", 8080, false),
        ("node", 8080, false),
        ("shop/alone", 8080, false),
        ("shop/here", 8080, true),
        ("shop/judged", 8080, true),
        ("unmanaged", 8080, false),
        ("world", 8080, false),
    ];
    assert_eq!(compiled.entries("10.96.0.1", 80), wanted);
    for entry in &mut wanted {
        entry.2 = false;
    }
    for (address, port) in [("192.0.2.80", 80), ("0.0.0.0", 30080)] {
        assert_eq!(compiled.entries(address, port), wanted, "{address}: what goes there is masqueraded");
    }
    assert_eq!(compiled.frontend("172.18.0.2", 30080), None, "one entry for every node");
    assert_eq!(compiled.frontend("::", 30080), None, "the service has no IPv6 address");

    let names = &compiled.desired.names.services;
    assert_eq!(names[&service_key(ip("10.96.0.1"), 6, 80)], "shop/web:http");

    // Not ready, in another namespace, finished, or nobody knows where: nobody judges there.
    for change in [
        |pod: &mut Pod| pod.judges = false,
        |pod: &mut Pod| pod.namespace = "shop".into(),
        |pod: &mut Pod| pod.finished = true,
        |pod: &mut Pod| pod.node.clear(),
    ] {
        let mut cluster = cluster.clone();
        change(cluster.0.pods.get_mut("agent-there").unwrap());
        let entries = cluster.compile();
        let judged = entries.entries("10.96.0.1", 80).into_iter().filter(|entry| entry.2);
        assert_eq!(judged.map(|entry| entry.0).collect::<Vec<_>>(), ["shop/here"]);
    }
}

#[test]
fn every_endpoint_that_nobody_judges_again_must_be_allowed() {
    let names = |names: &[&str]| {
        format!(
            "{{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{}]}}]}}}}",
            names.join(", ")
        )
    };
    let mut cluster = web(&["10.0.0.2", "10.0.1.2", "10.0.2.2"]);
    for name in ["here", "judged", "alone"] {
        cluster.0.pods.get_mut(name).unwrap().labels.insert("app".into(), name.into());
    }
    for (allowed, wanted) in [
        (&["here", "judged", "alone"][..], (Allow, "shop/here")),
        (&["alone", "judged"], (Allow, "shop/judged")),
        (&["here", "judged"], (Deny, "shop/alone")),
        (&["alone"], (Deny, "shop/here")),
    ] {
        let compiled = isolated(cluster.clone(), &names(allowed));
        let (verdict, principal) = compiled.sends("client", "10.96.0.1", "tcp/80");
        assert_eq!((verdict, principal.as_str()), wanted, "{allowed:?}");
    }
}

#[test]
fn the_target_port_counts_and_not_the_service_s() {
    let by_target = isolated(web(&["10.0.0.2"]), WEB);
    assert_eq!(by_target.verdicts("client", "10.96.0.1", &["tcp/80", "tcp/8080"]), [Allow, Deny]);
    let by_frontend = web(&["10.0.0.2"])
        .np("shop/p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}")
        .compile();
    assert_eq!(by_frontend.verdicts("client", "10.96.0.1", &["tcp/80"]), [Deny]);
}

#[test]
fn slices_are_matched_by_port_name_protocol_and_family() {
    let mut object = service("web", &["10.96.0.1", "fd96::1"]);
    object.ports.push(ServicePort {
        name: "dns".into(),
        protocol: protocol::UDP,
        port: 53,
        node_port: None,
        target: TargetPort::Number(53),
    });
    let mut dns = slice("web", "web-2", 5353, &["10.0.1.2"]);
    dns.ports[0].name = "dns".into();
    let mut other = slice("web", "web-3", 1, &["10.0.0.2"]);
    other.namespace = "ops".into();
    let mut cluster = shop().service(object).slice(dns.clone()).slice(other);
    cluster = cluster.slice(slice("web", "web-1", 8080, &["10.0.0.2"]));
    cluster = cluster.slice(slice("web", "web-6", 8081, &["fd00::1"]));
    let compiled = cluster.clone().compile();
    assert_eq!(compiled.entries("10.96.0.1", 80), [("shop/here", 8080, true)]);
    assert_eq!(compiled.entries("fd96::1", 80), [("shop/client", 8081, true)]);
    let udp = |compiled: &Compiled| compiled.desired.services[&service_key(ip("10.96.0.1"), 17, 53)].count;
    assert_eq!(udp(&compiled), 0, "the port of that name is TCP");
    dns.ports[0].protocol = protocol::UDP;
    let compiled = cluster.slice(dns).compile();
    assert_eq!(udp(&compiled), 1);
}

#[test]
fn without_endpoints_it_is_left_to_the_proxy_and_unknown_ports_are_denied() {
    let compiled = isolated(web(&[]), WEB);
    assert_eq!(compiled.sends("client", "10.96.0.1", "tcp/80"), (Allow, "unmanaged".into()));
    for (address, port) in
        [("10.96.0.1", "tcp/81"), ("10.96.0.1", "udp/80"), ("10.96.0.1", "icmp"), ("10.96.9.9", "tcp/80")]
    {
        assert_eq!(compiled.sends("client", address, port), (Deny, "unmanaged".into()), "{address} {port}");
    }
    let open = web(&[]).compile();
    assert_eq!(open.verdicts("client", "10.96.9.9", &["tcp/80"]), [Allow], "not isolated");
    let everything = web(&[])
        .np("shop/p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}, {}]}")
        .compile();
    assert_eq!(everything.verdicts("client", "10.96.9.9", &["tcp/80"]), [Allow], "a rule without peers");
}

#[test]
fn no_block_contains_the_address_of_a_service() {
    for block in ["0.0.0.0/0", "10.96.0.0/12", "10.96.0.1/32", "10.96.0.0/24"] {
        let compiled = isolated(web(&["192.0.2.1"]), &format!("{{ipBlock: {{cidr: {block}}}}}"));
        let everything = block == "0.0.0.0/0";
        let wanted = if everything { Allow } else { Deny };
        assert_eq!(
            compiled.verdicts("client", "10.96.0.1", &["tcp/80"]),
            [wanted],
            "{block}: the endpoint is"
        );
        assert_eq!(compiled.verdicts("client", "10.96.0.1", &["tcp/8080"]), [Deny], "{block}");
        assert_eq!(compiled.verdicts("client", "10.96.0.77", &["tcp/8080"]), [Deny], "{block}");
        let outside = if block == "10.96.0.0/12" || everything { Allow } else { Deny };
        assert_eq!(compiled.verdicts("client", "10.97.0.1", &["tcp/8080"]), [outside], "{block}: no range");
    }
    let deny = web(&["10.0.0.2"]).idp(
        "shop/p",
        "{subject: {}, egress: {isolate: false, rules: [{action: Deny, to: [{ipBlock: {cidr: 10.96.0.0/16}}]}]}}",
    );
    let deny = deny.compile();
    assert_eq!(deny.verdicts("client", "10.96.0.1", &["tcp/80", "tcp/81"]), [Allow, Allow]);
}

#[test]
fn an_external_address_is_a_service_on_its_ports_and_outside_otherwise() {
    let mut object = service("web", &["10.96.0.1"]);
    object.external_addresses = vec![ip("198.51.100.7")];
    let cluster = shop().service(object).slice(slice("web", "web-1", 8080, &["10.0.0.2"]));
    let deny = cluster
        .clone()
        .idp(
            "shop/p",
            "{subject: {}, ingress: {isolate: false, rules: [{action: Deny, from: [{ipBlock: {cidr: 198.51.100.7/32}}]}]},
              egress: {isolate: false, rules: [{action: Deny, to: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}}",
        )
        .compile();
    assert_eq!(deny.verdicts("client", "198.51.100.7", &["tcp/80", "tcp/443"]), [Allow, Deny]);
    let subject = deny.desired.pods["client"].subject;
    let source = deny.maps.source(ip("198.51.100.7"));
    let decision = portcullis_common::policy::evaluate(
        &deny.maps,
        subject,
        Ingress,
        source.peer,
        source.kind,
        key("tcp/80"),
    );
    assert_eq!(decision.verdict, Deny, "as a source it is what it is without the service");
    let open = cluster.compile();
    assert_eq!(open.sends("client", "198.51.100.7", "tcp/443").1, "world");
}

#[test]
fn an_address_that_is_somebody_s_stays_so() {
    let mut object = service("web", &["10.96.0.1"]);
    object.external_addresses = vec![ip("10.0.1.2"), ip("172.18.0.3")];
    let cluster = shop().service(object).slice(slice("web", "web-1", 8080, &["10.0.2.2"]));
    let compiled = isolated(cluster, "{podSelector: {matchLabels: {app: web}}}");
    let kind = |address| Kind::from_number(compiled.maps.identity(ip(address)).kind);
    assert_eq!(kind("10.0.1.2"), Some(Kind::Pod));
    assert_eq!(kind("172.18.0.3"), Some(Kind::Node));
    assert_eq!(kind("10.96.0.1"), Some(Kind::Service));
    let problem = &compiled.desired.problems[0];
    assert_eq!(problem.object, "Service shop/web");
    assert!(problem.message.contains("10.0.1.2 is the address of pod shop/judged"), "{}", problem.message);
    // The node's address is a frontend on the service's port, and the node on every other.
    assert_eq!(compiled.sends("client", "172.18.0.3", "tcp/80"), (Allow, "shop/alone".into()));
    assert_eq!(compiled.sends("client", "172.18.0.3", "tcp/8080"), (Deny, "node".into()));
}

#[test]
fn a_node_port_is_one_on_every_node_and_an_exact_address_comes_first() {
    let mut by_port = service("web", &["10.96.0.1", "fd96::1"]);
    by_port.ports[0].node_port = Some(30080);
    let mut exact = service("other", &["10.96.0.2"]);
    exact.external_addresses = vec![ip("172.18.0.3")];
    exact.ports[0].port = 30080;
    let cluster = shop()
        .service(by_port)
        .service(exact)
        .slice(slice("web", "web-1", 8080, &["10.0.0.2"]))
        .slice(slice("other", "other-1", 9090, &["10.0.1.2"]));
    let compiled = isolated(cluster, WEB);
    assert_eq!(compiled.sends("client", "172.18.0.2", "tcp/30080"), (Allow, "shop/here".into()));
    assert_eq!(compiled.sends("client", "172.18.0.3", "tcp/30080"), (Deny, "shop/judged".into()));
    assert_eq!(compiled.sends("client", "172.18.0.2", "tcp/30081"), (Deny, "host".into()));
    assert_eq!(compiled.sends("client", "fd18::2", "tcp/30080").0, Allow, "no endpoints by IPv6");
    assert_eq!(
        compiled.sends("client", "10.0.1.2", "tcp/30080"),
        (Deny, "shop/judged".into()),
        "a pod's port"
    );
}

#[test]
fn two_services_with_one_frontend_are_both_asked() {
    let mut first = service("web", &["10.96.0.1"]);
    first.external_addresses = vec![ip("192.0.2.80")];
    let mut second = service("other", &["10.96.0.2"]);
    second.external_addresses = vec![ip("192.0.2.80"), ip("10.96.0.1")];
    let cluster = shop()
        .service(first)
        .service(second)
        .slice(slice("web", "web-1", 8080, &["10.0.0.2"]))
        .slice(slice("other", "other-1", 9090, &["10.0.1.2"]));
    let compiled = isolated(cluster, WEB);
    for address in ["192.0.2.80", "10.96.0.1"] {
        assert_eq!(compiled.entries(address, 80).len(), 2);
        assert_eq!(compiled.sends("client", address, "tcp/80"), (Deny, "shop/judged".into()), "{address}");
    }
    let name = &compiled.desired.names.services[&service_key(ip("192.0.2.80"), 6, 80)];
    assert_eq!(name, "shop/other:http, shop/web:http");
}

#[test]
fn more_endpoints_than_fit_are_one_class_with_the_same_verdict() {
    let big = |allowed: usize| {
        let mut cluster = shop().service(service("web", &["10.96.0.1"]));
        for i in 0..12u16 {
            let name = format!("w{i}");
            let address = format!("10.0.0.{}", 50 + i);
            let free = if usize::from(i) < allowed { "yes" } else { "no" };
            cluster = cluster
                .pod(pod("shop", &name).sa("web").label("free", free).ip(&address).on("alone"))
                .slice(slice("web", &name, 8000 + i, &[&address]));
        }
        let spec = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {free: 'yes'}}}]}]}";
        cluster.np("shop/p", spec)
    };
    let all = big(12).compile();
    let service = *all.frontend("10.96.0.1", 80).unwrap();
    assert_eq!(service.count, SERVICE_COMPILED);
    let ServiceEntry { peer, kind, .. } = service.entries[0];
    assert_eq!((all.desired.sets[&peer].entries.len(), kind), (12, Kind::Service as u8));
    assert_eq!(all.sends("client", "10.96.0.1", "tcp/80"), (Allow, "shop/web".into()));
    assert_eq!(all.desired.names.peers[&peer], "12 kinds of endpoints of service shop/web:http");
    assert_eq!(big(11).compile().sends("client", "10.96.0.1", "tcp/80"), (Deny, "shop/web".into()));
    let audited = big(11).np_mode(
        "shop/p",
        Some("audit"),
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {free: 'yes'}}}]}]}",
    );
    assert_eq!(audited.compile().sends("client", "10.96.0.1", "tcp/80").0, Audit);

    // The number belongs to the set, whatever it is numbered by.
    let mut numbers = Numbers::default();
    let first = compile(&big(12).0, &mut numbers);
    let second = compile(&big(12).0, &mut numbers);
    assert_eq!(first.sets, second.sets);
    assert_eq!(first.services, second.services);
}

#[test]
fn whom_a_denied_flow_counts_for_does_not_depend_on_numbers() {
    let one = pod("shop", "one").sa("one").ip("10.0.2.10").on("alone");
    let other = pod("shop", "other").sa("other").ip("10.0.2.11").on("alone");
    let base = || {
        shop()
            .service(service("web", &["10.96.0.1"]))
            .slice(slice("web", "web-1", 8080, &["10.0.2.10", "10.0.2.11"]))
            .np("shop/p", "{podSelector: {}, policyTypes: [Egress]}")
    };
    let both = || base().pod(one.clone()).pod(other.clone());
    for first in [one.clone(), other.clone()] {
        let mut numbers = Numbers::default();
        compile(&base().pod(first).0, &mut numbers);
        let desired = compile(&both().0, &mut numbers);
        let compiled = Compiled { maps: HostMaps::new(&desired), desired };
        assert_eq!(compiled.sends("client", "10.96.0.1", "tcp/80"), (Deny, "shop/one".into()));
    }
}

#[test]
fn what_is_audited_is_audited_by_way_of_a_service() {
    let audit = |name: &str| {
        web(&["10.0.0.2", "10.0.2.2"]).np_mode(
            "shop/p",
            Some("audit"),
            &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{name}]}}]}}"),
        )
    };
    assert_eq!(audit(WEB).compile().sends("client", "10.96.0.1", "tcp/80").0, Allow);
    let nobody = "{podSelector: {matchLabels: {app: none}}}";
    assert_eq!(audit(nobody).compile().sends("client", "10.96.0.1", "tcp/80").0, Audit);
}

#[test]
fn ranges_come_from_objects_and_settings_and_a_smaller_pod_range_counts() {
    let mut cluster = shop();
    cluster.0.settings.service_cidrs = vec!["fd96::7/64".parse().unwrap(), "10.0.0.0/16".parse().unwrap()];
    let compiled = cluster.compile();
    let prefix = |prefix| compiled.prefix(prefix);
    let Identity { kind, principal, flags, .. } = prefix("fd96::/64");
    assert_eq!((kind, principal, flags), (Kind::Service as u8, Kind::Unmanaged as u32, 0));
    assert_eq!(prefix("10.96.0.0/16").kind, Kind::Service as u8);
    assert_eq!(prefix("10.0.0.0/24").kind, Kind::Unmanaged as u8);
    assert_eq!(prefix("10.0.0.0/16").kind, Kind::Service as u8);
}

#[test]
fn what_nodes_masquerade_to_a_pod_of_this_node_is_marked() {
    let node_port = |name: &str, external_local| {
        let mut service = ServiceObject { external_local, ..service(name, &["10.96.0.1"]) };
        service.ports[0].node_port = Some(30080);
        service
    };
    let key = |address: &str, port| {
        let key = service_key(ip(address), protocol::TCP, port);
        ServiceKey { family: key.family | EXPOSED, ..key }
    };
    let exposed = |service: ServiceObject| {
        let compiled = web(&["10.0.0.1", "10.0.0.2", "192.0.2.9"]).service(service).compile();
        let keys = compiled.desired.services.keys().copied().filter(ServiceKey::is_exposed);
        keys.collect::<Vec<_>>()
    };
    let wanted: Vec<ServiceKey> = ["10.0.0.1", "10.0.0.2"].map(|address| key(address, 8080)).into();
    assert_eq!(exposed(node_port("web", false)), wanted);
    assert_eq!(exposed(node_port("web", true)), [], "the client's address stays on the packet");
    assert_eq!(exposed(service("web", &["10.96.0.1"])), [], "nobody comes from outside");
    let external =
        ServiceObject { external_addresses: vec![ip("198.51.100.1")], ..service("web", &["10.96.0.1"]) };
    assert_eq!(exposed(external), wanted);
}
