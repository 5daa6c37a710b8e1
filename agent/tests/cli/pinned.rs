//! Privileged: the commands on real maps, filled by real packets.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use portcullis::datapath::{AttachMode, Datapath, HookState, Options, Reader, Sizes};
use portcullis::metrics::AgentMetrics;
use portcullis::policy::Desired;
use portcullis_common::abi::Mode;
use portcullis_common::{Direction, Identity, Kind};
use serde_json::Value;

use crate::node::{HOST, Node, POD, end};
use crate::{Run, portcullis};

fn on(node: &Node, args: &[&str]) -> Run {
    let folders = ["--bpffs", node.bpffs.to_str().unwrap(), "--run-dir", node.run_dir.to_str().unwrap()];
    portcullis(&[args, &folders].concat())
}

fn json(node: &Node, args: &[&str]) -> Value {
    let run = on(node, &[args, &["-o", "json"]].concat());
    assert_eq!(run.code, 0, "{args:?}: {}", run.err);
    serde_json::from_str(&run.out).unwrap()
}

/// Repeats until it gives something.
fn wait<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The first record whose fields are as given.
fn find<'a>(records: &'a Value, fields: &[(&str, &str)]) -> Option<&'a Value> {
    let fits = |record: &&Value| fields.iter().all(|(name, value)| record[name].as_str() == Some(value));
    records.as_array().unwrap().iter().find(fits)
}

#[test]
fn dump_shows_what_real_packets_left_with_the_agent_alive_or_dead() {
    let mut node = Node::new();
    Node::send_to_pod();
    node.pod_to_node();
    let denied = [("source", "shop/db"), ("destination", "host"), ("direction", "egress")];
    wait("the denied packet", || {
        let counters = json(&node, &["dump", "counters"]);
        let pair = find(&counters, &denied)?;
        (pair["packets"]["denied"].as_u64() == Some(1)).then_some(())
    });
    node.kill();
    let all = json(&node, &["dump"]);

    let counters = &all["counters"];
    let pair = find(counters, &denied).unwrap();
    assert_eq!((&pair["source_number"], &pair["destination_number"]), (&16.into(), &2.into()));
    assert_eq!(pair["decisions"]["denied"], 1);
    assert_eq!(pair["bytes"]["denied"], 14 + 20 + 8 + 6, "ethernet, IPv4, UDP, `hello` and a line feed");
    let allowed = [("source", "host"), ("destination", "shop/db"), ("direction", "ingress")];
    assert!(find(counters, &allowed).unwrap()["packets"]["allowed"].as_u64() >= Some(1));
    assert_eq!(find(&all["drops"], &[("reason", "policy"), ("direction", "egress")]).unwrap()["packets"], 1);

    let identity = find(&all["identities"], &[("address", POD)]).unwrap();
    assert_eq!(
        (identity["principal"].as_str(), identity["peer_class"].as_str(), identity["pod"].as_str()),
        (Some("shop/db"), Some("pods of shop/db"), Some("shop/db-0"))
    );
    assert_eq!(find(&all["identities"], &[("address", "::/0")]).unwrap()["kind"], "world");

    let flow = find(&all["flows"], &[("protocol", "udp"), ("remote_address", HOST)]).unwrap();
    assert_eq!((&flow["endpoint"], &flow["local_port"]), (&"shop/db-0".into(), &7777.into()));
    assert_eq!(
        (&flow["opener"], &flow["verdict"], &flow["revision"]),
        (&"in".into(), &"allow".into(), &"current".into())
    );
    // The packet was sent in this test: the clock that flows are compared with is the kernel's.
    assert!(flow["idle_seconds"].as_u64() <= Some(20), "{flow}");

    let endpoint = &all["endpoints"][0];
    assert_eq!((&endpoint["interface"], &endpoint["pod"]), (&"pod0".into(), &"shop/db-0".into()));
    assert_eq!(endpoint["hooks"]["to-pod"], "attached");
    assert_eq!(endpoint["hooks"]["from-pod"], "attached");

    let rows = &all["policies"]["rows"];
    let row = find(rows, &[("rule", "IdentityPolicy shop/db ingress api")]).unwrap();
    assert_eq!(row["ports"], serde_json::json!(["tcp/80"]));
    assert_eq!((&row["peer"], &row["verdict"]), (&"any other pod".into(), &"allow".into()));
    assert_eq!(all["policies"]["policies"][0]["name"], "db");
    assert_eq!(all["policies"]["problems"][0]["field"], "spec.egress");

    let table = on(&node, &["dump", "endpoints"]).out;
    let line = table.lines().find(|line| line.contains("pod0")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells[1..5], ["pod0", "shop/db-0", "shop/db", POD]);
    assert_eq!(cells.last(), Some(&"attached"));

    std::fs::remove_file(node.run_dir.join("state.json")).unwrap();
    let run = on(&node, &["dump", "counters"]);
    assert_eq!(run.code, 0);
    assert!(run.err.contains("no names, only numbers"), "{}", run.err);
    assert!(run.out.contains("#16"), "{}", run.out);
}

