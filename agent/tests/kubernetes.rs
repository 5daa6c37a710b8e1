//! The Kubernetes source against a scripted API server: whatever fails, in whatever order, the world ends as a clean
//! start would make it, and nothing is taken for gone that is not.

#![expect(clippy::unwrap_used, reason = "a test panics where it cannot go on")]

#[path = "apiserver/mod.rs"]
mod apiserver;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apiserver::{Chance, Server};
use portcullis::identity::Numbers;
use portcullis::model::{ObjectKey, ObjectKind, World};
use portcullis::policy::compile;
use portcullis::sources::kubernetes::{KubernetesSource, Options, Pace};
use portcullis::sources::{SourceEvent, SourceProblem};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Short enough for tests; none of them depends on how short.
const PACE: Pace = Pace {
    first_retry: Duration::from_millis(1),
    longest_retry: Duration::from_millis(8),
    look_again: Duration::from_millis(10),
    patience: Duration::from_millis(200),
};
const PATIENCE: Duration = Duration::from_secs(60);

/// What a source has told.
#[derive(Clone, Debug, Default)]
struct Told {
    world: World,
    synced: usize,
    problems: Vec<SourceProblem>,
    /// Deletes, with the UID of pods.
    deleted: Vec<(ObjectKey, Option<String>)>,
    /// Batches with something of this in them, after the first list.
    batches: Vec<Vec<String>>,
}

/// A source, and what it has told.
struct Consumer {
    source: KubernetesSource,
    told: Arc<Mutex<Told>>,
}

impl Consumer {
    fn start(server: &Server, pace: Pace) -> Self {
        let (sender, mut batches) = mpsc::channel(4);
        let options = Options {
            config: server.config(),
            namespace: "portcullis-system".to_owned(),
            node_name: "n1".to_owned(),
            pace,
        };
        let source = KubernetesSource::start(options, sender).unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let writes = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some(batch) = batches.recv().await {
                let mut told = writes.lock().unwrap();
                let mut names = Vec::new();
                for event in batch.events {
                    match event {
                        SourceEvent::Apply(object) => {
                            names.push(format!("+{}", object.key().name));
                            told.world.apply(object);
                        }
                        SourceEvent::Delete { key, uid } => {
                            names.push(format!("-{}", key.name));
                            told.world.delete(&key, uid.as_deref());
                            told.deleted.push((key, uid));
                        }
                        SourceEvent::Synced => told.synced += 1,
                        SourceEvent::Problems(problems) => told.problems = problems,
                    }
                }
                if told.synced > 0 && !names.is_empty() {
                    told.batches.push(names);
                }
            }
        });
        Self { source, told }
    }

    fn now(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// Waits until what was told is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        let start = Instant::now();
        loop {
            let told = self.now();
            if wanted(&told) {
                return told;
            }
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; told: {told:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn synced(&self) -> Told {
        self.until("synced", |told| told.synced > 0).await
    }
}

fn namespace(name: &str, team: u64) -> Value {
    json!({"metadata": {"name": name, "uid": name, "labels": {"team": format!("t{team}")}}})
}

fn pod(name: &str, uid: &str, address: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": name},
            "managedFields": [{"manager": "kubelet"}]},
        "spec": {"serviceAccountName": "api", "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{address}")}]}})
}

fn policy(name: &str, port: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": port}]}]}})
}

fn identity(name: &str, account: u64) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "IdentityPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"subject": {}, "ingress": {"rules": [
            {"action": "Accept", "from": [{"serviceAccounts": {"names": [format!("a{account}")]}}]}]}}})
}

fn guardrail(name: &str, priority: u64) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterIdentityPolicy",
        "metadata": {"name": name, "uid": name},
        "spec": {"tier": "Admin", "priority": priority, "subject": {"namespaces": {}}, "ingress": {"rules": [
            {"action": "Pass", "from": [{"serviceAccounts": {"namespaces": {}, "names": ["api"]}}]},
            {"action": "Deny", "from": [{"entities": ["world"]}]}]}}})
}

