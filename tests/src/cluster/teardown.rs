//! Removing a cluster, or whatever is left of one.
//!
//! Nothing here asks what the cluster believes of itself: its processes are those in its cgroups, also of a containerd
//! that is dead; its networks are known by name; its mounts go with its processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::names::Name;
use super::{cgroups, network};
use crate::command::run;

/// Every cluster of which there is something.
pub fn clusters() -> BTreeSet<Name> {
    let folders = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let folders = folders.filter_map(|entry| Name::of_folder(&entry.path()));
    folders.chain(network::clusters()).chain(cgroups::clusters()).collect()
}

/// Removes everything of a cluster; nothing there is fine. Goes on after an error, and returns all of them.
pub fn destroy(name: &Name) -> Result<()> {
    let errors: Vec<String> = [cgroups::destroy(name), network::destroy(name), remove_folder(&name.folder())]
        .into_iter()
        .filter_map(|step| step.err().map(|error| format!("{error:#}")))
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    bail!("cluster {} is not wholly removed: {}", name.as_str(), errors.join("; "))
}

/// Removes what test processes that have ended left behind, and returns the names.
pub fn sweep() -> Result<Vec<Name>> {
    let orphans: Vec<Name> = clusters().into_iter().filter(Name::is_orphaned).collect();
    for name in &orphans {
        destroy(name)?;
    }
    Ok(orphans)
}

/// Removes the state folder. Mounts inside it belong to processes that are gone; one that somebody made in the
/// machine's own namespace would have its content deleted, so it is taken off first.
fn remove_folder(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.retain(|point| Path::new(point).starts_with(folder));
    for point in points.into_iter().rev() {
        run(Command::new("umount").arg(point))?;
    }
    fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))
}
