//! The agent at work: sources and interfaces in, maps and programs out.
//!
//! The owner of the world runs alone on its thread; metrics and health are served by a runtime of their own, so that a
//! scrape never delays a verdict's programming, and nothing that is programmed delays a health answer.

mod bindings;
mod coverage;
mod denials;
mod events;
mod owner;
mod recall;
mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use portcullis_common::abi::Mode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::cli::AgentArgs;
use crate::cni::CniCache;
use crate::datapath::{Datapath, Options};
use crate::endpoints;
use crate::identity::Numbers;
use crate::kubernetes::Contacts;
use crate::metrics::{AgentMetrics, Heartbeat, Readiness, Server};
use crate::model::{Settings, World};
use crate::monitor::Monitors;
use crate::sources::kubernetes::{self, KubernetesSource};
use crate::sources::manifests::ManifestsSource;
use crate::sources::{Batch, Source};
use crate::state::State;
use crate::status_writer::{self, StatusWriter, Verdicts, WriterState};
use bindings::Bindings;
use owner::Owner;
use recall::Recall;

/// How often attachment is compared and what was retired is deleted; what failed is tried again no sooner.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What fails is tried again after twice the time of before, up to this one.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// What must hold for the agent to be ready.
const SOURCE: &str = "source";
const ENDPOINTS: &str = "endpoints";
const PROGRAMMED: &str = "programmed";
const ATTACHED: &str = "attached";
const COVERED: &str = "covered";

/// Runs the agent until it is told to stop. Enforcement outlives it.
///
/// # Errors
/// What keeps it from working: a foreign map, a missing right, another agent.
pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(args))
}

async fn work(args: &AgentArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // Before anything is touched: without a source there is nothing to do.
    let connection = match &args.manifests {
        Some(_) => None,
        None => Some(crate::kubernetes::config(args.kubeconfig.as_deref()).await?),
    };
    let run_dir = &args.paths.run_dir;
    std::fs::create_dir_all(run_dir).with_context(|| {
        format!("cannot create {}; name another folder with --run-dir", run_dir.display())
    })?;
    let mut datapath = open_datapath(args)?;
    let first_start = !datapath.adopted();
    let metrics = AgentMetrics::new(args.paths.bpffs.clone())?;
    let readiness = Readiness::new(&[SOURCE, ENDPOINTS, PROGRAMMED, ATTACHED, COVERED]);
    let heartbeat = Heartbeat::default();
    serve(args.metrics_address, metrics.clone(), readiness.clone(), heartbeat.clone())?;

    let earlier = earlier_names(run_dir);
    let endpoints_before = earlier.state().endpoints.as_slice();
    let (lost_sender, mut lost) = recall::queue();
    let readers = events::Readers::new(lost_sender);
    let (denials, monitors) = (readers.denials.clone(), readers.monitors.clone());
    // Until something is programmed, the numbers in the maps mean what they meant to the earlier agent.
    let names_before = Arc::new(inherited(earlier.state()));
    denials.name(Arc::clone(&names_before));
    monitors.name(Arc::clone(&names_before));
    metrics.set_state(names_before);
    let events = events::start(args, datapath.events()?, readers)?;

    let mut owner = Owner::new(
        empty_world(args, earlier.state())?,
        datapath,
        Numbers::new(args.sizes.subjects_size),
        Bindings::new(args.unknown_endpoint.into(), first_start, endpoints_before),
    );

    let (sender, mut batches) = mpsc::channel::<Batch>(64);
    let conditions = connection.clone().map(|config| Conditions::start(args, config)).transpose()?;
    let source = start_source(args, connection, &metrics, sender)?;
    let mut watcher = endpoints::Watcher::spawn(endpoints::Options::default())?;
    let mut links = watcher.snapshots();
    let cni = CniCache::start(&args.cni_cache)?;
    let mut cached = cni.entries();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    let mut agent = Agent {
        run_dir,
        source,
        conditions,
        metrics,
        readiness,
        denials,
        monitors,
        earlier: Some(earlier),
        written: None,
        pace: Pace::default(),
        mode: None,
        warned: None,
        seen: None,
        retry: Retry::default(),
        recall: Recall::default(),
    };
    loop {
        heartbeat.beat();
        let mut since = None;
        let mut changed = true;
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else { anyhow::bail!("the source ended: {}", agent.source.name()) };
                since = Some(batch.since);
                owner.take(batch);
                while let Ok(batch) = batches.try_recv() {
                    owner.take(batch);
                }
            }
            result = links.changed() => {
                if result.is_err() {
                    return Err(watcher.stopped().await).context("cannot follow the interfaces any more");
                }
                owner.look(links.borrow_and_update().clone());
                cni.look();
            }
            result = cached.changed() => {
                result.context("the thread of the CNI cache ended")?;
                owner.take_cache(cached.borrow_and_update().clone());
            }
            Some(packet) = lost.recv() => {
                agent.recall.answer_all(&mut owner, packet, &mut lost);
                continue;
            }
            _ = housekeeping.tick() => changed = agent.keep_house(&mut owner),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        if changed {
            agent.program(&mut owner, since);
        }
        agent.tell(&mut owner, changed);
    }
    info!("stopping; what is programmed stays in force (`portcullis cleanup` ends it)");
    drop((agent, events));
    Ok(())
}

