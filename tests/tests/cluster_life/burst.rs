//! A hundred pods that connect at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portcullis_tests::cluster::images::BUSYBOX;
use portcullis_tests::lifecycle::burst::{Tries, script};
use portcullis_tests::{eventually_within, installed};

use crate::scene::{LIFE, PORT, Scene};

/// Pods of each account.
const EACH: usize = 50;
/// Tries of each pod at each target.
const TRIES: usize = 6;
/// How long all may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Nobody who may was ever denied under its own name: what comes before its address is known is denied as `unmanaged`.
fn denied_of_the_right(scene: &Scene) -> Result<[f64; 3]> {
    let count = |source: (&str, &str), destination: (&str, &str)| {
        let labels = [
            ("source_namespace", source.0),
            ("source_service_account", source.1),
            ("destination_namespace", destination.0),
            ("destination_service_account", destination.1),
            ("verdict", "deny"),
        ];
        installed::metric(&scene.cluster, "portcullis_decisions_total", &labels)
    };
    let (right, db, outside) = ((LIFE, "right"), (LIFE, "db"), ("", "world"));
    Ok([count(right, db)?, count(db, right)?, count(right, outside)?])
}

/// Half of them may reach the database and the outside, half may not.
pub fn many_pods_at_once(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let watch = scene.watch_but_the_auditor()?;
    let targets = [
        ("node0", scene.db[0].v4.to_string()),
        ("node1", scene.db[1].v4.to_string()),
        ("outside", Scene::outside().ip().to_string()),
    ];
    let command = serde_json::json!(["sh", "-c", script(&targets, PORT, TRIES)]);
    let deployment = |account: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {account}, namespace: {LIFE}}}\n\
             spec:\n  replicas: {EACH}\n  selector: {{matchLabels: {{app: {account}}}}}\n  template:\n    \
             metadata: {{labels: {{app: {account}}}}}\n    spec:\n      serviceAccountName: {account}\n      \
             automountServiceAccountToken: false\n      terminationGracePeriodSeconds: 0\n      containers: \
             [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: {command}}}]\n"
        )
    };
    let denied = denied_of_the_right(scene)?;
    let start = Instant::now();
    scene.cluster.apply(&(deployment("right") + &deployment("wrong")))?;
    let read = |account: &str| -> Result<(usize, Tries)> {
        let mut tries = Tries::default();
        let mut done = 0;
        for node in scene.cluster.nodes() {
            done += tries.read(&node.folder().join("log"), LIFE, &format!("{account}-"))?;
        }
        Ok((done, tries))
    };
    eventually_within(PATIENCE, "all pods to have tried", || {
        std::thread::sleep(Duration::from_millis(500));
        ["right", "wrong"].iter().all(|account| read(account).is_ok_and(|(done, _)| done == EACH))
    })?;
    note(&format!("{} pods started and tried in {:.1} s", 2 * EACH, start.elapsed().as_secs_f64()));
    note(&format!("  permitted: {}", read("right")?.1.permitted()?));
    note(&format!("  forbidden: {}", read("wrong")?.1.forbidden()?));
    let now = denied_of_the_right(scene)?;
    let none_more = now.iter().zip(&denied).all(|(now, before)| now <= before);
    ensure!(none_more, "connections of the right account were denied: {denied:?} before, {now:?} after");
    note(&watch.finish()?.to_string());
    scene.nothing_permitted_was_denied()
}
