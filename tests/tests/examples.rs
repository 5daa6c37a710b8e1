//! Every example of `deploy/examples` in a real cluster: applied as its README says, each line of its table tried with
//! real connections, before its policies are there (everything is answered) and after.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, ensure};
use portcullis_tests::cluster::{Cluster, Options};
use portcullis_tests::cluster_probe::{self, Check, Outcome};
use portcullis_tests::examples::{self, End, Example, Expect, KUBE_DNS, Line, Live, objects, text};
use portcullis_tests::installed::{self, Wanted};
use portcullis_tests::privileged_test;
use serde_json::Value;

#[test]
fn the_examples_do_in_a_real_cluster_what_their_tables_say() -> Result<()> {
    privileged_test(|| {
        let start = Instant::now();
        let note = |what: &str| println!("{:>5.1} s  {what}", start.elapsed().as_secs_f64());
        let examples = examples::load_all()?;
        // The examples bring a DNS server of their own, with known ports.
        let cluster =
            Cluster::up(&Options { dns: false, images: vec![installed::image()?], ..Options::default() })?;
        note("the cluster is up");
        // The agents come first, so that every pod is judged from its first packet.
        installed::install(&cluster)?;
        installed::set_mode(&cluster, "Enforce")?;
        note("Portcullis enforces");
        let mut servers = Vec::new();
        for example in &examples {
            servers.extend(examples::add_hosts(&cluster, &example.table)?);
        }
        let workloads = start_workloads(&cluster, &examples)?;
        let workloads: Vec<&Value> = workloads.iter().collect();
        note("all pods are ready");
        let live = Live::read(&cluster)?;
        let policies = Wanted { policies: Vec::new(), pods: live.addresses(&namespaces(&examples)) };
        installed::wait_programmed(&cluster, &policies)?;

        let checks = checks(&live, &examples, &workloads, |_| Expect::Allow)?;
        let report = cluster_probe::check(&cluster, &checks)?;
        note(&format!("without policies: {} probes", report.probes));
        report.into_result()?;

        for example in &examples {
            let folder = example.folder.to_string_lossy();
            cluster.kubectl(["apply", "--validate=strict", "--kustomize", &folder])?;
        }
        let policies = Wanted { policies: policy_names(&examples), ..policies };
        installed::wait_programmed(&cluster, &policies)?;
        note("all policies are programmed");
        let checks = self::checks(&live, &examples, &workloads, |line| line.verdict)?;
        let report = cluster_probe::check(&cluster, &checks)?;
        note(&format!("with policies: {} probes, {} of them answered", report.probes, report.answers));
        report.into_result()?;
        denials_are_counted(&cluster, &live, &examples, &workloads)?;
        note("denials are in the metrics");

        for example in &examples {
            let folder = example.folder.to_string_lossy();
            cluster.kubectl(["delete", "--wait=false", "--kustomize", &folder])?;
        }
        cluster.down()
    })
}

/// Applies everything but the policies, with strict validation, and waits until it is ready.
fn start_workloads(cluster: &Cluster, examples: &[Example]) -> Result<Vec<Value>> {
    let mut all = objects(KUBE_DNS)?;
    let mut manifests = KUBE_DNS.to_owned();
    for example in examples {
        all.extend(example.apps.objects.iter().cloned());
        write!(manifests, "\n---\n{}", example.apps.text)?;
    }
    cluster.apply(&manifests)?;
    for object in all.iter().filter(|object| examples::is_workload(object)) {
        let name = format!("{}/{}", text(object, "/kind").to_lowercase(), text(object, "/metadata/name"));
        cluster.wait_rollout(text(object, "/metadata/namespace"), &name)?;
    }
    Ok(all)
}

fn checks(
    live: &Live<'_>,
    examples: &[Example],
    workloads: &[&Value],
    verdict: impl Fn(&Line) -> Expect,
) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for example in examples {
        for line in &example.table.expect {
            let wanted = Line { verdict: verdict(line), ..line.clone() };
            let mut found = live.checks(&wanted, &example.table, workloads)?;
            for check in &mut found {
                check.what = format!("{}: {}", example.name, check.what);
            }
            checks.extend(found);
        }
    }
    ensure!(checks.iter().any(|check| check.expect == Outcome::Answer), "nothing is expected to be answered");
    Ok(checks)
}

fn namespaces(examples: &[Example]) -> BTreeSet<&str> {
    let objects = examples.iter().flat_map(|example| &example.apps.objects);
    let namespaces = objects.filter(|object| text(object, "/kind") == "Namespace");
    namespaces.map(|object| text(object, "/metadata/name")).chain(["kube-system"]).collect()
}

fn policy_names(examples: &[Example]) -> Vec<(String, String)> {
    let objects = examples.iter().flat_map(|example| &example.policies).flat_map(|policy| &policy.objects);
    let name = |object: &Value, pointer| text(object, pointer).to_owned();
    objects.map(|object| (name(object, "/metadata/namespace"), name(object, "/metadata/name"))).collect()
}

/// Every denied line between pods, and from outside to pods, is counted under its pair.
fn denials_are_counted(
    cluster: &Cluster,
    live: &Live<'_>,
    examples: &[Example],
    workloads: &[&Value],
) -> Result<()> {
    for (example, line) in
        examples.iter().flat_map(|example| example.table.expect.iter().map(move |line| (example, line)))
    {
        if line.verdict == Expect::Allow || matches!(line.to, End::Host(_)) {
            continue;
        }
        let [sources, destinations] = live.principals(line, workloads);
        for (source_namespace, source) in &sources {
            for (namespace, destination) in &destinations {
                let labels = [
                    ("source_namespace", source_namespace.as_str()),
                    ("source_service_account", source),
                    ("destination_namespace", namespace),
                    ("destination_service_account", destination),
                    ("verdict", "deny"),
                ];
                let count = installed::metric(cluster, "portcullis_decisions_total", &labels)?;
                ensure!(count >= 1.0, "no denial is counted for {labels:?}, of {}: {line}", example.name);
            }
        }
    }
    Ok(())
}
