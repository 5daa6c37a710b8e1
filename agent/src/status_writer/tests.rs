//! The writer against an API server of a few lines: a Lease, policies, versions and conflicts.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// The objects, and what happened.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Store>>);

#[derive(Default)]
struct Store {
    lease: Option<Value>,
    /// By name; one whose name begins with `cluster-` is of the whole cluster.
    policies: BTreeMap<String, Value>,
    version: u64,
    patches: Vec<String>,
    renewals: u64,
    forbidden: bool,
}

/// What a policy with this name is known by.
fn key(name: &str) -> ObjectKey {
    let (kind, namespace) = if name.starts_with("cluster-") {
        (ObjectKind::ClusterIdentityPolicy, "")
    } else {
        (ObjectKind::IdentityPolicy, "shop")
    };
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Path of a policy.
fn path_of(name: &str) -> String {
    let base = "/apis/portcullis.dev/v1alpha1";
    match key(name).kind {
        ObjectKind::ClusterIdentityPolicy => format!("{base}/clusteridentitypolicies/{name}"),
        _ => format!("{base}/namespaces/shop/identitypolicies/{name}"),
    }
}

impl Store {
    fn stamp(&mut self, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: &str, generation: i64) {
        let mut store = self.lock();
        let status = store.policies.get(name).map(|policy| policy["status"].clone()).unwrap_or_default();
        let ObjectKey { kind, namespace, .. } = key(name);
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let object = store.stamp(json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": kind.name(),
            "metadata": {"namespace": namespace, "name": name, "generation": generation}, "status": status}));
        store.policies.insert(name.to_owned(), object);
    }

    /// The condition of a policy: status and message.
    fn condition(&self, name: &str) -> (String, String) {
        let store = self.lock();
        let condition = &store.policies[name]["status"]["conditions"][0];
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("message"))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (code, answer) = server.answer(&head.method, head.uri.path(), body);
                let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
                *response.status_mut() = code.try_into().unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        let failure = |code: u16, reason: &str| {
            (
                code,
                json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
                "reason": reason, "message": reason}),
            )
        };
        let mut store = self.lock();
        let stale = |before: &Value, body: &Value| {
            before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]
        };
        let parts: Vec<&str> = path.split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", [.., "leases", lease::NAME]) => match &store.lease {
                Some(lease) => (200, lease.clone()),
                None => failure(404, "NotFound"),
            },
            ("POST", [.., "leases"]) if store.lease.is_some() => failure(409, "AlreadyExists"),
            ("PUT", [.., "leases", lease::NAME]) if store.lease.as_ref().is_none_or(|l| stale(l, &body)) => {
                failure(409, "Conflict")
            }
            ("POST" | "PUT", [.., "leases"] | [.., "leases", lease::NAME]) => {
                store.renewals += 1;
                let lease = store.stamp(body);
                store.lease = Some(lease.clone());
                (200, lease)
            }
            (
                _,
                [.., "v1alpha1", "clusteridentitypolicies"]
                | [.., "identitypolicies" | "status"]
                | [.., "identitypolicies", _],
            ) if store.forbidden => failure(403, "Forbidden"),
            ("GET", [.., "v1alpha1", plural @ ("identitypolicies" | "clusteridentitypolicies")]) => {
                let of_kind = |name: &&String| path_of(name).contains(&format!("/{plural}/"));
                let names = store.policies.keys().filter(of_kind);
                let items: Vec<&Value> = names.map(|name| &store.policies[name]).collect();
                (
                    200,
                    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "IdentityPolicyList",
                    "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            ("GET", [.., "identitypolicies" | "clusteridentitypolicies", name]) if path_of(name) != path => {
                failure(404, "NotFound")
            }
            ("GET", [.., "identitypolicies" | "clusteridentitypolicies", name]) => {
                match store.policies.get(*name) {
                    Some(policy) => (200, policy.clone()),
                    None => failure(404, "NotFound"),
                }
            }
            ("PATCH", [.., name, "status"]) if path == format!("{}/status", path_of(name)) => {
                let Some(policy) = store.policies.get(*name).cloned() else {
                    return failure(404, "NotFound");
                };
                if stale(&policy, &body) {
                    return failure(409, "Conflict");
                }
                let mut policy = store.stamp(policy);
                policy["status"] = body["status"].clone();
                store.policies.insert((*name).to_owned(), policy.clone());
                store.patches.push((*name).to_owned());
                (200, policy)
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }
}

fn verdicts(all: &[(&str, i64, &[&str])]) -> Arc<Verdicts> {
    let verdict = |(name, generation, problems): &(&str, i64, &[&str])| {
        let problems = problems.iter().map(|problem| (*problem).to_owned()).collect();
        (key(name), Verdict { generation: *generation, problems })
    };
    Arc::new(all.iter().map(verdict).collect())
}

