//! Portcullis taken off a cluster, as `docs/install.md` says, and a look at what is left.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};

use super::leftovers;
use crate::cluster::Cluster;
use crate::deploy;
use crate::poll::eventually;

/// Deletes the manifests, and cleans every node.
pub fn uninstall(cluster: &Cluster, note: &dyn Fn(&str)) -> Result<()> {
    let installed = deploy::folder().join("portcullis.yaml");
    cluster.kubectl(["delete", "--wait", "--filename", &installed.to_string_lossy()])?;
    note("the manifests are deleted");
    let cleanup = fs::read_to_string(deploy::folder().join("cleanup.yaml")).context("deploy/cleanup.yaml")?;
    cluster.apply(&cleanup)?;
    cluster.wait_rollout("portcullis-cleanup", "daemonset/portcullis-cleanup")?;
    cluster.delete(&cleanup)?;
    note("the nodes are clean");
    Ok(())
}

/// Fails if anything is left on a node, in the kernel (of what was [`leftovers::loaded`]), or in the API.
pub fn nothing_left(cluster: &Cluster, loaded: &BTreeSet<String>) -> Result<()> {
    let mut left = Vec::new();
    eventually("nothing of Portcullis to be left", || {
        left.clear();
        for i in 0..cluster.nodes().len() {
            let there = leftovers::on_node(cluster, i).unwrap_or_else(|error| vec![format!("{error:#}")]);
            left.extend(there.into_iter().map(|thing| format!("node{i}: {thing}")));
        }
        left.extend(leftovers::still_loaded(loaded));
        left.is_empty()
    })
    .with_context(|| format!("left: {left:?}"))?;
    let definitions = cluster.kubectl(["get", "crd", "--output=name"])?;
    ensure!(!definitions.contains("portcullis"), "definitions are left: {definitions}");
    let roles = cluster.kubectl(["get", "clusterrole,clusterrolebinding,namespace", "--output=name"])?;
    ensure!(!roles.contains("portcullis"), "objects are left: {roles}");
    Ok(())
}
