//! Objects of the tests, as JSON, and where the cluster has put them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use portcullis_tests::cluster::{Cluster, images, names};
use portcullis_tests::cluster_probe::{Check, Outcome, Probe, Protocol, Source};
use serde_json::{Value, json};

/// Both families of something.
pub type Both = [IpAddr; 2];

/// A pod of its own account, with one container of the test image.
pub fn pod(namespace: &str, name: &str, account: &str, node: usize, args: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"app": account, "on": names::node(node)},
        },
        "spec": {
            "nodeName": names::node(node),
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": images::AGNHOST, "args": args}],
        },
    })
}

/// A server on one port, TCP and UDP, that answers with its name; ready when it listens.
pub fn server(namespace: &str, name: &str, account: &str, node: usize, port: u16) -> Value {
    let args = ["netexec", &format!("--http-port={port}"), &format!("--udp-port={port}")];
    let mut pod = pod(namespace, name, account, node, &args);
    pod["spec"]["containers"][0]["readinessProbe"] = ready_when_it_listens(port);
    pod
}

/// The probe of a server: once ready it stays so for a minute without an answer. A machine that is too busy for one in a second
/// would take its endpoint away, and kube-proxy refuses what has none.
pub fn ready_when_it_listens(port: u16) -> Value {
    json!({"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 1, "failureThreshold": 60})
}

/// A service of both families for the pods with these labels, on the port that they listen on.
pub fn service(namespace: &str, name: &str, selector: &Value, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": selector,
            "ports": [{"name": "tcp", "port": port, "targetPort": port}],
        },
    })
}

/// A namespace and accounts in it.
pub fn accounts(namespace: &str, names: &[&str]) -> Vec<Value> {
    let account = |name: &&str| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
               "metadata": {"namespace": namespace, "name": name}})
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    std::iter::once(namespace).chain(names.iter().map(account)).collect()
}

/// An `IdentityPolicy`, called like the account that it is about. `direction` is `ingress` or `egress`.
pub fn policy(namespace: &str, account: &str, direction: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "portcullis.dev/v1alpha1",
        "kind": "IdentityPolicy",
        "metadata": {"namespace": namespace, "name": account},
        "spec": {
            "subject": {"serviceAccounts": {"names": [account]}},
            direction: {"isolate": true, "rules": rules},
        },
    })
}

/// A rule that accepts these peers, as a list of one.
pub fn accept(direction: &str, peers: &Value) -> Value {
    let side = if direction == "ingress" { "from" } else { "to" };
    json!([{"name": "test", "action": "Accept", side: peers}])
}

/// Peers that are these addresses.
pub fn blocks(addresses: &[IpAddr]) -> Value {
    let block =
        |ip: &IpAddr| json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}});
    addresses.iter().map(block).collect()
}

/// What is where.
#[derive(Debug)]
pub struct World {
    pods: BTreeMap<(String, String), Both>,
    services: BTreeMap<(String, String), Value>,
}

impl World {
    /// Asks the API server.
    pub fn read(cluster: &Cluster) -> Result<Self> {
        let list = |what: &str| -> Result<Vec<Value>> {
            let text = cluster.kubectl(["get", what, "--all-namespaces", "--output=json"])?;
            let mut list: Value =
                serde_json::from_str(&text).with_context(|| format!("the list of {what}"))?;
            serde_json::from_value(list["items"].take()).context("a list without items")
        };
        let mut pods = BTreeMap::new();
        for pod in list("pods")? {
            let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
            let ips: Vec<IpAddr> = ips.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
            if let [one, other] = ips[..] {
                pods.insert(key(&pod), [one, other]);
            }
        }
        let services = list("services")?.into_iter().map(|service| (key(&service), service)).collect();
        Ok(Self { pods, services })
    }

    /// The addresses of a pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Both> {
        let found = self.pods.get(&(namespace.to_owned(), name.to_owned()));
        found.copied().with_context(|| format!("the pod {namespace}/{name} has no two addresses"))
    }

    /// The addresses of the pods that are in these namespaces, as agents name them.
    pub fn names(&self, namespaces: &[&str]) -> BTreeMap<IpAddr, String> {
        let pods = self.pods.iter().filter(|((namespace, _), _)| namespaces.contains(&namespace.as_str()));
        pods.flat_map(|((namespace, name), ips)| ips.map(|ip| (ip, format!("{namespace}/{name}")))).collect()
    }

    /// The cluster IPs of a service, with its first port.
    pub fn service(&self, namespace: &str, name: &str) -> Result<Vec<SocketAddr>> {
        let service = self.object(namespace, name)?;
        let port = number(&service["spec"]["ports"][0]["port"]).context("a service without a port")?;
        let ips = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
        Ok(ips
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .map(|ip: IpAddr| SocketAddr::new(ip, port))
            .collect())
    }

    /// The node port of a service, of its port with this number from 0.
    pub fn node_port(&self, namespace: &str, name: &str, port: usize) -> Result<u16> {
        number(&self.object(namespace, name)?["spec"]["ports"][port]["nodePort"])
            .with_context(|| format!("the service {namespace}/{name} has no node port"))
    }

    fn object(&self, namespace: &str, name: &str) -> Result<&Value> {
        let found = self.services.get(&(namespace.to_owned(), name.to_owned()));
        found.with_context(|| format!("there is no service {namespace}/{name}"))
    }
}

fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| number.try_into().ok())
}

/// A pod as the source of probes.
pub fn from_pod(namespace: &str, name: &str) -> Source {
    Source::Pod { namespace: namespace.to_owned(), pod: name.to_owned() }
}

/// The addresses of a node.
pub fn node(i: usize) -> Both {
    let (v4, v6) = names::node_addresses(i);
    [v4.into(), v6.into()]
}

/// The addresses of the outside.
pub fn outside() -> Both {
    [names::OUTSIDE.0.into(), names::OUTSIDE.1.into()]
}

/// These addresses with a port.
pub fn at(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
}

/// TCP probes of all targets: all answered, or all in silence.
pub fn checks(from: &Source, targets: &[SocketAddr], answered: bool, what: &str) -> Vec<Check> {
    checks_of(Protocol::Tcp, from, targets, answered, what)
}

/// Probes of all targets: all answered, or all in silence.
pub fn checks_of(
    protocol: Protocol,
    from: &Source,
    targets: &[SocketAddr],
    answered: bool,
    what: &str,
) -> Vec<Check> {
    let expect = if answered { Outcome::Answer } else { Outcome::Silence };
    let check = |probe| Check { probe, expect: expect.clone(), what: what.to_owned() };
    probes(from, protocol, targets).into_iter().map(check).collect()
}

/// A probe for each target.
pub fn probes(from: &Source, protocol: Protocol, targets: &[SocketAddr]) -> Vec<Probe> {
    targets.iter().map(|to| Probe { from: from.clone(), protocol, to: *to }).collect()
}

/// Probes from outside, each from the outside's address of the target's family.
pub fn checks_from_outside(
    protocol: Protocol,
    targets: &[SocketAddr],
    answered: bool,
    what: &str,
) -> Vec<Check> {
    let one = |to: &SocketAddr| checks_of(protocol, &from_outside(to), &[*to], answered, what);
    targets.iter().flat_map(one).collect()
}

/// The outside, with its address of the target's family.
pub fn from_outside(to: &SocketAddr) -> Source {
    let [v4, v6] = outside();
    Source::Outside(if to.is_ipv4() { v4 } else { v6 })
}
