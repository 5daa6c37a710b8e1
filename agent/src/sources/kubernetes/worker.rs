//! Reports of all kinds to batches: the single place that talks to the consumer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::index::{self, Index};
use super::item::{Decoded, Id};
use super::kinds::{About, Entry};
use super::outage::Outage;
use super::status::{KindStatus, KubernetesStatus};
use super::watch::{Cause, Failure, News, Pace, Report};
use crate::kubernetes::Contacts;
use crate::model::ObjectKind;
use crate::sources::{Batch, SourceEvent, SourceProblem};

/// How many reports become one batch at most. Only a first list is longer, and then nothing is programmed in between.
const MOST: usize = 1024;

/// What brings reports into batches.
pub(super) struct Worker {
    kinds: Vec<Followed>,
    server: String,
    node_name: String,
    pace: Pace,
    contacts: Contacts,
    publish: watch::Sender<KubernetesStatus>,
    problems: Vec<SourceProblem>,
    synced: bool,
    outage: Outage,
    /// What waits until all kinds are back after an outage, and when the first of it came.
    held: Vec<SourceEvent>,
    held_since: Option<Instant>,
}

/// A kind, and what is known of it.
struct Followed {
    about: &'static About,
    index: Index,
    listed: bool,
    missing: bool,
    /// Changes of a list that is not complete yet. They wait for what the list says is gone, to be one change.
    waiting: Vec<SourceEvent>,
    /// Objects that are not understood, wholly or in part, by name.
    unclear: BTreeMap<String, Vec<String>>,
    /// Those of the list that is being read.
    listing: Option<BTreeMap<String, Vec<String>>>,
    failure: Option<(Instant, Failure)>,
    lists: u64,
    errors: u64,
}

impl Worker {
    /// For the kinds of a table.
    pub fn new(
        table: &'static [Entry],
        server: String,
        node_name: String,
        pace: Pace,
        contacts: Contacts,
        publish: watch::Sender<KubernetesStatus>,
    ) -> Self {
        let kinds = table.iter().map(|entry| Followed {
            about: &entry.about,
            index: Index::new(entry.about.object),
            listed: false,
            missing: false,
            waiting: Vec::new(),
            unclear: BTreeMap::new(),
            listing: None,
            failure: None,
            lists: 0,
            errors: 0,
        });
        let worker = Self {
            kinds: kinds.collect(),
            server,
            node_name,
            pace,
            contacts,
            publish,
            problems: Vec::new(),
            synced: false,
            outage: Outage::new(table.len(), pace.settle, pace.together),
            held: Vec::new(),
            held_since: None,
        };
        // So that a kind of which nothing was heard yet is seen, too.
        worker.publish.send_replace(worker.status());
        worker
    }

