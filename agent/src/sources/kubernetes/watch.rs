//! Follows one kind: lists it, watches it, and begins again where that is needed, with growing and uneven pauses after
//! failures. A pause ends early when another kind is answered again: the kinds come back together.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::sync::watch::Receiver;

use super::discovery;
use super::item::{Decoded, Id, Item};
use super::kinds::Kind;
use crate::kubernetes::Contacts;

/// How many objects a list asks for at a time.
const PAGE: u32 = 500;
/// A kind that had objects is believed to be gone after so many answers that say so: its policies end with it.
const GONE: u32 = 3;
/// After so many refusals to go on watching from where it was, everything is listed again.
const REFUSALS: u32 = 3;
/// The longest time that a server's wish to be left alone is followed.
const LONGEST_QUIET: Duration = Duration::from_secs(60);

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After the first failure; doubled with each further one, and up to as much again is added by chance.
    pub first_retry: Duration,
    /// At most, before what is added by chance.
    pub longest_retry: Duration,
    /// Until a kind that was missing is looked for again.
    pub look_again: Duration,
    /// How long the server may be silent before that is reported.
    pub patience: Duration,
    /// For how long a watch that goes on from where it was must bring nothing new to have caught up: nothing says so.
    pub settle: Duration,
    /// For how long the kinds that are back after an outage wait for those that are not.
    pub together: Duration,
}

impl Default for Pace {
    /// The retries are those of Kubernetes' own clients.
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(800),
            longest_retry: Duration::from_secs(30),
            look_again: Duration::from_secs(30),
            patience: Duration::from_secs(10),
            settle: Duration::from_millis(500),
            together: Duration::from_secs(30),
        }
    }
}

/// What follows a kind.
pub(super) struct Task {
    /// The kind's place in the table.
    pub kind: usize,
    /// The connection.
    pub client: Client,
    /// Our own namespace.
    pub namespace: String,
    /// What is known about the server.
    pub contacts: Contacts,
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
    /// How long is waited.
    pub pace: Pace,
}

/// News of a kind.
#[derive(Debug)]
pub(super) struct Report {
    /// The kind's place in the table.
    pub kind: usize,
    /// When it came.
    pub at: Instant,
    /// What it is.
    pub news: News,
}

/// See [`Report`].
#[derive(Debug)]
pub(super) enum News {
    /// A list begins.
    Begun,
    /// The list has this object.
    Seen(Id, Decoded),
    /// The list is complete.
    Listed,
    /// An object is there, or has changed.
    Changed(Id, Decoded),
    /// An object is gone.
    Gone(Id),
    /// The server does not have the kind.
    Missing,
    /// What is known is too old to go on from: a list will come.
    Expired,
    /// Something failed; it will be tried again.
    Failed(Failure),
}

/// What failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The sort.
    pub cause: Cause,
    /// What was said.
    pub message: String,
}

/// The sort of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Our role lacks a rule.
    Forbidden,
    /// We are not known to the server.
    Unauthorized,
    /// The server does not have the kind.
    Missing,
    /// The state that we know is too old to go on from. Not a failure of anybody.
    Expired,
    /// The server's answer cannot be read.
    Unreadable,
    /// The server refused for another reason.
    Refused,
    /// There was no answer.
    Silent,
}

/// Follows a kind until nobody listens any more.
pub(super) async fn follow<K: Kind>(task: Task) {
    // The receiver is gone: the source ends.
    let _ = follow_until_closed::<K>(&task).await;
}

