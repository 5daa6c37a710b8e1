//! Who reaches whom in a real cluster of two nodes, with Portcullis from its image and its manifests: pods, services, the
//! API server, the nodes' network, the kubelet's probes and what comes from outside, by every way. One has routed pods and
//! routes between its nodes, the other bridges and an overlay network.
//!
//! The first cluster is installed as a person does it, in Audit mode, and then told to enforce.

mod alive;
mod audit;
mod count;
mod mappings;
mod nodes;
mod objects;
mod outside;
mod people;
mod shop;
mod truth;
mod uninstall;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::{Between, Cluster, Options, Pods, Proxy};
use portcullis_tests::cluster_probe::{self, Check};
use portcullis_tests::command::run;
use portcullis_tests::installed::{self, Wanted};
use portcullis_tests::lifecycle::leftovers;
use portcullis_tests::{deploy, eventually, privileged_test};
use serde_json::{Value, json};

use crate::objects::World;

/// Every namespace with pods of the test.
const NAMESPACES: [&str; 7] =
    [shop::SHOP, shop::OTHER, nodes::NODES, outside::EDGE, mappings::MAPPINGS, alive::CLOSED, count::COUNT];

#[test]
fn routed_pods_and_iptables() -> Result<()> {
    privileged_test(|| {
        let clock = Clock::start();
        let cluster = up(Pods::Routed, Between::Routes, Proxy::Iptables)?;
        clock.note("the cluster is up");
        // As a person installs it.
        installed::install_manifests(
            &cluster,
            &std::fs::read_to_string(deploy::folder().join("portcullis.yaml"))?,
        )?;
        clock.note("Portcullis is installed from deploy/portcullis.yaml");
        let world = start(&cluster, &clock)?;
        let loaded = leftovers::loaded(&cluster)?;

        installed::wait_for_mode(&cluster, "Audit").context("deploy/portcullis.yaml comes in Audit mode")?;
        try_all(&cluster, &clock, "in Audit mode", &shop::reach(&world, true)?)?;
        ensure!(audit::count(&cluster, "intruder", "audit")? >= 1.0, "nothing was counted as audited");
        ensure!(audit::count(&cluster, "intruder", "deny")? == 0.0, "something was denied in Audit mode");
        let held = audit::Held::open(&cluster, &world)?;
        held.is_alive()?;
        ensure!(audit::count(&cluster, "late", "audit")? >= 1.0, "the connection is not counted as audited");

        installed::set_mode(&cluster, "Enforce")?;
        clock.note("Portcullis enforces");
        held.is_cut(&cluster)?;
        drop(held);
        clock.note("the audited connection is cut");
        enforced(&cluster, &clock, &world)?;
        truth::replay(&cluster, &clock)?;
        other_proxy(&cluster, &clock, &world, Proxy::Nftables)?;
        uninstall::from_audit(&cluster, &clock, loaded)?;
        cluster.down()?;
        clock.note("the cluster is down");
        Ok(())
    })
}

#[test]
fn bridged_pods_in_an_overlay_and_nftables() -> Result<()> {
    privileged_test(|| {
        let clock = Clock::start();
        let cluster = up(Pods::Bridged, Between::Vxlan, Proxy::Nftables)?;
        clock.note("the cluster is up");
        installed::install(&cluster)?;
        installed::set_mode(&cluster, "Enforce")?;
        clock.note("Portcullis is installed and enforces");
        let world = start(&cluster, &clock)?;
        enforced(&cluster, &clock, &world)?;
        other_proxy(&cluster, &clock, &world, Proxy::Iptables)?;
        cluster.down()?;
        clock.note("the cluster is down");
        Ok(())
    })
}

fn up(pods: Pods, between: Between, proxy: Proxy) -> Result<Cluster> {
    Cluster::up(&Options { pods, between, proxy, images: vec![installed::image()?], ..Options::default() })
}

