//! A node: a place with mounts of its own, and in it containerd, the kubelet and kube-proxy.
//!
//! Two nodes of one machine must not share what they think is theirs alone. So each has its own bpffs, its own `/run`
//! (sockets of the shims, the names of pods' network namespaces, the agent's files), `/var/lib` (kubelet, CNI's record
//! of pods) and `/var/log` (logs of pods).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::daemon::{Daemons, words};
use super::names::{DNS, Name, POD_RANGES, node, node_addresses, pod_ranges};
use super::place::Place;
use super::{Options, Pods, Proxy, binaries, cgroups, images, kubeconfig};
use crate::command::run;
use crate::poll::eventually;

/// The mounts; the first argument is the folder that stands behind `/var`.
const MOUNTS: &str = "mount -t bpf bpf /sys/fs/bpf; mount -t tmpfs -o mode=0755 run /run; \
                      mkdir -p /run/netns /run/lock";

/// One node of a cluster.
#[derive(Debug)]
pub struct ClusterNode {
    name: Name,
    i: usize,
    daemons: Daemons,
    /// Its network and mounts.
    pub place: Place,
}

impl ClusterNode {
    /// Number `i` of a cluster, whether it is there or not.
    pub fn of(name: &Name, i: usize) -> Self {
        Self { name: name.clone(), i, daemons: Daemons::of(name), place: Place::of(name, &node(i)) }
    }

    /// Its files.
    pub fn folder(&self) -> PathBuf {
        self.name.folder().join(node(self.i))
    }

    fn socket(&self) -> PathBuf {
        self.folder().join("containerd.sock")
    }

    /// The names of its daemons.
    pub fn daemon(&self, program: &str) -> String {
        format!("{program}-{}", node(self.i))
    }

    /// Makes the place and starts containerd with the images in it.
    pub fn create(&self, options: &Options, archives: &[PathBuf]) -> Result<()> {
        let folder = self.folder();
        for part in ["lib", "log", "cni"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
        }
        let shown = folder.display();
        self.place.create(
            &format!("{MOUNTS}; mount --bind '{shown}/lib' /var/lib; mount --bind '{shown}/log' /var/log"),
            &self.name.folder(),
        )?;
        self.write("cni/10-pods.conflist", &cni(self.i, options.pods, &folder))?;
        self.write("containerd.toml", &containerd(&folder, &self.socket())?)?;
        self.write("resolv.conf", "# The cluster's nodes know no names.\n")?;
        self.write("kubelet.json", &self.kubelet_config())?;
        let config = folder.join("containerd.toml");
        let what = self.daemon("containerd");
        let command = words("containerd", ["--config".as_ref(), config.as_os_str()]);
        self.place.start(&what, command)?;
        self.wait_for(&what, || self.ctr(["version"]).is_ok())?;
        archives.iter().try_for_each(|archive| self.load(archive))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder().join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Waits for a daemon to get somewhere; it must not end meanwhile.
    fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        let mut alive = Ok(());
        let waited = eventually(&format!("{what} to answer"), || {
            alive = self.daemons.check(what);
            alive.is_err() || condition()
        });
        alive?;
        waited.map_err(|error| anyhow::anyhow!("{error}; {}", self.daemons.tail(what)))
    }

