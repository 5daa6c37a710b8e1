//! Taken off again while it only audits, as most will who try it: what is audited goes on all through it. By then the
//! programs are clsact filters, as on kernels without TCX.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::Cluster;
use portcullis_tests::installed::{self, NAMESPACE, Wanted};
use portcullis_tests::lifecycle::{Kind, Line, LivePod, Watch, leftovers, uninstall};

use crate::Clock;
use crate::audit;
use crate::shop::SHOP;

/// Where echo servers listen in the databases' pods.
const ECHO: u16 = 5433;

/// No connection is lost that a policy would deny, old or new, by one node or two, until nothing is left.
pub fn from_audit(cluster: &Cluster, clock: &Clock, mut loaded: BTreeSet<String>) -> Result<()> {
    let attach = ["set", "env", "daemonset/portcullis", "PORTCULLIS_ATTACH=clsact"];
    cluster.kubectl(["--namespace", NAMESPACE].iter().chain(&attach))?;
    cluster.wait_rollout(NAMESPACE, "daemonset/portcullis")?;
    installed::wait_programmed(cluster, &Wanted::default())?;
    for node in 0..cluster.nodes().len() {
        let found = leftovers::programs(cluster, node)?;
        let has = |what: &str| found.iter().any(|thing| thing.starts_with(what));
        ensure!(
            has("filter") && has("qdisc") && !has("program"),
            "node{node} does not have filters alone: {found:?}"
        );
    }
    clock.note("the programs are clsact filters");

    installed::set_mode(cluster, "Audit")?;
    let pod = |name: &str| LivePod::ready(cluster, SHOP, name);
    let databases = [pod("database-0a")?, pod("database-1a")?];
    let intruders = [pod("intruder-0")?, pod("intruder-1")?];
    let mut servers = Vec::new();
    let mut lines = Vec::new();
    for database in &databases {
        for to in [database.v4(ECHO), database.v6(ECHO)] {
            servers.push(database.net.tcp_echo(to)?);
            for intruder in &intruders {
                let line = |kind| Line { kind, from: intruder.net(), to };
                lines.extend([line(Kind::Permitted), line(Kind::Established)]);
            }
        }
    }
    let audited = audit::count(cluster, "intruder", "audit")?;
    let watch = Watch::start(lines)?;
    let now = audit::count(cluster, "intruder", "audit")?;
    ensure!(now > audited, "the policies would let the intruders in: {audited} audited before, {now} now");
    loaded.extend(leftovers::loaded(cluster)?);
    uninstall::uninstall(cluster, &|what| clock.note(what))?;
    uninstall::nothing_left(cluster, &loaded)?;
    let sum = watch.finish().context("while it was taken off in Audit mode")?;
    clock.note(&format!("nothing is left; what was audited went on: {sum}"));
    Ok(())
}