/// Starts all pods, applies all policies, and waits until everything is programmed.
fn start(cluster: &Cluster, clock: &Clock) -> Result<World> {
    let workloads = [
        shop::workloads(),
        nodes::workloads(),
        outside::workloads(),
        mappings::workloads(),
        alive::workloads(),
        count::workloads(),
    ];
    cluster.apply(&list(&workloads.concat()))?;
    outside::balance(cluster)?;
    let policies = [
        shop::policies(),
        nodes::policies(),
        outside::policies(),
        mappings::policies(),
        alive::policies(),
        count::policies(),
    ];
    cluster.apply(&list(&policies.concat()))?;
    for namespace in NAMESPACES {
        cluster.wait_for(namespace, "pods --all", "condition=Ready")?;
    }
    clock.note("all pods are ready");
    let world = World::read(cluster)?;
    mappings::link(cluster, &world)?;
    let policies = [
        shop::policy_names(),
        nodes::policy_names(),
        outside::policy_names(),
        mappings::policy_names(),
        alive::policy_names(),
        count::policy_names(),
    ];
    let mut pods = world.names(&NAMESPACES);
    // Pods on the network of their node have its addresses.
    pods.retain(|ip, _| !(0..2).any(|node| objects::node(node).contains(ip)));
    installed::wait_programmed(cluster, &Wanted { policies: policies.concat(), pods })?;
    clock.note("everything is programmed");
    Ok(world)
}

/// What must hold where Portcullis enforces.
fn enforced(cluster: &Cluster, clock: &Clock, world: &World) -> Result<()> {
    let parts = [
        ("the shop", shop::reach(world, false)?),
        ("API server and nodes", nodes::reach(world)?),
        ("from outside", outside::reach(world)?),
        ("by every mapping of a service", mappings::reach(world)?),
    ];
    // What is wrong in one part does not hide what is wrong in the next one.
    let mut failed: Vec<anyhow::Error> = Vec::new();
    failed.extend(parts.iter().filter_map(|(what, checks)| try_all(cluster, clock, what, checks).err()));
    match count::exactly(cluster, world) {
        Ok(denied) => {
            clock.note(&format!("metrics: {denied} denied connections, counted where they were denied"));
        }
        Err(error) => failed.push(error),
    }
    match alive::hold(cluster) {
        Ok(()) => clock.note("the kubelets' probes hold"),
        Err(error) => failed.push(error),
    }
    match people::dumps(cluster) {
        Ok(()) => clock.note("dumps have names"),
        Err(error) => failed.push(error),
    }
    match people::monitors(cluster) {
        Ok(()) => clock.note("a monitor shows a denial as it happens"),
        Err(error) => failed.push(error),
    }
    let failed: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// What goes through kube-proxy, with it in its other mode.
fn other_proxy(cluster: &Cluster, clock: &Clock, world: &World, proxy: Proxy) -> Result<()> {
    cluster.change_proxy(proxy)?;
    let wanted = [proxy == Proxy::Nftables, proxy == Proxy::Iptables];
    for (node, name) in cluster.nodes().iter().zip(["node0", "node1"]) {
        let said = |program: &str, args: &[&str]| run(&mut node.place.command(program, args)?);
        let look = || -> Result<[bool; 2]> {
            let tables = said("nft", &["list", "tables"])?;
            Ok([
                tables.lines().any(|line| line == "table ip kube-proxy"),
                said("iptables-save", &[])?.contains("KUBE-SVC-"),
            ])
        };
        // It calls itself healthy before it has written anything.
        let mut found = look()?;
        eventually("kube-proxy's rules to be those of the other mode", || {
            found = look().unwrap_or(found);
            found == wanted
        })
        .with_context(|| {
            format!("{name}: nftables and iptables have rules of kube-proxy: {found:?}, not {wanted:?}")
        })?;
    }
    clock.note(&format!("kube-proxy does services with {proxy}"));
    let checks = [shop::reach(world, false)?, outside::reach(world)?, mappings::reach(world)?].concat();
    try_all(cluster, clock, &format!("the shop, from outside, and every mapping, with {proxy}"), &checks)
}

fn try_all(cluster: &Cluster, clock: &Clock, what: &str, checks: &[Check]) -> Result<()> {
    let report = cluster_probe::check(cluster, checks)?;
    clock.note(&format!("{what}: {} probes, {} of them answered", report.probes, report.answers));
    report.into_result()
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// Says how long things take.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn note(&self, what: &str) {
        println!("{:>5.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}
