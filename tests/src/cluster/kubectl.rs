//! Talking to the cluster with kubectl, and waiting for what is asked of it.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Cluster, binaries};
use crate::command::{run, run_with_input};
use crate::poll::{PATIENCE, eventually};

impl Cluster {
    /// A kubectl command as the cluster's administrator.
    pub fn kubectl_command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Command> {
        let mut command = Command::new(binaries::find("kubectl")?);
        command.env("KUBECONFIG", self.kubeconfig());
        // What it learned of another cluster on the same port must not be taken for this one's.
        command.env("KUBECACHEDIR", self.folder().join("kubectl-cache"));
        command.args(args);
        Ok(command)
    }

    /// Runs kubectl and returns what it printed; an exit code other than 0 is an error.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        run(&mut self.kubectl_command(args)?)
    }

    /// Applies manifests: YAML or JSON.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        run_with_input(&mut self.kubectl_command(["apply", "--filename", "-"])?, manifests)
    }

    /// Deletes what manifests name, and waits until it is gone.
    pub fn delete(&self, manifests: &str) -> Result<String> {
        let args = ["delete", "--ignore-not-found", "--wait", "--grace-period=1", "--filename", "-"];
        run_with_input(&mut self.kubectl_command(args)?, manifests)
    }

    /// Waits until objects (`pod/web`, `deployment/web`, `pods --selector=app=web`) meet a condition of `kubectl wait`:
    /// `condition=Ready`, `delete`, `jsonpath={..}=value`.
    pub fn wait_for(&self, namespace: &str, objects: &str, condition: &str) -> Result<()> {
        let fixed = [
            "wait".to_owned(),
            format!("--namespace={namespace}"),
            format!("--for={condition}"),
            format!("--timeout={}s", PATIENCE.as_secs()),
        ];
        let args = fixed.into_iter().chain(objects.split(' ').map(str::to_owned));
        self.kubectl(args).map_err(|error| self.explain(namespace, error))?;
        Ok(())
    }

    /// Waits until a pod is ready.
    pub fn wait_pod(&self, namespace: &str, pod: &str) -> Result<()> {
        self.wait_for(namespace, &format!("pod/{pod}"), "condition=Ready")
    }

    /// Waits until a `deployment/x` or `daemonset/x` has all of its pods, of the latest kind, ready.
    pub fn wait_rollout(&self, namespace: &str, object: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let args = ["--namespace", namespace, "rollout", "status", object, &timeout];
        self.kubectl(args).map_err(|error| self.explain(namespace, error))?;
        Ok(())
    }

    /// Adds what a person would look at next.
    fn explain(&self, namespace: &str, error: anyhow::Error) -> anyhow::Error {
        let look = |args: &[&str]| {
            self.kubectl(["--namespace", namespace].iter().chain(args))
                .unwrap_or_else(|error| format!("{error:#}"))
        };
        let pods = look(&["get", "pods", "--output=wide"]);
        let events = look(&["get", "events", "--sort-by=.lastTimestamp"]);
        let tail: Vec<&str> = events.lines().collect();
        let tail = tail[tail.len().saturating_sub(12)..].join("\n");
        error.context(format!("the pods of {namespace}:\n{pods}\nthe last events:\n{tail}\n"))
    }

    /// Runs a command in a pod and returns what it printed.
    pub fn exec<A: AsRef<OsStr>>(
        &self,
        namespace: &str,
        pod: &str,
        command: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let fixed = ["--namespace", namespace, "exec", pod, "--"].map(|word| OsStr::new(word).to_owned());
        self.kubectl(fixed.into_iter().chain(command.into_iter().map(|word| word.as_ref().to_owned())))
    }

    /// One value of an object, by a JSON path: `{.status.podIPs[*].ip}`.
    pub fn value(&self, namespace: &str, object: &str, path: &str) -> Result<String> {
        self.kubectl(["--namespace", namespace, "get", object, &format!("--output=jsonpath={path}")])
    }

    /// Waits until the API server answers.
    pub(super) fn wait_for_api_server(&self) -> Result<()> {
        let mut last = Ok(String::new());
        let waited = eventually("the API server to answer", || {
            if let Err(error) = self.check_control_plane() {
                last = Err(error);
                return true;
            }
            last = self.kubectl(["get", "--raw", "/readyz"]);
            last.is_ok()
        });
        last.and(waited).context("the API server is not ready")
    }
}
