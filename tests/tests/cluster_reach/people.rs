//! What a person sees: a dump with names, from the agent's own pod and from a debugging one, and denials as they happen.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::{Cluster, names};
use portcullis_tests::eventually;
use portcullis_tests::installed::NAMESPACE;
use portcullis_tests::lifecycle::{Agents, LivePod};

use crate::shop::{PORT, SHOP};

const NEVER: Duration = Duration::from_millis(1300);

/// Watches the denials of an agent by `kubectl exec` while the intruder tries.
pub fn monitors(cluster: &Cluster) -> Result<()> {
    let [database, intruder] = ["database-0a", "intruder-1"].map(|name| LivePod::ready(cluster, SHOP, name));
    let (database, intruder) = (database?, intruder?);
    let [from, to] = ["intruder", "database"].map(|account| format!("{SHOP}/{account}"));
    let command = ["portcullis", "monitor", "--verdict", "deny", "--from", &from, "--to", &to];
    let (mut monitor, _errors) =
        Agents(cluster).monitor(0, command.into_iter().chain(["--direction", "ingress", "--count", "1"]))?;
    ensure!(intruder.net.tcp_exchange(database.v4(PORT), NEVER).is_err(), "the intruder passes");
    let mut status = None;
    eventually("the monitor to have seen it", || {
        status = monitor.0.try_wait().ok().flatten();
        status.is_some()
    })?;
    let shown = std::io::read_to_string(monitor.0.stdout.take().context("its output")?)?;
    ensure!(status.is_some_and(|status| status.success()), "the monitor failed: {shown}");
    for wanted in [&from, &to, &format!("{SHOP}/database-0a"), &format!("{SHOP}/intruder-1")] {
        ensure!(shown.contains(wanted.as_str()), "the monitor does not say `{wanted}`: {shown}");
    }
    Ok(())
}

/// Asks both ways for a dump, on each node.
pub fn dumps(cluster: &Cluster) -> Result<()> {
    for node in [0, 1] {
        let name = names::node(node);
        let dump = cluster.exec(NAMESPACE, &Agents(cluster).pod(node)?, ["portcullis", "dump"])?;
        has_names(&dump, node, "kubectl exec")?;
        let dump = debug(cluster, &name, &["portcullis", "--root", "/host", "dump"])?;
        has_names(&dump, node, "kubectl debug")?;
    }
    Ok(())
}

fn has_names(dump: &str, node: usize, how: &str) -> Result<()> {
    let wanted = [
        format!("{SHOP}/database-{node}a"),
        format!("{SHOP}/intruder"),
        format!("IdentityPolicy {SHOP}/database ingress test"),
    ];
    for wanted in wanted {
        ensure!(dump.contains(&wanted), "the dump by {how} on node{node} lacks `{wanted}`:\n{dump}");
    }
    Ok(())
}

/// Runs a command in a debugging pod of a node and returns what it printed.
fn debug(cluster: &Cluster, node: &str, command: &[&str]) -> Result<String> {
    let fixed = ["debug", &format!("node/{node}"), "--profile=sysadmin", "--image=portcullis:dev", "--"]
        .map(str::to_owned);
    let said = cluster.kubectl(fixed.into_iter().chain(command.iter().map(|word| (*word).to_owned())))?;
    // "Creating debugging pod node-debugger-node0-abcde with container debugger on node node0."
    let pod = said.split_whitespace().find(|word| word.starts_with("node-debugger-"));
    let pod =
        pod.map_or_else(|| anyhow::bail!("kubectl debug names no pod: {said}"), |pod| Ok(pod.to_owned()))?;
    cluster.wait_for("default", &format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded").map_err(
        |error| {
            let logs = cluster.kubectl(["logs", &pod]).unwrap_or_default();
            error.context(logs)
        },
    )?;
    let dump = cluster.kubectl(["logs", &pod])?;
    cluster.kubectl(["delete", "pod", &pod, "--wait=false"])?;
    Ok(dump)
}
