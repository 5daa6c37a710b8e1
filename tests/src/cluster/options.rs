//! What a cluster shall be, and whether this machine can make it.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::binaries;
use super::names::MOST_NODES;
use crate::netns::has_bridge_filter;

/// How pods are joined to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pods {
    /// A route to each pod's veth (CNI plugin `ptp`), as Calico and others do.
    Routed,
    /// All veths in one bridge (CNI plugin `bridge`), as flannel and kind do.
    Bridged,
}

/// How kube-proxy programs services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proxy {
    /// By iptables.
    Iptables,
    /// By nftables.
    Nftables,
}

/// How a node reaches the pods of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Between {
    /// By routes.
    Routes,
    /// Through VXLAN, as flannel does it: a node's processes speak to pods of others from the address of its pod range.
    Vxlan,
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routes => "routes",
            Self::Vxlan => "vxlan",
        })
    }
}

impl fmt::Display for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routed => "routed",
            Self::Bridged => "bridged",
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// Says what a cluster shall be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// How pods are joined.
    pub pods: Pods,
    /// How nodes are joined.
    pub between: Between,
    /// How services are done.
    pub proxy: Proxy,
    /// Whether there is a DNS server.
    pub dns: bool,
    /// Archives of images to load on every node, besides the usual ones.
    #[serde(skip)]
    pub images: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            pods: Pods::Routed,
            between: Between::Routes,
            proxy: Proxy::Iptables,
            dns: true,
            images: Vec::new(),
        }
    }
}

/// Fails with a sentence that says what to do, where a cluster cannot be made.
pub fn require(options: &Options) -> Result<()> {
    // SAFETY: a system call without arguments that cannot fail.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "a cluster needs network namespaces and mounts: run this as root");
    ensure!(
        (1..=MOST_NODES).contains(&options.nodes),
        "a cluster has 1 to {MOST_NODES} nodes, not {}",
        options.nodes
    );
    if options.dns {
        binaries::find(binaries::DNS_SERVER)?;
    }
    for program in
        ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"]
    {
        binaries::find(program)?;
    }
    for program in ["containerd", "ctr", "runc", "socat", "iptables", "nft", "conntrack", "busybox"] {
        ensure!(binaries::in_path(program).is_some(), "{program} is missing: run `cargo xtask setup`");
    }
    ensure!(
        options.pods == Pods::Routed || has_bridge_filter(),
        "bridged pods need the kernel module br_netfilter: run `modprobe br_netfilter`, or take routed pods"
    );
    // Nodes have folders of their own in place of these.
    for (what, path) in [
        ("the temporary folder (TMPDIR)", std::env::temp_dir()),
        ("the cache folder (PORTCULLIS_CACHE)", binaries::cache()),
    ] {
        if let Some(hidden) =
            ["/var/lib", "/var/log", "/run", "/var/run"].iter().find(|hidden| path.starts_with(hidden))
        {
            bail!(
                "{what} is {}, and nodes have a {hidden} of their own: set it to another folder",
                path.display()
            );
        }
        ensure!(
            path.as_os_str().len() <= 40 || !what.contains("TMPDIR"),
            "{what} is {}, which is too long for the sockets in it: set it to another folder",
            path.display()
        );
        ensure!(
            !path.to_string_lossy().contains(['\'', '"', '\\']),
            "{what} has quotes in its name: {}",
            path.display()
        );
    }
    for image in &options.images {
        ensure!(image.is_file(), "there is no image archive {}", image.display());
    }
    Ok(())
}
