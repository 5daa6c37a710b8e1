//! Kinds that the server does not have, and 404s that do not mean it.

use portcullis::model::World;
use portcullis_tests::faults::cluster::{guardrail, identity};
use serde_json::Value;

use crate::consumer::{Consumer, PACE, small};

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
        let server = small(1);
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
async fn a_404_from_a_proxy_takes_no_policy_away() {
    let server = small(1);
    let consumer = Consumer::start(&server, PACE);
    let before = consumer.synced().await;
    server.set(|shared| shared.lost = true);
    let failures = || consumer.source.watch().status().kinds["IdentityPolicy"].errors;
    let told = consumer.until("many answers say that it is not there", |_| failures() > 8).await;
    assert_eq!((&told.world, told.deleted.len()), (&before.world, 0));
    assert!(!consumer.source.watch().status().kinds["IdentityPolicy"].missing);
    let told = consumer
        .until("it is reported", |told| told.problems.iter().any(|problem| problem.place == "IdentityPolicy"))
        .await;
    let text = told.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("which is not believed: at the same time /api/v1/namespaces/default"), "{text}");
    server.put("identitypolicies", identity("later", 1));
    server.set(|shared| shared.lost = false);
    let told = consumer
        .until("all is well", |told| told.problems.is_empty() && told.world.identity_policies.len() == 2)
        .await;
    assert_eq!(told.deleted.len(), 0);
}

#[tokio::test]
async fn a_kind_is_gone_only_while_a_kind_that_every_cluster_has_is_answered() {
    let server = small(1);
    let consumer = Consumer::start(&server, PACE);
    let before = consumer.synced().await;
    server.set(|shared| {
        shared.store.missing.insert("identitypolicies");
        shared.mute.insert("namespaces");
    });
    let failures = || consumer.source.watch().status().kinds["IdentityPolicy"].errors;
    let told = consumer.until("many answers say that it is not there", |_| failures() > 8).await;
    assert_eq!((&told.world, told.deleted.len()), (&before.world, 0));
    server.set(|shared| shared.mute.clear());
    consumer.until("it is believed", |told| told.world.identity_policies.is_empty()).await;
}

#[tokio::test]
async fn a_404_for_a_kind_that_the_server_s_own_list_has_is_not_believed() {
    let server = small(1);
    server.set(|shared| {
        shared.store.missing.insert("identitypolicies");
        shared.listed_all_the_same = true;
    });
    let consumer = Consumer::start(&server, PACE);
    let told = consumer
        .until("it is reported", |told| told.problems.iter().any(|problem| problem.place == "IdentityPolicy"))
        .await;
    let text = told.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("its list of resources at /apis/portcullis.dev/v1alpha1 has the kind"), "{text}");
    assert_eq!(told.synced, 0);
    server.set(|shared| shared.store.missing.clear());
    let told = consumer.synced().await;
    assert_eq!(told.world.identity_policies.len(), 1);
}