/// Loads the programs, and adopts what an earlier agent has pinned.
fn open_datapath(args: &AgentArgs) -> anyhow::Result<Datapath> {
    let datapath = Datapath::open(Options {
        bpffs: args.paths.bpffs.clone(),
        attach: args.attach,
        sizes: args.sizes,
        sample: args.sample,
        event_rate: args.event_rate,
        new_flow_rate: args.new_flow_rate,
    })?;
    info!(
        tcx = datapath.uses_tcx(),
        first_start = !datapath.adopted(),
        bpffs = %args.paths.bpffs.display(),
        "programs loaded; what is pinned stays in force until everything has been listed"
    );
    Ok(datapath)
}

/// Starts the source that the flags name. `connection`: to the API server, if it is that.
fn start_source(
    args: &AgentArgs,
    connection: Option<kube::Config>,
    metrics: &AgentMetrics,
    batches: mpsc::Sender<Batch>,
) -> anyhow::Result<Source> {
    match (&args.manifests, connection) {
        (None, Some(config)) => {
            let source = KubernetesSource::start(
                kubernetes::Options {
                    config,
                    namespace: args.namespace.clone(),
                    node_name: args.node_name()?,
                    pace: kubernetes::Pace::default(),
                },
                batches,
            )?;
            metrics.watch_source(source.watch())?;
            Ok(Source::Kubernetes(source))
        }
        (Some(folder), _) => {
            let source = ManifestsSource::start(folder, batches)?;
            Ok(Source::Manifests(folder.display().to_string(), source))
        }
        (None, None) => anyhow::bail!("neither a folder nor an API server to read from"),
    }
}

/// The world before anything is known of it but what an earlier agent left.
fn empty_world(args: &AgentArgs, earlier: &State) -> anyhow::Result<World> {
    Ok(World { settings: settings(args)?, mode_before: Mode::from_name(&earlier.mode), ..World::default() })
}

fn settings(args: &AgentArgs) -> anyhow::Result<Settings> {
    Ok(Settings {
        node_name: args.node_name()?,
        namespace: args.namespace.clone(),
        pod_cidrs: args.pod_cidr.clone(),
        service_cidrs: args.service_cidr.clone(),
        default_verdict: args.default_verdict.into(),
        network_policies: args.network_policies,
        mode: Mode::from(args.mode),
        ..Settings::default()
    })
}

/// The names file that an earlier agent left.
#[derive(Debug)]
enum Earlier {
    /// There is none.
    None(State),
    /// It cannot be read; a person may want to look at it.
    Unreadable(State),
    /// What it says.
    Names(State),
}

impl Earlier {
    const fn state(&self) -> &State {
        match self {
            Self::None(state) | Self::Unreadable(state) | Self::Names(state) => state,
        }
    }
}

