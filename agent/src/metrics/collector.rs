//! The collector that reads the maps when it is asked.
//!
//! A family exists once in [`FAMILIES`], with its type, labels and help; a scrape makes fresh vectors from there and
//! fills them, so nothing of an earlier scrape (a pair, a name) can linger.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use portcullis_common::abi::{Counters, Mode, endpoint_flags};
use portcullis_common::{Direction, Verdict};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts};

use super::SharedState;
use crate::datapath::inspect::PairCounters;
use crate::datapath::{DatapathError, Reader};
use crate::state::{EndpointState, State};

/// A family that the collector fills: name, whether it only grows, labels, help.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// A counter; else a gauge.
    pub counter: bool,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it is.
    pub help: &'static str,
}

const PAIR: &[&str] = &[
    "source_namespace",
    "source_service_account",
    "destination_namespace",
    "destination_service_account",
    "direction",
    "verdict",
];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, counter: true, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, counter: false, labels, help }
}

const PACKETS: Family = counter("portcullis_packets_total", PAIR, "Packets of flows between two principals");
const BYTES: Family =
    counter("portcullis_bytes_total", PAIR, "Bytes of these packets, from the link header on");
const DECISIONS: Family =
    counter("portcullis_decisions_total", PAIR, "Evaluations of policy for two principals");
const DROPS: Family =
    counter("portcullis_drops_total", &["reason", "direction"], "Dropped packets by reason");
const MISSED: Family = counter(
    "portcullis_events_missed_total",
    &[],
    "Events not sent because their budget (--event-rate) was used up",
);
const SCRAPE_ERRORS: Family =
    counter("portcullis_scrape_errors_total", &[], "Scrapes that could not read a map");
const ENDPOINTS: Family =
    gauge("portcullis_endpoints", &["state"], "Pod interfaces, by whether their pod is known");
const IDENTITIES: Family = gauge("portcullis_identities", &["kind"], "Addresses that are known exactly");
const MAP_ENTRIES: Family = gauge("portcullis_map_entries", &["map"], "Entries in use of a map");
const MAP_CAPACITY: Family = gauge("portcullis_map_capacity", &["map"], "Entries that a map can hold");
const EXPECTED: Family =
    gauge("portcullis_programs_expected", &[], "Programs that should be attached, two an endpoint");
const ATTACHED: Family =
    gauge("portcullis_programs_attached", &[], "Programs that are attached and the first on their hook");
const FOREIGN: Family = gauge(
    "portcullis_endpoints_foreign_first",
    &[],
    "Pod interfaces on which a program of others runs before ours",
);
const ONE_SIDED: Family = gauge(
    "portcullis_endpoints_one_sided",
    &[],
    "Pod interfaces with connections that were seen in one direction only",
);
const UNCOVERED: Family = gauge(
    "portcullis_pods_without_endpoint",
    &[],
    "Running pods of this node that no interface was found for, so that they are not judged",
);
const WRITES_STATUS: Family = gauge(
    "portcullis_status_leader",
    &[],
    "1 if this agent writes the status of policies; one of a cluster does",
);
const STATUS_ERROR: Family =
    gauge("portcullis_status_errors", &[], "1 while the status of policies cannot be written");
const REVISION: Family = gauge("portcullis_revision", &[], "Rises whenever an allow may have become a deny");
const MODE: Family = gauge("portcullis_mode", &["mode"], "1 for the mode that the agent set");
const OVERRIDE: Family =
    gauge("portcullis_mode_override", &["mode"], "1 for the mode that `portcullis mode` set");
const PROBLEMS: Family = gauge("portcullis_problems", &[], "Parts of policies that are not understood");
const ERRORS: Family =
    gauge("portcullis_programming_errors", &[], "What could not be programmed, and is denied");
const SOURCE_ERRORS: Family =
    gauge("portcullis_source_errors", &[], "Files or kinds that cannot be read now");
const BUILD_INFO: Family = gauge("portcullis_build_info", &["version"], "Always 1, for the version");

/// How often flow tables are read for [`ONE_SIDED`].
const ONE_SIDED_EVERY: Duration = Duration::from_secs(30);

/// Every family that the collector fills.
pub const FAMILIES: &[Family] = &[
    PACKETS,
    BYTES,
    DECISIONS,
    DROPS,
    MISSED,
    SCRAPE_ERRORS,
    ENDPOINTS,
    IDENTITIES,
    MAP_ENTRIES,
    MAP_CAPACITY,
    EXPECTED,
    ATTACHED,
    FOREIGN,
    ONE_SIDED,
    UNCOVERED,
    WRITES_STATUS,
    STATUS_ERROR,
    REVISION,
    MODE,
    OVERRIDE,
    PROBLEMS,
    ERRORS,
    SOURCE_ERRORS,
    BUILD_INFO,
];

