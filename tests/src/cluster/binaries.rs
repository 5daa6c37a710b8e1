//! The programs that a cluster consists of, and where they are.
//!
//! etcd, containerd, runc and the CNI plugins come with the system. Those of Kubernetes are built once by
//! `cargo xtask setup` into the cache folder.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The release of Kubernetes.
pub const KUBERNETES: &str = "1.34.2";

/// Programs of that release, by their package in the module `k8s.io/kubernetes`.
pub const PACKAGES: [&str; 7] = [
    "cmd/kube-apiserver",
    "cmd/kube-controller-manager",
    "cmd/kube-scheduler",
    "cmd/kubelet",
    "cmd/kube-proxy",
    "cmd/kubectl",
    "test/images/agnhost",
];

/// The release of CoreDNS.
pub const COREDNS: &str = "1.12.4";

/// Its program.
pub const DNS_SERVER: &str = "coredns";

/// Names a folder with `etcd` and `kube-apiserver` to use instead, by the convention of the Kubernetes project.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Where distributions have the CNI plugins.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// The plugins that pods' networks are made of.
const CNI_PLUGINS: [&str; 5] = ["bridge", "host-local", "loopback", "portmap", "ptp"];

/// The folder for what is expensive to make: `PORTCULLIS_CACHE`, else `portcullis` in the user's cache folder.
pub fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("PORTCULLIS_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("portcullis")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/portcullis")))
        .unwrap_or_else(|| std::env::temp_dir().join("portcullis-cache"))
}

/// Where the programs of Kubernetes are, once built.
pub fn kubernetes() -> PathBuf {
    cache().join(format!("kubernetes-{KUBERNETES}"))
}

/// Where CoreDNS is, once built.
pub fn coredns() -> PathBuf {
    cache().join(format!("coredns-{COREDNS}"))
}

/// A program of Kubernetes, CoreDNS, or etcd.
pub fn find(program: &str) -> Result<PathBuf> {
    let assets = std::env::var_os(ASSETS).filter(|value| !value.is_empty());
    find_with(program, assets.as_deref().map(Path::new))
}

/// As [`find`], with the folder that [`ASSETS`] names.
fn find_with(program: &str, assets: Option<&Path>) -> Result<PathBuf> {
    if ["etcd", "kube-apiserver"].contains(&program)
        && let Some(folder) = assets
    {
        let path = folder.join(program);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{ASSETS} is set to {}, where there is no {program}", folder.display());
    }
    let folder = if program == DNS_SERVER { coredns() } else { kubernetes() };
    let built = folder.join("bin").join(program);
    if built.is_file() {
        return Ok(built);
    }
    match in_path(program) {
        // Another release than the pinned one would be a surprise; etcd may be any.
        Some(path) if !is_pinned(program) => Ok(path),
        _ => bail!("{program} is missing: run `cargo xtask setup`"),
    }
}

fn is_pinned(program: &str) -> bool {
    program == DNS_SERVER || PACKAGES.iter().any(|package| package.ends_with(&format!("/{program}")))
}

/// The programs of Kubernetes that are not there.
pub fn missing_kubernetes() -> Vec<&'static str> {
    let names = PACKAGES.iter().filter_map(|package| package.rsplit('/').next());
    names.filter(|name| find(name).is_err()).collect()
}

/// Looks for a program where the system has its programs; the folders of `root` too, which a user's path may lack.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The folder of the CNI plugins.
pub fn cni() -> Option<PathBuf> {
    let complete = |folder: &&str| CNI_PLUGINS.iter().all(|plugin| Path::new(folder).join(plugin).is_file());
    CNI_FOLDERS.iter().find(|folder| complete(folder)).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TempDir;

    #[test]
    fn the_folder_of_the_variable_wins_and_what_it_lacks_is_named() {
        let folder = TempDir::new().unwrap();
        folder.write("etcd", "a stub").unwrap();
        folder.write("kubelet", "a stub").unwrap();
        let find = |program| find_with(program, Some(folder.path()));
        assert_eq!(find("etcd").unwrap(), folder.path().join("etcd"));
        let error = find("kube-apiserver").unwrap_err().to_string();
        let path = folder.path().display();
        assert_eq!(error, format!("KUBEBUILDER_ASSETS is set to {path}, where there is no kube-apiserver"));
        // Those it is not about are looked for as ever.
        let kubelet = find("kubelet");
        assert!(kubelet.is_err() || kubelet.is_ok_and(|path| path != folder.path().join("kubelet")));
    }

    #[test]
    fn only_etcd_may_be_of_any_release() {
        assert!(is_pinned("kubectl") && is_pinned("coredns") && !is_pinned("etcd"));
        let error = find("no-such-program").unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("cargo xtask setup"), "{error}");
    }
}
