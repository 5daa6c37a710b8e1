//! From Audit, as it is installed, to Enforce: what passed and was counted is refused, and what was open is cut.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::Cluster;
use portcullis_tests::command::Running;
use portcullis_tests::eventually;
use portcullis_tests::installed::metric;

use crate::objects::World;
use crate::shop::{PORT, SHOP};

/// A connection of an intruder to a database, over which it asks again and again.
#[derive(Debug)]
pub struct Held {
    _client: Running,
    answers: Arc<AtomicU64>,
}

impl Held {
    /// Opens it and waits for the first answers.
    pub fn open(cluster: &Cluster, world: &World) -> Result<Self> {
        let [to, _] = world.pod(SHOP, "database-0a")?;
        let script = format!(
            "while :; do printf 'GET /hostname HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' || exit; sleep 0.1; done | nc {to} {PORT}"
        );
        let args = ["--namespace", SHOP, "exec", "late", "--", "sh", "-c", &script];
        let mut command = cluster.kubectl_command(args)?;
        let mut client =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("kubectl exec")?;
        let output = client.stdout.take().context("the output of kubectl exec")?;
        let answers = Arc::new(AtomicU64::new(0));
        let held = Self { _client: Running(client), answers: Arc::clone(&answers) };
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                // The first line of an answer, after what the one before ended with.
                if String::from_utf8_lossy(&line).contains("HTTP/1.1 200") {
                    answers.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        eventually("the intruder's connection to be answered", || held.answers() >= 3)?;
        Ok(held)
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }

    /// Whether it is still answered.
    pub fn is_alive(&self) -> Result<()> {
        let before = self.answers();
        eventually("the audited connection to go on", || self.answers() >= before + 3)
    }

    /// After everyone enforces: its packets are denied, more than once, and no answer comes.
    pub fn is_cut(&self, cluster: &Cluster) -> Result<()> {
        // What was answered before it was cut has come by then.
        denied(cluster, 2.0)?;
        let answers = self.answers();
        denied(cluster, 4.0)?;
        ensure!(self.answers() == answers, "the audited connection was answered after it was denied");
        Ok(())
    }
}

/// Waits until packets of the connection were dropped so many times.
fn denied(cluster: &Cluster, times: f64) -> Result<()> {
    eventually("the connection's packets to be counted as denied", || {
        count(cluster, "late", "deny").is_ok_and(|count| count >= times)
    })
}

/// How many decisions of this verdict there were about an account of the shop and the databases.
pub fn count(cluster: &Cluster, account: &str, verdict: &str) -> Result<f64> {
    let labels = [
        ("source_namespace", SHOP),
        ("source_service_account", account),
        ("destination_namespace", SHOP),
        ("destination_service_account", "database"),
        ("direction", "ingress"),
        ("verdict", verdict),
    ];
    metric(cluster, "portcullis_decisions_total", &labels)
}
