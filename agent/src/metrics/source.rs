//! What can be seen of the Kubernetes source, taken when somebody asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts};

use super::collector::Family;
use crate::sources::kubernetes::KubernetesWatch;

const KIND: &[&str] = &["kind"];

const AGE: Family = Family {
    name: "portcullis_source_age_seconds",
    counter: false,
    labels: KIND,
    help: "How long ago the API server last sent something about a kind, if only a bookmark, which comes about once a \
           minute; before the first time, how long it is waited for",
};
const OBJECTS: Family = Family {
    name: "portcullis_source_objects",
    counter: false,
    labels: KIND,
    help: "Objects of a kind that are in force",
};
const UNCLEAR: Family = Family {
    name: "portcullis_source_unclear_objects",
    counter: false,
    labels: KIND,
    help: "Objects of a kind of which something is not understood",
};
const LISTS: Family = Family {
    name: "portcullis_source_lists_total",
    counter: true,
    labels: KIND,
    help: "How often a kind was listed from the beginning",
};
const ERRORS: Family = Family {
    name: "portcullis_source_failures_total",
    counter: true,
    labels: KIND,
    help: "Requests about a kind that failed, and were tried again",
};

/// Every family that is there while the source is the Kubernetes API.
pub const SOURCE_FAMILIES: &[Family] = &[AGE, OBJECTS, UNCLEAR, LISTS, ERRORS];

/// Collects them.
pub(super) struct SourceCollector {
    source: KubernetesWatch,
    descriptions: Vec<Desc>,
}

impl SourceCollector {
    /// Of a source.
    pub fn new(source: KubernetesWatch) -> Result<Self, prometheus::Error> {
        let description = |family: &Family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels,
                std::collections::HashMap::new(),
            )
        };
        let descriptions = SOURCE_FAMILIES.iter().map(description).collect::<Result<_, _>>()?;
        Ok(Self { source, descriptions })
    }

    fn gather(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let gauge = |family: &Family| GaugeVec::new(Opts::new(family.name, family.help), family.labels);
        let counter =
            |family: &Family| IntCounterVec::new(Opts::new(family.name, family.help), family.labels);
        let (age, objects, unclear) = (gauge(&AGE)?, gauge(&OBJECTS)?, gauge(&UNCLEAR)?);
        let (lists, errors) = (counter(&LISTS)?, counter(&ERRORS)?);
        for (kind, since) in self.source.ages() {
            age.with_label_values(&[kind]).set(since.as_secs_f64());
        }
        for (kind, status) in self.source.status().kinds {
            // Counts of objects are far below what a float holds exactly.
            let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            objects.with_label_values(&[kind]).set(number(status.objects));
            unclear.with_label_values(&[kind]).set(number(status.unclear));
            lists.with_label_values(&[kind]).inc_by(status.lists);
            errors.with_label_values(&[kind]).inc_by(status.errors);
        }
        let collectors: [&dyn Collector; 5] = [&age, &objects, &unclear, &lists, &errors];
        Ok(collectors.iter().flat_map(|collector| collector.collect()).collect())
    }
}

impl Collector for SourceCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The names and labels are constants that the tests read.
        self.gather().unwrap_or_default()
    }
}
