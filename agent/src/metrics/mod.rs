//! The Prometheus collector and the health endpoints.
//!
//! What the kernel counts is read from the maps when somebody asks, so it is exact, costs nothing in between, and goes
//! on over restarts of the agent: counters never decrease while the maps live.

mod collector;
mod heartbeat;
mod readiness;
mod server;
mod source;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Gauge, Histogram, HistogramOpts, Opts, Registry, TextEncoder};

pub use collector::FAMILIES;
pub use heartbeat::Heartbeat;
pub use readiness::Readiness;
pub use server::{Server, ServerError};
pub use source::SOURCE_FAMILIES;

use crate::sources::kubernetes::KubernetesWatch;
use crate::state::State;
use collector::MapCollector;

/// Buckets of the latency histograms: 0.5 ms to 10 s.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The agent's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct AgentMetrics {
    registry: Registry,
    programming: Histogram,
    attach: Histogram,
    last_success: Gauge,
    state: SharedState,
}

/// What the agent last knew, for names and for what the maps do not say.
#[derive(Clone, Debug, Default)]
struct SharedState(Arc<Mutex<Arc<State>>>);

impl SharedState {
    fn get(&self) -> Arc<State> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, state: Arc<State>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl AgentMetrics {
    /// Metrics of the agent whose maps are, or will be, pinned in `bpffs`. The maps are opened when they are first
    /// asked for.
    ///
    /// # Errors
    /// If two families have the same name.
    pub fn new(bpffs: PathBuf) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let state = SharedState::default();
        let programming = Histogram::with_opts(
            HistogramOpts::new(
                "portcullis_programming_seconds",
                "Time from the arrival of a change until the maps were written",
            )
            .buckets(SECONDS.to_vec()),
        )?;
        let attach = Histogram::with_opts(
            HistogramOpts::new(
                "portcullis_attach_seconds",
                "Time from the appearance of a pod's interface until its programs were attached",
            )
            .buckets(SECONDS.to_vec()),
        )?;
        let last_success = Gauge::with_opts(Opts::new(
            "portcullis_last_success_timestamp_seconds",
            "When the maps were last brought to the desired state without an error",
        ))?;
        registry.register(Box::new(programming.clone()))?;
        registry.register(Box::new(attach.clone()))?;
        registry.register(Box::new(last_success.clone()))?;
        registry.register(Box::new(MapCollector::new(bpffs, state.clone())?))?;
        Ok(Self { registry, programming, attach, last_success, state })
    }

    /// Shows what there is to see of the Kubernetes source.
    ///
    /// # Errors
    /// If it is shown already.
    pub fn watch_source(&self, source: KubernetesWatch) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(source::SourceCollector::new(source)?))
    }

    /// Notes how long a change took from its arrival until the maps were written.
    pub fn observe_programming(&self, taken: Duration) {
        self.programming.observe(taken.as_secs_f64());
    }

    /// Notes how long an interface took from its appearance until its programs were attached.
    pub fn observe_attach(&self, taken: Duration) {
        self.attach.observe(taken.as_secs_f64());
    }

    /// Notes that the maps are as desired.
    pub fn set_success(&self, when: SystemTime) {
        self.last_success.set(when.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }

    /// Hands over what the agent now knows: the names behind the numbers in the maps, hooks, problems and errors.
    pub fn set_state(&self, state: Arc<State>) {
        self.state.set(state);
    }

    /// All metrics in Prometheus's text form. Reads the maps: some milliseconds, tens of them where they are large.
    ///
    /// # Errors
    /// If a family cannot be written.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{EndpointState, ProblemState, SourceState};
    use std::collections::BTreeMap;

    fn metrics() -> AgentMetrics {
        AgentMetrics::new(PathBuf::from("/proc/no-maps-here")).unwrap()
    }

    #[test]
    fn without_maps_a_scrape_says_so_and_still_tells_what_the_agent_knows() {
        let metrics = metrics();
        let hooks = |state: &str| BTreeMap::from([("to-pod".to_owned(), state.to_owned())]);
        metrics.set_state(Arc::new(State {
            version: "9.9".into(),
            endpoints: vec![
                EndpointState { hooks: hooks("attached"), ..EndpointState::default() },
                EndpointState { hooks: hooks("not-first"), ..EndpointState::default() },
            ],
            problems: vec![ProblemState::default(); 3],
            source: SourceState { errors: vec!["x".into()], ..SourceState::default() },
            ..State::default()
        }));
        metrics.observe_programming(Duration::from_millis(3));
        metrics.set_success(UNIX_EPOCH + Duration::from_secs(1_000));
        let text = metrics.render().unwrap();
        for line in [
            "portcullis_scrape_errors_total 1",
            "portcullis_programs_expected 4",
            "portcullis_programs_attached 1",
            "portcullis_problems 3",
            "portcullis_source_errors 1",
            "portcullis_programming_seconds_bucket{le=\"0.0025\"} 0",
            "portcullis_programming_seconds_bucket{le=\"0.005\"} 1",
            "portcullis_last_success_timestamp_seconds 1000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("portcullis_revision"), "nothing is made up where the maps cannot be read");
        assert!(metrics.render().unwrap().contains("portcullis_scrape_errors_total 2"));
    }

    #[test]
    fn every_metric_begins_with_the_name_and_says_what_it_is() {
        let text = metrics().render().unwrap();
        for line in text.lines().filter(|line| line.starts_with("# HELP ")) {
            assert!(line.starts_with("# HELP portcullis_"), "{line}");
        }
    }
}