fn earlier_names(run_dir: &Path) -> Earlier {
    match State::read(run_dir) {
        Ok(state) => Earlier::Names(state),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Earlier::None(State::default()),
        Err(error) => {
            warn!(%error, "the names file of the earlier agent cannot be read: its interfaces are bound anew");
            Earlier::Unreadable(State::default())
        }
    }
}

/// What an earlier agent's names file says of the kernel, which this one has taken over, without what it says of the agent:
/// the former one led, and this one is a candidate.
fn inherited(earlier: &State) -> State {
    State { writes_status: None, status_error: None, ..earlier.clone() }
}

/// What the loop keeps beside the owner.
struct Agent<'a> {
    run_dir: &'a Path,
    source: Source,
    /// Of our policies, where there is somebody to tell.
    conditions: Option<Conditions>,
    metrics: AgentMetrics,
    readiness: Readiness,
    denials: denials::Denials,
    monitors: Monitors,
    /// The names of the earlier agent, until this one has programmed its own: its numbers are in force.
    earlier: Option<Earlier>,
    /// The state that was written last.
    written: Option<Arc<State>>,
    /// When the next state is made that nobody waits for, if one is to be made.
    pace: Pace,
    /// The mode that was programmed last.
    mode: Option<Mode>,
    /// The error that was logged last, so that a lasting one is said once.
    warned: Option<String>,
    /// What the kernel was like when readiness was judged last.
    seen: Option<Seen>,
    retry: Retry,
    recall: Recall,
}

/// The conditions in the status of our policies.
#[derive(Debug)]
struct Conditions {
    verdicts: watch::Sender<Arc<Verdicts>>,
    writer: StatusWriter,
}

impl Conditions {
    fn start(args: &AgentArgs, config: kube::Config) -> anyhow::Result<Self> {
        let (verdicts, receiver) = watch::channel(Arc::default());
        let options = status_writer::Options {
            namespace: args.namespace.clone(),
            node: args.node_name()?,
            pace: status_writer::Pace::default(),
        };
        // Contacts of its own: how old the source's knowledge is does not depend on what is written.
        let client =
            move || crate::kubernetes::client(&config, &Contacts::new([])).map_err(|error| error.to_string());
        Ok(Self { verdicts, writer: StatusWriter::start(client, options, receiver)? })
    }

    fn tell(&self, owner: &Owner) {
        let verdicts = report::verdicts(owner);
        self.verdicts.send_if_modified(|before| {
            let changed = **before != verdicts;
            if changed {
                *before = Arc::new(verdicts);
            }
            changed
        });
    }
}

/// What changes without an event.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    writer: WriterState,
    hooks: owner::Hooks,
    uncovered: BTreeMap<String, Vec<IpAddr>>,
}

/// When what failed is tried again.
#[derive(Debug, Default)]
struct Retry {
    next: Option<(Instant, Duration)>,
}

impl Retry {
    /// Whether to try again now; `wanted`: something failed that another try may mend.
    fn is_due(&mut self, wanted: bool, now: Instant) -> bool {
        if !wanted {
            self.next = None;
            return false;
        }
        let (at, delay) = self.next.unwrap_or((now, HOUSEKEEPING / 2));
        if now < at {
            return false;
        }
        let delay = (delay * 2).min(LONGEST_RETRY);
        self.next = Some((now + delay, delay));
        true
    }
}

/// When the names file is made anew. Making it takes time in proportion to the cluster, and while it is made nothing is
/// programmed: what is not urgent waits until making it is a small part of the time.
#[derive(Debug, Default)]
struct Pace {
    wanted: bool,
    not_before: Option<Instant>,
}

impl Pace {
    /// Making the file may take one part in so many of the time.
    const SHARE: u32 = 200;

    /// Something that is in the file may have changed.
    const fn note(&mut self, changed: bool) {
        self.wanted |= changed;
    }

    /// Whether to make it now.
    fn is_due(&self, urgent: bool, now: Instant) -> bool {
        urgent || self.wanted && self.not_before.is_none_or(|at| at <= now)
    }

    /// It was made, and took so long.
    fn made(&mut self, begun: Instant, taken: Duration) {
        *self = Self { wanted: false, not_before: Some(begun + taken * Self::SHARE) };
    }
}