/// A server with a small cluster.
async fn small(seed: u64) -> Server {
    let server = Server::start(seed).await;
    server.put("namespaces", namespace("shop", 1));
    server.put("serviceaccounts", json!({"metadata": {"name": "api", "namespace": "shop", "uid": "api"}}));
    server.put(
        "nodes",
        json!({"metadata": {"name": "n1", "uid": "n1"}, "spec": {"podCIDRs": ["10.0.0.0/24"]}}),
    );
    for i in 1..8 {
        server.put("pods", pod(&format!("p{i}"), &format!("u{i}"), i));
    }
    server.put("networkpolicies", policy("np", 80));
    server.put("identitypolicies", identity("idp", 1));
    server.put("clusteridentitypolicies", guardrail("cidp", 1));
    server
}

/// One random change.
fn change(server: &Server, chance: &mut Chance, made: &mut u64) {
    *made += 1;
    let number = chance.below(6);
    match chance.below(14) {
        // Now and then a pod takes the name of another that is gone, with an event for its end or without.
        0..=3 => {
            let uid = if chance.below(3) == 0 { format!("u{number}-{made}") } else { format!("u{number}") };
            let old = server.lock().store.get("pods", &format!("shop/p{number}")).cloned();
            if old.is_some_and(|old| old["metadata"]["uid"] != uid) {
                server.remove("pods", &format!("shop/p{number}"));
            }
            server.put("pods", pod(&format!("p{number}"), &uid, chance.below(200) + 1));
        }
        4 => server.remove("pods", &format!("shop/p{number}")),
        5 => server.put("namespaces", namespace(&format!("ns{number}"), chance.below(3))),
        6 => server.remove("namespaces", &format!("/ns{number}")),
        7 => server.put("networkpolicies", policy(&format!("np{number}"), chance.below(3) + 80)),
        8 => server.remove("networkpolicies", &format!("shop/np{number}")),
        9 => server.put("identitypolicies", identity(&format!("idp{number}"), chance.below(3))),
        10 => server.put(
            "configmaps",
            json!({"metadata": {"name": "portcullis", "namespace": "portcullis-system", "uid": "c"},
                "data": {"mode": *chance.pick(&["Enforce", "Audit"])}}),
        ),
        11 => server.put("clusteridentitypolicies", guardrail(&format!("cidp{number}"), chance.below(3))),
        12 => server.remove("clusteridentitypolicies", &format!("/cidp{number}")),
        _ => server.remove("identitypolicies", &format!("shop/idp{number}")),
    }
}

/// What may be deleted: what is gone from the server, or was replaced.
fn gone(server: &Server) -> BTreeSet<(String, Option<String>)> {
    let shared = server.lock();
    let ended = shared.store.history.iter().filter(|event| event.what == "DELETED").map(|event| {
        let text = |field: &str| event.object["metadata"][field].as_str().unwrap().to_owned();
        (text("name"), (event.plural == "pods").then(|| text("uid")))
    });
    ended.collect()
}

