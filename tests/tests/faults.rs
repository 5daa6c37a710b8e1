//! The real agent against the scripted API server: what ends in the maps, and what never gets there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::faults::cluster::{
    change, config, fill, identity, node, pod, policy, service, service_range, slice,
};
use portcullis_tests::faults::{Chance, KINDS, Server};
use portcullis_tests::{Agent, Node, TempDir, eventually_within, privileged_test};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The agent waits up to a minute after several failures in a row.
const LONG: Duration = Duration::from_secs(150);

/// A node with the seven pods of [`fill`], and a scripted server on its loopback.
struct Scene {
    node: Node,
    server: Server,
    folder: TempDir,
    /// The server runs in it.
    _runtime: Runtime,
}

impl Scene {
    fn new(seed: u64) -> Result<Self> {
        let node = Node::routed().pods(7).build()?;
        let listener = node.ns.run(|| Ok(std::net::TcpListener::bind("127.0.0.1:0")?))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = {
            let _in_runtime = runtime.enter();
            Server::on(listener, seed)
        };
        fill(&server);
        let folder = TempDir::new()?;
        folder.write("kubeconfig", &server.kubeconfig())?;
        Ok(Self { node, server, folder, _runtime: runtime })
    }

    fn spawn(&self) -> Result<Agent<'_>> {
        let kubeconfig = self.folder.path().join("kubeconfig").into_os_string();
        Agent::on(&self.node.ns).node_name("n1").args(["--kubeconfig".into(), kubeconfig]).spawn()
    }
}

/// What the pinned maps say, by names: without the numbers that an agent gives, and without what traffic does.
fn maps(agent: &Agent<'_>) -> Result<Value> {
    let mut dump: Value = serde_json::from_str(&agent.cli(["dump", "-o", "json"])?)?;
    let fields = dump.as_object_mut().context("a dump is an object")?;
    fields.retain(|part, _| ["identities", "endpoints", "policies", "services"].contains(&part.as_str()));
    ensure!(fields.len() == 4, "parts are missing: {dump:#}");
    // Policies and problems are from the names file; the rows are from the maps.
    without_numbers(&mut dump);
    Ok(dump)
}

fn without_numbers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.ends_with("_number"));
            fields.values_mut().for_each(without_numbers);
        }
        Value::Array(items) => {
            items.iter_mut().for_each(without_numbers);
            items.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}

/// Whether a part of a dump has a record with this value in this field.
fn has(dump: &Value, part: &str, field: &str, wanted: &str) -> bool {
    let records = if part == "policies" { &dump[part]["policies"] } else { &dump[part] };
    records.as_array().is_some_and(|records| records.iter().any(|record| record[field] == wanted))
}

/// An object of every kind that was not there before.
fn put_markers(server: &Server) {
    let mut pod = pod("marker", "marker", 250);
    for (plural, object) in [
        ("namespaces", json!({"metadata": {"name": "marked", "uid": "marked"}})),
        ("serviceaccounts", json!({"metadata": {"name": "marker", "namespace": "marked", "uid": "marker"}})),
        ("nodes", node(77, 1)),
        ("services", service("marker", 77, 90)),
        ("endpointslices", slice("marker", 2)),
        ("servicecidrs", service_range("marker", 200)),
        ("configmaps", config("Audit")),
        ("networkpolicies", policy("marker", 90)),
        ("identitypolicies", identity("marker", 1)),
    ] {
        server.put(plural, object);
    }
    pod["metadata"]["namespace"] = "marked".into();
    pod["spec"]["serviceAccountName"] = "marker".into();
    server.put("pods", pod);
}

fn has_markers(dump: &Value) -> bool {
    let behind = |record: &Value| {
        record["address"] == "10.96.0.77" && record["endpoints"][0]["principal"] == "shop/api"
    };
    has(dump, "identities", "principal", "marked/marker")
        && has(dump, "identities", "address", "192.0.2.177")
        && has(dump, "identities", "address", "10.200.0.0/16")
        && ["NetworkPolicy", "IdentityPolicy"].iter().all(|kind| {
            let policies = dump["policies"]["policies"].as_array();
            policies.is_some_and(|all| all.iter().any(|one| one["kind"] == *kind && one["name"] == "marker"))
        })
        && dump["services"].as_array().is_some_and(|all| all.iter().any(behind))
}

fn mode(agent: &Agent<'_>) -> Result<Value> {
    let status: Value = serde_json::from_str(&agent.cli(["status", "-o", "json"])?)?;
    Ok(status["mode"].clone())
}

