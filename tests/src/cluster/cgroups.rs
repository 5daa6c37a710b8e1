//! The cgroups of a cluster: what the kubelets put their pods below, and how every process of the cluster is found.
//!
//! Both versions: in version 1 each controller has a tree of its own below `/sys/fs/cgroup`, in version 2 that is the
//! tree. In each, `portcullis-cluster-<name>` holds `daemons` and one cgroup a node.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::names::{Name, node};
use crate::poll::{eventually, eventually_within};

/// Where the trees are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of what is no pod: etcd, the API server, kubelets, containerd and its shims.
const DAEMONS: &str = "daemons";

/// Whether this machine has version 1.
fn is_version_1() -> bool {
    !Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The roots of all trees.
fn trees() -> Result<Vec<PathBuf>> {
    if !is_version_1() {
        return Ok(vec![PathBuf::from(ROOT)]);
    }
    let entries = fs::read_dir(ROOT).with_context(|| format!("reading {ROOT}: are cgroups mounted?"))?;
    let mut trees: Vec<PathBuf> = entries
        .flatten()
        // Links name two controllers of one tree.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    trees.sort();
    Ok(trees)
}

/// The kubelet's `cgroupRoot` of a node.
pub fn kubelet_root(name: &Name, i: usize) -> String {
    format!("/{}/{}", name.prefixed(), node(i))
}

/// The file that a process writes itself into to become one of the cluster's daemons.
pub fn daemons_file(name: &Name) -> Result<PathBuf> {
    let trees = trees()?;
    // One tree suffices to be found; that of `pids` limits nothing.
    let tree = trees.iter().find(|tree| tree.ends_with("pids")).or(trees.first());
    let tree = tree.with_context(|| format!("no cgroup tree is mounted below {ROOT}"))?;
    Ok(tree.join(name.prefixed()).join(DAEMONS).join("cgroup.procs"))
}

/// Makes the cgroups of a cluster.
pub fn create(name: &Name, nodes: usize) -> Result<()> {
    let trees = trees()?;
    ensure!(!trees.is_empty(), "no cgroup tree is mounted below {ROOT}, and kubelets need one");
    for tree in trees {
        let root = tree.join(name.prefixed());
        make(&root)?;
        make(&root.join(DAEMONS))?;
        for i in 0..nodes {
            make(&root.join(node(i)))?;
        }
    }
    Ok(())
}

/// Makes one cgroup that pods can be in.
fn make(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("making the cgroup {}", folder.display()))?;
    // A new cpuset of version 1 has neither processors nor memory, and takes no process before it has.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (parent, own) = (folder.with_file_name(file), folder.join(file));
        if is_version_1() && own.exists() {
            fs::copy(&parent, &own).with_context(|| format!("setting {}", own.display()))?;
        }
    }
    Ok(())
}

/// Kills every process of the cluster and removes its cgroups; nothing to do is fine.
pub fn destroy(name: &Name) -> Result<()> {
    let roots: Vec<PathBuf> = trees()?.iter().map(|tree| tree.join(name.prefixed())).collect();
    kill(&roots).with_context(|| format!("ending the processes of cluster {}", name.as_str()))?;
    for root in roots {
        // A process that has just ended keeps its cgroup busy for a moment.
        let mut last = Ok(());
        let removed = eventually("the cgroups to be empty", || {
            last = remove(&root);
            last.is_ok()
        });
        removed
            .and(last.map_err(Into::into))
            .with_context(|| format!("removing the cgroup {}", root.display()))?;
    }
    Ok(())
}

/// Kills what is in these cgroups until nothing is: a process may start others meanwhile.
fn kill(roots: &[PathBuf]) -> Result<()> {
    eventually("every process to end", || {
        let mut processes = Vec::new();
        for root in roots {
            collect(root, &mut processes);
        }
        for process in &processes {
            // SAFETY: a system call without pointers; the process is in a cgroup that only this cluster uses.
            unsafe { libc::kill(*process, libc::SIGKILL) };
        }
        processes.is_empty()
    })
}

/// The processes in a cgroup and below.
fn collect(folder: &Path, processes: &mut Vec<i32>) {
    let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // Zero stands for a process that is not in our process namespace.
    processes
        .extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|process| *process > 1));
    for child in children(folder) {
        collect(&child, processes);
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for child in children(folder) {
        remove(&child)?;
    }
    fs::remove_dir(folder)
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The clusters that have a cgroup, also if nothing else of them is left.
pub fn clusters() -> Vec<Name> {
    let trees = trees().unwrap_or_default();
    let folders = trees.iter().flat_map(|tree| children(tree));
    folders.filter_map(|folder| Name::of_folder(&folder)).collect()
}

/// Waits until a process is gone.
pub fn wait_gone(process: u32, what: &str, patience: std::time::Duration) -> Result<()> {
    eventually_within(patience, &format!("{what} (process {process}) to end"), || !is_running(process))
}

/// Whether a process runs; one that only waits to be reaped does not.
pub fn is_running(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The name before it may hold anything, also a `)`.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