/// Values of a scrape: family and labels to a number. Equal labels add up.
#[derive(Debug, Default)]
struct Sample(BTreeMap<&'static str, BTreeMap<Vec<String>, u64>>);

impl Sample {
    fn add(&mut self, family: &Family, labels: &[&str], value: u64) {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        *self.0.entry(family.name).or_default().entry(labels).or_default() += value;
    }

    fn families(self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let mut found = Vec::new();
        let mut values = self.0;
        for family in FAMILIES {
            let Some(values) = values.remove(family.name) else { continue };
            let options = Opts::new(family.name, family.help);
            if family.counter {
                let vector = IntCounterVec::new(options, family.labels)?;
                for (labels, value) in &values {
                    vector.get_metric_with_label_values(labels)?.inc_by(*value);
                }
                found.extend(vector.collect());
            } else {
                let vector = GaugeVec::new(options, family.labels)?;
                for (labels, value) in &values {
                    #[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floating point")]
                    vector.get_metric_with_label_values(labels)?.set(*value as f64);
                }
                found.extend(vector.collect());
            }
        }
        Ok(found)
    }
}

/// Reads the maps at every scrape.
#[derive(Debug)]
pub struct MapCollector {
    bpffs: PathBuf,
    state: SharedState,
    descriptions: Vec<Desc>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Kept once it could be opened: the maps live as long as the agent.
    reader: Option<Reader>,
    /// How many interfaces are seen in one direction only, and when that was counted.
    one_sided: Option<(Instant, u64)>,
    errors: u64,
}

impl MapCollector {
    /// A collector over the maps in `bpffs`.
    ///
    /// # Errors
    /// If a family's name is not a valid one.
    pub fn new(bpffs: PathBuf, state: SharedState) -> Result<Self, prometheus::Error> {
        let describe = |family: &Family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels,
                std::collections::HashMap::new(),
            )
        };
        let descriptions = FAMILIES.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self { bpffs, state, descriptions, inner: Mutex::default() })
    }

    fn read(&self, sample: &mut Sample, state: &State) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = match inner.reader.take() {
            Some(reader) => Ok(reader),
            None => Reader::open(&self.bpffs),
        };
        let result = reader.and_then(|reader| {
            let read = maps(&reader, state, sample)
                .and_then(|()| one_sided(&reader, &mut inner.one_sided))
                .map(|count| sample.add(&ONE_SIDED, &[], count));
            inner.reader = Some(reader);
            read
        });
        if let Err(error) = result {
            inner.errors += 1;
            tracing::debug!(%error, "a scrape could not read the maps");
        }
        sample.add(&SCRAPE_ERRORS, &[], inner.errors);
    }
}

impl Collector for MapCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let state = self.state.get();
        let mut sample = Sample::default();
        agent(&state, &mut sample);
        self.read(&mut sample, &state);
        sample.families().unwrap_or_else(|error| {
            tracing::error!(%error, "a scrape could not be put together");
            Vec::new()
        })
    }
}

