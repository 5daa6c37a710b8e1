//! A running pod, and the way into its network: a process of the test that enters it opens real connections through the
//! pod's own interface, many a second, where `kubectl exec` would cost more than what is measured.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::netns::Namespace;

/// A pod that runs.
#[derive(Debug)]
pub struct LivePod {
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
    /// Its network.
    pub net: Namespace,
}

impl LivePod {
    /// The pod of this name, once it is ready.
    pub fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        cluster.wait_pod(namespace, name)?;
        let object: Value = serde_json::from_str(&cluster.kubectl([
            "--namespace",
            namespace,
            "get",
            "pod",
            name,
            "--output=json",
        ])?)?;
        let address = |at: usize| {
            let text = object["status"]["podIPs"][at]["ip"].as_str();
            text.and_then(|text| text.parse().ok()).with_context(|| format!("address {at} of pod {name}"))
        };
        let uid = object["metadata"]["uid"].as_str().context("a pod without a UID")?;
        let net = process(uid).with_context(|| format!("no process of pod {name} is found"))?;
        // An absolute path stays as it is.
        let net = Namespace::existing(&net.join("ns/net").display().to_string(), name);
        Ok(Self { name: name.to_owned(), v4: address(0)?, v6: address(1)?, net })
    }

    /// A port of its IPv4 address.
    pub fn v4(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    /// A port of its IPv6 address.
    pub fn v6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// The same network once more, for another owner.
    pub fn net(&self) -> Namespace {
        Namespace::existing(self.net.name(), self.net.label())
    }
}

/// The folder in `/proc` of a process in the cgroup of a pod.
fn process(uid: &str) -> Option<PathBuf> {
    let folders = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    folders
        .filter(|folder| folder.join("exe").exists())
        .find(|folder| fs::read_to_string(folder.join("cgroup")).is_ok_and(|cgroups| cgroups.contains(uid)))
}
