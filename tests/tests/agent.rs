//! The agent on a node of network namespaces, with real sockets: what changes while it runs, and what holds while it
//! does not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis::datapath::sys;
use portcullis_tests::node::OUTSIDE;
use portcullis_tests::shop::{DB_CLOSED, DB_OPEN_TO_API};
use portcullis_tests::{Agent, Manifests, Network, Node, Pod, PodObject, eventually, privileged_test};

/// For what must work.
const SOON: Duration = Duration::from_secs(5);
/// For what must work at once: less than it takes until a lost SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);
/// For what must not: long enough for an answer, and for one retransmission of a SYN.
const NEVER: Duration = Duration::from_millis(1300);

/// A node with the pods api, db and intruder, and the manifests that say so.
fn shop(network: Network) -> Result<(Node, Manifests)> {
    let node = Node::with(network).pods(3).outside().build()?;
    let manifests = Manifests::new()?;
    manifests.pods(
        "pods.yaml",
        &[
            PodObject::of("shop", "api", &node.pods[0]),
            PodObject::of("shop", "db", &node.pods[1]),
            PodObject::of("elsewhere", "intruder", &node.pods[2]),
        ],
    )?;
    manifests.write("db.yaml", DB_OPEN_TO_API)?;
    Ok((node, manifests))
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

/// The value of the first metric line that begins so.
fn metric(agent: &Agent<'_>, line: &str) -> Result<f64> {
    let (_, text) = agent.get("/metrics")?;
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    Ok(found.map_or(0.0, |value| value.trim().parse().unwrap_or(f64::NAN)))
}

const INTRUDER_DENIED: &str = "portcullis_decisions_total{destination_namespace=\"shop\",\
     destination_service_account=\"db\",direction=\"ingress\",source_namespace=\"elsewhere\",\
     source_service_account=\"intruder\",verdict=\"deny\"}";

fn db_is_open_to_the_api_only(network: Network, args: &[&str]) -> Result<()> {
    let (node, manifests) = shop(network)?;
    let agent = Agent::on(&node.ns).manifests(manifests.path()).args(args.iter().copied()).start()?;
    let [api, db, intruder] = [&node.pods[0], &node.pods[1], &node.pods[2]];
    for address in addresses(db) {
        let at = SocketAddr::new(address, 5432);
        let closed = SocketAddr::new(address, 5433);
        let (_tcp, _udp, _other) = (db.ns.tcp_echo(at)?, db.ns.udp_echo(at)?, db.ns.tcp_echo(closed)?);
        api.ns.tcp_exchange(at, SOON).context("the API reaches the database")?;
        node.ns.tcp_exchange(at, SOON).context("the node reaches its own pod")?;
        db.ns.tcp_exchange(at, SOON).context("the database reaches itself")?;
        ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err(), "the intruder reached {at}");
        ensure!(intruder.ns.udp_exchange(at, NEVER).is_err(), "the intruder reached {at} over UDP");
        ensure!(intruder.ns.ping(address, NEVER).is_err(), "the intruder pinged {address}");
        ensure!(api.ns.tcp_exchange(closed, NEVER).is_err(), "the API reached a port that is closed to it");
        ensure!(api.ns.udp_exchange(at, NEVER).is_err(), "the API reached the port over another protocol");
        let outside = node.outside.as_ref().context("an outside")?;
        ensure!(outside.tcp_exchange(at, NEVER).is_err(), "the outside reached {at}");
        // Egress is not touched by the policy.
        let elsewhere = SocketAddr::new(if at.is_ipv4() { OUTSIDE.0.into() } else { OUTSIDE.1.into() }, 80);
        let _server = outside.tcp_echo(elsewhere)?;
        db.ns.tcp_exchange(elsewhere, SOON).context("the database reaches the outside")?;
    }
    let line = "deny ingress tcp/5432 from [elsewhere/intruder";
    eventually("the denial in the log, with names", || agent.logs().contains(line))?;
    ensure!(
        agent.logs().contains("IdentityPolicy shop/db ingress (isolation)"),
        "the rule that decided is named"
    );
    ensure!(metric(&agent, INTRUDER_DENIED)? >= 6.0, "denials are counted under the pair");
    let dump = agent.cli(["dump", "counters"])?;
    ensure!(dump.contains("elsewhere/intruder") && dump.contains("shop/db"), "names in the dump:\n{dump}");
    let endpoints = agent.cli(["dump", "endpoints"])?;
    ensure!(
        ["shop/api", "shop/db", "elsewhere/intruder"].iter().all(|n| endpoints.contains(n)),
        "{endpoints}"
    );
    Ok(())
}

