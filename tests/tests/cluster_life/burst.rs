//! A hundred pods that connect at once.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis_common::Reason;
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

/// Packets that were dropped so far, by reason; and connections that the databases' own kernels could not queue, which looks
/// the same to a client.
fn dropped(scene: &Scene) -> Result<BTreeMap<&'static str, f64>> {
    let mut dropped = BTreeMap::new();
    for reason in Reason::ALL.iter().map(|reason| reason.name()) {
        let labels = [("reason", reason)];
        dropped.insert(reason, installed::metric(&scene.cluster, "portcullis_drops_total", &labels)?);
    }
    let mut overflows = 0.0;
    for db in &scene.db {
        let text = db.net.run(|| Ok(fs::read_to_string("/proc/thread-self/net/netstat")?))?;
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
        let [names, values] = lines[..] else { bail!("the kernel's counters of {}: {text}", db.name) };
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(name, _)| *name == "ListenOverflows").context("no ListenOverflows")?;
        overflows += value.parse::<f64>()?;
    }
    dropped.insert("the database's full queue", overflows);
    Ok(dropped)
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
    let (denied, before) = (denied_of_the_right(scene)?, dropped(scene)?);
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
    // Which of them explain a SYN that was lost.
    let now = dropped(scene)?;
    let more =
        now.iter().map(|(reason, now)| (*reason, now - before[reason])).filter(|(_, more)| *more > 0.0);
    let more: BTreeMap<&str, f64> = more.collect();
    note(&format!("  dropped meanwhile: {more:?}"));
    note(&format!("  permitted: {}", read("right")?.1.permitted()?));
    note(&format!("  forbidden: {}", read("wrong")?.1.forbidden()?));
    let wrong = [Reason::FlowTable, Reason::NoPolicy].map(Reason::name);
    ensure!(
        !wrong.iter().any(|reason| more.contains_key(reason)),
        "there was no room for {wrong:?}: {more:?}"
    );
    let now = denied_of_the_right(scene)?;
    let none_more = now.iter().zip(&denied).all(|(now, before)| now <= before);
    ensure!(none_more, "connections of the right account were denied: {denied:?} before, {now:?} after");
    note(&watch.finish()?.to_string());
    scene.nothing_permitted_was_denied()
}