#[test]
fn the_maps_after_faults_in_random_order_are_those_of_a_clean_start() -> Result<()> {
    privileged_test(|| {
        let scene = Scene::new(1)?;
        let server = &scene.server;
        let mut agent = scene.spawn()?;
        agent.wait_ready()?;
        let mut chance = Chance::new(7);
        let mut made = 0;
        server.set(|shared| shared.rate = 25);
        for round in 0..300u32 {
            change(server, &mut chance, &mut made);
            if round.is_multiple_of(60) {
                server.set(|shared| shared.store.compact());
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        // An outage in which everything changes.
        server.set(|shared| shared.away = true);
        for _ in 0..50 {
            change(server, &mut chance, &mut made);
        }
        server.set(|shared| {
            shared.store.compact();
            (shared.away, shared.rate) = (false, 0);
        });
        put_markers(server);
        let wait = |agent: &Agent<'_>, what: &str, wanted: &dyn Fn(&Value) -> bool| {
            let mut last = Ok(Value::Null);
            let outcome = eventually_within(LONG, what, || {
                last = maps(agent);
                last.as_ref().is_ok_and(wanted)
            });
            outcome.with_context(|| format!("last: {last:?}; the agent's log:\n{}", agent.logs()))
        };
        wait(&agent, "a marker of every kind", &has_markers)?;
        // What is written last is in force, and in the names file, after everything before.
        server.put("networkpolicies", policy("the-end", 91));
        let ended = |dump: &Value| has(dump, "policies", "name", "the-end");
        wait(&agent, "the last policy", &ended)?;
        agent.wait_ready()?;
        let after_faults = (maps(&agent)?, mode(&agent)?);
        let faults = server.lock().happened.clone();
        ensure!(faults.len() >= 10, "hardly any faults: {faults:?}");
        agent.terminate()?;
        agent.cli(["cleanup"])?;
        drop(agent);

        let mut fresh = scene.spawn()?;
        fresh.wait_ready()?;
        wait(&fresh, "the last policy", &ended)?;
        let clean = (maps(&fresh)?, mode(&fresh)?);
        ensure!(
            after_faults == clean,
            "after {faults:?}: {:#}\n--- clean start: {:#}",
            after_faults.0,
            clean.0
        );
        Ok(())
    })
}

#[test]
fn nothing_is_written_while_a_kind_is_forbidden_and_readyz_names_the_rule() -> Result<()> {
    const RULE: &str = "add to the ClusterRole: {apiGroups: [\"networking.k8s.io\"], resources: [\"networkpolicies\"], \
                        verbs: [\"get\", \"list\", \"watch\"]}";
    let forbid = |server: &Server| {
        server.set(|shared| {
            shared.store.forbidden.insert("networkpolicies");
        });
    };
    let wait_refused = |agent: &Agent<'_>| {
        let mut last = String::new();
        let outcome = eventually_within(LONG, "/readyz to name the rule", || {
            last = format!("{:?}", agent.get("/readyz").map(|(status, text)| format!("{status} {text}")));
            agent.get("/readyz").is_ok_and(|(status, text)| status == 503 && text.contains(RULE))
        });
        outcome.with_context(|| format!("last answer: {last}; the agent's log:\n{}", agent.logs()))
    };
    let wait_watched = |server: &Server| {
        let others = KINDS.len() - 1;
        eventually_within(LONG, "every other kind to be watched", || server.lock().watched.len() == others)
    };
    privileged_test(|| {
        let scene = Scene::new(2)?;
        let server = &scene.server;
        forbid(server);
        let mut agent = scene.spawn()?;
        wait_refused(&agent)?;
        wait_watched(server)?;
        let empty = maps(&agent)?;
        for part in ["identities", "endpoints", "services"] {
            ensure!(empty[part] == json!([]), "{part} before the first complete list: {empty:#}");
        }
        ensure!(empty["policies"]["rows"] == json!([]), "{empty:#}");

        server.set(|shared| shared.store.forbidden.clear());
        eventually_within(LONG, "readiness", || agent.get("/readyz").is_ok_and(|(status, _)| status == 200))?;
        let named = |dump: &Value| has(dump, "policies", "name", "np");
        eventually_within(LONG, "the policy", || maps(&agent).is_ok_and(|dump| named(&dump)))?;
        let before = maps(&agent)?;
        ensure!(before["endpoints"].as_array().is_some_and(|all| all.len() == 7), "{before:#}");
        agent.terminate()?;

        // The next agent may not read a kind: what the former one enforced stays, whatever has changed meanwhile.
        forbid(server);
        server.set(|shared| shared.watched.clear());
        server.remove("identitypolicies", "shop/idp");
        server.put(
            "serviceaccounts",
            json!({"metadata": {"name": "other", "namespace": "shop", "uid": "other"}}),
        );
        agent.spawn_again()?;
        wait_refused(&agent)?;
        wait_watched(server)?;
        let meanwhile = maps(&agent)?;
        ensure!(meanwhile == before, "before: {before:#}\n--- with a kind forbidden: {meanwhile:#}");
        Ok(())
    })
}