#[test]
fn a_database_is_open_to_the_api_only_with_routed_pods() -> Result<()> {
    privileged_test(|| db_is_open_to_the_api_only(Network::Routed, &[]))
}

#[test]
fn a_database_is_open_to_the_api_only_with_bridged_pods() -> Result<()> {
    privileged_test(|| db_is_open_to_the_api_only(Network::Bridged, &[]))
}

#[test]
fn a_database_is_open_to_the_api_only_with_clsact_filters() -> Result<()> {
    privileged_test(|| db_is_open_to_the_api_only(Network::Routed, &["--attach", "clsact"]))
}

#[test]
fn a_policy_that_changes_holds_for_new_and_for_established_connections() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db, intruder] = [&node.pods[0], &node.pods[1], &node.pods[2]];
        for address in addresses(db) {
            let at = SocketAddr::new(address, 5432);
            let _server = db.ns.tcp_echo(at)?;
            let mut established = api.ns.tcp_connect(at, SOON)?;
            established.exchange(SOON)?;
            let programmed = metric(&agent, "portcullis_programming_seconds_count")?;
            manifests.write("db.yaml", DB_CLOSED)?;
            eventually("the change to be programmed", || {
                metric(&agent, "portcullis_programming_seconds_count").is_ok_and(|count| count > programmed)
            })?;
            // Not one byte more: the first packet after the change is judged again.
            ensure!(
                established.exchange(NEVER).is_err(),
                "an established connection outlived its permission"
            );
            ensure!(api.ns.tcp_exchange(at, NEVER).is_err(), "a new connection was let in");

            manifests.write("db.yaml", DB_OPEN_TO_API)?;
            eventually("the API to be let in again", || {
                api.ns.tcp_exchange(at, Duration::from_millis(500)).is_ok()
            })?;
            // The old connection is still known, and goes on where it stood.
            eventually("the old connection to go on", || {
                established.receive(Duration::from_secs(1)).is_ok()
            })?;

            // And what was forbidden becomes allowed.
            ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err());
            manifests.remove("db.yaml")?;
            eventually("the intruder to be let in", || {
                intruder.ns.tcp_exchange(at, Duration::from_millis(500)).is_ok()
            })?;
            manifests.write("db.yaml", DB_OPEN_TO_API)?;
            eventually("the intruder to be refused again", || {
                intruder.ns.tcp_exchange(at, Duration::from_millis(300)).is_err()
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_killed_agent_leaves_enforcement_and_connections_and_its_restart_disturbs_nothing() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db, intruder] = [&node.pods[0], &node.pods[1], &node.pods[2]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let at6 = SocketAddr::new(db.v6.into(), 5432);
        let (_server, _server6) = (db.ns.tcp_echo(at)?, db.ns.tcp_echo(at6)?);
        let mut established = api.ns.tcp_connect(at, SOON)?;
        established.exchange(SOON)?;
        let no_drops = |agent: &Agent<'_>| -> Result<[u64; 2]> {
            Ok([agent.dropped("no-policy")?, agent.dropped("no-flow")?])
        };
        let drops = no_drops(&agent)?;

        let done = AtomicBool::new(false);
        let (allowed, denied, failures, breaches) =
            (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| -> Result<()> {
            // Permitted and forbidden traffic all the while, over new connections and one that lives on.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let ok =
                        api.ns.tcp_exchange(at, AT_ONCE).is_ok() && api.ns.tcp_exchange(at6, AT_ONCE).is_ok();
                    if ok { &allowed } else { &failures }.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let quickly = Duration::from_millis(150);
                    let through = intruder.ns.tcp_exchange(at, quickly).is_ok()
                        || intruder.ns.tcp_exchange(at6, quickly).is_ok();
                    if through { &breaches } else { &denied }.fetch_add(1, Ordering::Relaxed);
                }
            });
            let story = (|| -> Result<()> {
                for round in 0..3 {
                    agent.kill()?;
                    let (a, d) = (allowed.load(Ordering::Relaxed), denied.load(Ordering::Relaxed));
                    eventually("traffic of both kinds while the agent is dead", || {
                        allowed.load(Ordering::Relaxed) > a + 5 && denied.load(Ordering::Relaxed) > d + 1
                    })?;
                    established.exchange(SOON).context("the established connection, the agent dead")?;
                    let dump = agent.cli(["dump", "counters"]).context("a dump, the agent dead")?;
                    ensure!(dump.contains("elsewhere/intruder"), "round {round}: a dump with names:\n{dump}");
                    let flows = agent.cli(["dump", "flows"])?;
                    ensure!(flows.contains("5432"), "the established flow in the dump:\n{flows}");
                    agent.restart()?;
                    let (a, d) = (allowed.load(Ordering::Relaxed), denied.load(Ordering::Relaxed));
                    eventually("traffic of both kinds after the restart", || {
                        allowed.load(Ordering::Relaxed) > a + 5 && denied.load(Ordering::Relaxed) > d + 1
                    })?;
                    established.exchange(SOON).context("the established connection after the restart")?;
                }
                Ok(())
            })();
            done.store(true, Ordering::Relaxed);
            story
        })?;
        ensure!(failures.load(Ordering::Relaxed) == 0, "{failures:?} permitted connections failed");
        ensure!(breaches.load(Ordering::Relaxed) == 0, "{breaches:?} forbidden connections came through");
        // A dropped SYN is sent again and a dropped segment, too: connections alone would not show them.
        ensure!(
            no_drops(&agent)? == drops,
            "dropped over the restarts: {:?} before {drops:?}",
            no_drops(&agent)
        );
        Ok(())
    })
}