impl Agent<'_> {
    /// Compiles and programs; errors are kept for the report and tried again by the housekeeping. `since`: when the
    /// objects arrived that caused it, if any did.
    fn program(&mut self, owner: &mut Owner, since: Option<Instant>) {
        if !owner.ready_to_program() {
            return;
        }
        let begun = Instant::now();
        match owner.program() {
            Ok(applied) => {
                self.earlier = None;
                let mode = owner.world.mode();
                if self.mode.replace(mode) != Some(mode) {
                    info!(mode = mode.name(), from = report::mode_source(&owner.world), "the mode is set");
                }
                if let Some(since) = since
                    && applied.writes > 0
                {
                    self.metrics.observe_programming(since.elapsed());
                }
                owner.look_at_hooks();
                if owner.coverage.is_unknown() {
                    owner.look_at_coverage();
                }
                for waited in owner.newly_attached() {
                    self.metrics.observe_attach(waited);
                }
                if applied.writes > 0 {
                    self.recall.forget();
                    info!(
                        writes = applied.writes,
                        judged_again = applied.revised,
                        endpoints = owner.endpoints.len(),
                        milliseconds = since.unwrap_or(begun).elapsed().as_secs_f64() * 1e3,
                        "programmed"
                    );
                }
                if owner.errors.is_empty() {
                    self.metrics.set_success(std::time::SystemTime::now());
                }
            }
            Err(failure) => owner.errors = vec![failure.to_string()],
        }
        let text = owner.errors.join("; ");
        if text.is_empty() {
            self.warned = None;
        } else if self.warned.as_ref() != Some(&text) {
            error!(error = %text, "not everything is programmed; what is not is denied, and tried again");
            self.warned = Some(text);
        }
    }

    /// Whether something must be programmed again.
    fn keep_house(&mut self, owner: &mut Owner) -> bool {
        if let Err(error) = owner.collect() {
            warn!(%error, "what was retired stays in the maps for now");
        }
        self.denials.summarize();
        owner.look_at_hooks();
        owner.look_at_coverage();
        // Others that put their programs before ours are reported; attaching again would not change it.
        let wanted = !owner.errors.is_empty() || owner.hooks().missing > 0;
        self.retry.is_due(wanted, Instant::now())
    }

    /// How the writer of conditions is, if there is one.
    fn writer(&self) -> WriterState {
        self.conditions.as_ref().map(|c| c.writer.state().borrow().clone()).unwrap_or_default()
    }

    /// Judges the readiness, and makes the names file anew if it is time; `changed`: what is in it may be another.
    fn tell(&mut self, owner: &mut Owner, changed: bool) {
        let urgent = self.judge_readiness(owner) | owner.take_urgent();
        self.pace.note(changed);
        if self.pace.is_due(urgent, Instant::now()) {
            let begun = Instant::now();
            self.report(owner);
            self.pace.made(begun, begun.elapsed());
        }
    }

    /// Writes the names file if it changed, and tells the writer of conditions.
    fn report(&mut self, owner: &Owner) {
        let writer = self.writer();
        let now = State {
            writes_status: self.conditions.as_ref().map(|_| writer.leading),
            status_error: writer.error,
            ..report::state(owner, &self.source)
        };
        if self.earlier.is_none()
            && let Some(conditions) = &self.conditions
        {
            conditions.tell(owner);
        }
        let state = match &self.earlier {
            None => now,
            Some(earlier) => report::before_programming(now, earlier.state()),
        };
        if self.written.as_ref().is_some_and(|written| written.says_the_same(&state)) {
            return;
        }
        let state = Arc::new(state);
        self.denials.name(Arc::clone(&state));
        self.monitors.name(Arc::clone(&state));
        self.metrics.set_state(Arc::clone(&state));
        if matches!(self.earlier, Some(Earlier::Unreadable(_))) {
            return;
        }
        match state.write(self.run_dir) {
            Ok(()) => self.written = Some(state),
            Err(error) => {
                warn!(%error, folder = %self.run_dir.display(), "cannot write the names file: dumps show numbers");
            }
        }
    }

    /// Says whether the agent is ready; returns whether the kernel is not as it was.
    fn judge_readiness(&mut self, owner: &Owner) -> bool {
        let say = |condition, holds: bool, otherwise: String| {
            if holds {
                self.readiness.ready(condition);
            } else {
                self.readiness.not_ready(condition, otherwise);
            }
        };
        let place = owner.problems.first().map(|problem| format!(": {problem}")).unwrap_or_default();
        say(SOURCE, owner.synced, format!("not every kind has been listed yet{place}"));
        say(ENDPOINTS, owner.links.complete, "the interfaces have not been listed yet".to_owned());
        let missing =
            owner.errors.first().cloned().unwrap_or_else(|| "nothing has been programmed yet".to_owned());
        say(PROGRAMMED, owner.last_success.is_some() && owner.errors.is_empty(), missing);
        let hooks = owner.hooks();
        let owner::Hooks { expected, attached, .. } = hooks;
        let bypassed = owner.bypassed.len();
        say(
            ATTACHED,
            attached == expected && bypassed == 0,
            format!(
                "{attached} of {expected} programs are attached in the first place, and {bypassed} interfaces of pods \
                 bypass them; `portcullis status` names them"
            ),
        );
        let uncovered = owner.coverage.uncovered();
        let some: Vec<&str> = uncovered.keys().take(3).map(String::as_str).collect();
        say(
            COVERED,
            owner.coverage.is_complete(),
            format!(
                "{} running pods of this node have no interface that was found, and are not judged ({}, ..): \
                 `portcullis status` names them",
                uncovered.len(),
                some.join(", ")
            ),
        );
        let seen = Seen { writer: self.writer(), hooks, uncovered: uncovered.clone() };
        let changed = self.seen.as_ref() != Some(&seen);
        self.seen = Some(seen);
        changed
    }
}

