//! `portcullis monitor` beside a running agent, beside others, and without an agent.

use std::io::{BufRead as _, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_tests::command::Running;
use portcullis_tests::poll::PATIENCE;
use portcullis_tests::shop::api_and_db;
use portcullis_tests::{Agent, Manifests, Node, eventually, privileged_test};
use serde_json::Value;

/// Long enough for a SYN and its first retransmission.
const NEVER: Duration = Duration::from_millis(1300);

/// Nobody may reach the database, and what the API opens is audited.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
---
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: looked-at, namespace: shop}
spec: {mode: Audit, subject: {serviceAccounts: {names: [api]}}, egress: {rules: []}}
";

/// A node with the pods api and db of the namespace shop.
fn shop() -> Result<(Node, Manifests)> {
    api_and_db(POLICIES)
}

/// Lines, as the JSON that they are, or as text.
type Lines = Arc<Mutex<Vec<Value>>>;

/// A running `portcullis monitor`. Dropped, it is killed.
struct Monitor {
    child: Running,
    out: Lines,
    err: Lines,
}

/// Collects lines until the pipe is closed.
fn collect(pipe: impl Read + Send + 'static, into: &Lines) {
    let into = Arc::clone(into);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}

impl Monitor {
    /// Starts one whose output nobody reads yet, and waits until it says where its events come from.
    fn unread(agent: &Agent<'_>, args: &[&str]) -> Result<Self> {
        let mut child = agent.start_command([&["monitor"], args].concat())?;
        let err = Lines::default();
        collect(child.stderr.take().context("a pipe")?, &err);
        let monitor = Self { child: Running(child), out: Lines::default(), err };
        monitor.says("events")?;
        Ok(monitor)
    }

    fn start(agent: &Agent<'_>, args: &[&str]) -> Result<Self> {
        let mut monitor = Self::unread(agent, args)?;
        monitor.read()?;
        Ok(monitor)
    }

    /// Begins to read its output.
    fn read(&mut self) -> Result<()> {
        collect(self.child.0.stdout.take().context("a pipe")?, &self.out);
        Ok(())
    }