#[test]
fn a_start_with_a_file_that_does_not_parse_loses_neither_enforcement_nor_names_nor_bindings() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db, intruder] = [&node.pods[0], &node.pods[1], &node.pods[2]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err());
        let state = portcullis::state::State::path(agent.run_dir());
        let names = || -> Result<serde_json::Value> {
            let mut names: serde_json::Value = serde_json::from_slice(&std::fs::read(&state)?)?;
            // What a start may say of itself.
            for own in ["pid", "written", "source", "errors"] {
                names.as_object_mut().context("an object")?.remove(own);
            }
            Ok(names)
        };
        let before = names()?;
        ensure!(before["endpoints"].as_array().is_some_and(|e| e.len() == 3 && e[0]["uid"].is_string()));
        let denied = metric(&agent, INTRUDER_DENIED)?;
        ensure!(denied > 0.0);

        agent.kill()?;
        manifests.write("db.yaml", "spec: [")?;
        agent.spawn_again()?;
        eventually("the mistake to be reported", || {
            metric(&agent, "portcullis_source_errors").is_ok_and(|errors| errors >= 1.0)
        })?;
        let drops = agent.dropped("no-policy")?;
        // Through several rounds of housekeeping.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            api.ns.tcp_exchange(at, AT_ONCE).context("what is permitted stays so")?;
        }
        ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err(), "what is forbidden stays so");
        ensure!(agent.dropped("no-policy")? <= drops, "rows in force were taken away");
        ensure!(metric(&agent, INTRUDER_DENIED)? > denied, "the series keeps its names");
        ensure!(names()? == before, "names and bindings are the earlier agent's");
        let status = agent.cli(["status"]).err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(status.contains("db.yaml"), "the file in the status:\n{status}");

        manifests.write("db.yaml", DB_OPEN_TO_API)?;
        agent.wait_ready()?;
        api.ns.tcp_exchange(at, AT_ONCE)?;
        ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err());
        Ok(())
    })
}

