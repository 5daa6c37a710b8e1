//! What Portcullis could leave on a node, looked for without Portcullis.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier};
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

/// The programs and maps in the kernel that are the cluster's: the maps pinned on its nodes, and the programs that use
/// them, by their ids. Other clusters may be beside it.
pub fn loaded(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for node in cluster.nodes() {
        for pin in pins(&node.place.path(Path::new("/sys/fs/bpf"))?)? {
            let info = MapInfo::from_pin(&pin).with_context(|| format!("the map {}", pin.display()))?;
            found.insert(map(&info));
            ids.insert(info.id());
        }
    }
    for info in aya::programs::loaded_programs().filter_map(Result::ok) {
        // One that ends while the list is read is none any more.
        let uses = info.map_ids().ok().flatten().unwrap_or_default();
        if uses.iter().any(|id| ids.contains(id)) {
            found.insert(program(&info));
        }
    }
    Ok(found)
}

/// Those of [`loaded`] that still are.
pub fn still_loaded(before: &BTreeSet<String>) -> BTreeSet<String> {
    let programs = aya::programs::loaded_programs().filter_map(Result::ok).map(|info| program(&info));
    let maps = aya::maps::loaded_maps().filter_map(Result::ok).map(|info| map(&info));
    programs.chain(maps).filter(|thing| before.contains(thing)).collect()
}

fn map(info: &MapInfo) -> String {
    format!("map {} {}", info.name_as_str().unwrap_or("?"), info.id())
}

fn program(info: &ProgramInfo) -> String {
    format!("program {} {}", info.name_as_str().unwrap_or("?"), info.id())
}

/// Every map of ours that is pinned below a folder, by its file's name: a file may also be a link, which looks alike.
fn pins(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(pins(&entry.path())?);
        } else if entry.file_name().to_str().is_some_and(|name| names::ALL.contains(&name)) {
            found.push(entry.path());
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
                let name = |program: &ProgramInfo| {
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
