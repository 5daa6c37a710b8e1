//! The demo's folder of manifests: what the demo itself must know of it, and the copy that the agent watches.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use portcullis_tests::TempDir;
use serde::Deserialize;

/// The part of an object that says where a pod is and whose it is.
#[derive(Debug, Deserialize)]
struct Object {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

/// A pod of the manifests.
#[derive(Debug)]
pub struct PodManifest {
    pub namespace: String,
    pub name: String,
    pub account: String,
    pub addresses: Vec<IpAddr>,
}

/// A policy of the manifests.
#[derive(Debug)]
pub struct PolicyManifest {
    /// Name of its file.
    pub file: String,
    /// `NetworkPolicy shop/default-deny`.
    pub object: String,
    /// The comment that the file begins with.
    pub comment: String,
}

/// The folder.
#[derive(Debug)]
pub struct Manifests {
    pub node: String,
    pub pods: Vec<PodManifest>,
    pub policies: Vec<PolicyManifest>,
    files: Vec<PathBuf>,
}

impl Manifests {
    /// Reads the folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut manifests =
            Self { node: String::new(), pods: Vec::new(), policies: Vec::new(), files: Vec::new() };
        for folder in [folder.to_owned(), folder.join("policies")] {
            for path in yaml_files(&folder)? {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                let objects = serde_saphyr::from_multiple::<Object>(&text)
                    .with_context(|| format!("reading {}", path.display()))?;
                for object in objects {
                    manifests.add(object, &path, &text);
                }
                manifests.files.push(path);
            }
        }
        ensure!(!manifests.node.is_empty(), "there is no Node in {}", folder.display());
        Ok(manifests)
    }

    fn add(&mut self, object: Object, path: &Path, text: &str) {
        let Object { kind, metadata: Metadata { name, namespace }, spec, status } = object;
        match kind.as_str() {
            "Node" => self.node = name,
            "Pod" => self.pods.push(PodManifest {
                namespace,
                name,
                account: spec.service_account_name,
                addresses: status.pod_ips.into_iter().map(|ip| ip.ip).collect(),
            }),
            "NetworkPolicy" | "IdentityPolicy" | "ClusterIdentityPolicy" => {
                let comment = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
                self.policies.push(PolicyManifest {
                    file: file_name(path),
                    object: if namespace.is_empty() {
                        format!("{kind} {name}")
                    } else {
                        format!("{kind} {namespace}/{name}")
                    },
                    comment: comment.collect::<Vec<_>>().join(" "),
                });
            }
            _ => {}
        }
    }

    /// The policy's file of this name, with or without `.yaml`.
    pub fn policy(&self, name: &str) -> Result<&str> {
        let mut files = self.policies.iter().map(|policy| policy.file.as_str());
        files.find(|file| *file == name || file.strip_suffix(".yaml") == Some(name)).with_context(|| {
            let files: Vec<&str> = self.policies.iter().map(|policy| policy.file.as_str()).collect();
            format!("there is no policy file {name}; there are {}", files.join(", "))
        })
    }

    /// A copy for the agent, without one file.
    pub fn copy(&self, without: Option<&str>) -> Result<TempDir> {
        let copy = TempDir::new()?;
        for path in self.files.iter().filter(|path| without != Some(file_name(path).as_str())) {
            let to = copy.path().join(file_name(path));
            fs::copy(path, &to).with_context(|| format!("copying {} to {}", path.display(), to.display()))?;
        }
        Ok(copy)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_has_two_addresses_and_every_policy_a_file_of_its_own_that_says_what_it_is_for() {
        let manifests = Manifests::load(&crate::cargo::root().join("deploy/demo/manifests")).unwrap();
        assert!(manifests.pods.iter().all(|pod| pod.addresses.len() == 2 && !pod.account.is_empty()));
        let mut files: Vec<_> = manifests.policies.iter().map(|policy| &policy.file).collect();
        files.dedup();
        assert_eq!(files.len(), manifests.policies.len());
        assert!(manifests.policies.iter().all(|policy| !policy.comment.is_empty()));
        let whole = manifests.copy(None).unwrap();
        let less = manifests.copy(Some(manifests.policy("db-egress").unwrap())).unwrap();
        let count = |folder: &TempDir| fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count(&whole), count(&less) + 1);
        assert!(manifests.policy("nonsense").unwrap_err().to_string().contains("db-egress.yaml"));
    }
}
