//! The agents of the nodes: their processes, whether they are ready, and ways to take one away.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{ChildStderr, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, names};
use crate::command::{Running, run};
use crate::installed::{METRICS, NAMESPACE, metric_of};
use crate::poll::eventually;

/// The label of the test by which nodes have an agent or not. (The label of the operating system, which the manifests
/// select by, is put back by the kubelet.)
const SELECTED: &str = "lifecycle-test/agent";
/// Makes the `DaemonSet` select by it. `OnDelete`, so that the change by itself replaces no agent.
const SELECTING: &str = r#"{"spec": {
    "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
    "template": {"spec": {"nodeSelector": {"lifecycle-test/agent": "yes"}}}
}}"#;

/// The agents of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Agents<'a>(pub &'a Cluster);

impl Agents<'_> {
    /// The processes of Portcullis on a node, in whatever pod.
    pub fn processes(self, node: usize) -> Result<Vec<u32>> {
        let inode = fs::metadata(self.0.node(node).place.net.path()).context("a node's network")?.ino();
        let numbers = fs::read_dir("/proc").context("reading /proc")?.flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(numbers
            .filter(|number: &u32| {
                let comm = fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
                let net = fs::metadata(format!("/proc/{number}/ns/net")).map(|net| net.ino());
                comm.trim_end() == "portcullis" && net.is_ok_and(|net| net == inode)
            })
            .collect())
    }

    /// The pod of a node's agent, as kubectl names it.
    pub fn pod(self, node: usize) -> Result<String> {
        let selector = format!("--field-selector=spec.nodeName={}", names::node(node));
        let pods = ["--namespace", NAMESPACE, "get", "pods", &selector, "--output=name"];
        Ok(self.0.kubectl(pods)?.trim().to_owned())
    }

    /// Starts this command, a `portcullis monitor`, in the pod of a node's agent, and waits until it says where it reads
    /// from: what happens from then on it sees. What it says to its errors ends when the second of what is returned goes.
    pub fn monitor<A: AsRef<OsStr>>(
        self,
        node: usize,
        command: impl IntoIterator<Item = A>,
    ) -> Result<(Running, BufReader<ChildStderr>)> {
        let pod = self.pod(node)?;
        let mut kubectl = self.0.kubectl_command(["--namespace", NAMESPACE, "exec", &pod, "--"])?;
        kubectl.args(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut monitor = Running(kubectl.spawn().context("starting kubectl")?);
        let mut errors = BufReader::new(monitor.0.stderr.take().context("its errors")?);
        let mut said = String::new();
        errors.read_line(&mut said)?;
        ensure!(said.contains("events of the agent"), "the monitor of node{node} says: {said}");
        Ok((monitor, errors))
    }

    /// Whether a node's agent says that it is ready.
    pub fn is_ready(self, node: usize) -> bool {
        self.0.http_get(node, METRICS, "/readyz").is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until it does.
    pub fn wait_ready(self, node: usize) -> Result<()> {
        eventually(&format!("the agent of node{node} to be ready"), || self.is_ready(node))
    }

    /// Kills a node's agent, and waits until another one runs, ready or not.
    pub fn crash(self, node: usize) -> Result<()> {
        let old = self.processes(node)?;
        ensure!(old.len() == 1, "node{node} has {} agents", old.len());
        for process in &old {
            let process = i32::try_from(*process)?;
            // SAFETY: a system call without pointers; the process was just seen in the network of the test's own node.
            ensure!(unsafe { libc::kill(process, libc::SIGKILL) } == 0, "killing the agent of node{node}");
        }
        eventually(&format!("a new agent on node{node}"), || {
            self.processes(node).is_ok_and(|new| !new.is_empty() && new != old)
        })
    }

    /// Kills a node's agent, and waits until another one is ready.
    pub fn kill(self, node: usize) -> Result<()> {
        self.crash(node)?;
        self.wait_ready(node)
    }

    /// Takes the agent off a node, and waits until its process is gone.
    pub fn remove(self, node: usize) -> Result<()> {
        self.0.kubectl(["label", "--overwrite", "nodes", "--all", &format!("{SELECTED}=yes")])?;
        let patch = ["patch", "daemonset", "portcullis", "--type=merge", "--patch", SELECTING];
        self.0.kubectl(["--namespace", NAMESPACE].iter().chain(&patch))?;
        self.0.kubectl(["label", "node", &format!("node{node}"), &format!("{SELECTED}-")])?;
        eventually(&format!("no agent on node{node}"), || {
            self.processes(node).is_ok_and(|processes| processes.is_empty())
        })
    }

    /// Lets a node have an agent again; does not wait for it.
    pub fn restore(self, node: usize) -> Result<()> {
        self.0.kubectl(["label", "node", &format!("node{node}"), &format!("{SELECTED}=yes")])?;
        Ok(())
    }

    /// Keeps a node's agent, and nothing else, from reaching the API server; or no longer. Packets are dropped without
    /// a word, as where a network fails.
    pub fn cut(self, node: usize, cut: bool) -> Result<()> {
        let address = self.0.value("default", "service/kubernetes", "{.spec.clusterIP}")?;
        let action = if cut { "--insert" } else { "--delete" };
        // Both ways, or the server would go on telling news. Kubelet and kube-proxy go to the server's own address.
        ["INPUT", "OUTPUT"].iter().try_for_each(|chain| {
            let rule = ["--wait", "--table", "mangle", action, chain, "--match", "conntrack"];
            let rest = ["--ctorigdst", &address, "--jump", "DROP"];
            run(&mut self.0.node(node).place.command("iptables", rule.iter().chain(&rest))?)?;
            Ok(())
        })
    }

    /// The image that the agent of each node runs, by its digest.
    pub fn images(self) -> Result<BTreeMap<String, String>> {
        let path = "{range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].imageID}{\"\\n\"}{end}";
        let selector = "--selector=app.kubernetes.io/name=portcullis";
        let path = format!("--output=jsonpath={path}");
        let lines = self.0.kubectl(["--namespace", NAMESPACE, "get", "pods", selector, &path])?;
        let image = |line: &str| {
            let (node, image) = line.split_once(' ').filter(|(_, image)| !image.is_empty())?;
            Some((node.to_owned(), image.to_owned()))
        };
        lines
            .lines()
            .map(|line| image(line).with_context(|| format!("an agent without an image: {line}")))
            .collect()
    }

    /// The node whose agent writes the status of policies; none, or more than one, is an error.
    pub fn leader(self) -> Result<usize> {
        let leads =
            |node: &usize| metric_of(self.0, *node, "portcullis_status_leader", &[]).is_ok_and(|n| n > 0.0);
        let leaders: Vec<usize> = (0..self.0.nodes().len()).filter(leads).collect();
        match leaders[..] {
            [one] => Ok(one),
            _ => bail!("the agents that lead are those of {leaders:?}"),
        }
    }

    /// Rolls all agents to another image, and waits for the end.
    pub fn set_image(self, image: &str) -> Result<()> {
        let image = format!("portcullis={image}");
        self.0.kubectl(["--namespace", NAMESPACE, "set", "image", "daemonset/portcullis", &image])?;
        self.0.wait_rollout(NAMESPACE, "daemonset/portcullis")
    }
}
