//! `cargo xtask cluster`: a real Kubernetes cluster on this machine, for tests and for playing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};
use portcullis_tests::cluster::names::Name;
use portcullis_tests::cluster::{Between, Cluster, Interrupted, Options, Pods, Proxy, binaries, teardown};

use crate::interrupt;

/// What `cluster` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Task,
    /// Which cluster; several can be up at the same time
    #[arg(long, global = true, default_value = "dev", value_parser = Name::new)]
    name: Name,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a cluster and wait until its nodes are ready
    Up(Up),
    /// Remove a cluster, whatever state it is in
    Down,
    /// Show whether a cluster is up, and what is in it
    Status,
    /// Load an archive of images on every node
    Load {
        /// The archive, as of `cargo xtask image` or `docker save`
        file: PathBuf,
    },
    /// Run kubectl on a cluster: `cluster kubectl -- get pods`
    Kubectl {
        /// What kubectl takes
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run a command in the network and mounts of a node: `cluster node 0 -- ip addr`
    Node {
        /// Which node, from 0
        number: usize,
        /// The command; a shell if there is none
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Up {
    /// How many nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// How pods are joined to their node
    #[arg(long, value_enum, default_value_t = PodsArgument::Routed)]
    pods: PodsArgument,
    /// How a node reaches the pods of another one
    #[arg(long, value_enum, default_value_t = BetweenArgument::Routes)]
    between: BetweenArgument,
    /// How kube-proxy programs services
    #[arg(long, value_enum, default_value_t = ProxyArgument::Iptables)]
    proxy: ProxyArgument,
    /// Without a DNS server
    #[arg(long)]
    no_dns: bool,
    /// An archive of images to load on every node; may be repeated
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PodsArgument {
    /// A route to each pod's veth, as Calico and others do
    Routed,
    /// All veths in one bridge, as flannel and kind do
    Bridged,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BetweenArgument {
    /// By routes
    Routes,
    /// Through VXLAN, as flannel does
    Vxlan,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProxyArgument {
    Iptables,
    Nftables,
}

/// Runs a cluster command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let name = &arguments.name;
    match &arguments.command {
        Task::Up(up) => return start(name, up),
        Task::Down => stop(name)?,
        Task::Status => return status(name),
        Task::Load { file } => {
            ensure!(file.is_file(), "there is no image archive {}", file.display());
            open(name)?.load(file)?;
            println!("{} is on every node of cluster {}", file.display(), name.as_str());
        }
        Task::Kubectl { args } => return exit_code(&mut open(name)?.kubectl_command(args)?),
        Task::Node { number, command } => {
            let cluster = open(name)?;
            let node = cluster.nodes().get(*number).with_context(|| {
                format!("cluster {} has nodes 0 to {}", name.as_str(), cluster.nodes().len() - 1)
            })?;
            let shell = [String::from("sh")];
            let words = if command.is_empty() { &shell[..] } else { command };
            return exit_code(&mut node.place.command(&words[0], &words[1..])?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(name: &Name) -> Result<Cluster> {
    let cluster = Cluster::open(name)?;
    cluster.with_context(|| {
        format!("there is no cluster `{0}`; `cargo xtask cluster up --name {0}` starts one", name.as_str())
    })
}

fn exit_code(command: &mut std::process::Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn start(name: &Name, up: &Up) -> Result<ExitCode> {
    crate::setup::ensure_ready(crate::setup::Purpose::Cluster)?;
    interrupt::watch("the cluster")?;
    let options = Options {
        nodes: up.nodes,
        pods: match up.pods {
            PodsArgument::Routed => Pods::Routed,
            PodsArgument::Bridged => Pods::Bridged,
        },
        between: match up.between {
            BetweenArgument::Routes => Between::Routes,
            BetweenArgument::Vxlan => Between::Vxlan,
        },
        proxy: match up.proxy {
            ProxyArgument::Iptables => Proxy::Iptables,
            ProxyArgument::Nftables => Proxy::Nftables,
        },
        dns: !up.no_dns,
        images: up.image.clone(),
    };
    let begin = Instant::now();
    let cluster = match Cluster::up_as(name, &options, interrupt::interrupted) {
        // What a shell reports for a program that SIGINT has ended.
        Err(error) if error.is::<Interrupted>() => return Ok(ExitCode::from(130)),
        other => other?,
    };
    println!(
        "cluster {} is up after {:.0} s: {} nodes joined by {}, {} pods, kube-proxy with {}\n",
        name.as_str(),
        begin.elapsed().as_secs_f64(),
        up.nodes,
        options.between,
        options.pods,
        options.proxy
    );
    usage(&cluster)?;
    cluster.keep();
    Ok(ExitCode::SUCCESS)
}

/// How to use it.
fn usage(cluster: &Cluster) -> Result<()> {
    let kubectl = binaries::find("kubectl")?;
    let folder = kubectl.parent().unwrap_or(&kubectl);
    println!("  export KUBECONFIG={} PATH={}:$PATH", cluster.kubeconfig().display(), folder.display());
    let name = cluster.name().as_str();
    println!("  kubectl get nodes, or: cargo xtask cluster kubectl --name {name} -- get nodes");
    Ok(())
}

fn stop(name: &Name) -> Result<()> {
    if !teardown::clusters().contains(name) {
        println!("there is no cluster {}; nothing to remove", name.as_str());
        return Ok(());
    }
    let begin = Instant::now();
    teardown::destroy(name)?;
    println!("cluster {} is removed, in {:.1} s", name.as_str(), begin.elapsed().as_secs_f64());
    Ok(())
}

fn status(name: &Name) -> Result<ExitCode> {
    let others: Vec<String> = teardown::clusters()
        .into_iter()
        .filter(|other| other != name)
        .map(|other| other.as_str().to_owned())
        .collect();
    if !others.is_empty() {
        println!("other clusters: {}\n", others.join(", "));
    }
    let Some(cluster) = Cluster::open(name)? else {
        if teardown::clusters().contains(name) {
            bail!(
                "cluster `{0}` is half made or half removed; `cargo xtask cluster down --name {0}` removes the rest",
                name.as_str()
            );
        }
        bail!("there is no cluster `{0}`; `cargo xtask cluster up --name {0}` starts one", name.as_str());
    };
    let Options { nodes, between, pods, proxy, .. } = cluster.options();
    println!(
        "cluster {}: {nodes} nodes joined by {between}, {pods} pods, kube-proxy with {proxy}",
        name.as_str()
    );
    println!("Kubernetes {}, files in {}\n", binaries::KUBERNETES, cluster.folder().display());
    usage(&cluster)?;
    let dead = cluster.dead_daemons();
    if !dead.is_empty() {
        println!(
            "\nnot running: {}; logs are in {}",
            dead.join(", "),
            cluster.folder().join("daemons").display()
        );
    }
    println!("\n{}", cluster.kubectl(["get", "nodes", "--output=wide"])?);
    println!("{}", cluster.kubectl(["get", "pods", "--all-namespaces", "--output=wide"])?);
    Ok(if dead.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
