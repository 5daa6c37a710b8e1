//! The course of the demo: the shop opens, the agent starts, everybody sends, and everything is removed again.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_tests::netns;
use portcullis_tests::privileged::{TEARDOWN, describe, leftovers};
use portcullis_tests::residue::Snapshot;
use portcullis_tests::{Agent, Network, TempDir};

use super::expectations::Expectations;
use super::manifests::Manifests;
use super::readings;
use super::report::{self, Check};
use super::scenes::{self, Scenes};
use super::shop::Shop;
use crate::interrupt;

/// How long the agent may take to begin. Attaching waits for the kernel, which on a busy machine takes many seconds.
const SLOW_START: Duration = Duration::from_secs(240);

/// Everything that a performance needs.
#[derive(Debug, Clone, Copy)]
pub struct Play<'a> {
    pub expectations: &'a Expectations,
    pub manifests: &'a Manifests,
    pub binary: &'a Path,
    pub network: Network,
    /// The policy file that is left out.
    pub without: Option<&'a str>,
    pub verbose: bool,
    /// Print nothing.
    pub quiet: bool,
    /// When it began.
    pub start: Instant,
}

impl Play<'_> {
    /// Performs the demo and returns every expectation with what became of it.
    pub fn perform(&self) -> Result<Vec<Check>> {
        let _folder = netns::Folder::open()?;
        let before = Snapshot::take();
        let result = self.on_stage();
        let left = leftovers(&before, TEARDOWN);
        let seen = if left.is_empty() { "nothing left behind".to_owned() } else { describe(&left) };
        // Also after a failure or an interruption: that is when it matters.
        if result.is_err() {
            eprintln!("{seen}");
        }
        let mut checks = result?;
        for line in &self.expectations.afterwards {
            checks.push(Check {
                what: "cleaning up".to_owned(),
                expected: if line.nothing_left { "nothing left behind" } else { "something left behind" }
                    .to_owned(),
                seen: seen.clone(),
                held: left.is_empty() == line.nothing_left,
                why: line.why.clone(),
            });
        }
        self.title(&format!("Cleaned up: {seen}"));
        let (wanted, found) = (self.expectations.len(), checks.len());
        ensure!(wanted == found, "of {wanted} expectations {found} were looked at: a defect of the demo");
        Ok(checks)
    }

    fn on_stage(&self) -> Result<Vec<Check>> {
        self.introduce();
        let folder = self.manifests.copy(self.without)?;
        let shop = Shop::open(self.manifests, self.expectations, self.network)?;
        let rehearsed = scenes::rehearse(&shop, self.expectations)?;
        self.title(&format!("Without an agent everything arrives: {rehearsed} of {rehearsed} probes"));
        let agent = self.start_agent(&shop, &folder)?;
        let checks = Scenes { play: self, shop: &shop, agent: &agent }.all();
        if self.verbose {
            self.title("The agent's log");
            self.say(&agent.logs());
        }
        checks
    }

    fn introduce(&self) {
        self.say("Portcullis demo: a small shop on one node, every packet judged by service account.");
        self.say(report::PICTURE);
        self.say("The pods, each a network namespace (deploy/demo/manifests):\n");
        self.say(&report::pods(self.manifests));
        self.say("The policies (deploy/demo/manifests/policies):\n");
        self.say(&report::policies(self.manifests, self.without));
        self.say(
            "Who may talk to whom (from deploy/demo/expectations.yaml, written by hand; `.`: nobody):\n",
        );
        self.say(&report::who_may(self.expectations));
    }

    fn start_agent<'s>(&self, shop: &'s Shop, folder: &TempDir) -> Result<Agent<'s>> {
        let start = Instant::now();
        let mut agent = Agent::on(&shop.node.ns)
            .binary(self.binary)
            .node_name(&self.manifests.node)
            .manifests(folder.path())
            .spawn()?;
        let awaited = wait_until_every_pod_is_known(&agent, self.manifests.pods.len());
        interrupt::check()?;
        // Says what the agent said, if it has ended.
        agent.wait_ready()?;
        awaited.with_context(|| format!("the agent's log:\n{}", agent.logs()))?;
        self.title(&format!(
            "The agent runs: ready, and every pod known, after {:.1} s",
            start.elapsed().as_secs_f64()
        ));
        Ok(agent)
    }

    /// Prints a paragraph.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }

    /// Prints the title of a step, and how long after the start it is.
    pub fn title(&self, text: &str) {
        if !self.quiet {
            println!("== {text} [{:.1} s]\n", self.start.elapsed().as_secs_f64());
        }
    }
}

/// Waits until the agent is ready and knows the pod behind every interface; ends early with an interruption or with
/// the agent.
fn wait_until_every_pod_is_known(agent: &Agent<'_>, pods: usize) -> Result<()> {
    let start = Instant::now();
    let mut known = 0;
    while start.elapsed() < SLOW_START && !interrupt::interrupted() && agent.pid().is_some_and(is_running) {
        if agent.get("/readyz").is_ok_and(|(status, _)| status == 200) {
            let endpoints = readings::dump(agent, "endpoints")?;
            let endpoints = endpoints.as_array().map(Vec::as_slice).unwrap_or_default();
            known = endpoints.iter().filter(|endpoint| endpoint["known"] == true).count();
            if known == pods {
                return Ok(());
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("the agent knows {known} of {pods} pods after {:.1} s", start.elapsed().as_secs_f64())
}

/// Whether a child process has not ended: one that has, and was not waited for, is a zombie.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
