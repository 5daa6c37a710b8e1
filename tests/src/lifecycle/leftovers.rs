//! What Portcullis could leave on a node, looked for without Portcullis.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use portcullis_common::abi::names;

use super::Agents;
use crate::cluster::Cluster;
use crate::command::run;

/// Everything of Portcullis that is on a node: processes, files, pins, programs on interfaces.
pub fn on_node(cluster: &Cluster, node: usize) -> Result<Vec<String>> {
    let place = &cluster.node(node).place;
    let mut left: Vec<String> =
        Agents(cluster).processes(node)?.iter().map(|process| format!("process {process}")).collect();
    // The node's own bpffs: whatever is pinned there, by whatever name. The kernel's two files stay. In /run the folder
    // itself is ours.
    let find = "find /sys/fs/bpf -mindepth 1 -not -name '*.debug'; find /run -maxdepth 1 -name 'portcullis*'";
    let found = run(&mut place.command("sh", ["-c", find])?)?;
    left.extend(found.lines().map(|path| format!("file {path}")));
    left.extend(programs(cluster, node)?);
    Ok(left)
}

/// The programs and maps in the kernel that are called like ours, by their ids. They are the machine's, not a node's: to be
/// compared with what was there before the cluster was.
pub fn loaded() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        // One that ends while the list is read is none any more.
        let Ok(program) = program else { continue };
        let name = program.name_as_str().unwrap_or_default();
        if ["from_pod", "to_pod"].contains(&name) {
            found.insert(format!("program {name} {}", program.id()));
        }
    }
    for map in aya::maps::loaded_maps() {
        let Ok(map) = map else { continue };
        let name = map.name_as_str().unwrap_or_default();
        // The kernel keeps fifteen letters.
        let is_ours = |ours: &&str| name == &ours[..ours.len().min(15)];
        if names::ALL.iter().chain(&["flows4", "flows6"]).any(is_ours) {
            found.insert(format!("map {name} {}", map.id()));
        }
    }
    Ok(found)
}

/// The programs on every interface of a node, by TCX and by the older filters, and the qdiscs that filters are in.
pub fn programs(cluster: &Cluster, node: usize) -> Result<Vec<String>> {
    let place = &cluster.node(node).place;
    let interfaces = place.net.run(|| {
        // The folder /sys/class/net would be that of the machine; /proc/self is the main thread's.
        let table = fs::read_to_string("/proc/thread-self/net/dev").context("reading the interfaces")?;
        let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
        Ok(names.map(|(name, _)| name.trim().to_owned()).collect::<Vec<_>>())
    })?;
    let mut found = place.net.run(|| {
        let mut found = Vec::new();
        for interface in &interfaces {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(interface, hook)
                    .with_context(|| format!("asking for the programs of {interface}"))?;
                let name = |program: &aya::programs::ProgramInfo| {
                    format!("program {} on {interface} ({hook:?})", program.name_as_str().unwrap_or("?"))
                };
                found.extend(programs.iter().map(name));
            }
        }
        Ok(found)
    })?;
    for interface in &interfaces {
        for hook in ["ingress", "egress"] {
            let shown = run(&mut place.net.command("tc", ["filter", "show", "dev", interface, hook]))?;
            found.extend(shown.lines().map(|line| format!("filter {line} on {interface} ({hook})")));
        }
    }
    let qdiscs = run(&mut place.net.command("tc", ["qdisc", "show"]))?;
    found.extend(qdiscs.lines().filter(|line| line.contains("clsact")).map(str::to_owned));
    Ok(found)
}
