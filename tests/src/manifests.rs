//! A folder of manifests for the agent under test: pods as Kubernetes objects, policies as text.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result};

use crate::node::Pod;
use crate::temp::TempDir;

/// A folder of manifests; it goes when it is dropped.
#[derive(Debug)]
pub struct Manifests {
    folder: TempDir,
}

/// A pod of the API, whose address a namespace of the test has.
#[derive(Clone, Copy, Debug)]
pub struct PodObject<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name, and its label `app`.
    pub name: &'a str,
    /// Its service account.
    pub account: &'a str,
    /// Its addresses.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// The hour of the day in which its sandbox started: the later pod owns an address that two claim.
    pub started: u8,
}

impl<'a> PodObject<'a> {
    /// One with the addresses of a pod of the harness, and an account of its own name.
    pub fn of(namespace: &'a str, name: &'a str, pod: &Pod) -> Self {
        Self { namespace, name, account: name, addresses: (pod.v4, pod.v6), started: 1 }
    }
}

impl Manifests {
    /// A folder with the Node object `node`, whose pod range is that of the harness.
    pub fn new() -> Result<Self> {
        let manifests = Self { folder: TempDir::new()? };
        manifests.write(
            "node.yaml",
            "apiVersion: v1\nkind: Node\nmetadata: {name: node}\nspec: {podCIDRs: [10.77.0.0/24, 'fd77::/64']}\n",
        )?;
        Ok(manifests)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file, whole at once.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let new = self.path().join(format!(".{file}.new"));
        fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, self.path().join(file)).with_context(|| format!("writing {file}"))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.path().join(file)).with_context(|| format!("removing {file}"))
    }

    /// Writes a file with pods, their namespaces and their service accounts.
    pub fn pods(&self, file: &str, pods: &[PodObject<'_>]) -> Result<()> {
        let mut text = String::new();
        let mut seen = Vec::new();
        for pod in pods {
            let PodObject { namespace, name, account, addresses: (v4, v6), started } = pod;
            if !seen.contains(&(*namespace, "")) {
                seen.push((namespace, ""));
                writeln!(text, "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}")?;
            }
            if !seen.contains(&(*namespace, *account)) {
                seen.push((namespace, account));
                writeln!(
                    text,
                    "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}"
                )?;
            }
            writeln!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
                 spec: {{serviceAccountName: {account}, nodeName: node, containers: [{{name: c, image: none}}]}}\n\
                 status:\n  phase: Running\n  startTime: '2026-01-01T{started:02}:00:00Z'\n  \
                 podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]"
            )?;
        }
        self.write(file, &text)
    }
}