async fn follow_until_closed<K: Kind>(task: &Task) -> Result<(), mpsc::error::SendError<Report>> {
    let about = K::ABOUT;
    let send = |news| task.reports.send(Report { kind: task.kind, at: Instant::now(), news });
    let mut config = watcher::Config::default().page_size(PAGE);
    let api: Api<Item<K>> = match about.own {
        Some(name) => {
            config = config.fields(&format!("metadata.name={name}"));
            Api::namespaced_with(task.client.clone(), &task.namespace, &())
        }
        None => Api::all_with(task.client.clone(), &()),
    };
    let mut waits = Waits::new(task, about.plural);
    let mut missing = 0;
    let mut had_objects = false;
    loop {
        // From the beginning, with a list.
        let mut stream = pin!(watcher(api.clone(), config.clone()));
        let mut refusals = 0;
        while let Some(event) = stream.next().await {
            let error = match event {
                Ok(event) => {
                    let news = match event {
                        Event::Init => News::Begun,
                        Event::InitApply(item) => News::Seen(item.id(), item.decoded),
                        Event::InitDone => News::Listed,
                        Event::Apply(item) => News::Changed(item.id(), item.decoded),
                        Event::Delete(item) => News::Gone(item.id()),
                    };
                    if !matches!(news, News::Begun) {
                        (missing, refusals) = (0, 0);
                    }
                    had_objects |= matches!(news, News::Seen(..) | News::Changed(..));
                    send(news).await?;
                    continue;
                }
                Err(error) => error,
            };
            let failure = judge(&error);
            if failure.cause != Cause::Missing || !about.optional {
                task.contacts.lose(about.plural);
            }
            let at_start = matches!(error, watcher::Error::WatchStartFailed(_));
            refusals += u32::from(at_start && failure.cause != Cause::Silent);
            let again = match failure.cause {
                Cause::Missing if about.optional => {
                    match discovery::confirm_absence(&task.client, &about).await {
                        Ok(()) => {
                            task.contacts.confirm_missing(about.plural);
                            missing += 1;
                            if missing >= GONE || !had_objects {
                                had_objects = false;
                                send(News::Missing).await?;
                                waits.pause(uneven(task.pace.look_again), task.pace.first_retry).await;
                                break;
                            }
                            true
                        }
                        Err(reason) => {
                            task.contacts.lose(about.plural);
                            missing = 0;
                            let message = format!("{}, which is not believed: {reason}", failure.message);
                            send(News::Failed(Failure { cause: Cause::Refused, message })).await?;
                            refusals >= REFUSALS
                        }
                    }
                }
                // The watcher begins again by itself where it was told so during a watch.
                Cause::Expired => {
                    send(News::Expired).await?;
                    at_start
                }
                cause => {
                    send(News::Failed(failure)).await?;
                    matches!(cause, Cause::Unreadable | Cause::Missing) || refusals >= REFUSALS
                }
            };
            let quiet = task.contacts.quiet(about.plural).min(LONGEST_QUIET);
            let pause = waits.backoff.next().max(quiet);
            if waits.pause(pause, task.pace.first_retry.max(quiet)).await {
                waits.backoff.restart();
            }
            if again {
                break;
            }
        }
    }
}

fn judge(error: &watcher::Error) -> Failure {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let of_status = |status: &kube::core::Status| {
        let cause = match status.code {
            401 => Cause::Unauthorized,
            403 => Cause::Forbidden,
            404 => Cause::Missing,
            410 => Cause::Expired,
            _ => Cause::Refused,
        };
        let message = if status.message.is_empty() { &status.reason } else { &status.message };
        Failure { cause, message: format!("{message} ({})", status.code) }
    };
    match error {
        WatchError(status) => of_status(status),
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => match error {
            kube::Error::Api(status) => of_status(status),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
                Failure { cause: Cause::Unreadable, message: chain(error) }
            }
            _ => Failure { cause: Cause::Silent, message: chain(error) },
        },
        NoResourceVersion => Failure { cause: Cause::Unreadable, message: error.to_string() },
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// How long to wait, and what ends a wait early.
struct Waits<'a> {
    backoff: Backoff,
    contacts: &'a Contacts,
    plural: &'static str,
    returns: Receiver<u64>,
    /// How often another kind had come back when the last pause ended.
    seen: u64,
}

impl<'a> Waits<'a> {
    fn new(task: &'a Task, plural: &'static str) -> Self {
        let (contacts, returns) = (&task.contacts, task.contacts.returns());
        Self { backoff: Backoff::new(task.pace), contacts, plural, returns, seen: 0 }
    }