/// A writer of a node, with a Lease of two seconds (the API counts whole ones).
fn start(server: &Server, node: &str, verdicts: &watch::Receiver<Arc<Verdicts>>) -> StatusWriter {
    let pace = Pace { lease: Duration::from_secs(2), retry: Duration::from_millis(50) };
    let options = Options { namespace: "portcullis-system".to_owned(), node: node.to_owned(), pace };
    let server = server.clone();
    StatusWriter::start(move || Ok(server.client()), options, verdicts.clone()).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_status_is_written_when_it_changes_and_only_then() {
    let server = Server::default();
    (0..20).for_each(|i| server.put(&format!("p{i}"), 1));
    let names: Vec<String> = (0..20).map(|i| format!("p{i}")).collect();
    let all = |bad: &'static [&'static str], generation| -> Arc<Verdicts> {
        let list: Vec<(&str, i64, &[&str])> = names
            .iter()
            .map(|name| {
                (
                    name.as_str(),
                    if name == "p7" { generation } else { 1 },
                    if name == "p7" { bad } else { &[][..] },
                )
            })
            .collect();
        verdicts(&list)
    };
    let (sender, receiver) = watch::channel(Arc::default());
    let writer = start(&server, "a", &receiver);
    sender.send_replace(all(&["spec.egress: no such peer"], 1));
    eventually("every status", || server.lock().patches.len() == 20);
    assert_eq!(server.condition("p7"), ("False".to_owned(), "spec.egress: no such peer".to_owned()));
    assert_eq!(server.condition("p8").0, "True");
    // The policy is corrected; we hear of it before the agent has judged the new state.
    server.put("p7", 2);
    sender.send_replace(all(&[], 2));
    eventually("the corrected policy", || server.condition("p7").0 == "True");
    assert_eq!(server.lock().patches.len(), 21, "nothing else was written");
    assert!(writer.state().borrow().leading);
    // Another one that begins finds everything as it should be.
    drop(writer);
    let renewals = server.lock().renewals;
    let writer = start(&server, "b", &receiver);
    sender.send_replace(all(&[], 2));
    eventually("the next one to lead", || {
        writer.state().borrow().leading && server.lock().renewals > renewals + 1
    });
    assert_eq!(server.lock().patches.len(), 21);
}

#[test]
fn the_lease_is_given_back_also_where_the_verdicts_end_first() {
    let server = Server::default();
    server.put("p", 1);
    let (sender, receiver) = watch::channel(Arc::default());
    let writer = start(&server, "a", &receiver);
    sender.send_replace(verdicts(&[("p", 1, &[])]));
    eventually("it to lead", || writer.state().borrow().leading);
    let holder = || server.lock().lease.as_ref().unwrap()["spec"]["holderIdentity"].clone();
    assert_eq!(holder(), "a");
    drop(sender);
    drop(writer);
    assert_eq!(holder(), Value::Null);
}

#[test]
fn one_writes_and_another_follows_when_it_is_gone_without_a_word() {
    let server = Server::default();
    server.put("p", 1);
    let (sender, receiver) = watch::channel(Arc::default());
    // A holder that renews no more, as its node has died.
    server.lock().lease = Some(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": lease::NAME, "resourceVersion": "0"},
        "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 4,
            "renewTime": "2000-01-01T00:00:00.000000Z"}}));
    let writers = [start(&server, "a", &receiver), start(&server, "b", &receiver)];
    sender.send_replace(verdicts(&[("p", 1, &[])]));
    let leading = || writers.iter().filter(|writer| writer.state().borrow().leading).count();
    eventually("one of them to lead", || leading() == 1 && server.condition("p").0 == "True");
    let renewals = server.lock().renewals;
    eventually("it to renew", || server.lock().renewals > renewals + 2);
    assert_eq!(leading(), 1);
    let lease = server.lock().lease.clone().unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 5, "it changed hands once: {lease}");
}

#[test]
fn what_is_forbidden_is_said_with_the_rule_and_written_when_it_is_permitted() {
    let server = Server::default();
    server.put("p", 1);
    server.lock().forbidden = true;
    let (sender, receiver) = watch::channel(Arc::default());
    let writer = start(&server, "a", &receiver);
    sender.send_replace(verdicts(&[("p", 1, &[])]));
    let said = || writer.state().borrow().error.clone().unwrap_or_default();
    eventually("the error", || said().contains("the ClusterRole and the Role `portcullis`"));
    server.lock().forbidden = false;
    eventually("the status", || server.condition("p").0 == "True" && said().is_empty());
}

#[test]
fn policies_of_the_cluster_have_a_status_too_few_or_many() {
    let server = Server::default();
    // Few are asked for one by one, many are listed.
    let names: Vec<String> = (0..15).map(|i| format!("cluster-{i}")).collect();
    for name in &names {
        server.put(name, 1);
    }
    server.put("p", 1);
    let (sender, receiver) = watch::channel(Arc::default());
    let _writer = start(&server, "a", &receiver);
    sender.send_replace(verdicts(&[("p", 1, &[]), ("cluster-3", 1, &["spec.tier: the tier is missing"])]));
    eventually("both", || server.lock().patches.len() == 2);
    let bad = ("False".to_owned(), "spec.tier: the tier is missing".to_owned());
    assert_eq!((server.condition("cluster-3"), server.condition("p").0), (bad, "True".to_owned()));
    let all = names.iter().map(String::as_str).chain(["p"]).map(|name| (name, 1, &[][..]));
    sender.send_replace(verdicts(&all.collect::<Vec<_>>()));
    eventually("all of them", || server.lock().patches.len() == 17);
    assert!(names.iter().all(|name| server.condition(name).0 == "True"));
}
