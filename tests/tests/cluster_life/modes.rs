//! The mode of the cluster, and the emergency switch of a node.

use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis_tests::command::run;
use portcullis_tests::lifecycle::Watch;
use portcullis_tests::{eventually, installed};

use crate::scene::{PORT, Scene};

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(1300);

/// Audit lets through what is denied, and Enforce cuts it; what is permitted never notices.
pub fn audit_and_back(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let watch = Watch::start(scene.permitted()?)?;
    let [db0, db1] = &scene.db;
    let mut audited = Vec::new();
    installed::set_mode(&scene.cluster, "Audit")?;
    for (from, to) in [(&scene.intruder[0], db0.v4(PORT)), (&scene.intruder[1], db0.v6(PORT))] {
        let mut connection = from.net.tcp_connect(to, SOON)?;
        connection.exchange(SOON)?;
        audited.push(connection);
    }
    scene.intruder[0].net.tcp_exchange(db1.v4(PORT), SOON)?;
    let labels = [("source_service_account", "intruder"), ("verdict", "audit")];
    let count = installed::metric(&scene.cluster, "portcullis_decisions_total", &labels)?;
    ensure!(count >= 3.0, "three connections were audited, and {count} are counted");
    installed::set_mode(&scene.cluster, "Enforce")?;
    for connection in &mut audited {
        ensure!(connection.exchange(NEVER).is_err(), "an audited connection outlived the audit");
    }
    note(&format!("Audit to Enforce: {}", watch.finish()?));
    scene.watch()?.finish()?;
    Ok(())
}

/// `portcullis mode off` opens a node that has no agent, an agent that comes back leaves it open, `mode clear` closes it.
pub fn opened_with_the_agent_dead(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let watch = Watch::start(scene.permitted()?)?;
    let (intruder, db) = (&scene.intruder[0], scene.db[0].v4(PORT));
    let opened = || intruder.net.tcp_exchange(db, NEVER).is_ok();
    ensure!(!opened(), "the intruder is refused at first");
    scene.agents().remove(0)?;
    let said = debug(scene, "off")?;
    eventually(&format!("node0 to be open, after {said}"), opened)?;
    let said = by_runtime(scene, "clear")?;
    eventually(&format!("node0 to be closed, after {said}"), || !opened())?;
    let said = by_runtime(scene, "off")?;
    eventually(&format!("node0 to be open, after {said}"), opened)?;
    ensure!(scene.intruder[1].net.tcp_exchange(scene.db[1].v4(PORT), NEVER).is_err(), "node1 is not opened");
    scene.agents().restore(0)?;
    scene.agents().wait_ready(0)?;
    ensure!(opened(), "an agent that starts leaves the switch alone");
    scene.agents().kill(0)?;
    ensure!(opened(), "an agent that starts leaves the switch alone");
    let said = debug(scene, "clear")?;
    eventually(&format!("node0 to be closed, after {said}"), || !opened())?;
    note(&format!("mode off with the agent dead, and clear: {}", watch.finish()?));
    scene.watch()?.finish()?;
    Ok(())
}

/// `portcullis mode`, as the documents say, in a pod that sees the files of the first node.
fn debug(scene: &Scene, mode: &str) -> Result<String> {
    let image = "--image=portcullis:dev";
    let fixed = ["debug", "node/node0", "--profile=sysadmin", image, "--image-pull-policy=Never"];
    let rest = ["--attach", "--quiet", "--", "/portcullis", "--root", "/host", "mode", mode];
    let said = run(&mut scene.cluster.kubectl_command(fixed.iter().chain(&rest))?);
    // kubectl leaves its pod for whoever wants to read the log.
    let pods = scene.cluster.kubectl(["get", "pods", "--output=name"])?;
    let debuggers: Vec<&str> = pods.lines().filter(|pod| pod.starts_with("pod/node-debugger-")).collect();
    ensure!(debuggers.len() == 1, "the debugging pods are {debuggers:?}");
    scene.cluster.kubectl(["delete", "--now", "--wait"].iter().chain(&debuggers))?;
    said
}

/// The same without the API server, as the documents say, by the first node's container runtime alone.
fn by_runtime(scene: &Scene, mode: &str) -> Result<String> {
    let node = scene.cluster.node(0);
    // The machine's cgroups are not the node's to change.
    let only_here = ["--cgroup", ""];
    let fixed = ["run", "--rm", "--privileged"];
    let mount = ["--mount", "type=bind,src=/sys/fs/bpf,dst=/sys/fs/bpf,options=rbind:rw"];
    let name = format!("mode-{mode}");
    let rest = ["docker.io/library/portcullis:dev", &name, "/portcullis", "mode", mode];
    node.ctr_on_node(fixed.into_iter().chain(only_here).chain(mount).chain(rest))
}
