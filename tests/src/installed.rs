//! Portcullis in a real cluster: installed from the manifests and the image, and what its agents say of themselves.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use portcullis::state::State;

use crate::cluster::Cluster;
use crate::command::run;
use crate::deploy;
use crate::poll::eventually;

/// Namespace of the product.
pub const NAMESPACE: &str = "portcullis-system";
/// Port of the metrics on each node.
pub const METRICS: u16 = 9478;

/// The archive that `cargo xtask image` writes.
pub fn image() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image/portcullis.tar");
    ensure!(path.is_file(), "there is no image {}: run `cargo xtask image`", path.display());
    Ok(path)
}

/// Installs the development overlay and waits until every agent is ready.
pub fn install(cluster: &Cluster) -> Result<()> {
    install_manifests(cluster, &deploy::render("overlays/dev")?)
}

/// Installs these manifests and waits until every agent is ready.
pub fn install_manifests(cluster: &Cluster, manifests: &str) -> Result<()> {
    // What is of a kind that is defined in the same file is known to the server a moment later.
    cluster.apply(manifests)?;
    cluster.wait_for("default", "crd --all", "condition=Established")?;
    cluster.wait_rollout(NAMESPACE, "daemonset/portcullis")
}

/// Sets the mode of the cluster, as a person does, and waits until every agent has it.
pub fn set_mode(cluster: &Cluster, mode: &str) -> Result<()> {
    let patch = format!(r#"{{"data": {{"mode": "{mode}"}}}}"#);
    cluster.kubectl([
        "--namespace",
        NAMESPACE,
        "patch",
        "configmap",
        "portcullis",
        "--type=merge",
        "--patch",
        &patch,
    ])?;
    wait_for_mode(cluster, mode)
}

/// Waits until every agent has this mode.
pub fn wait_for_mode(cluster: &Cluster, mode: &str) -> Result<()> {
    wait_for_agents(cluster, &format!("mode {mode}"), |_, state| state.mode.eq_ignore_ascii_case(mode))
}

/// The names file of a node's agent: what it knows and has programmed.
pub fn state(cluster: &Cluster, node: usize) -> Result<State> {
    let text = run(&mut cluster.node(node).place.command("cat", ["/run/portcullis/state.json"])?)?;
    serde_json::from_str(&text).with_context(|| format!("the names file of node{node}"))
}

/// Waits until a condition holds for the agents of all nodes.
pub fn wait_for_agents(
    cluster: &Cluster,
    what: &str,
    condition: impl Fn(usize, &State) -> bool,
) -> Result<()> {
    let mut last = String::new();
    let waited = eventually(&format!("{what} on every node"), || {
        (0..cluster.nodes().len()).all(|node| match state(cluster, node) {
            Ok(state) if condition(node, &state) => true,
            Ok(state) => {
                last = format!("node{node} says {state:?}");
                false
            }
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        })
    });
    waited.context(last)
}

/// What must be programmed.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Namespace and name of policies.
    pub policies: Vec<(String, String)>,
    /// Addresses of pods, with `namespace/name`.
    pub pods: BTreeMap<IpAddr, String>,
}

/// Waits until every agent has programmed these policies and pods, and has its programs on every endpoint.
pub fn wait_programmed(cluster: &Cluster, wanted: &Wanted) -> Result<()> {
    wait_for_agents(cluster, "the policies and pods of the test to be programmed", |_, state| {
        let policy = |(namespace, name): &(String, String)| {
            state.policies.iter().any(|policy| policy.namespace == *namespace && policy.name == *name)
        };
        let hooked =
            state.endpoints.iter().all(|endpoint| endpoint.hooks.values().all(|hook| hook == "attached"));
        state.errors.is_empty()
            && hooked
            && wanted.policies.iter().all(policy)
            && wanted.pods.iter().all(|(address, pod)| state.pods.get(address) == Some(pod))
    })
}

/// The sum over all nodes of a metric's series that have these labels.
pub fn metric(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    (0..cluster.nodes().len()).map(|node| metric_of(cluster, node, name, labels)).sum()
}

/// As [`metric`], of one node.
pub fn metric_of(cluster: &Cluster, node: usize, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let answer = cluster.http_get(node, METRICS, "/metrics")?;
    ensure!(answer.status == 200, "/metrics of node{node} answers {}: {}", answer.status, answer.body);
    Ok(sum_of(&answer.body, name, labels))
}

/// The sum of a metric's series that have these labels.
pub fn sum_of(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let found = format!(",{found},");
        let has = |(label, value): &(&str, &str)| found.contains(&format!(",{label}=\"{value}\","));
        if labels.iter().all(has) { value.parse::<f64>().ok() } else { None }
    };
    text.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "small whole numbers")]
    fn series_are_summed_by_labels() {
        let text = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\naa{x=\"1\"} 8\na 16\n";
        assert_eq!(sum_of(text, "a", &[("x", "1")]), 7.0);
        assert_eq!(sum_of(text, "a", &[("x", "1"), ("y", "3")]), 4.0);
        assert_eq!(sum_of(text, "a", &[]), 23.0);
    }
}
