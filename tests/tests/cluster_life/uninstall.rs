//! Taken off again, as its documents say.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::lifecycle::leftovers;
use portcullis_tests::{deploy, eventually};

use crate::scene::{PORT, Scene};

const SOON: Duration = Duration::from_secs(10);

/// Nothing is left on any node, and everything passes.
pub fn leaves_nothing(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let cluster = &scene.cluster;
    for i in 0..2 {
        let there = leftovers::on_node(cluster, i)?;
        ensure!(there.iter().any(|thing| thing.contains("program")), "node{i} has no programs: {there:?}");
    }
    let installed = deploy::folder().join("portcullis.yaml");
    cluster.kubectl(["delete", "--wait", "--filename", &installed.to_string_lossy()])?;
    note("the manifests are deleted");
    let cleanup = fs::read_to_string(deploy::folder().join("cleanup.yaml")).context("deploy/cleanup.yaml")?;
    cluster.apply(&cleanup)?;
    cluster.wait_rollout("portcullis-cleanup", "daemonset/portcullis-cleanup")?;
    cluster.delete(&cleanup)?;
    note("the nodes are clean");
    for i in 0..2 {
        let mut left = Vec::new();
        eventually(&format!("nothing to be left on node{i}"), || {
            left = leftovers::on_node(cluster, i).unwrap_or_else(|error| vec![format!("{error:#}")]);
            left.is_empty()
        })
        .with_context(|| format!("left: {left:?}"))?;
    }
    let definitions = cluster.kubectl(["get", "crd", "--output=name"])?;
    ensure!(!definitions.contains("portcullis"), "definitions are left: {definitions}");
    let roles = cluster.kubectl(["get", "clusterrole,clusterrolebinding,namespace", "--output=name"])?;
    ensure!(!roles.contains("portcullis"), "objects are left: {roles}");
    for (from, to) in [
        (&scene.intruder[0], scene.db[0].v4(PORT)),
        (&scene.intruder[0], scene.db[1].v6(PORT)),
        (&scene.intruder[1], scene.db[0].v4(PORT)),
        (&scene.intruder[1], Scene::outside()),
    ] {
        from.net.tcp_exchange(to, SOON).with_context(|| format!("{} to {to}", from.name))?;
    }
    note("nothing is left, and everything passes");
    Ok(())
}