    fn records(&self) -> MutexGuard<'_, Vec<Value>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> Vec<String> {
        self.records()
            .iter()
            .map(|line| line.as_str().map_or_else(|| line.to_string(), str::to_owned))
            .collect()
    }

    /// Whether some event has these values at these places.
    fn shows(&self, values: &[(&str, &str)]) -> bool {
        let fits = |record: &Value| {
            values.iter().all(|(place, value)| match record.pointer(place) {
                Some(Value::String(text)) => text == value,
                Some(other) => serde_json::from_str::<Value>(value).is_ok_and(|wanted| wanted == *other),
                None => false,
            })
        };
        self.records().iter().any(fits)
    }

    /// How many events it has shown, and how many it says were missed, in all and in its queue.
    fn tally(&self) -> (u64, u64, u64) {
        let mut tally = (0, 0, 0);
        for record in self.records().iter() {
            let count = record["count"].as_u64().unwrap_or_default();
            match record["type"].as_str() {
                Some("event") => tally.0 += 1,
                Some("missed") => tally.1 += count,
                _ => {}
            }
            if record["at"] == "queue" {
                tally.2 += count;
            }
        }
        tally
    }

    fn said(&self) -> String {
        let said = self.err.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Waits for words on standard error.
    fn says(&self, words: &str) -> Result<()> {
        eventually(&format!("the monitor to say {words:?}"), || self.said().contains(words))
            .with_context(|| format!("it said: {}", self.said()))
    }

    /// Forgets what was shown and said so far.
    fn forget(&self) {
        for lines in [&self.out, &self.err] {
            lines.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Waits for its end.
    fn ended(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let child = &mut self.child.0;
        eventually("the end of the monitor", || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.context("no status")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the monitor said\n{}\n---", self.said());
        }
    }
}

/// What the API's denied connection to the database must show at the database.
const DENIED: &[(&str, &str)] = &[
    ("/type", "event"),
    ("/verdict", "deny"),
    ("/direction", "ingress"),
    ("/reason", "policy"),
    ("/protocol", "tcp"),
    ("/source/identity", "shop/api"),
    ("/source/pod", "shop/api"),
    ("/source/address", "10.77.0.2"),
    ("/destination/identity", "shop/db"),
    ("/destination/pod", "shop/db"),
    ("/destination/address", "10.77.0.3"),
    ("/destination/port", "5432"),
    ("/interface", "veth1"),
];
/// What it must show at the API.
const AUDITED: &[(&str, &str)] = &[
    ("/verdict", "audit"),
    ("/direction", "egress"),
    ("/source/identity", "shop/api"),
    ("/source/pod", "shop/api"),
    ("/destination/identity", "shop/db"),
    ("/destination/pod", "shop/db"),
    ("/interface", "veth0"),
];

/// The rules of the events that have these values.
fn rules(monitor: &Monitor, direction: &str) -> Vec<String> {
    let of = |record: &&Value| record["direction"] == direction;
    monitor
        .records()
        .iter()
        .filter(of)
        .filter_map(|record| record["rule"].as_str().map(str::to_owned))
        .collect()
}

/// Packets that were dropped, for any reason.
fn dropped(agent: &Agent<'_>) -> Result<u64> {
    let drops: Value = serde_json::from_str(&agent.cli(["dump", "drops", "-o", "json"])?)?;
    let drops = drops.as_array().context("a list")?;
    Ok(drops.iter().filter_map(|drop| drop["packets"].as_u64()).sum())
}

/// So many datagrams from the API to the database.
fn flood(node: &Node, packets: u32) -> Result<()> {
    let to = SocketAddr::new(node.pods[1].v4.into(), 5353);
    node.pods[0].ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..packets {
            socket.send_to(b"flood", to)?;
        }
        Ok(())
    })
}

fn processors() -> u64 {
    thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

#[test]
fn denied_and_audited_connections_show_with_names_and_rules_and_filters_hold() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        let everything = Monitor::start(&agent, &["-o", "json"])?;
        let audited = Monitor::start(&agent, &["-o", "json", "--verdict", "audit", "--direction", "egress"])?;
        let nowhere = Monitor::start(&agent, &["--namespace", "nowhere"])?;
        let other_port = Monitor::start(&agent, &["--port", "UDP/5432", "--port", "80"])?;
        let mut one = Monitor::start(
            &agent,
            &[
                "--from",
                "shop/api",
                "--to",
                "shop/db",
                "--port",
                "TCP/5432",
                "--verdict",
                "deny",
                "--count",
                "1",
            ],
        )?;
        ensure!(node.pods[0].ns.tcp_exchange(at, NEVER).is_err(), "it is denied");

        eventually("the denied connection", || everything.shows(DENIED))
            .with_context(|| everything.lines().join("\n"))?;
        eventually("the audited connection", || everything.shows(AUDITED))?;
        let ingress = rules(&everything, "ingress");
        ensure!(ingress.iter().all(|rule| rule.contains("NetworkPolicy shop/closed")), "{ingress:?}");
        let egress = rules(&everything, "egress");
        ensure!(egress.iter().all(|rule| rule.contains("IdentityPolicy shop/looked-at")), "{egress:?}");
        ensure!(!ingress.is_empty() && !egress.is_empty());

        eventually("the audited connection alone", || audited.shows(AUDITED))?;
        ensure!(audited.records().iter().all(|record| record["verdict"] == "audit"), "{:?}", audited.lines());
        ensure!(one.ended()?.success());
        eventually("the last line", || !one.lines().is_empty())?;
        let lines = one.lines();
        ensure!(lines.len() == 1 && lines[0].contains(" deny  ingress tcp "), "{lines:?}");
        ensure!(lines[0].contains(" -> shop/db 10.77.0.3:5432 (shop/db) "), "{lines:?}");
        ensure!(nowhere.lines().is_empty() && other_port.lines().is_empty());
        Ok(())
    })
}

