//! The API server away for the agents for minutes, and everything changed when it is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::lifecycle::{LivePod, etcd};
use portcullis_tests::{eventually, eventually_within, installed};

use crate::scene::{LIFE, PORT, Scene, pod};

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(1300);
/// How long the agents hear nothing, in seconds of their own: longer than a watch that says nothing, than the lease of a
/// node, and than the pauses between tries grow.
const AWAY: f64 = 120.0;

/// The policy of the database under another name, for other accounts.
const CHANGED: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db-changed, namespace: life}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress:
    rules:
    - name: api
      action: Accept
      from: [{serviceAccounts: {names: [api, auditor, right]}}]
";

/// What was last known holds while it is away; what is there holds when it is back; nothing flickers on the way.
pub fn api_server_away(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    // The auditor is let in by what changes.
    let watch = scene.watch_but_the_auditor()?;
    let [db0, db1] = &scene.db;
    let [auditor, former, client, web] =
        [scene.pod("auditor-0")?, scene.pod("former-1")?, scene.pod("client-0")?, scene.pod("web-1")?];
    let as_before = |when: &str| {
        for (from, to) in [(&former, db0.v4(PORT)), (&former, db1.v4(PORT)), (&client, web.v4(PORT))] {
            from.net.tcp_exchange(to, SOON).with_context(|| format!("{} to {to}, {when}", from.name))?;
        }
        let passes = auditor.net.tcp_exchange(db0.v4(PORT), NEVER).is_ok();
        ensure!(!passes, "the auditor passes, {when}");
        Ok::<_, anyhow::Error>(())
    };
    as_before("at first")?;
    let of_pods = |node, name: &str| installed::metric_of(&scene.cluster, node, name, &[("kind", "Pod")]);
    let lists = |node| of_pods(node, "portcullis_source_lists_total");
    let listed = lists(0)?;

    (0..2).try_for_each(|i| scene.agents().cut(i, true))?;
    scene.cluster.apply(CHANGED)?;
    scene.cluster.kubectl(["--namespace", LIFE, "delete", "identitypolicy", "db"])?;
    scene.cluster.kubectl(["--namespace", LIFE, "label", "pod", "client-0", "role-"])?;
    scene.cluster.kubectl(["--namespace", LIFE, "delete", "pod", "late-0", "--wait"])?;
    scene.cluster.apply(&pod("api", "new-0", 0, ""))?;
    scene.cluster.apply(&pod("intruder", "new-1", 1, ""))?;
    let (new, stranger) = (scene.pod("new-0")?, scene.pod("new-1")?);
    etcd::compact(&scene.cluster)?;
    note("all has changed, and the agents know nothing of it");
    as_before("while the agents know of no change")?;
    scene.cluster.stop_api_server()?;
    as_before("without any API server")?;
    scene.agents().crash(1)?;
    note("the agent of node1 was killed, and its next one has nobody to ask");
    as_before("with an agent that was never told of the cluster")?;
    eventually_within(
        Duration::from_secs(180),
        "the agent of node0 to have heard nothing for minutes",
        || of_pods(0, "portcullis_source_age_seconds").is_ok_and(|age| age >= AWAY),
    )?;
    ensure!(!scene.agents().is_ready(1), "an agent that was told nothing says that it is ready");
    as_before("after minutes")?;
    note(&format!("the agents have heard nothing for {AWAY} s"));
    scene.cluster.start_api_server()?;
    (0..2).try_for_each(|i| scene.agents().cut(i, false))?;
    note("the API server is back");

    let mut lists_now = Vec::new();
    eventually("the agents to have listed the pods again", || {
        lists_now = (0..2).map(lists).collect();
        // Node 1 has another agent, which counts from 0.
        lists_now.iter().zip([listed, 0.0]).all(|(now, before)| now.as_ref().is_ok_and(|now| *now > before))
    })
    .with_context(|| format!("node0 had listed them {listed} times; now both: {lists_now:?}"))?;
    let reaches = |from: &LivePod, to| from.net.tcp_exchange(to, NEVER).is_ok();
    let mut wrong = Vec::new();
    eventually("the changes to hold", || {
        wrong = [
            ("the auditor is let in", reaches(&auditor, db0.v4(PORT)) && reaches(&auditor, db1.v6(PORT))),
            ("the new pod is let in", reaches(&new, db0.v4(PORT)) && reaches(&new, db1.v6(PORT))),
            ("who was let in is refused", !reaches(&former, db0.v4(PORT)) && !reaches(&former, db1.v4(PORT))),
            ("who lost the label is refused", !reaches(&client, web.v4(PORT))),
            (
                "the new intruder is refused",
                !reaches(&stranger, db0.v4(PORT)) && !reaches(&stranger, db1.v4(PORT)),
            ),
        ]
        .into_iter()
        .filter_map(|(what, holds)| (!holds).then_some(what))
        .collect();
        wrong.is_empty()
    })
    .with_context(|| format!("not so: {wrong:?}"))?;
    note(&format!("the changes hold: {}", watch.finish()?));
    scene.nothing_permitted_was_denied()
}