#[test]
fn clsact_filters_are_seen_without_the_agent() {
    let mut node = Node::attached_by(AttachMode::Clsact);
    node.kill();
    std::fs::remove_file(node.run_dir.join("state.json")).unwrap();
    let hooks = |node: &Node| json(node, &["dump", "endpoints"])[0]["hooks"].clone();
    assert_eq!(hooks(&node), serde_json::json!({"from-pod": "attached", "to-pod": "attached"}));
    node.start(AttachMode::Clsact);
    let state = |node: &Node, direction| node.datapath.as_ref().unwrap().hook_state(node.ifindex, direction);
    for &direction in Direction::ALL {
        assert_eq!(
            state(&node, direction),
            HookState::Attached,
            "a new agent replaces the program of the {direction}"
        );
    }
    node.kill();
    node.delete_filters();
    assert_eq!(hooks(&node), serde_json::json!({"from-pod": "unknown", "to-pod": "unknown"}));
}

#[test]
fn the_mode_is_switched_with_the_agent_dead_and_status_is_loud_about_it() {
    let mut node = Node::new();
    let word = |node: &Node| Reader::open(&node.bpffs).unwrap().modes().unwrap();
    assert_eq!(word(&node), (Some(Mode::Enforce), None));
    let run = on(&node, &["status"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(run.out.contains("hooks:         2 expected, 2 attached, 2 first (tcx)"), "{}", run.out);
    assert!(
        run.out.contains("warn  problem  IdentityPolicy shop/db: spec.egress: not understood"),
        "{}",
        run.out
    );

    node.kill();
    let run = on(&node, &["mode", "off"]);
    assert!(
        run.code == 0 && run.out.contains("survives restarts until `portcullis mode clear`"),
        "{}",
        run.out
    );
    assert_eq!(word(&node), (Some(Mode::Enforce), Some(Mode::Off)));
    node.pod_to_node();
    wait("the packet that would be denied", || {
        let counters = json(&node, &["dump", "counters"]);
        let pair = find(&counters, &[("source", "shop/db"), ("destination", "host")])?;
        assert_eq!(pair["packets"]["denied"], 0);
        // The node answers that nobody listens; the answer belongs to the same flow.
        (pair["packets"]["allowed"].as_u64() >= Some(1)).then_some(())
    });
    let flows = json(&node, &["dump", "flows"]);
    assert_eq!(find(&flows, &[("opener", "out")]).unwrap()["revision"], "override");

    let run = on(&node, &["status"]);
    assert_eq!(run.code, 1, "the agent is dead");
    assert!(run.out.starts_with("*** OVERRIDE off: NOTHING IS ENFORCED on this node"), "{}", run.out);
    assert!(run.out.contains("FAIL  agent"), "{}", run.out);
    let json_status = on(&node, &["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&json_status.out).unwrap();
    assert_eq!((&status["ok"], &status["agent"]["alive"]), (&false.into(), &false.into()));
    assert_eq!(status["mode"]["override"], "off");

    assert_eq!(on(&node, &["mode", "audit"]).code, 0);
    assert_eq!(
        json(&node, &["mode"]),
        serde_json::json!({"agent": "enforce", "override": "audit", "effective": "audit"})
    );
    let run = on(&node, &["mode", "clear"]);
    assert!(run.out.starts_with("the override is cleared (it was audit)\n"), "{}", run.out);
    assert_eq!(word(&node), (Some(Mode::Enforce), None));
}

#[test]
fn cleanup_refuses_beside_an_agent_and_leaves_nothing_without_one() {
    let mut node = Node::new();
    let run = on(&node, &["cleanup"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("another agent works on"), "{}", run.err);
    assert!(node.bpffs.join("v1/CONFIG").exists(), "nothing was touched");

    node.kill();
    let reader = Reader::open(&node.bpffs).unwrap();
    let run = on(&node, &["cleanup"]);
    assert_eq!(run.code, 0, "{}", run.err);
    for removed in ["removed pod0\n", "/v1\n", "state.json\n"] {
        assert!(run.out.contains(removed), "{removed} is not in {}", run.out);
    }
    assert!(!node.bpffs.exists() && !node.run_dir.exists());
    let hooks = |egress| portcullis::datapath::sys::tcx_programs(node.ifindex, egress).unwrap();
    // The kernel lets go of a link whose last pin is gone a moment later.
    wait("the end of both programs", || (hooks(false).is_empty() && hooks(true).is_empty()).then_some(()));
    assert_eq!(reader.hook(node.ifindex, portcullis_common::Direction::Ingress), None);

    let run = on(&node, &["cleanup"]);
    assert!(run.code == 0 && run.out.starts_with("nothing to remove"), "{}{}", run.out, run.err);
}

#[test]
fn cleanup_takes_filters_and_their_qdisc_off_and_only_that() {
    let mut node = Node::attached_by(AttachMode::Clsact);
    node.kill();
    // As an agent of another version leaves it: there are no maps that this one could read.
    std::fs::rename(node.bpffs.join("v1"), node.bpffs.join("v0")).unwrap();
    Node::tc(&["filter", "add", "dev", "pod0", "ingress", "prio", "9", "bpf", "bytecode", "1,6 0 0 0,"]);
    let run = on(&node, &["cleanup"]);
    assert!(run.code == 0 && run.out.contains("removed pod0\n"), "{}{}", run.out, run.err);
    let filters = Node::tc(&["filter", "show", "dev", "pod0", "ingress"])
        + &Node::tc(&["filter", "show", "dev", "pod0", "egress"]);
    assert!(filters.contains("pref 9") && !filters.contains("pref 1 "), "{filters}");
    Node::tc(&["qdisc", "del", "dev", "pod0", "clsact"]);

    node.start(AttachMode::Clsact);
    node.kill();
    assert!(Node::tc(&["qdisc", "show", "dev", "pod0"]).contains("clsact"));
    let run = on(&node, &["cleanup"]);
    assert!(run.code == 0 && run.out.contains("removed pod0\n"), "{}{}", run.out, run.err);
    let qdiscs = Node::tc(&["qdisc", "show", "dev", "pod0"]);
    assert!(!qdiscs.contains("clsact"), "the qdisc is left, with nothing in it: {qdiscs}");
}

#[test]
fn filters_without_a_folder_are_an_error_that_names_them() {
    let mut node = Node::attached_by(AttachMode::Clsact);
    node.kill();
    std::fs::remove_dir_all(&node.bpffs).unwrap();
    let run = on(&node, &["cleanup"]);
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.err.contains("filter from_pod on pod0") && run.err.contains("--bpffs"), "{}", run.err);
    node.delete_filters();
}

/// Batches of 4096: what is counted and listed must be whole where several are needed.
#[test]
fn maps_of_many_batches_are_read_whole() {
    let bpffs = std::path::PathBuf::from(format!("/sys/fs/bpf/pccli-many-{}", std::process::id()));
    let guard = Folder(bpffs.clone());
    let sizes = Sizes { ipcache_size: 40_000, cidrs_size: 20_000, ..Sizes::default() };
    let options = Options {
        bpffs: bpffs.clone(),
        attach: AttachMode::Auto,
        sizes,
        sample: 0,
        event_rate: 1,
        new_flow_rate: 0,
    };
    let pod = |number: u32| Identity::new(16, number, Kind::Pod);
    let desired = Desired {
        ipcache: (0..30_000u32).map(|n| (IpAddr::from((0x0a00_0000 + n).to_be_bytes()), pod(n))).collect(),
        cidrs: (0..10_000u32)
            .map(|n| (IpNet::new(IpAddr::from((0xc000_0000 + n * 256).to_be_bytes()), 24).unwrap(), pod(n)))
            .collect(),
        ..Desired::default()
    };
    let mut datapath = Datapath::open(options).unwrap();
    let applied = datapath.apply(&desired, &[], Mode::Enforce, std::iter::empty()).unwrap();
    assert!(applied.errors.is_empty(), "{:?}", applied.errors);
    let reader = Reader::open(&bpffs).unwrap();
    let census = reader.census().unwrap();
    let entries = |map: &str| census.usage.iter().find(|usage| usage.map == map).unwrap().entries;
    assert_eq!((entries("IPCACHE4"), entries("CIDRS4"), entries("IPCACHE6")), (30_000, 10_000, 0));
    assert_eq!(census.identities[&Kind::Pod], 30_000);
    let found = reader.addresses().unwrap();
    assert!(found.is_sorted_by_key(|entry| (!entry.exact, entry.net)));
    let (exact, prefixes): (Vec<_>, Vec<_>) = found.into_iter().partition(|entry| entry.exact);
    assert!(exact.iter().map(|entry| (entry.net.addr(), entry.identity)).eq(desired.ipcache));
    assert!(prefixes.iter().map(|entry| (entry.net, entry.identity)).eq(desired.cidrs));
    end(Some(datapath));
    drop(guard);
    assert!(!bpffs.exists());
}

/// Removed when dropped, also by a panic.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let cleaned = portcullis::datapath::cleanup(&self.0);
        assert!(cleaned.is_ok() || std::thread::panicking(), "{cleaned:?}");
    }
}

#[test]
fn a_scrape_reads_the_maps_and_counters_go_on_over_a_restart() {
    let mut node = Node::new();
    node.pod_to_node();
    let scrape = |node: &Node| {
        let metrics = AgentMetrics::new(node.bpffs.clone()).unwrap();
        metrics.set_state(node.state().into());
        metrics.render().unwrap()
    };
    let denied = "portcullis_decisions_total{destination_namespace=\"\",destination_service_account=\"host\",\
                  direction=\"egress\",source_namespace=\"shop\",source_service_account=\"db\",verdict=\"deny\"} ";
    let value = |text: &str| text.lines().find_map(|line| line.strip_prefix(denied)?.parse::<u64>().ok());
    let text = wait("the denied packet", || Some(scrape(&node)).filter(|text| value(text) == Some(1)));
    for line in [
        "portcullis_endpoints{state=\"known\"} 1",
        "portcullis_endpoints{state=\"unknown\"} 0",
        "portcullis_identities{kind=\"pod\"} 1",
        "portcullis_identities{kind=\"host\"} 1",
        "portcullis_identities{kind=\"node\"} 0",
        "portcullis_map_entries{map=\"IPCACHE4\"} 2",
        "portcullis_map_capacity{map=\"IPCACHE4\"} 16",
        "portcullis_map_entries{map=\"CIDRS6\"} 1",
        "portcullis_map_entries{map=\"ROWS\"} 12",
        "portcullis_map_entries{map=\"PORTS\"} 3",
        "portcullis_map_entries{map=\"SUBJECTS\"} 1",
        "portcullis_drops_total{direction=\"egress\",reason=\"policy\"} 1",
        "portcullis_mode{mode=\"enforce\"} 1",
        "portcullis_mode_override{mode=\"off\"} 0",
        "portcullis_scrape_errors_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    node.kill();
    node.pod_to_node();
    wait("the second denied packet, without an agent", || (value(&scrape(&node)) == Some(2)).then_some(()));
}
