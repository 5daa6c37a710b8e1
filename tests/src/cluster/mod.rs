//! A real Kubernetes cluster on one machine: etcd, the control plane, and nodes with containerd, kubelet and kube-proxy,
//! each in network namespaces and mounts of its own.
//!
//! Nothing of the machine's own network or mounts is touched. Everything that a cluster makes carries its name, so that
//! several live side by side and [`teardown`] finds all of one, in whatever state it is.

pub mod archive;
pub mod binaries;
mod cgroups;
pub(crate) mod control_plane;
mod daemon;
mod dns;
pub mod http;
pub mod images;
mod kubeconfig;
pub mod kubectl;
pub mod names;
mod network;
pub mod node;
mod options;
mod place;
pub mod teardown;

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};

use self::control_plane::{API_SERVER, CONTROLLERS, ControlPlane, ETCD, SCHEDULER, free_port};
use self::daemon::Daemons;
use self::names::{Name, node_addresses};
use self::node::ClusterNode;
use self::options::require;
pub use self::options::{Between, Options, Pods, Proxy};
use crate::netns::Namespace;

/// A cluster. One that [`Cluster::up`] made is removed when dropped; one that was opened is not.
#[derive(Debug)]
pub struct Cluster {
    name: Name,
    options: Options,
    owned: bool,
    control_plane: ControlPlane,
    daemons: Daemons,
    nodes: Vec<ClusterNode>,
    /// A client that is no node, on the nodes' network ([`names::OUTSIDE`]).
    pub outside: Namespace,
}

impl Cluster {
    /// Makes a cluster whose name tells which test owns it.
    pub fn up(options: &Options) -> Result<Self> {
        teardown::sweep()?;
        Self::up_as(&Name::fresh(), options, || false)
    }

    /// Makes a cluster of this name; gives up, and removes what it made, when `stop` says so.
    pub fn up_as(name: &Name, options: &Options, stop: impl Fn() -> bool + Sync) -> Result<Self> {
        require(options)?;
        let folder = name.folder();
        ensure!(
            !teardown::clusters().contains(name),
            "there is a cluster `{}` already, or what is left of one: see `cargo xtask cluster status`, or remove it \
             with `cargo xtask cluster down`",
            name.as_str()
        );
        let archives: Vec<PathBuf> =
            images::archives(options.dns)?.into_iter().chain(options.images.iter().cloned()).collect();
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        // From here on dropping it removes what there is.
        let cluster = Self::assemble(name, options.clone(), true);
        match cluster.build(&archives, &stop) {
            // A Ctrl-C also ends a kubectl that is at work; that it failed is not the news.
            Err(_) if stop() => Err(Interrupted.into()),
            built => built.map(|()| cluster),
        }
    }

    /// The cluster of this name that is up.
    pub fn open(name: &Name) -> Result<Option<Self>> {
        let path = options_file(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let options = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(Self::assemble(name, options, false)))
    }

    fn assemble(name: &Name, options: Options, owned: bool) -> Self {
        Self {
            name: name.clone(),
            owned,
            control_plane: ControlPlane::of(name),
            daemons: Daemons::of(name),
            nodes: (0..options.nodes).map(|i| ClusterNode::of(name, i)).collect(),
            outside: Namespace::existing(&name.namespace(network::CLIENT), network::CLIENT),
            options,
        }
    }

    fn build(&self, archives: &[PathBuf], stop: &(impl Fn() -> bool + Sync)) -> Result<()> {
        let folder = self.folder();
        self.daemons.create()?;
        cgroups::create(&self.name, self.options.nodes)?;
        network::create(&self.name, self.options.nodes, self.options.between)?;
        let port = free_port()?;
        kubeconfig::create(&folder, self.options.nodes, port)?;
        let go_on = || if stop() { Err(Interrupted.into()) } else { Ok(()) };
        go_on()?;
        thread::scope(|scope| {
            let nodes: Vec<_> =
                self.nodes.iter().map(|node| scope.spawn(|| node.create(&self.options, archives))).collect();
            let controls = self.start_control_plane(port).and_then(|()| go_on());
            for node in nodes {
                node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            controls
        })?;
        for node in &self.nodes {
            node.start_kubelet()?;
            node.start_proxy(self.options.proxy)?;
        }
        go_on()?;
        self.kubectl(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"]).map_err(
            |error| {
                let tails = self.nodes.iter().map(|node| self.daemons.tail(&node.daemon("kubelet")));
                error.context(tails.collect::<Vec<_>>().join("\n"))
            },
        )?;
        if self.options.between == Between::Vxlan {
            self.kubectl(["annotate", "nodes", "--all", network::OVERLAY_ANNOTATION])?;
        }
        go_on()?;
        self.wait_for("default", "serviceaccount/default", "create")?;
        self.nodes.iter().try_for_each(ClusterNode::wait_for_proxy)?;
        if self.options.dns {
            self.wait_rollout("kube-system", "deployment/coredns")?;
        }
        // Last, as the sign that the cluster is whole.
        let text = serde_json::to_string_pretty(&self.options)?;
        fs::write(options_file(&self.name), text).context("writing down what the cluster is")
    }

    fn start_control_plane(&self, port: u16) -> Result<()> {
        self.control_plane.create()?;
        self.control_plane.start_etcd()?;
        self.control_plane.start_api_server()?;
        self.control_plane.start_forward(port)?;
        self.wait_for_api_server()?;
        self.control_plane.start_controllers()?;
        let nodes: Vec<_> = (0..self.options.nodes).map(node::object).collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": nodes});
        self.apply(&list.to_string())?;
        if self.options.dns {
            self.apply(&dns::manifests())?;
        }
        Ok(())
    }

    fn check_control_plane(&self) -> Result<()> {
        [ETCD, API_SERVER].iter().try_for_each(|what| self.daemons.check(what))
    }

    /// Leaves the cluster up when this object goes.
    pub fn keep(mut self) {
        self.owned = false;
    }

    /// Removes it, and says what could not be removed.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        teardown::destroy(&self.name)
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What it is.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The state folder: keys, logs, the nodes' files.
    pub fn folder(&self) -> PathBuf {
        self.name.folder()
    }

    /// The administrator's kubeconfig, for clients on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig::path(&self.folder(), "admin")
    }

