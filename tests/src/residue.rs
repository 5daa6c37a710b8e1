//! What a test may leave behind in the kernel, and the comparison of before and after.
//!
//! A loaded program is not listed: it lives as long as a pin, an interface, a namespace or a process holds it, and
//! those are. Things whose name tells that another running test owns them are left out ([`owner::is_foreign`]), and so
//! are those of a cluster that a person keeps.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use crate::cluster::names::{PREFIX, is_kept_by_a_person};
use crate::owner;

/// Folders of bpffs that belong to the project begin so.
const PINS: &str = "/sys/fs/bpf/portcullis";

/// Everything there is of the kinds that a test can leave behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<Thing>,
    /// Other test processes at work: what they leave when they end is not left by who looked around while they lived.
    foreign: BTreeSet<u32>,
}

/// One such thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thing {
    /// `pin`, `namespace`, `interface`, ..
    pub kind: &'static str,
    /// Its name or path.
    pub name: String,
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl Snapshot {
    /// Looks around.
    pub fn take() -> Self {
        let mut snapshot = Self::default();
        let pins = Path::new(PINS);
        if let (Some(root), Some(prefix)) = (pins.parent(), pins.file_name().and_then(|name| name.to_str())) {
            for name in names(root).filter(|name| name.starts_with(prefix)) {
                snapshot.add_tree("pin", &root.join(name), usize::MAX);
            }
        }
        snapshot.add_all("namespace", names(Path::new("/run/netns")));
        snapshot.add_all("interface", names(Path::new("/sys/class/net")));
        snapshot.add_all("process", processes());
        snapshot.add_all("mount", mounts());
        snapshot.add_all("cgroup", cgroups());
        let folders = names(&std::env::temp_dir()).filter(|name| owner::owner(name).is_some());
        snapshot.add_all("folder", folders.collect::<Vec<_>>());
        snapshot
    }

    /// What is there now and was not before.
    pub fn since(&self, before: &Self) -> Vec<Thing> {
        let is_theirs =
            |thing: &&Thing| owner::owner(&thing.name).is_some_and(|owner| before.foreign.contains(&owner));
        self.things.difference(&before.things).filter(|thing| !is_theirs(thing)).cloned().collect()
    }

    /// What ended test runs have left behind.
    pub fn orphans(&self) -> Vec<Thing> {
        self.things.iter().filter(|thing| owner::is_orphaned(&thing.name)).cloned().collect()
    }

    fn add(&mut self, kind: &'static str, name: String) {
        if owner::is_foreign(&name) {
            self.foreign.extend(owner::owner(&name));
        } else if !is_kept_by_a_person(&name) {
            self.things.insert(Thing { kind, name });
        }
    }

    fn add_all(&mut self, kind: &'static str, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.add(kind, name);
        }
    }

    fn add_tree(&mut self, kind: &'static str, path: &Path, depth: usize) {
        self.add(kind, path.display().to_string());
        if depth > 0 && path.is_dir() {
            for name in names(path) {
                self.add_tree(kind, &path.join(name), depth - 1);
            }
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.contains("portcullis") || owner::owner(name).is_some()
}

/// The names in a folder; none if there is no such folder.
fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Cgroups of clusters: at the root of the one tree of version 2, or of a tree of version 1.
fn cgroups() -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let trees = names(root).map(|tree| root.join(tree)).filter(|tree| tree.is_dir());
    let nested = trees.flat_map(|tree| names(&tree).map(move |name| tree.join(name).display().to_string()));
    let ours = |path: &String| path.rsplit('/').next().is_some_and(is_ours);
    names(root).chain(nested).filter(ours).collect()
}

