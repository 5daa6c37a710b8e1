//! A hundred pods that connect at once.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis::monitor::Clock;
use portcullis_common::Reason;
use portcullis_tests::cluster::images::BUSYBOX;
use portcullis_tests::installed;
use portcullis_tests::lifecycle::Denials;
use portcullis_tests::lifecycle::burst::{Tries, script};
use portcullis_tests::lifecycle::denials::Seen;
use portcullis_tests::poll::eventually_all;

use crate::scene::{LIFE, PORT, Scene};

/// Pods of each account.
const EACH: usize = 50;
/// Tries of each pod at each target.
const TRIES: usize = 6;
/// How long no more pods may be done: a kubelet that gets no sandbox waits four minutes for it, twice its
/// `runtimeRequestTimeout`, before it tries again.
const PATIENCE: Duration = Duration::from_secs(360);
/// The accounts, and how long a pod waits for a last answer over the connection that it holds when it has tried all: one that
/// will come in the end, and one that would have come by then.
const ACCOUNTS: [(&str, Duration); 2] =
    [("right", Duration::from_secs(120)), ("wrong", Duration::from_secs(5))];

/// Nobody who may was ever denied under its own name: what comes before its address is known is denied as `unmanaged`.
fn denied_of_the_right(scene: &Scene) -> Result<[f64; 3]> {
    let count = |source: (&str, &str), destination: (&str, &str)| {
        let labels = [
            ("source_namespace", source.0),
            ("source_service_account", source.1),
            ("destination_namespace", destination.0),
            ("destination_service_account", destination.1),
            ("verdict", "deny"),
        ];
        installed::metric(&scene.cluster, "portcullis_decisions_total", &labels)
    };
    let (right, db, outside) = ((LIFE, "right"), (LIFE, "db"), ("", "world"));
    Ok([count(right, db)?, count(db, right)?, count(right, outside)?])
}

/// Packets that were dropped so far, by reason; and connections that the databases had no room to queue, which looks the same
/// to a client.
fn dropped(scene: &Scene) -> Result<BTreeMap<&'static str, f64>> {
    let mut dropped = BTreeMap::new();
    for reason in Reason::ALL.iter().map(|reason| reason.name()) {
        let labels = [("reason", reason)];
        dropped.insert(reason, installed::metric(&scene.cluster, "portcullis_drops_total", &labels)?);
    }
    let mut overflows = 0.0;
    for db in &scene.db {
        let text = db.net.run(|| Ok(fs::read_to_string("/proc/thread-self/net/netstat")?))?;
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
        let [names, values] = lines[..] else { bail!("the kernel's counters of {}: {text}", db.name) };
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(name, _)| *name == "ListenOverflows").context("no ListenOverflows")?;
        overflows += value.parse::<f64>()?;
    }
    dropped.insert("the database's full queue", overflows);
    Ok(dropped)
}

/// What the agents denied, by pod.
struct Denied<'a> {
    seen: &'a Seen,
    pods: BTreeMap<String, IpAddr>,
    clock: Clock,
}

impl<'a> Denied<'a> {
    fn new(scene: &Scene, seen: &'a Seen) -> Result<Self> {
        ensure!(seen.missed == 0, "the monitors missed {} denials", seen.missed);
        let format = r#"jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}"#;
        let pods = scene.cluster.kubectl(["--namespace", LIFE, "get", "pods", "--output", format])?;
        let pods = pods.lines().filter_map(|line| line.split_once(' '));
        let pods = pods.map(|(name, at)| Ok((name.to_owned(), at.parse()?))).collect::<Result<_>>()?;
        Ok(Self { seen, pods, clock: Clock::now() })
    }

    /// Seconds of the machine's clock in the form of the events; that of the pods has hundredths.
    fn time(&self, seconds: f64) -> Result<String> {
        Ok(self.clock.text(Duration::from_secs_f64(seconds).as_nanos().try_into()?))
    }

    /// The address of a pod, by the name of the folder of its logs.
    fn address(&self, pod: &str) -> Result<IpAddr> {
        let (name, _) = pod.split_once('_').with_context(|| format!("the logs of {pod}"))?;
        self.pods.get(name).copied().with_context(|| format!("{name} has no address: {:?}", self.pods))
    }

    /// Whether the agent of a pod's node did not know the pod yet, but had its programs there or was about to.
    fn is_unknown(&self, pod: &str, seconds: f64) -> bool {
        let unknown = self.address(pod).ok().and_then(|address| self.seen.unknown(address));
        unknown.is_some_and(|(_, last)| self.time(seconds).is_ok_and(|time| *time <= *last))
    }

