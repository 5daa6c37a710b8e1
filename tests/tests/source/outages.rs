//! The server is away and comes back with everything changed: the return is one change.

use std::time::Duration;

use portcullis::sources::kubernetes::Pace;
use portcullis_tests::faults::Server;
use portcullis_tests::faults::cluster::{account, identity, pod, policy};

use crate::consumer::{Consumer, PACE, Told, small};

/// With time for those that are late.
const PATIENT: Pace =
    Pace { settle: Duration::from_millis(300), together: Duration::from_secs(3600), ..PACE };

/// Takes the server away until that is noticed.
async fn go_away(server: &Server, consumer: &Consumer) {
    server.set(|shared| shared.away = true);
    let failures = |status: &portcullis::sources::kubernetes::KubernetesStatus| {
        status.kinds.values().all(|kind| kind.missing || kind.errors > 0)
    };
    consumer.until("every kind fails", |_| failures(&consumer.source.watch().status())).await;
}

/// A new pod, and policies that close it.
fn change_everything(server: &Server) {
    server.put("serviceaccounts", account("new", 1));
    server.put("pods", pod("new", "new", 99));
    server.put("networkpolicies", policy("new", 90));
    server.put("identitypolicies", identity("new", 2));
    server.remove("networkpolicies", "shop/np");
}

fn sorted(batches: &[Vec<String>]) -> Vec<Vec<String>> {
    let mut batches = batches.to_vec();
    for batch in &mut batches {
        batch.sort();
    }
    batches
}

const ALL: [&str; 5] = ["+new", "+new", "+new", "+new", "-np"];

async fn comes_back_at_once(forgets: bool) {
    let server = small(1);
    let consumer = Consumer::start(&server, PATIENT);
    let before = consumer.synced().await;
    go_away(&server, &consumer).await;
    change_everything(&server);
    server.set(|shared| {
        if forgets {
            shared.store.compact();
        }
        shared.mute.insert("networkpolicies");
        shared.away = false;
    });
    let objects = |kind: &str| consumer.source.watch().status().kinds[kind].objects;
    let told = consumer
        .until("the others are back", |_| objects("Pod") == 8 && objects("IdentityPolicy") == 2)
        .await;
    assert_eq!((&told.world, told.batches.len()), (&before.world, before.batches.len()));
    server.set(|shared| shared.mute.clear());
    let told = consumer.until("the new pod", |told| told.world.pods.contains_key("new")).await;
    assert_eq!(sorted(&told.batches[before.batches.len()..]), [ALL]);
    consumer.until("all is well", |told| told.problems.is_empty()).await;
}

#[tokio::test]
async fn the_return_of_a_server_that_forgot_the_past_is_one_change() {
    comes_back_at_once(true).await;
}

#[tokio::test]
async fn the_return_of_a_server_that_goes_on_from_where_it_was_is_one_change() {
    comes_back_at_once(false).await;
}

#[tokio::test]
async fn a_past_that_is_forgotten_without_an_outage_is_one_change_too() {
    let server = small(1);
    let consumer = Consumer::start(&server, PATIENT);
    let before = consumer.synced().await;
    server.set(|shared| {
        let store = &mut shared.store;
        store.put("pods", pod("new", "new", 99));
        store.put("networkpolicies", policy("new", 90));
        store.compact();
        shared.mute.insert("networkpolicies");
    });
    let objects = |kind: &str| consumer.source.watch().status().kinds[kind].objects;
    let told = consumer.until("the pods are known", |_| objects("Pod") == 8).await;
    assert_eq!(told.world, before.world);
    server.set(|shared| shared.mute.clear());
    let told = consumer.until("the new pod", |told| told.world.pods.contains_key("new")).await;
    assert_eq!(sorted(&told.batches[before.batches.len()..]), [["+new", "+new"]]);
}

#[tokio::test]
async fn who_does_not_come_back_is_not_waited_for_without_end_and_is_named() {
    let server = small(1);
    let consumer = Consumer::start(&server, PACE);
    consumer.synced().await;
    go_away(&server, &consumer).await;
    change_everything(&server);
    server.set(|shared| {
        shared.mute.insert("networkpolicies");
        shared.away = false;
    });
    let late = |told: &Told| {
        told.problems
            .iter()
            .any(|problem| problem.message.starts_with("is back, but not for NetworkPolicy after"))
    };
    let told = consumer.until("the others are in force", |told| told.world.pods.contains_key("new")).await;
    assert!(told.world.network_policies.keys().all(|(_, name)| name == "np"));
    consumer.until("it is reported", late).await;
    server.set(|shared| shared.mute.clear());
    let mended = |told: &Told| told.world.network_policies.keys().all(|(_, name)| name == "new");
    consumer.until("all is well", |told| told.problems.is_empty() && mended(told)).await;
}

#[tokio::test]
async fn one_kind_alone_that_fails_delays_no_other() {
    let server = small(1);
    let consumer = Consumer::start(&server, PATIENT);
    consumer.synced().await;
    server.set(|shared| {
        shared.mute.insert("networkpolicies");
    });
    let failures = || consumer.source.watch().status().kinds["NetworkPolicy"].errors;
    consumer.until("it fails", |_| failures() > 1).await;
    server.put("pods", pod("new", "new", 99));
    consumer.until("the new pod", |told| told.world.pods.contains_key("new")).await;
}