/// Processes of the agent's binary, with the mark of their owner, and all of clusters, with the name of their cluster.
fn processes() -> Vec<String> {
    let numbers = names(Path::new("/proc")).filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    numbers
        .filter_map(|number| {
            let folder = Path::new("/proc").join(&number);
            let name = fs::read_to_string(folder.join("comm")).ok()?;
            if let Some(cluster) = cluster_of(&fs::read_to_string(folder.join("cgroup")).ok()?) {
                let dead = is_defunct(&fs::read_to_string(folder.join("stat")).ok()?);
                return (!dead).then(|| format!("{}[{number}] ({cluster})", name.trim_end()));
            }
            if name.trim_end() != "portcullis" {
                return None;
            }
            let environment = fs::read(folder.join("environ")).unwrap_or_default();
            let prefix = format!("{}=", owner::MARK);
            let mark = environment
                .split(|byte| *byte == 0)
                .find_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix(&prefix))
                .unwrap_or("not of a test");
            Some(format!("portcullis[{number}] ({mark})"))
        })
        .collect()
}

/// The cluster whose cgroup a process is in, from `/proc/<process>/cgroup`.
fn cluster_of(cgroups: &str) -> Option<&str> {
    cgroups.split(['/', '\n']).find(|part| part.starts_with(PREFIX))
}

/// Whether a process has ended and only waits to be reaped, from `/proc/<process>/stat`.
fn is_defunct(stat: &str) -> bool {
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Mount points of this process's mount namespace.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The namespaces' own mounts are reported as namespaces.
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| !point.contains("/run/netns/")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_named_and_what_was_there_is_not() {
        let before = Snapshot::take();
        let folder = std::env::temp_dir().join(owner::fresh_name());
        fs::create_dir(&folder).unwrap();
        let after = Snapshot::take();
        fs::remove_dir(&folder).unwrap();
        let new = after.since(&before);
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(new.iter().any(|thing| thing.kind == "folder" && thing.name == name), "{new:?}");
        assert!(before.things.iter().any(|thing| thing.to_string() == "interface lo"), "{before:?}");
    }

    #[test]
    fn what_a_cluster_leaves_is_named_and_a_person_s_cluster_is_not() {
        let cgroups = "5:pids:/portcullis-cluster-pct-1-0/node0/kubepods\n0::/\n";
        assert_eq!(cluster_of(cgroups), Some("portcullis-cluster-pct-1-0"));
        assert_eq!(cluster_of("0::/user.slice\n"), None);
        assert!(is_defunct("7 (a) b) Z 1 7") && !is_defunct("7 (a Z) S 1 7"));
        let own = owner::fresh_name();
        let mut snapshot = Snapshot::default();
        snapshot.add("namespace", "portcullis-cluster-dev.hub".to_owned());
        snapshot.add("process", "etcd[7] (portcullis-cluster-dev)".to_owned());
        snapshot.add("namespace", format!("{PREFIX}{own}.hub"));
        let named: Vec<String> = snapshot.things.iter().map(Thing::to_string).collect();
        assert_eq!(named, [format!("namespace {PREFIX}{own}.hub")]);
    }

    #[test]
    fn what_another_test_leaves_when_it_ends_is_not_blamed_on_who_looked_before() {
        let mut other = std::process::Command::new("sleep").arg("infinity").spawn().unwrap();
        let name = format!("pct-{}-0", other.id());
        let look = || {
            let mut snapshot = Snapshot::default();
            snapshot.add("namespace", name.clone());
            snapshot
        };
        let before = look();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(look().since(&before), []);
        assert_eq!(look().since(&Snapshot::default()).len(), 1, "whoever began later sees it");
    }

    #[test]
    fn orphans_are_what_ended_tests_own() {
        let mut snapshot = Snapshot::default();
        snapshot.add("namespace", "pct-4194305-0".to_owned());
        snapshot.add("namespace", "cni-1".to_owned());
        snapshot.add("namespace", "pct-1-0".to_owned());
        let orphans = snapshot.orphans();
        assert_eq!(orphans.iter().map(Thing::to_string).collect::<Vec<_>>(), ["namespace pct-4194305-0"]);
        assert_eq!(snapshot.things.len(), 2, "what a running test owns is left out");
    }
}