/// What the agent knows without the maps.
fn agent(state: &State, sample: &mut Sample) {
    let hooks = || state.endpoints.iter().flat_map(|endpoint| endpoint.hooks.values());
    sample.add(&EXPECTED, &[], 2 * state.endpoints.len() as u64);
    // Each endpoint that has a hook map tells both hooks; what is not told is not attached.
    sample.add(&ATTACHED, &[], hooks().filter(|hook| *hook == "attached").count() as u64);
    let behind = |endpoint: &&EndpointState| endpoint.hooks.values().any(|hook| hook == "not-first");
    sample.add(&FOREIGN, &[], state.endpoints.iter().filter(behind).count() as u64);
    sample.add(&WRITES_STATUS, &[], u64::from(state.writes_status == Some(true)));
    sample.add(&STATUS_ERROR, &[], u64::from(state.status_error.is_some()));
    sample.add(&UNCOVERED, &[], state.uncovered.len() as u64);
    sample.add(&PROBLEMS, &[], state.problems.len() as u64);
    sample.add(&ERRORS, &[], state.errors.len() as u64);
    sample.add(&SOURCE_ERRORS, &[], state.source.errors.len() as u64);
    sample.add(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
}

/// What the maps say.
fn maps(reader: &Reader, state: &State, sample: &mut Sample) -> Result<(), DatapathError> {
    for found in reader.counters()? {
        pair(&found, state, sample);
    }
    for (reason, direction, packets) in reader.drops()? {
        sample.add(&DROPS, &[reason.name(), direction.name()], packets);
    }
    sample.add(&MISSED, &[], reader.missed_events()?);
    let (mut known, mut unknown) = (0, 0);
    for (_, endpoint) in reader.endpoints()? {
        let counter = if endpoint.flags & endpoint_flags::KNOWN == 0 { &mut unknown } else { &mut known };
        *counter += 1;
    }
    sample.add(&ENDPOINTS, &["known"], known);
    sample.add(&ENDPOINTS, &["unknown"], unknown);
    let census = reader.census()?;
    for (kind, count) in census.identities {
        sample.add(&IDENTITIES, &[kind.name()], count);
    }
    for usage in census.usage {
        sample.add(&MAP_ENTRIES, &[usage.map], usage.entries);
        sample.add(&MAP_CAPACITY, &[usage.map], usage.capacity);
    }
    sample.add(&REVISION, &[], u64::from(reader.revision()?));
    let (agent, forced) = reader.modes()?;
    for mode in [Mode::Enforce, Mode::Audit, Mode::Off] {
        sample.add(&MODE, &[mode.name()], u64::from(agent == Some(mode)));
        sample.add(&OVERRIDE, &[mode.name()], u64::from(forced == Some(mode)));
    }
    Ok(())
}

/// Counts the interfaces that are seen in one direction only: all flow tables are read for it, so not at every scrape.
fn one_sided(reader: &Reader, last: &mut Option<(Instant, u64)>) -> Result<u64, DatapathError> {
    if let Some((at, count)) = last
        && at.elapsed() < ONE_SIDED_EVERY
    {
        return Ok(*count);
    }
    let count = reader.one_sided()?.len() as u64;
    *last = Some((Instant::now(), count));
    Ok(count)
}

/// Namespace and service account of a principal; reserved ones have no namespace.
fn principal(number: Option<u32>, state: &State) -> (String, String) {
    let Some(number) = number else { return (String::new(), "other".to_owned()) };
    let name = state.principal(number);
    match name.split_once('/') {
        Some((namespace, account)) => (namespace.to_owned(), account.to_owned()),
        None => (String::new(), name),
    }
}

/// The counters of a pair; verdicts that never occurred are left out.
fn pair(found: &PairCounters, state: &State, sample: &mut Sample) {
    let PairCounters { pair, counters: Counters { packets, bytes, decisions } } = found;
    let (source_namespace, source) = principal(pair.map(|pair| pair.source), state);
    let (destination_namespace, destination) = principal(pair.map(|pair| pair.destination), state);
    let direction = pair.and_then(|pair| Direction::from_number(u8::try_from(pair.direction).ok()?));
    let direction = direction.map_or("", Direction::name);
    for &verdict in Verdict::ALL {
        let labels =
            [&source_namespace, &source, &destination_namespace, &destination, direction, verdict.name()];
        for (family, values) in [(&PACKETS, packets), (&BYTES, bytes), (&DECISIONS, decisions)] {
            let value = values[verdict as usize];
            if value > 0 {
                sample.add(family, &labels, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::abi::PairKey;

    fn text(sample: Sample) -> String {
        prometheus::TextEncoder::new().encode_to_string(&sample.families().unwrap()).unwrap()
    }

    #[test]
    fn a_pair_is_labelled_by_namespace_and_account_and_a_reserved_principal_by_its_name() {
        let state = State { principals: BTreeMap::from([(16, "shop/web".to_owned())]), ..State::default() };
        let counters = Counters { packets: [5, 0, 0], bytes: [500, 0, 0], decisions: [1, 2, 0] };
        let mut sample = Sample::default();
        pair(
            &PairCounters { pair: Some(PairKey { source: 16, destination: 4, direction: 1 }), counters },
            &state,
            &mut sample,
        );
        pair(&PairCounters { pair: None, counters }, &state, &mut sample);
        pair(
            &PairCounters { pair: Some(PairKey { source: 99, destination: 2, direction: 0 }), counters },
            &state,
            &mut sample,
        );
        let text = text(sample);
        let labels = |source: &str, destination: &str, direction: &str, verdict: &str| {
            let (sn, s) = source.split_once('/').unwrap();
            let (dn, d) = destination.split_once('/').unwrap();
            format!(
                "{{destination_namespace=\"{dn}\",destination_service_account=\"{d}\",direction=\"{direction}\",\
                 source_namespace=\"{sn}\",source_service_account=\"{s}\",verdict=\"{verdict}\"}}"
            )
        };
        for line in [
            format!("portcullis_packets_total{} 5", labels("shop/web", "/world", "egress", "allow")),
            format!("portcullis_bytes_total{} 500", labels("shop/web", "/world", "egress", "allow")),
            format!("portcullis_decisions_total{} 2", labels("shop/web", "/world", "egress", "deny")),
            format!("portcullis_packets_total{} 5", labels("/other", "/other", "", "allow")),
            format!("portcullis_packets_total{} 5", labels("/#99", "/host", "ingress", "allow")),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("audit"), "what never occurred has no series");
        assert_eq!(text.lines().filter(|line| line.contains("portcullis_packets_total{")).count(), 3);
    }

    #[test]
    fn pairs_that_share_a_name_add_up_in_one_series() {
        let state = State {
            principals: BTreeMap::from([(16, "a/b".to_owned()), (17, "a/b".to_owned())]),
            ..State::default()
        };
        let counters = Counters { packets: [0, 3, 0], ..Counters::default() };
        let mut sample = Sample::default();
        for source in [16, 17] {
            let key = PairKey { source, destination: 4, direction: 1 };
            pair(&PairCounters { pair: Some(key), counters }, &state, &mut sample);
        }
        let text = text(sample);
        let series: Vec<_> =
            text.lines().filter(|line| line.starts_with("portcullis_packets_total{")).collect();
        assert_eq!(series.len(), 1);
        assert!(series[0].ends_with(" 6"), "{}", series[0]);
    }
}