#[test]
fn allowed_flows_show_as_sampled_and_who_asks_for_them_is_told() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        manifests.write("db.yaml", "")?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let server = node.pods[1].ns.udp_echo(SocketAddr::new(node.pods[1].v4.into(), 5353))?;
        {
            let monitor = Monitor::start(&agent, &["--verdict", "allow"])?;
            monitor.says("allowed flows are not reported: the agent does it with --sample N")?;
        }
        agent.terminate()?;
        agent.restart_with(["--sample", "1"])?;
        let monitor = Monitor::start(&agent, &["--verdict", "allow", "-o", "json"])?;
        monitor.says("every allowed new flow is reported")?;
        node.pods[0].ns.udp_exchange(server.address(), PATIENCE)?;
        for direction in ["egress", "ingress"] {
            eventually("the flow at both ends", || {
                monitor.shows(&[
                    ("/direction", direction),
                    ("/verdict", "allow"),
                    ("/destination/port", "5353"),
                ])
            })?;
        }
        Ok(())
    })
}

#[test]
fn an_answer_that_is_denied_shows_who_opened_the_flow() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        manifests.write("db.yaml", "")?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db] = [&node.pods[0], &node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5353);
        let server = db.ns.run(|| Ok(UdpSocket::bind(at)?))?;
        let client = api.ns.run(|| Ok(UdpSocket::bind(SocketAddr::new(api.v4.into(), 4000))?))?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        client.send_to(b"question", at)?;
        let (_, from) = server.recv_from(&mut [0; 64])?;
        let monitor = Monitor::start(&agent, &["-o", "json"])?;
        manifests.write("db.yaml", POLICIES)?;
        let denied = [
            ("/verdict", "deny"),
            ("/direction", "ingress"),
            ("/reply", "true"),
            ("/source/identity", "shop/api"),
            ("/source/address", "10.77.0.2"),
            ("/source/port", "4000"),
            ("/source/pod", "shop/api"),
            ("/destination/identity", "shop/db"),
            ("/destination/address", "10.77.0.3"),
            ("/destination/port", "5353"),
            ("/interface", "veth1"),
        ];
        eventually("an answer to be denied", || {
            server.send_to(b"answer", from).is_ok() && monitor.shows(&denied)
        })
        .with_context(|| monitor.lines().join("\n"))
    })
}

#[test]
fn a_monitor_whose_reader_goes_ends_without_an_event_and_without_a_word() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let mut monitor = Monitor::unread(&agent, &[])?;
        monitor.forget();
        drop(monitor.child.0.stdout.take());
        ensure!(monitor.ended()?.success());
        ensure!(monitor.said().is_empty(), "{}", monitor.said());
        Ok(())
    })
}

#[test]
fn a_flood_of_denials_is_limited_and_every_denial_is_shown_or_counted_as_missed() -> Result<()> {
    privileged_test(|| {
        const RATE: u64 = 100;
        let (node, manifests) = shop()?;
        let rate = RATE.to_string();
        let agent = Agent::on(&node.ns).manifests(manifests.path()).args(["--event-rate", &rate]).start()?;
        let monitor = Monitor::start(&agent, &["-o", "json", "--verdict", "deny"])?;
        let before = dropped(&agent)?;
        let begun = Instant::now();
        flood(&node, 50_000)?;
        let seconds = begun.elapsed().as_secs();
        let denied = dropped(&agent)? - before;
        ensure!(denied > 10_000, "of 50,000 packets {denied} reached the database's interface");
        // The first packet is audited where it is sent: one event beside the denials.
        let told = || {
            let (events, missed, _) = monitor.tally();
            events + missed
        };
        eventually("every denial to be shown or counted", || told() >= denied)
            .with_context(|| format!("{denied} denials, {:?}", monitor.tally()))?;
        let (events, missed, queue) = monitor.tally();
        ensure!(told() <= denied + 1, "{denied} denials, {events} events and {missed} missed");
        ensure!(queue == 0, "{queue} were lost on the way, not in the kernel");
        // A second of the kernel begins anywhere in one of ours.
        let most = RATE * processors() * (seconds + 2);
        ensure!(events <= most, "{events} events in {seconds} s, of at most {most}");
        ensure!(events + 1 >= RATE, "only {events} events");
        Ok(())
    })
}