    /// Runs `ctr` on the node's containerd.
    pub fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let socket = self.socket();
        run(Command::new("ctr").arg("--address").arg(socket).args(["--namespace", "k8s.io"]).args(args))
    }

    /// Runs `ctr` on the node, as a person there does: the files and sockets that it and the container share are the node's.
    pub fn ctr_on_node<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let socket = self.socket().display().to_string();
        let mut command = self.place.command("ctr", ["--address", &socket, "--namespace", "k8s.io"])?;
        run(command.args(args))
    }

    /// Imports an archive of images.
    pub fn load(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("the path of the archive is no text")?;
        self.ctr(["images", "import", archive])
            .with_context(|| format!("loading {archive} on {}", node(self.i)))?;
        Ok(())
    }

    /// The first process of a container.
    pub fn container_process(&self, id: &str) -> Result<u32> {
        let tasks = self.ctr(["tasks", "list"])?;
        let process =
            tasks.lines().find(|line| line.starts_with(id)).and_then(|line| line.split_whitespace().nth(1));
        process
            .and_then(|process| process.parse().ok())
            .with_context(|| format!("{} does not run the container {id}", node(self.i)))
    }

    /// Starts the kubelet. To be called when the API server answers and knows the node.
    pub fn start_kubelet(&self) -> Result<()> {
        let folder = self.folder();
        let (v4, v6) = node_addresses(self.i);
        let args = [
            format!("--config={}", folder.join("kubelet.json").display()),
            format!("--kubeconfig={}", kubeconfig::path(&self.name.folder(), &node(self.i)).display()),
            format!("--hostname-override={}", node(self.i)),
            format!("--node-ip={v4},{v6}"),
        ];
        self.place.start(&self.daemon("kubelet"), words(binaries::find("kubelet")?, args))?;
        Ok(())
    }

    /// Waits until the kubelet takes requests: for commands and logs.
    pub fn wait_for_kubelet(&self) -> Result<()> {
        let at = (node_addresses(self.i).0, 10250).into();
        self.wait_for(&self.daemon("kubelet"), || {
            self.place.net.tcp_connect(at, std::time::Duration::from_secs(1)).is_ok()
        })
    }

    /// Starts kube-proxy.
    pub fn start_proxy(&self, mode: Proxy) -> Result<()> {
        let args = [
            format!("--kubeconfig={}", kubeconfig::path(&self.name.folder(), "kube-proxy").display()),
            format!("--hostname-override={}", node(self.i)),
            format!("--proxy-mode={mode}"),
            format!("--cluster-cidr={POD_RANGES}"),
            // The size of the machine's table is not the node's to set.
            "--conntrack-max-per-core=0".to_owned(),
        ];
        self.place.start(&self.daemon("kube-proxy"), words(binaries::find("kube-proxy")?, args))?;
        Ok(())
    }

    /// Ends kube-proxy, takes its rules away, and starts it in another mode. What it left is the caller's to look at: a
    /// kernel without IPVS makes it complain of that.
    pub fn change_proxy(&self, mode: Proxy) -> Result<()> {
        self.daemons.stop(&self.daemon("kube-proxy"))?;
        let hostname = format!("--hostname-override={}", node(self.i));
        let mut cleanup = self.place.command(binaries::find("kube-proxy")?, ["--cleanup", &hostname])?;
        let _ = cleanup.output().context("kube-proxy --cleanup")?;
        self.start_proxy(mode)?;
        self.wait_for_proxy()
    }

    /// Waits until kube-proxy has written its rules once.
    pub fn wait_for_proxy(&self) -> Result<()> {
        let at = (std::net::Ipv4Addr::LOCALHOST, 10256).into();
        self.wait_for(&self.daemon("kube-proxy"), || {
            super::http::get(&self.place.net, at, "/healthz").is_ok_and(|answer| answer.status == 200)
        })
    }

    fn kubelet_config(&self) -> String {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // Whoever reaches a node's address in the cluster's own network may: the API server (exec, logs) and tests.
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroups::kubelet_root(&self.name, self.i),
            "failSwapOn": false,
            "failCgroupV1": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "resolvConf": self.folder().join("resolv.conf"),
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS],
            // The disk is the machine's; how full it is says nothing about the node.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": false,
            "enforceNodeAllocatable": [],
            // Changes of the machine's own kernel settings are not the node's business.
            "protectKernelDefaults": false,
            "makeIPTablesUtilChains": true,
            "serializeImagePulls": false,
            "registerNode": true,
            "maxPods": 250,
        })
        .to_string()
    }
}

/// The object by which the API server knows the node and its pods' ranges before the kubelet starts: so node number `i`
/// has range number `i`, whichever kubelet is the fastest.
pub fn object(i: usize) -> serde_json::Value {
    let (v4, v6) = pod_ranges(i);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node(i)},
        "spec": {"podCIDR": v4, "podCIDRs": [v4, v6]},
    })
}

/// The network of a node's pods.
fn cni(i: usize, pods: Pods, folder: &Path) -> String {
    let (v4, v6) = pod_ranges(i);
    let ipam = json!({
        "type": "host-local",
        "dataDir": folder.join("addresses"),
        "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    let network = match pods {
        Pods::Routed => json!({"type": "ptp", "ipam": ipam}),
        Pods::Bridged => {
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam})
        }
    };
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [network, {"type": "portmap", "capabilities": {"portMappings": true}}],
    })
    .to_string()
}

/// containerd's configuration.
fn containerd(folder: &Path, socket: &Path) -> Result<String> {
    let Some(plugins) = binaries::cni() else {
        bail!("no CNI plugins are installed: run `cargo xtask setup`")
    };
    let (folder, socket, plugins) = (folder.display(), socket.display(), plugins.display());
    let pause = images::PAUSE;
    // Without CAP_SYS_RESOURCE, as in many containers, no process may be made less likely to be killed; without
    // AppArmor profiles nothing is loaded into the machine's kernel.
    Ok(format!(
        r#"version = 2
root = "{folder}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
"#
    ))
}