    /// Works until nobody listens.
    pub async fn run(mut self, mut reports: mpsc::Receiver<Report>, batches: mpsc::Sender<Batch>) {
        let mut tick = tokio::time::interval(self.pace.patience / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news = Vec::with_capacity(MOST);
        let mut returns = self.contacts.returns();
        loop {
            tokio::select! {
                count = reports.recv_many(&mut news, MOST) => if count == 0 { return },
                // How long something has lasted is a reason to report it, and that it has passed as well.
                _ = tick.tick() => {}
                // A watch that goes on from where it was says nothing while there is nothing to say.
                Ok(()) = returns.changed() => {}
                () = tokio::time::sleep(self.pace.settle / 2), if self.outage.ends_by_time() => {}
            }
            let since = news.first().map_or_else(Instant::now, |report| report.at);
            let mut events = Vec::new();
            for report in news.drain(..) {
                self.take(report, &mut events);
            }
            if !self.synced && self.kinds.iter().all(|kind| kind.listed) {
                self.synced = true;
                tracing::info!(server = self.server, "every kind has been listed");
                events.push(SourceEvent::Synced);
            }
            let since = self.hold_or_release(&mut events, since);
            self.report_problems(&mut events);
            // Before the batch: who has received it finds its status.
            let status = self.status();
            self.publish.send_if_modified(|published| {
                let changed = *published != status;
                *published = status;
                changed
            });
            if !events.is_empty() && batches.send(Batch { since, events }).await.is_err() {
                return;
            }
        }
    }

    /// While not all kinds are back after an outage, keeps events; then gives all of them out as one change. Returns when
    /// the first of them came.
    fn hold_or_release(&mut self, events: &mut Vec<SourceEvent>, since: Instant) -> Instant {
        let held_before = self.outage.holds();
        let Self { outage, contacts, kinds, .. } = self;
        outage.look(Instant::now(), |kind| contacts.last(kinds.get(kind)?.about.plural));
        if self.outage.holds() {
            if !held_before {
                tracing::warn!(
                    server = self.server,
                    "several kinds fail; what changes waits until all are back"
                );
            }
            if !events.is_empty() {
                self.held_since.get_or_insert(since);
            }
            self.held.append(events);
            return since;
        }
        if held_before {
            tracing::info!(
                server = self.server,
                events = self.held.len() + events.len(),
                "back after an outage"
            );
        }
        self.held.append(events);
        *events = std::mem::take(&mut self.held);
        self.held_since.take().unwrap_or(since)
    }

    fn take(&mut self, Report { kind: number, at, news }: Report, events: &mut Vec<SourceEvent>) {
        let synced = self.synced;
        let Some(kind) = self.kinds.get_mut(number) else { return };
        match &news {
            News::Begun => self.outage.begin_list(number),
            News::Seen(..) => {}
            News::Changed(..) | News::Gone(_) => self.outage.bring(number, at),
            News::Listed | News::Missing => self.outage.know(number, matches!(news, News::Missing)),
            // Before the first programming there is nobody to whom things could look wrong.
            News::Failed(_) | News::Expired if !synced => {}
            News::Failed(_) => self.outage.lose(number, at, false),
            News::Expired => self.outage.lose(number, at, true),
        }
        if !matches!(news, News::Begun | News::Failed(_) | News::Expired) {
            kind.failure = None;
            kind.missing = false;
        }
        match news {
            News::Begun => {
                kind.index.begin();
                kind.listing = Some(BTreeMap::new());
                kind.lists += 1;
            }
            News::Seen(id, decoded) => {
                let Decoded { object, problems } = decoded;
                note(kind.about, &id, &problems, kind.listing.get_or_insert_default());
                // Before the first programming nobody sees what is between two changes, so nothing is held back.
                let to = if synced { &mut kind.waiting } else { events };
                kind.index.see(&id, object, to);
            }
            News::Listed => {
                events.append(&mut kind.waiting);
                kind.index.sweep(events);
                kind.unclear = kind.listing.take().unwrap_or_default();
                kind.listed = true;
                let (objects, kind) = (kind.index.len(), kind.about.kind);
                tracing::info!(kind, objects, "listed");
            }
            News::Changed(id, Decoded { object, problems }) => {
                note(kind.about, &id, &problems, &mut kind.unclear);
                kind.index.see(&id, object, events);
            }
            News::Gone(id) => {
                kind.unclear.remove(&index::show(&id.namespace, &id.name));
                kind.index.remove(&id, events);
            }
            News::Missing => {
                if !kind.listed || kind.index.len() > 0 {
                    tracing::info!(
                        kind = kind.about.kind,
                        "the server does not have this kind; looking again"
                    );
                }
                events.append(&mut kind.waiting);
                kind.index.clear(events);
                kind.unclear.clear();
                kind.listing = None;
                (kind.listed, kind.missing) = (true, true);
            }
            News::Expired => {}
            News::Failed(failure) => {
                tracing::debug!(kind = kind.about.kind, error = failure.message, "failed, and tried again");
                kind.errors += 1;
                let first = match kind.failure.take() {
                    Some((first, before)) if before.cause == failure.cause => first,
                    _ => at,
                };
                kind.failure = Some((first, failure));
            }
        }
    }

    fn report_problems(&mut self, events: &mut Vec<SourceEvent>) {
        let mut problems = Vec::new();
        let mut unclear = Vec::new();
        let mut silent: BTreeMap<String, Vec<&About>> = BTreeMap::new();
        for kind in &mut self.kinds {
            let about = kind.about;
            // A watch that begins again says nothing as long as nothing happens; its bytes do.
            let heard = self.contacts.last(about.plural);
            if kind.listed && kind.failure.as_ref().is_some_and(|(first, _)| heard > Some(*first)) {
                kind.failure = None;
            }
            match &kind.failure {
                Some((first, failure)) if kind.is_worth_telling(*first, failure, self.pace) => {
                    if failure.cause == Cause::Silent {
                        silent.entry(failure.message.clone()).or_default().push(about);
                    } else {
                        problems.push(problem_of(about, failure, kind.listed));
                    }
                }
                _ => {}
            }
            for (name, texts) in &kind.unclear {
                let problem = |text: &String| SourceProblem {
                    place: format!("{} {name}", about.kind),
                    message: text.clone(),
                };
                unclear.extend(texts.iter().map(problem));
            }
        }
        for (message, kinds) in silent {
            problems.push(self.silence(&message, &kinds));
        }
        problems.extend(self.late());
        problems.extend(self.own_node());
        problems.append(&mut unclear);
        if problems == self.problems {
            return;
        }
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(place = problem.place, "{}", problem.message);
        }
        self.problems.clone_from(&problems);
        events.push(SourceEvent::Problems(problems));
    }

