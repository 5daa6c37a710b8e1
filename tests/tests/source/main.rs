//! The Kubernetes source against a scripted API server: whatever fails, in whatever order, the world ends as a clean
//! start would make it, and nothing is taken for gone that is not.

#![allow(clippy::unwrap_used, reason = "a test panics where it cannot go on")]

mod absence;
mod consumer;
mod outages;
mod random;

use std::time::{Duration, Instant};

use consumer::{Consumer, PACE, Told, small};
use portcullis::sources::kubernetes::{KubernetesSource, Options};
use portcullis_tests::faults::cluster::{node, pod, policy};
use serde_json::json;
use tokio::sync::mpsc;

#[tokio::test]
async fn nothing_is_synced_while_a_kind_is_forbidden_and_the_rule_that_is_missing_is_named() {
    let server = small(1);
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
    let server = small(1);
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
async fn what_changed_during_a_gap_is_one_batch_with_only_that() {
    let server = small(1);
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
    let server = small(1);
    let consumer = Consumer::start(&server, PACE);
    let before = consumer.synced().await.batches.len();
    for i in 0..5 {
        let mut pod = pod("p1", "u1", 2);
        pod["metadata"]["annotations"] = json!({"beat": i.to_string()});
        server.put("pods", pod);
    }
    server.put("pods", pod("last", "last", 99));
    let told = consumer.until("the last pod", |told| told.world.pods.contains_key("last")).await;
    assert_eq!(told.batches[before..].concat(), ["+last"]);
}

#[tokio::test]
async fn a_server_that_is_away_changes_nothing_and_its_silence_is_reported_until_it_is_back() {
    let server = small(1);
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
    let server = small(1);
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
    let server = small(1);
    server.remove("nodes", "/n1");
    let consumer = Consumer::start(&server, PACE);
    let told = consumer.until("it is reported", |told| !told.problems.is_empty()).await;
    assert!(
        told.problems[0].to_string().starts_with("Node n1: no Node has this name"),
        "{:?}",
        told.problems
    );
    server.put("nodes", node(1, 1));
    consumer.until("nothing is wrong", |told| told.problems.is_empty()).await;
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_not_asked_before_its_time() {
    let server = small(1);
    server.set(|shared| shared.quiet = Some(1));
    let start = Instant::now();
    let consumer = Consumer::start(&server, PACE);
    consumer
        .until("every kind was refused", |_| {
            let kinds = consumer.source.watch().status().kinds;
            kinds.len() >= 10 && kinds.values().all(|kind| kind.errors > 0)
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
    let server = small(1);
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