    /// Fails if an agent denied a packet between a pod and a target after the pod was judged and had got an answer from it: a
    /// second SYN hides it from the pod, and where the pod's address is not known it counts for nobody's name. And fails if
    /// a pod got an answer while it was denied for being unknown.
    fn nothing_wrongly(&self, right: &Tries, targets: &[(&str, String)]) -> Result<()> {
        let targets: BTreeMap<&str, IpAddr> =
            targets.iter().map(|(name, at)| Ok((*name, at.parse()?))).collect::<Result<_>>()?;
        for (pod, target, from, to) in right.answered() {
            let address = self.address(pod)?;
            let (from, to) = (self.time(from)?, self.time(to + 0.01)?);
            if let Some((first, last)) = self.seen.unknown(address) {
                ensure!(
                    *from <= *first || *to >= *last,
                    "{pod} reached {target} at {to}, unknown from {first} to {last}"
                );
                if *from <= *last {
                    // It was answered before its programs were there.
                    continue;
                }
            }
            let later = self.seen.between(address, targets[target]).find(|(_, event)| event.time > to);
            ensure!(later.is_none(), "{pod} was denied {target} after the answer of {to}: {later:?}");
        }
        Ok(())
    }
}

/// Half of them may reach the database and the outside, half may not.
pub fn many_pods_at_once(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let watch = scene.watch_but_the_auditor()?;
    let targets = [
        ("node0", scene.db[0].v4.to_string()),
        ("node1", scene.db[1].v4.to_string()),
        ("outside", Scene::outside().ip().to_string()),
    ];
    let deployment = |(account, last): (&str, Duration)| {
        let command = serde_json::json!(["sh", "-c", script(&targets, PORT, TRIES, last)]);
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {account}, namespace: {LIFE}}}\n\
             spec:\n  replicas: {EACH}\n  selector: {{matchLabels: {{app: {account}}}}}\n  template:\n    \
             metadata: {{labels: {{app: {account}}}}}\n    spec:\n      serviceAccountName: {account}\n      \
             automountServiceAccountToken: false\n      terminationGracePeriodSeconds: 0\n      containers: \
             [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: {command}}}]\n"
        )
    };
    let (denied, before) = (denied_of_the_right(scene)?, dropped(scene)?);
    let denials = Denials::start(&scene.cluster)?;
    let start = Instant::now();
    scene.cluster.apply(&ACCOUNTS.map(deployment).concat())?;
    let read = |account: &str| -> Result<(usize, Tries)> {
        let mut tries = Tries::default();
        let mut done = 0;
        for node in scene.cluster.nodes() {
            done += tries.read(&node.folder().join("log"), LIFE, &format!("{account}-"))?;
        }
        Ok((done, tries))
    };
    let mut unread = None;
    eventually_all(PATIENCE, "pods have tried", 2 * EACH, || {
        std::thread::sleep(Duration::from_millis(500));
        let done = ACCOUNTS.iter().map(|(account, _)| Ok(read(account)?.0)).sum::<Result<usize>>();
        done.unwrap_or_else(|error| {
            unread = Some(error);
            0
        })
    })
    .with_context(|| {
        let args = [
            "--namespace",
            LIFE,
            "get",
            "pods,events",
            "--output",
            "wide",
            "--sort-by",
            ".metadata.creationTimestamp",
        ];
        let seen = scene.cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
        format!("logs that could not be read: {unread:?}; what the API server knows:\n{seen}")
    })?;
    note(&format!("{} pods started and tried in {:.1} s", 2 * EACH, start.elapsed().as_secs_f64()));
    // Which of them explain a SYN that was lost, should one have been.
    let now = dropped(scene)?;
    let more =
        now.iter().map(|(reason, now)| (*reason, now - before[reason])).filter(|(_, more)| *more > 0.0);
    let more: BTreeMap<&str, f64> = more.collect();
    note(&format!("  dropped meanwhile: {more:?}"));
    let seen = denials.finish()?;
    let (_, right) = read("right")?;
    let by_pod = Denied::new(scene, &seen)?;
    by_pod.nothing_wrongly(&right, &targets)?;
    note(&format!("  permitted: {}", right.permitted(|pod, at| by_pod.is_unknown(pod, at))?));
    note(&format!("  forbidden: {}", read("wrong")?.1.forbidden()?));
    let wrong = [Reason::FlowTable, Reason::NoPolicy].map(Reason::name);
    ensure!(
        !wrong.iter().any(|reason| more.contains_key(reason)),
        "there was no room for {wrong:?}: {more:?}"
    );
    let now = denied_of_the_right(scene)?;
    let none_more = now.iter().zip(&denied).all(|(now, before)| now <= before);
    ensure!(none_more, "connections of the right account were denied: {denied:?} before, {now:?} after");
    note(&watch.finish()?.to_string());
    scene.nothing_permitted_was_denied()
}