#[test]
fn attaching_the_other_way_leaves_one_program_on_each_hook() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db, intruder] = [&node.pods[0], &node.pods[1], &node.pods[2]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        // Programs of TCX and filters on both hooks of the database's interface.
        let programs = || -> Result<(Vec<usize>, Vec<usize>)> {
            let tcx = node.ns.run(|| -> Result<Vec<usize>> {
                if !sys::has_tcx() {
                    return Ok(vec![0, 0]);
                }
                let index = (1..100).find(|i| sys::interface_name(*i).as_ref() == Some(&db.veth));
                let index = index.context("the interface")?;
                [false, true].iter().map(|egress| Ok(sys::tcx_programs(index, *egress)?.len())).collect()
            })?;
            let filters = |hook| -> Result<usize> {
                let shown = node.ns.command("tc", ["filter", "show", "dev", &db.veth, hook]).output()?;
                Ok(String::from_utf8_lossy(&shown.stdout).lines().filter(|l| l.contains("handle 0x")).count())
            };
            Ok((tcx, vec![filters("ingress")?, filters("egress")?]))
        };
        let (tcx, clsact) = ((vec![1, 1], vec![0, 0]), (vec![0, 0], vec![1, 1]));
        let ways = if sys::has_tcx() {
            ensure!(programs()? == tcx, "{:?}", programs());
            vec![("clsact", &clsact), ("tcx", &tcx), ("clsact", &clsact)]
        } else {
            ensure!(programs()? == clsact, "filters where the kernel has nothing else: {:?}", programs());
            // What it cannot do is said, and what is attached stays.
            agent.kill()?;
            agent.restart_unready(["--attach", "tcx"])?;
            eventually("the agent to say that it cannot attach", || {
                agent.logs().contains("cannot attach program")
            })?;
            ensure!(programs()? == clsact, "{:?}", programs());
            ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err());
            vec![("clsact", &clsact), ("auto", &clsact)]
        };
        for (how, expected) in ways {
            agent.kill()?;
            agent.restart_with(["--attach", how])?;
            eventually(how, || programs().is_ok_and(|found| found == *expected))?;
            api.ns.tcp_exchange(at, AT_ONCE)?;
            ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err());
        }
        Ok(())
    })
}

#[test]
fn counters_never_decrease_over_a_restart() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        ensure!(node.pods[2].ns.tcp_exchange(at, NEVER).is_err());
        let before = metric(&agent, INTRUDER_DENIED)?;
        ensure!(before > 0.0);
        ensure!(agent.terminate()?.success(), "SIGTERM ends it in order");
        agent.restart()?;
        ensure!(metric(&agent, INTRUDER_DENIED)? >= before);
        Ok(())
    })
}

#[test]
fn an_address_belongs_to_the_pod_whose_sandbox_is_newer_whatever_the_order_of_events() -> Result<()> {
    privileged_test(|| {
        for newer_first in [false, true] {
            let mut node = Node::routed().pods(2).build()?;
            let manifests = Manifests::new()?;
            let (v4, v6) = (node.pods[0].v4, node.pods[0].v6);
            let claim = |name, started| PodObject {
                namespace: "shop",
                name,
                account: name,
                addresses: (v4, v6),
                started,
            };
            manifests.pods("db.pod.yaml", &[PodObject::of("shop", "db", &node.pods[1])])?;
            manifests.write("db.yaml", DB_OPEN_TO_API)?;
            let accounts = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: api, namespace: shop}\n---\n\
                            apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: old, namespace: shop}\n";
            manifests.write("accounts.yaml", accounts)?;
            // The namespace and the accounts come from the files above.
            let only_pod = |file: &str, pod: PodObject<'_>| -> Result<()> {
                let all = Manifests::new()?;
                all.pods("x", &[pod])?;
                let text = std::fs::read_to_string(all.path().join("x"))?;
                let pod = text.split("---\n").find(|d| d.contains("kind: Pod")).context("the pod")?;
                manifests.write(file, pod)
            };
            let ns = Arc::clone(&node.ns);
            let agent = Agent::on(&ns).manifests(manifests.path()).start()?;
            let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
            let _server = node.pods[1].ns.tcp_echo(at)?;

            // The old pod is gone from the node, its object is not yet; the new one takes its address.
            let (old, new) = (claim("old", 1), claim("api", 2));
            if newer_first {
                only_pod("new.yaml", new)?;
                only_pod("old.yaml", old)?;
            } else {
                only_pod("old.yaml", old)?;
                eventually("the old pod to own the address", || {
                    agent.cli(["dump", "identities"]).is_ok_and(|dump| dump.contains("shop/old"))
                })?;
                ensure!(node.pods[0].ns.tcp_exchange(at, NEVER).is_err(), "the old pod is not the API");
                node.remove_pod(0)?;
                node.add_pod_with(v4, v6)?;
                node.pods.swap(0, 1);
                only_pod("new.yaml", new)?;
            }
            let pod = &node.pods[0];
            eventually("the new pod to be the API", || {
                pod.ns.tcp_exchange(at, Duration::from_millis(500)).is_ok()
            })?;
            let identities = agent.cli(["dump", "identities"])?;
            ensure!(!identities.contains("shop/old"), "the old pod still owns an address:\n{identities}");
        }
        Ok(())
    })
}

