//! What things of a cluster are called, and the addresses in it.
//!
//! Every network of a cluster is in network namespaces of its own, so all clusters use the same addresses and ports.
//! What is shared with the machine (namespaces' names, cgroups, the state folder) carries the cluster's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::owner;

/// What names of clusters' things begin with.
pub const PREFIX: &str = "portcullis-cluster-";

/// The control plane's addresses on the nodes' bridge.
pub const CONTROL_PLANE: (Ipv4Addr, Ipv6Addr) = (node_v4(1), node_v6(1));

/// The addresses of the outside on the nodes' bridge.
pub const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (node_v4(200), node_v6(200));

/// Further addresses of the outside, which nodes and pods reach through it: for rules with CIDR blocks.
pub const OUTSIDE_FURTHER: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 7)),
];

/// Service addresses of both families.
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd96::/112";

/// The address that pods ask for names.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The same in IPv6.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10);

/// Pod addresses of all nodes.
pub const POD_RANGES: &str = "10.244.0.0/16,fd24::/48";

/// The most nodes that a cluster has.
pub const MOST_NODES: usize = 9;

/// An IPv4 address on the nodes' bridge.
const fn node_v4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, host)
}

/// An IPv6 address on the nodes' bridge. The digits are those of the IPv4 address, so that people see the pair.
const fn node_v6(host: u16) -> Ipv6Addr {
    // 10 -> 0x10, 200 -> 0x200.
    let digits = host / 100 * 0x100 + host / 10 % 10 * 0x10 + host % 10;
    Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, digits)
}

/// The addresses of node number `i`, from 0.
pub fn node_addresses(i: usize) -> (Ipv4Addr, Ipv6Addr) {
    let host = u8::try_from(10 + i).unwrap_or(u8::MAX);
    (node_v4(host), node_v6(host.into()))
}

/// The pods' ranges of node number `i`.
pub fn pod_ranges(i: usize) -> (String, String) {
    let (v4, v6) = tunnel_addresses(i);
    (format!("{v4}/24"), format!("{v6}/64"))
}

/// The addresses of node number `i` in an overlay network: those of its pods' ranges.
pub fn tunnel_addresses(i: usize) -> (Ipv4Addr, Ipv6Addr) {
    let third = u8::try_from(i).unwrap_or(u8::MAX);
    (Ipv4Addr::new(10, 244, third, 0), Ipv6Addr::new(0xfd24, 0, 0, third.into(), 0, 0, 0, 0))
}

/// The Kubernetes name of node number `i`.
pub fn node(i: usize) -> String {
    format!("node{i}")
}

/// The name of a cluster, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Checks a name: it becomes part of paths.
    pub fn new(name: &str) -> Result<Self> {
        let letters =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        ensure!(
            letters && !name.is_empty() && name.len() <= 30 && !name.starts_with('-'),
            "a cluster cannot be called `{name}`: take up to 30 lower-case letters, digits and `-`"
        );
        Ok(Self(name.to_owned()))
    }

    /// A name that tells which test process owns the cluster.
    pub fn fresh() -> Self {
        Self(owner::fresh_name())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What everything of this cluster is called.
    pub fn prefixed(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// The network namespace of a part: `hub`, `outside`, `node0`.
    pub fn namespace(&self, part: &str) -> String {
        format!("{}.{part}", self.prefixed())
    }

    /// The cluster and the part whose network namespace this is.
    pub fn of_namespace(namespace: &str) -> Option<(Self, &str)> {
        let (name, part) = namespace.strip_prefix(PREFIX)?.split_once('.')?;
        Some((Self(name.to_owned()), part))
    }

    /// The state folder.
    pub fn folder(&self) -> PathBuf {
        std::env::temp_dir().join(self.prefixed())
    }

    /// The cluster whose state folder this is.
    pub fn of_folder(folder: &Path) -> Option<Self> {
        Some(Self(folder.file_name()?.to_str()?.strip_prefix(PREFIX)?.to_owned()))
    }

    /// Whether a test process made it that has ended.
    pub fn is_orphaned(&self) -> bool {
        owner::is_orphaned(&self.0)
    }
}

/// Whether a name is that of a thing of a cluster that a person keeps: tests leave it alone.
pub fn is_kept_by_a_person(name: &str) -> bool {
    name.contains(PREFIX) && owner::owner(name).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for name in ["", "..", "a/b", "A", "-x", "a.b", "0123456789012345678901234567890"] {
            let error = Name::new(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        assert_eq!(Name::new("dev-1").unwrap().prefixed(), "portcullis-cluster-dev-1");
    }

    #[test]
    fn namespaces_and_folders_tell_their_cluster() {
        let name = Name::new("dev").unwrap();
        assert_eq!(Name::of_namespace(&name.namespace("node0")), Some((name.clone(), "node0")));
        assert_eq!(Name::of_namespace("cni-1"), None);
        assert_eq!(Name::of_folder(&name.folder()), Some(name));
    }

    #[test]
    fn a_test_process_owns_the_things_of_its_cluster_and_a_person_the_others() {
        let name = Name::fresh();
        assert_eq!(owner::owner(&name.namespace("node0")), Some(std::process::id()));
        assert!(!is_kept_by_a_person(&name.namespace("hub")));
        assert!(is_kept_by_a_person("portcullis-cluster-dev.hub"));
        assert!(!is_kept_by_a_person("portcullis"));
        assert!(Name::new("pct-4194305-0").unwrap().is_orphaned());
    }

    #[test]
    fn both_addresses_of_a_node_have_the_same_digits() {
        assert_eq!(node_addresses(1), ("172.30.0.11".parse().unwrap(), "fd30::11".parse().unwrap()));
        assert_eq!(OUTSIDE, ("172.30.0.200".parse().unwrap(), "fd30::200".parse().unwrap()));
        assert_eq!(pod_ranges(1), ("10.244.1.0/24".to_owned(), "fd24:0:0:1::/64".to_owned()));
    }
}