    /// Node number `i`, from 0; its name is `node<i>`.
    pub fn node(&self, i: usize) -> &ClusterNode {
        &self.nodes[i]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// Loads an archive of images on every node.
    pub fn load(&self, archive: &Path) -> Result<()> {
        thread::scope(|scope| {
            let loads: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| node.load(archive))).collect();
            loads
                .into_iter()
                .try_for_each(|load| load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// The network of a pod that runs, for sockets of the test's own in it.
    pub fn pod_namespace(&self, namespace: &str, pod: &str) -> Result<Namespace> {
        let place = self.value(
            namespace,
            &format!("pod/{pod}"),
            "{.spec.nodeName} {.status.containerStatuses[0].containerID}",
        )?;
        let found = place.split_once(' ').and_then(|(node, id)| Some((node, id.split_once("://")?.1)));
        let (node, id) = found.with_context(|| format!("the pod {namespace}/{pod} does not run: {place}"))?;
        let node =
            (0..self.nodes.len()).find(|i| names::node(*i) == node).context("a node that is not ours")?;
        Ok(Namespace::of_process(self.node(node).container_process(id)?, pod))
    }

    /// A path of node `i`'s server on `port`, as one asks for metrics: from inside the node, over loopback.
    pub fn http_get(&self, i: usize, port: u16, path: &str) -> Result<http::Answer> {
        http::get(&self.node(i).place.net, SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), port), path)
    }

    /// Ends the API server.
    pub fn stop_api_server(&self) -> Result<()> {
        self.daemons.stop(API_SERVER)
    }

    /// Starts the API server again and waits until it answers.
    pub fn start_api_server(&self) -> Result<()> {
        self.control_plane.start_api_server()?;
        self.wait_for_api_server()
    }

    /// Ends etcd. Its data stays.
    pub fn stop_etcd(&self) -> Result<()> {
        self.daemons.stop(ETCD)
    }

    /// Starts etcd again, with the data that it had.
    pub fn start_etcd(&self) -> Result<()> {
        self.control_plane.start_etcd()
    }

    /// Has kube-proxy do services in another way, on every node, and waits until it does.
    pub fn change_proxy(&self, mode: Proxy) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.change_proxy(mode))
    }

    /// Ends the kubelet of node `i`; the pods go on.
    pub fn stop_kubelet(&self, i: usize) -> Result<()> {
        self.daemons.stop(&self.node(i).daemon("kubelet"))
    }

    /// Starts the kubelet of node `i` again and waits until it answers; it finds its pods again a moment later.
    pub fn start_kubelet(&self, i: usize) -> Result<()> {
        self.node(i).start_kubelet()?;
        self.node(i).wait_for_kubelet()
    }

    /// The daemons that should run and do not.
    pub fn dead_daemons(&self) -> Vec<String> {
        let control = [ETCD, API_SERVER, CONTROLLERS, SCHEDULER].map(str::to_owned);
        let forwards = [control_plane::FORWARD_IN, control_plane::FORWARD_OUT].map(str::to_owned);
        let of_nodes = self
            .nodes
            .iter()
            .flat_map(|node| ["containerd", "kubelet", "kube-proxy"].map(|p| node.daemon(p)));
        let all = control.into_iter().chain(forwards).chain(of_nodes);
        all.filter(|what| self.daemons.process(what).is_none()).collect()
    }

    /// The addresses of node `i` on the nodes' network.
    pub fn node_addresses(&self, i: usize) -> (std::net::Ipv4Addr, std::net::Ipv6Addr) {
        node_addresses(i)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = teardown::destroy(&self.name)
        {
            eprintln!("{error:#}");
        }
    }
}

/// The making of a cluster was interrupted.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

fn options_file(name: &Name) -> PathBuf {
    name.folder().join("cluster.json")
}
