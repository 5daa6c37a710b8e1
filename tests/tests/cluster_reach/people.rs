//! What a person sees: a dump with names, from the agent's own pod and from a debugging one.

use anyhow::{Result, ensure};
use portcullis_tests::cluster::{Cluster, names};
use portcullis_tests::installed::NAMESPACE;

use crate::shop::SHOP;

/// Asks both ways for a dump, on each node.
pub fn dumps(cluster: &Cluster) -> Result<()> {
    for node in [0, 1] {
        let name = names::node(node);
        let selector = format!("--field-selector=spec.nodeName={name}");
        let agents = ["--namespace", NAMESPACE, "get", "pods", &selector, "--output=name"];
        let agent = cluster.kubectl(agents)?;
        let dump = cluster.exec(NAMESPACE, agent.trim(), ["portcullis", "dump"])?;
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