#[test]
fn a_slow_monitor_is_told_what_it_missed_and_hinders_nobody() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let agent =
            Agent::on(&node.ns).manifests(manifests.path()).args(["--event-rate", "1000000"]).start()?;
        let mut slow = Monitor::unread(&agent, &["-o", "json"])?;
        let fast = Monitor::start(&agent, &["-o", "json"])?;
        let before = dropped(&agent)?;
        // In parts: what is lost shall be lost by the slow monitor, not by the kernel's buffer.
        for _ in 0..40 {
            flood(&node, 200)?;
            let denied = dropped(&agent)? - before;
            eventually("the fast monitor to keep up", || {
                let (events, missed, _) = fast.tally();
                events + missed >= denied
            })?;
        }
        let denied = dropped(&agent)? - before;
        let close = |told: u64| (denied..=denied + 40).contains(&told);
        let (events, missed, _) = fast.tally();
        ensure!(close(events + missed), "{denied} denials, {events} events and {missed} missed");
        ensure!(agent.get("/healthz")?.0 == 200, "the agent goes on");

        slow.read()?;
        eventually("the slow monitor to tell everything", || {
            let (events, missed, _) = slow.tally();
            close(events + missed)
        })
        .with_context(|| format!("{denied} denials, {:?}", slow.tally()))?;
        let (_, _, queue) = slow.tally();
        ensure!(queue > 0, "nothing was lost in the queue of the slow one: {:?}", slow.tally());
        Ok(())
    })
}

#[test]
fn without_an_agent_a_monitor_reads_the_kernel_and_gives_way_to_the_next_agent() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 5432);
        let connect = || node.pods[0].ns.tcp_exchange(at, Duration::from_millis(200)).is_err();
        let mut first = Monitor::start(&agent, &["-o", "json"])?;

        // The agent dies, and leaves its socket.
        agent.kill()?;
        ensure!(agent.run_dir().join("monitor.sock").exists());
        first.says("no agent runs: reading the events of")?;
        first.forget();
        ensure!(connect(), "it is denied, agent or not");
        eventually("the denied connection, with names", || first.shows(DENIED))
            .with_context(|| first.lines().join("\n"))?;

        // Another one cannot have them too, and says so.
        let second = Monitor::start(&agent, &["-o", "json"])?;
        second.says("another monitor reads the kernel's events")?;

        agent.restart()?;
        for monitor in [&first, &second] {
            monitor.says("events of the agent")?;
            monitor.forget();
        }
        ensure!(connect());
        for monitor in [&first, &second] {
            eventually("the denied connection, by the agent", || monitor.shows(DENIED))
                .with_context(|| monitor.said())?;
        }
        eventually("the agent's log to have it", || agent.logs().contains("deny ingress tcp/5432"))?;

        // One that starts with the agent dead.
        agent.terminate()?;
        ensure!(!agent.run_dir().join("monitor.sock").exists(), "the socket goes with the agent");
        drop(second);
        first.says("no agent runs")?;
        first.forget();
        ensure!(connect());
        eventually("the denied connection again", || first.shows(DENIED))?;

        agent.cli(["cleanup"])?;
        ensure!(!first.ended()?.success());
        first.says("nothing is enforced any more")?;
        Ok(())
    })
}