#[test]
fn a_file_that_does_not_parse_is_named_and_its_last_good_state_stays_in_force() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        let _server = node.pods[1].ns.tcp_echo(at)?;
        manifests.write(
            "db.yaml",
            &DB_OPEN_TO_API.replace("serviceAccounts: {names: [db]}", "serviceAccount: {names: [db]}"),
        )?;
        eventually("the mistake to be reported", || {
            metric(&agent, "portcullis_source_errors").is_ok_and(|errors| errors >= 1.0)
        })?;
        // It exits with 1, because something is wrong.
        let status = agent.cli(["status"]).err().map(|error| format!("{error:#}")).unwrap_or_default();
        for part in ["db.yaml", "serviceAccount"] {
            ensure!(status.contains(part), "{part} in the status:\n{status}");
        }
        node.pods[0].ns.tcp_exchange(at, SOON)?;
        ensure!(node.pods[2].ns.tcp_exchange(at, NEVER).is_err(), "a typo opened the database");
        manifests.write("db.yaml", DB_OPEN_TO_API)?;
        eventually("the mistake to be gone", || agent.cli(["status"]).is_ok())
    })
}

#[test]
fn the_emergency_switch_works_with_the_agent_dead_and_survives_its_restart() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        let _server = node.pods[1].ns.tcp_echo(at)?;
        let intruder = &node.pods[2].ns;
        ensure!(intruder.tcp_exchange(at, NEVER).is_err());
        agent.kill()?;
        agent.cli(["mode", "off"])?;
        let mut connection = intruder.tcp_connect(at, SOON)?;
        connection.exchange(SOON)?;
        agent.restart()?;
        connection.exchange(SOON).context("the switch survives a restart")?;
        intruder.tcp_exchange(at, SOON)?;
        ensure!(metric(&agent, "portcullis_mode_override{mode=\"off\"}")? > 0.0, "it shows in the metrics");
        agent.cli(["mode", "clear"])?;
        ensure!(connection.exchange(NEVER).is_err(), "what it let through is cut when it is cleared");
        ensure!(intruder.tcp_exchange(at, NEVER).is_err());
        Ok(())
    })
}

#[test]
fn an_interface_whose_pod_is_unknown_is_closed_until_the_pod_is_known() -> Result<()> {
    privileged_test(|| {
        let (mut node, manifests) = shop(Network::Routed)?;
        let ns = Arc::clone(&node.ns);
        let agent = Agent::on(&ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        let db = node.pods[1].ns.tcp_echo(at)?;
        node.add_pod()?;
        let veth = node.pods[3].veth.clone();
        eventually("the new interface to be an endpoint", || {
            agent.cli(["dump", "endpoints"]).is_ok_and(|dump| dump.contains(&veth))
        })?;
        let late = &node.pods[3];
        let there = SocketAddr::new(late.v4.into(), 80);
        let _server = late.ns.tcp_echo(there)?;
        ensure!(late.ns.tcp_exchange(at, NEVER).is_err(), "an unknown pod sent");
        ensure!(node.pods[0].ns.tcp_exchange(there, NEVER).is_err(), "an unknown pod received");
        node.ns.tcp_exchange(there, SOON).context("the node reaches it all the same")?;
        let received = db.received();
        manifests
            .pods("late.yaml", &[PodObject { account: "late", ..PodObject::of("late", "late", late) }])?;
        eventually("the pod to be known", || {
            node.pods[0].ns.tcp_exchange(there, Duration::from_millis(500)).is_ok()
        })?;
        ensure!(late.ns.tcp_exchange(at, NEVER).is_err(), "it is known, and is not the API");
        ensure!(db.received() == received);
        Ok(())
    })
}

#[test]
fn cleanup_takes_every_trace_away_and_refuses_while_an_agent_runs() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop(Network::Routed)?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        let _server = node.pods[1].ns.tcp_echo(at)?;
        ensure!(agent.cli(["cleanup"]).is_err(), "it refuses while the agent runs");
        agent.kill()?;
        ensure!(node.pods[2].ns.tcp_exchange(at, NEVER).is_err(), "enforced until the clean-up");
        agent.cli(["cleanup"])?;
        ensure!(!agent.bpffs().exists(), "{} is gone", agent.bpffs().display());
        node.pods[2].ns.tcp_exchange(at, SOON).context("nothing is enforced any more")
    })
}