/// Serves metrics and health on a thread with a runtime of its own. An address that cannot be had is said at once.
fn serve(
    address: std::net::SocketAddr,
    metrics: AgentMetrics,
    readiness: Readiness,
    heartbeat: Heartbeat,
) -> anyhow::Result<()> {
    let (said, bound) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(async { Server::bind(address, metrics, readiness, heartbeat) }) {
            Ok(server) => {
                said.send(Ok(()))?;
                runtime.block_on(server.run());
            }
            Err(error) => said.send(Err(error))?,
        }
        Ok(())
    })?;
    Ok(bound.recv().context("the metrics thread ended before it listened")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_does_not_say_of_itself_what_the_earlier_one_was() {
        let leader = State {
            mode: "Enforce".to_owned(),
            writes_status: Some(true),
            status_error: Some("the Lease portcullis cannot be had".to_owned()),
            ..State::default()
        };
        let taken = inherited(&leader);
        assert_eq!((taken.writes_status, taken.status_error), (None, None));
        assert_eq!(taken.mode, "Enforce", "what is in the kernel is as it was");
    }

    #[test]
    fn what_is_not_urgent_waits_until_making_the_file_is_a_small_part_of_the_time() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::default();
        assert!(!pace.is_due(false, start), "nothing has changed");
        pace.note(true);
        assert!(pace.is_due(false, start));
        pace.made(start, Duration::from_millis(5));
        pace.note(false);
        assert!(!pace.is_due(false, at(2000)), "nothing has changed since");
        pace.note(true);
        assert!(!pace.is_due(false, at(999)) && pace.is_due(true, at(10)));
        pace.note(false);
        assert!(pace.is_due(false, at(1000)), "what was noted is not forgotten");
    }

    #[test]
    fn what_fails_is_tried_at_once_then_ever_more_rarely_and_anew_after_a_success() {
        let start = Instant::now();
        let mut retry = Retry::default();
        let tries = |retry: &mut Retry| -> Vec<u64> {
            (0..40).filter(|s| retry.is_due(true, start + Duration::from_secs(*s))).collect()
        };
        assert_eq!(tries(&mut retry), [0, 1, 3, 7, 15, 25, 35]);
        assert!(!retry.is_due(false, start));
        assert!(retry.is_due(true, start));
    }
}
