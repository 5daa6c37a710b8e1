//! The names file: what the agent knows and the maps do not say, written atomically to `<run-dir>/state.json`, so that
//! `portcullis dump` and `status` can name things when the agent is down.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the file's form.
pub const FORMAT: u32 = 1;

/// The names file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the agent that wrote it.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Seconds since the epoch at which it was written.
    pub written: u64,
    /// Seconds since the epoch of the last time that the maps were brought to the desired state without an error.
    pub last_success: u64,
    /// How programs are attached: `tcx` or `clsact`.
    pub attach: String,
    /// The agent's mode: `enforce`, `audit` or `off`.
    pub mode: String,
    /// What says so: `ConfigMap portcullis-system/portcullis` or `--mode`.
    pub mode_source: String,
    /// Where objects come from, and what is wrong with it.
    pub source: SourceState,
    /// Principals by number.
    pub principals: BTreeMap<u32, String>,
    /// Peer classes by number, in words.
    pub peers: BTreeMap<u32, String>,
    /// Subject classes by number, in words.
    pub subjects: BTreeMap<u32, String>,
    /// Rules by number.
    pub rules: BTreeMap<u32, String>,
    /// Services by frontend, `10.96.0.1:80/TCP`: namespace, name and name of the port.
    pub services: BTreeMap<String, String>,
    /// Pods by address: `namespace/name`.
    pub pods: BTreeMap<IpAddr, String>,
    /// Endpoints.
    pub endpoints: Vec<EndpointState>,
    /// Running pods of this node that no interface was found for: `namespace/name` to their addresses.
    pub uncovered: BTreeMap<String, Vec<IpAddr>>,
    /// Interfaces that are no endpoints: name to reason.
    pub ignored: BTreeMap<String, String>,
    /// Policies in force.
    pub policies: Vec<PolicyState>,
    /// What in the objects was not understood.
    pub problems: Vec<ProblemState>,
    /// Whether this agent writes the status of policies; `None`: nobody asked it to (a folder has no status).
    pub writes_status: Option<bool>,
    /// Why the status of policies is not written, if it is not.
    pub status_error: Option<String>,
    /// What could not be programmed.
    pub errors: Vec<String>,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceState {
    /// `manifests /etc/portcullis`.
    pub name: String,
    /// Whether every kind has been listed once.
    pub synced: bool,
    /// What is wrong now: file or kind, and the error.
    pub errors: Vec<String>,
    /// Objects by kind.
    pub objects: BTreeMap<String, usize>,
    /// Seconds since the epoch of the last word from it, while there should have been another one since; else 0.
    pub silent_since: u64,
}

/// An endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointState {
    /// Index of the host-side interface.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// `namespace/name` of the pod, if it is known.
    pub pod: Option<String>,
    /// UID of the pod that the interface is bound to; a restarted agent takes the binding over.
    pub uid: Option<String>,
    /// What it gets while its pod is unknown: `deny`, `audit` or `allow`.
    pub unknown: String,
    /// Its principal.
    pub principal: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the programs are attached, by hook: `attached`, `not-first` or `missing`.
    pub hooks: BTreeMap<String, String>,
    /// Programs of others that run before ours, by hook.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub foreign: BTreeMap<String, Vec<String>>,
    /// What is wrong with it, if anything.
    pub warning: Option<String>,
}

/// A policy in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyState {
    /// `NetworkPolicy`, `IdentityPolicy` or `ClusterIdentityPolicy`.
    pub kind: String,
    /// Its namespace; empty for one of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: String,
    /// Directions that it acts on: `ingress`, `egress`.
    pub directions: Vec<String>,
    /// How many of the known pods it selects.
    pub pods: usize,
}

/// Something that was not understood.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProblemState {
    /// `NetworkPolicy shop/db`.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// What is wrong, what follows and what to do.
    pub message: String,
}

impl State {
    /// The file in a run directory.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("state.json")
    }

    /// Writes the file: whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let new = run_dir.join("state.json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, Self::path(run_dir))
    }

    /// Whether it says the same as another one, but for the times.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            format,
            version,
            node,
            pid,
            written: _,
            last_success: _,
            attach,
            mode,
            mode_source,
            source,
            principals,
            peers,
            subjects,
            rules,
            services,
            pods,
            endpoints,
            uncovered,
            ignored,
            policies,
            problems,
            writes_status,
            status_error,
            errors,
        } = self;
        (format, version, node, pid) == (&other.format, &other.version, &other.node, &other.pid)
            && (attach, mode, mode_source, source)
                == (&other.attach, &other.mode, &other.mode_source, &other.source)
            && (principals, peers, subjects, rules)
                == (&other.principals, &other.peers, &other.subjects, &other.rules)
            && (services, pods, endpoints) == (&other.services, &other.pods, &other.endpoints)
            && (uncovered, ignored, policies) == (&other.uncovered, &other.ignored, &other.policies)
            && (problems, errors) == (&other.problems, &other.errors)
            && (writes_status, status_error) == (&other.writes_status, &other.status_error)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// What the file system says, or that it is no such file.
    pub fn read(run_dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(Self::path(run_dir))?)?)
    }

    /// Name of a principal.
    pub fn principal(&self, number: u32) -> String {
        if let Some(name) = self.principals.get(&number) {
            return name.clone();
        }
        portcullis_common::Kind::ALL
            .into_iter()
            .find(|kind| kind.principal() == number && number != 0)
            .map_or_else(|| format!("#{number}"), |kind| kind.name().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_unknown_numbers_still_print() {
        let folder = std::env::temp_dir().join(format!("portcullis-state-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let state = State {
            format: FORMAT,
            principals: BTreeMap::from([(16, "shop/api".to_owned())]),
            ..State::default()
        };
        state.write(&folder).unwrap();
        let read = State::read(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.principal(16), "shop/api");
        assert_eq!(read.principal(4), "world");
        assert_eq!(read.principal(99), "#99");
        assert_eq!(read.principal(0), "#0");
    }
}