    /// That the server does not answer, once for all kinds of which nothing is heard.
    fn silence(&self, message: &str, kinds: &[&About]) -> SourceProblem {
        let names: Vec<_> = kinds.iter().map(|about| about.kind).collect();
        let mut text = format!("does not answer for {}: {message}; ", names.join(", "));
        let last = kinds.iter().filter_map(|about| self.contacts.last_time(about.plural)).min();
        let _ = match last.and_then(|last| Timestamp::try_from(last).ok()) {
            Some(last) => write!(
                text,
                "last heard of at {}; what was known then stays in force, and it is tried again",
                last.strftime("%Y-%m-%dT%H:%M:%SZ")
            ),
            None => write!(text, "look at its address and at the network; it is tried again"),
        };
        SourceProblem { place: format!("API server {}", self.server), message: text }
    }

    /// That after an outage the others waited for some kinds in vain.
    fn late(&self) -> Option<SourceProblem> {
        let late = self.kinds.iter().enumerate().filter(|(number, _)| self.outage.is_late(*number));
        let names: Vec<_> = late.map(|(_, kind)| kind.about.kind).collect();
        (!names.is_empty()).then(|| SourceProblem {
            place: format!("API server {}", self.server),
            message: format!(
                "is back, but not for {} after {} s; what is new of the other kinds is in force without what is new of \
                 these, so a new pod may be without a new policy; it is tried again",
                names.join(", "),
                self.pace.together.as_secs()
            ),
        })
    }

    /// That there is no Node of our name: then this node's pods and ranges are not known to be its own.
    fn own_node(&self) -> Option<SourceProblem> {
        let nodes = self.kinds.iter().find(|kind| kind.about.object == ObjectKind::Node)?;
        (self.synced && !nodes.index.contains("", &self.node_name)).then(|| SourceProblem {
            place: format!("Node {}", self.node_name),
            message: "no Node has this name, so no pod is known to be on this node; name it as in `kubectl get nodes` \
                      with --node-name or PORTCULLIS_NODE_NAME"
                .to_owned(),
        })
    }

    fn status(&self) -> KubernetesStatus {
        let silent = self.kinds.iter().filter(|kind| {
            kind.failure.as_ref().is_some_and(|(first, failure)| {
                failure.cause == Cause::Silent && first.elapsed() >= self.pace.patience
            })
        });
        let kinds = self.kinds.iter().map(|kind| {
            let status = KindStatus {
                plural: kind.about.plural,
                listed: kind.listed,
                missing: kind.missing,
                objects: kind.index.len(),
                unclear: kind.unclear.len(),
                lists: kind.lists,
                errors: kind.errors,
            };
            (kind.about.kind, status)
        });
        KubernetesStatus {
            synced: self.synced,
            silent_since: silent.filter_map(|kind| self.contacts.last_time(kind.about.plural)).min(),
            kinds: kinds.collect(),
        }
    }
}

impl Followed {
    /// Short interruptions are normal and pass; what a person must mend does not.
    fn is_worth_telling(&self, first: Instant, failure: &Failure, pace: Pace) -> bool {
        let for_people = matches!(failure.cause, Cause::Forbidden | Cause::Unauthorized);
        !self.listed || for_people || first.elapsed() >= pace.patience
    }
}

/// Notes what is not understood of an object, or that everything is.
fn note(about: &About, id: &Id, problems: &[String], unclear: &mut BTreeMap<String, Vec<String>>) {
    let name = index::show(&id.namespace, &id.name);
    if problems.is_empty() {
        unclear.remove(&name);
        return;
    }
    let end = match about.narrow {
        Some(_) => "correct the policy, or update Portcullis if the field is new",
        None => "what was understood of the object before, if anything, stays in force",
    };
    unclear.insert(name, problems.iter().map(|problem| format!("{problem}; {end}")).collect());
}

fn problem_of(about: &About, failure: &Failure, listed: bool) -> SourceProblem {
    let message = &failure.message;
    let follows = if listed {
        "what was known stays in force, and it is tried again"
    } else {
        "nothing is enforced anew before every kind has been listed; it is tried again"
    };
    let text = match failure.cause {
        Cause::Forbidden => {
            let scope = if about.own.is_some() { "Role of the agent's namespace" } else { "ClusterRole" };
            format!("may not be read: {message}; {follows}; add to the {scope}: {}", about.rbac_rule())
        }
        Cause::Unauthorized => {
            format!(
                "the server does not know who asks: {message}; {follows}; look at the token or certificate"
            )
        }
        Cause::Missing => format!(
            "the server does not have {} of {}: {message}; {follows}; is this a Kubernetes API server?",
            about.plural,
            about.api_version()
        ),
        _ => format!("cannot be read: {message}; {follows}"),
    };
    SourceProblem { place: about.kind.to_owned(), message: text }
}