    /// Waits as long as that; less, but not less than `least`, if another kind came back since the last pause. Whether
    /// one did.
    async fn pause(&mut self, pause: Duration, least: Duration) -> bool {
        let end = tokio::time::Instant::now() + pause;
        tokio::time::sleep(least.min(pause)).await;
        let Self { contacts, plural, seen, .. } = *self;
        let others = |returns: u64| returns.saturating_sub(contacts.returns_of(plural));
        let came_back = tokio::select! {
            biased;
            Ok(_) = self.returns.wait_for(|returns| others(*returns) > seen) => true,
            () = tokio::time::sleep_until(end) => false,
        };
        self.seen = others(*self.returns.borrow());
        came_back
    }
}

/// Growing pauses that grow no more when nothing has failed for a while.
struct Backoff {
    pace: Pace,
    delay: Duration,
    last: Option<Instant>,
}

impl Backoff {
    fn new(pace: Pace) -> Self {
        Self { pace, delay: pace.first_retry, last: None }
    }

    /// The next pause is a short one.
    fn restart(&mut self) {
        self.last = None;
    }

    fn next(&mut self) -> Duration {
        let Pace { first_retry, longest_retry, .. } = self.pace;
        if self.last.is_none_or(|last| last.elapsed() > longest_retry * 4) {
            self.delay = first_retry;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(longest_retry);
        self.last = Some(Instant::now());
        uneven(delay)
    }
}

/// A duration with up to as much again, by chance: many nodes must not ask at the same moment.
fn uneven(duration: Duration) -> Duration {
    // A fresh hasher has random keys, so what it makes of nothing is random.
    let chance = RandomState::new().build_hasher().finish() % 1000;
    duration + duration * u32::try_from(chance).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit_and_are_never_shorter_than_they_should_be() {
        let pace = Pace {
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(5),
            ..Pace::default()
        };
        let mut backoff = Backoff::new(pace);
        for expected in [1, 2, 4, 5, 5] {
            let expected = Duration::from_secs(expected);
            let pause = backoff.next();
            assert!(pause >= expected && pause < expected * 2, "{pause:?} {expected:?}");
        }
    }

    #[test]
    fn pauses_are_short_again_after_a_long_time_without_failure() {
        let mut backoff = Backoff::new(Pace { longest_retry: Duration::ZERO, ..Pace::default() });
        backoff.delay = Duration::from_secs(100);
        backoff.last = Instant::now().checked_sub(Duration::from_secs(1));
        assert!(backoff.next() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_pause_ends_when_another_kind_is_back_and_not_for_the_kind_s_own_sake() {
        let contacts = Contacts::new(["pods", "nodes"]);
        let come_back = |plural| {
            contacts.lose(plural);
            contacts.confirm_missing(plural);
        };
        let returns = contacts.returns();
        let backoff = Backoff::new(Pace::default());
        let mut waits = Waits { backoff, contacts: &contacts, plural: "pods", returns, seen: 0 };
        let hour = Duration::from_secs(3600);
        come_back("pods");
        assert!(!waits.pause(Duration::ZERO, Duration::ZERO).await);
        // Also one that was back while a request of this kind was still on its way to nowhere.
        come_back("nodes");
        assert!(waits.pause(hour, Duration::ZERO).await);
        assert!(!waits.pause(Duration::ZERO, Duration::ZERO).await, "once for each return");
        let (woken, ()) = tokio::join!(waits.pause(hour, Duration::ZERO), async { come_back("nodes") });
        assert!(woken);
    }

    #[test]
    fn what_the_server_says_tells_the_sort_of_the_failure() {
        let status = |code| kube::core::Status { code, reason: "why".to_owned(), ..Default::default() };
        for (code, cause) in [
            (401, Cause::Unauthorized),
            (403, Cause::Forbidden),
            (404, Cause::Missing),
            (410, Cause::Expired),
            (500, Cause::Refused),
        ] {
            let error = watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status(code))));
            assert_eq!(judge(&error), Failure { cause, message: format!("why ({code})") });
        }
    }
}