async fn ends_as_a_clean_start(seed: u64) {
    let server = small(seed).await;
    let mut chance = Chance::new(seed + 1000);
    server.set(|shared| shared.rate = 40);
    let consumer = Consumer::start(&server, PACE);
    let (mut made, mut may_go) = (0, BTreeSet::new());
    let mut without_kind = false;
    for round in 0..150 {
        change(&server, &mut chance, &mut made);
        may_go.append(&mut gone(&server));
        match chance.below(30) {
            0 => server.set(|shared| shared.store.compact()),
            1 => {
                without_kind = true;
                let kind = *chance.pick(&["identitypolicies", "clusteridentitypolicies"]);
                server.set(|shared| {
                    shared.store.missing.insert(kind);
                });
            }
            2 => server.set(|shared| shared.store.missing.clear()),
            3 => server.set(|shared| {
                shared.store.forbidden.insert("networkpolicies");
            }),
            4 => server.set(|shared| shared.store.forbidden.clear()),
            5 => {
                let rate = *chance.pick(&[10, 40, 80]);
                server.set(|shared| shared.rate = rate);
            }
            // Sometimes many changes come at once, sometimes the source keeps up.
            6..=20 => tokio::time::sleep(Duration::from_millis(chance.below(10))).await,
            _ => {}
        }
        if round == 20 {
            server.set(|shared| shared.store.forbidden.clear());
            consumer.synced().await;
        }
    }
    server.set(|shared| {
        shared.rate = 0;
        shared.store.missing.clear();
        shared.store.forbidden.clear();
    });
    let clean = Consumer::start(&server, PACE);
    let clean = clean.synced().await;
    let told = consumer.until("the same world as a clean start", |told| told.world == clean.world).await;
    let faults = server.lock().happened.clone();
    assert_eq!(told.synced, 1, "seed {seed}");
    let desired = |world: &World| compile(world, &mut Numbers::new(4096));
    assert_eq!(desired(&told.world), desired(&clean.world), "seed {seed}");
    for (key, uid) in &told.deleted {
        let ours = matches!(key.kind, ObjectKind::IdentityPolicy | ObjectKind::ClusterIdentityPolicy);
        let of_kind = ours && without_kind;
        assert!(
            of_kind || may_go.contains(&(key.name.clone(), uid.clone())),
            "seed {seed}: {key:?} {uid:?} was said to be gone and was not"
        );
    }
    assert!(faults.len() > 8, "seed {seed}: hardly any faults: {faults:?}");
    consumer.until("no problem is left", |told| told.problems.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_in_random_order_ends_in_the_same_world_as_a_clean_start() {
    let seeds: Vec<u64> = match std::env::var("PORTCULLIS_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=12).collect(),
    };
    for seed in seeds {
        ends_as_a_clean_start(seed).await;
    }
}

#[tokio::test]
async fn nothing_is_synced_while_a_kind_is_forbidden_and_the_rule_that_is_missing_is_named() {
    let server = small(1).await;
    server.set(|shared| shared.store.forbidden.extend(["networkpolicies", "configmaps"]));
    let consumer = Consumer::start(&server, PACE);
    let told = consumer.until("both are reported", |told| told.problems.len() == 2).await;
    assert_eq!(told.synced, 0);
    let texts: Vec<_> = told.problems.iter().map(ToString::to_string).collect();
    let rule = |group: &str, plural: &str| {
        format!(
            "{{apiGroups: [\"{group}\"], resources: [\"{plural}\"], verbs: [\"get\", \"list\", \"watch\"]}}"
        )
    };
    assert!(texts[0].starts_with("ConfigMap: may not be read: "), "{texts:?}");
    assert!(
        texts[0].ends_with(&format!("add to the Role of the agent's namespace: {}", rule("", "configmaps")))
    );
    assert!(texts[1].starts_with("NetworkPolicy: may not be read: "), "{texts:?}");
    assert!(
        texts[1]
            .ends_with(&format!("add to the ClusterRole: {}", rule("networking.k8s.io", "networkpolicies")))
    );
    server.set(|shared| shared.store.forbidden.clear());
    let told = consumer.until("synced and well", |told| told.synced == 1 && told.problems.is_empty()).await;
    assert_eq!(told.world.network_policies.len(), 1);
}

#[tokio::test]
async fn a_kind_that_becomes_forbidden_keeps_its_objects() {
    let server = small(1).await;
    let consumer = Consumer::start(&server, PACE);
    consumer.synced().await;
    server.set(|shared| {
        shared.store.forbidden.insert("networkpolicies");
    });
    let told = consumer.until("it is reported", |told| !told.problems.is_empty()).await;
    assert!(told.problems[0].message.contains("what was known stays in force"), "{:?}", told.problems);
    assert_eq!((told.world.network_policies.len(), told.deleted.len()), (1, 0));
}

#[tokio::test]
async fn a_kind_without_definition_is_normal_and_is_followed_when_it_appears_and_when_it_vanishes() {
    type Make = fn(&str, u64) -> Value;
    type Count = fn(&World) -> usize;
    let kinds: [(_, _, Make, Count, _); 2] = [
        ("identitypolicies", "IdentityPolicy", identity, |world| world.identity_policies.len(), "-idp"),
        (
            "clusteridentitypolicies",
            "ClusterIdentityPolicy",
            guardrail,
            |world| world.cluster_identity_policies.len(),
            "-cidp",
        ),
    ];
    for (plural, kind, make, count, first) in kinds {
        let server = small(1).await;
        server.set(|shared| {
            shared.store.missing.insert(plural);
        });
        let consumer = Consumer::start(&server, PACE);
        let told = consumer.synced().await;
        assert_eq!((count(&told.world), told.problems), (0, Vec::new()));
        assert!(consumer.source.watch().status().kinds[kind].missing);
        server.set(|shared| shared.store.missing.clear());
        consumer.until("its objects are there", |told| count(&told.world) == 1).await;
        server.put(plural, make("later", 1));
        consumer.until("it is watched", |told| count(&told.world) == 2).await;
        server.set(|shared| {
            shared.store.missing.insert(plural);
        });
        let told = consumer.until("its objects are gone", |told| count(&told.world) == 0).await;
        let mut last = told.batches.last().unwrap().clone();
        last.sort();
        assert_eq!(last, [first, "-later"]);
    }
}

#[tokio::test]
async fn what_changed_during_a_gap_is_one_batch_with_only_that() {
    let server = small(1).await;
    let consumer = Consumer::start(&server, PACE);
    let before = consumer.synced().await;
    // Nobody can go on from before this, so everything is listed again.
    server.set(|shared| {
        let store = &mut shared.store;
        store.remove("pods", "shop/p1");
        store.remove("pods", "shop/p2");
        store.put("pods", pod("p2", "another", 2));
        store.put("pods", pod("p3", "u3", 33));
        store.put("pods", pod("p9", "u9", 9));
        store.compact();
    });
    let told = consumer.until("the new pod", |told| told.world.pods.contains_key("u9")).await;
    let batches: Vec<_> = told.batches[before.batches.len()..].to_vec();
    assert_eq!(batches, [["-p2", "+p2", "+p3", "+p9", "-p1"]]);
    assert_eq!(told.deleted[0].1.as_deref(), Some("u2"));
    assert!(!told.world.pods.contains_key("u2") && told.world.pods.contains_key("another"));
}

#[tokio::test]
async fn what_is_not_kept_of_an_object_is_no_change() {
    let server = small(1).await;
    let consumer = Consumer::start(&server, PACE);
    let before = consumer.synced().await.batches.len();
    for i in 0..5 {
        let mut pod = pod("p1", "u1", 1);
        pod["metadata"]["annotations"] = json!({"beat": i.to_string()});
        server.put("pods", pod);
    }
    server.put("pods", pod("last", "last", 99));
    let told = consumer.until("the last pod", |told| told.world.pods.contains_key("last")).await;
    assert_eq!(told.batches[before..].concat(), ["+last"]);
}

#[tokio::test]
async fn a_server_that_is_away_changes_nothing_and_its_silence_is_reported_until_it_is_back() {
    let server = small(1).await;
    let consumer = Consumer::start(&server, PACE);
    let before = consumer.synced().await;
    assert_eq!(consumer.source.watch().silent_since(), None);
    server.set(|shared| shared.away = true);
    let silent =
        |told: &Told| told.problems.iter().any(|problem| problem.message.contains("does not answer for"));
    let told = consumer.until("the silence is reported", silent).await;
    assert!(told.problems.iter().all(|p| p.place.starts_with("API server http://")), "{:?}", told.problems);
    assert!(told.problems[0].message.contains("what was known then stays in force"), "{:?}", told.problems);
    assert_eq!((told.world, told.deleted.len()), (before.world, 0));
    consumer.until("all kinds are silent", |told| told.problems.len() == 1).await;
    assert!(consumer.source.watch().silent_since().is_some());
    let age = consumer.source.watch().ages()["Pod"];
    assert!(age >= PACE.patience, "{age:?}");
    // What changed meanwhile arrives without a new list.
    let lists = consumer.source.watch().status().kinds["Pod"].lists;
    server.put("pods", pod("late", "late", 77));
    server.set(|shared| shared.away = false);
    let told = consumer
        .until("all is well", |told| told.problems.is_empty() && told.world.pods.contains_key("late"))
        .await;
    assert_eq!(told.world.pods.len(), 8);
    assert_eq!(consumer.source.watch().status().kinds["Pod"].lists, lists);
    assert_eq!(consumer.source.watch().silent_since(), None);
}

#[tokio::test]
async fn one_object_that_cannot_be_understood_stops_nothing_and_is_named() {
    let server = small(1).await;
    let mut bad = pod("bad", "bad", 50);
    bad["status"]["podIPs"][0]["ip"] = json!("10.0.0");
    server.put("pods", bad.clone());
    let mut newer = policy("newer", 80);
    newer["spec"]["ingress"][0]["hours"] = json!("9-17");
    server.put("networkpolicies", newer);
    let consumer = Consumer::start(&server, PACE);
    let told = consumer.until("both are reported", |told| told.synced == 1 && told.problems.len() == 2).await;
    assert_eq!((told.world.pods.len(), told.world.network_policies.len()), (7, 2));
    assert_eq!(
        told.problems[0].to_string(),
        "Pod shop/bad: field `status.podIPs[0].ip`: `10.0.0` is not an IP address; what was understood of the object \
         before, if anything, stays in force"
    );
    assert!(
        told.problems[1].to_string().starts_with(
            "NetworkPolicy shop/newer: field `spec.ingress[0].hours`: unknown field; the rule matches nothing; "
        ),
        "{:?}",
        told.problems
    );
    // The watch goes on, also with an object that was understood and is not any more.
    bad["metadata"]["name"] = json!("p1");
    bad["metadata"]["uid"] = json!("u1");
    server.put("pods", bad);
    server.put("pods", pod("bad", "bad", 50));
    let told = consumer.until("the bad pod is good", |told| told.world.pods.contains_key("bad")).await;
    assert!(told.problems[0].to_string().starts_with("Pod shop/p1: "), "{:?}", told.problems);
    assert!(told.world.pods.contains_key("u1"));
    server.remove("pods", "shop/p1");
    server.remove("networkpolicies", "shop/newer");
    consumer
        .until("nothing is wrong", |told| told.problems.is_empty() && !told.world.pods.contains_key("u1"))
        .await;
}

#[tokio::test]
async fn a_node_name_that_no_node_has_is_said() {
    let server = small(1).await;
    server.remove("nodes", "/n1");
    let consumer = Consumer::start(&server, PACE);
    let told = consumer.until("it is reported", |told| !told.problems.is_empty()).await;
    assert!(
        told.problems[0].to_string().starts_with("Node n1: no Node has this name"),
        "{:?}",
        told.problems
    );
    server.put("nodes", json!({"metadata": {"name": "n1", "uid": "n1"}}));
    consumer.until("nothing is wrong", |told| told.problems.is_empty()).await;
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_not_asked_before_its_time() {
    let server = small(1).await;
    server.set(|shared| shared.quiet = Some(1));
    let start = Instant::now();
    let consumer = Consumer::start(&server, PACE);
    consumer
        .until("every kind was refused", |_| {
            let kinds = consumer.source.watch().status().kinds;
            kinds.len() == 11 && kinds.values().all(|kind| kind.errors > 0)
        })
        .await;
    server.set(|shared| shared.quiet = None);
    consumer.synced().await;
    assert!(start.elapsed() >= Duration::from_secs(1));
    let errors: Vec<_> = consumer.source.watch().status().kinds.values().map(|kind| kind.errors).collect();
    assert!(errors.iter().all(|errors| *errors == 1), "{errors:?}");
}

#[tokio::test]
async fn a_dropped_source_ends() {
    let server = small(1).await;
    let (sender, mut batches) = mpsc::channel(1);
    let options = Options {
        config: server.config(),
        namespace: "portcullis-system".to_owned(),
        node_name: "n1".to_owned(),
        pace: PACE,
    };
    let source = KubernetesSource::start(options, sender).unwrap();
    batches.recv().await.unwrap();
    drop(source);
    while batches.recv().await.is_some() {}
}
