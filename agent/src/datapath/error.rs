//! Errors of the datapath: what failed, on which object, and what to do.

use std::io;
use std::path::PathBuf;

/// An error of the datapath.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The folder is not on bpffs.
    #[error(
        "{0} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or name another folder with --bpffs"
    )]
    NotBpffs(PathBuf),
    /// Another agent holds the lock.
    #[error(
        "another agent works on {0}: one agent a node; stop it first, or name another folder with --bpffs"
    )]
    Locked(PathBuf),
    /// A file operation failed.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A pinned map is not one of ours.
    #[error(
        "the pinned map {path} is {found}, and this agent needs {wanted}: something else wrote it, or a flag for its size changed; \
         remove it with `portcullis cleanup` (enforcement ends until the next start), or start with the old sizes"
    )]
    ForeignMap {
        /// Its path.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// The object could not be loaded.
    #[error(
        "cannot load the programs: {0} (`portcullis check` names what this kernel or this process lacks)"
    )]
    Load(#[from] aya::EbpfError),
    /// A program could not be loaded or attached.
    #[error("cannot {what} program {program}{place}: {error}")]
    Program {
        /// What was tried.
        what: &'static str,
        /// Which program.
        program: &'static str,
        /// ` on vethX`, or nothing.
        place: String,
        /// What the kernel said.
        error: String,
    },
    /// Programs could not be taken off, so the maps that they use stay as well.
    #[error(
        "programs of Portcullis are still attached ({0}): the pins are left as they are; run `portcullis cleanup` again with \
         CAP_NET_ADMIN and CAP_BPF, in the node's network namespace, or `tc filter del dev NAME ingress prio 1 handle 0x71 bpf` \
         (and `egress`)"
    )]
    StillAttached(String),
    /// Filters of ours without a folder of an agent.
    #[error(
        "there are programs of Portcullis ({filters}), but no {folder}: name the agent's own folder with --bpffs; if somebody \
         removed it, take them off with `tc filter del dev NAME ingress prio 1 handle 0x71 bpf` (and `egress`)"
    )]
    NoFolder {
        /// The folder that is not there.
        folder: PathBuf,
        /// Where they are.
        filters: String,
    },
    /// A map operation failed.
    #[error("cannot {what} map {map}: {error}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// Which map.
        map: String,
        /// What the kernel said.
        error: String,
    },
    /// A map has no room.
    #[error("map {map} is full: {what}; raise its size with {flag}")]
    Full {
        /// Which map.
        map: &'static str,
        /// What did not fit and what follows.
        what: String,
        /// The flag that sets its size.
        flag: &'static str,
    },
    /// An interface finds no slot among those that are tried for its index.
    #[error(
        "interface {interface} ({ifindex}) finds none of its {probes} slots free, and everything there is dropped; it gets \
         one when a pod whose interface has a nearby index ends: run fewer pods on this node, or replace this one"
    )]
    NoSlot {
        /// Its name.
        interface: String,
        /// Its index.
        ifindex: u32,
        /// How many slots are tried.
        probes: u32,
    },
    /// Another system call failed.
    #[error("{call} failed: {error}")]
    System {
        /// The call.
        call: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl DatapathError {
    /// A failed map operation.
    pub fn map(what: &'static str, map: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Map { what, map: map.into(), error: error.to_string() }
    }
}

/// How many lines an error has at its end. The log of the verifier ends with what it refused, and then with figures.
const LAST_LINES: usize = 25;

/// An error with its causes; of a log of tens of thousands of lines, as the verifier can write them, the first and the last.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    shortened(text)
}

fn shortened(text: String) -> String {
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [first, rest @ ..] if rest.len() > LAST_LINES => {
            let (left_out, last) = rest.split_at(rest.len() - LAST_LINES);
            format!("{first}\n({} lines left out)\n{}", left_out.len(), last.join("\n"))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_first_and_the_last_lines_are_left() {
        let log = |lines: usize| (0..=lines).map(|line| line.to_string()).collect::<Vec<_>>().join("\n");
        assert_eq!(shortened(log(LAST_LINES)), log(LAST_LINES));
        let short = shortened(log(20_000));
        assert!(short.starts_with("0\n(19975 lines left out)\n19976\n"), "{short}");
        assert!(short.ends_with("\n19999\n20000"), "{short}");
    }
}
