//! Writes into the status of our policies whether they are understood, so that `kubectl get` tells it.
//!
//! One agent of the cluster writes, the holder of a Lease ([`lease`]). Invariants: nothing here touches what is enforced,
//! and what cannot be written is said and tried again; a status is written only when it changes.

mod condition;
mod lease;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::api;
use crate::model::{ObjectKey, ObjectKind};
pub use condition::Verdict;
use lease::Election;

/// What became of each policy of our own kinds.
pub type Verdicts = BTreeMap<ObjectKey, Verdict>;

/// When things happen.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a Lease lasts that is not renewed; it is renewed three times as often.
    pub lease: Duration,
    /// After what failed.
    pub retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        // Nobody waits for a status: a slow pace spares the API server of a large cluster, where every agent looks.
        Self { lease: Duration::from_secs(60), retry: Duration::from_secs(20) }
    }
}

/// Who writes where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the Lease.
    pub namespace: String,
    /// Name of this node: tells its agent from others.
    pub node: String,
    /// When things happen.
    pub pace: Pace,
}

/// How the writer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterState {
    /// Whether this agent holds the Lease.
    pub leading: bool,
    /// What cannot be done at present.
    pub error: Option<String>,
}

/// A running writer. It ends when this is dropped, and gives the Lease back.
#[derive(Debug)]
pub struct StatusWriter {
    state: watch::Receiver<WriterState>,
    stop: Option<watch::Sender<()>>,
    ended: std_mpsc::Receiver<()>,
}

/// How long the end may take: giving the Lease back is a courtesy.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why there is no writer.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// No thread or no runtime.
    #[error("no thread for the status of policies: {0}")]
    Thread(std::io::Error),
}

impl StatusWriter {
    /// Starts to write the verdicts, once this agent holds the Lease. `client` is called on the writer's own runtime.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(
        client: impl FnOnce() -> Result<Client, String> + Send + 'static,
        options: Options,
        verdicts: watch::Receiver<Arc<Verdicts>>,
    ) -> Result<Self, WriterError> {
        let (publish, state) = watch::channel(WriterState::default());
        let (stop, mut stopped) = watch::channel(());
        let (farewell, ended) = std_mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(WriterError::Thread)?;
        let work = move || {
            runtime.block_on(async {
                let client = match client() {
                    Ok(client) => client,
                    Err(error) => {
                        warn!(error, "the status of policies is not written");
                        publish.send_replace(WriterState { leading: false, error: Some(error) });
                        return;
                    }
                };
                let mut writer = Writer::new(client, &options, verdicts, publish);
                tokio::select! {
                    () = writer.run() => {}
                    _ = stopped.changed() => {}
                }
                // Whoever ended it: the agent, or that nobody sends verdicts any more, whichever was seen first.
                if writer.leading()
                    && let Err(error) = writer.election.release().await
                {
                    debug!(%error, "the Lease was not given back");
                }
            });
            // Nobody may wait for it any more.
            let _ = farewell.send(());
        };
        std::thread::Builder::new().name("status".to_owned()).spawn(work).map_err(WriterError::Thread)?;
        Ok(Self { state, stop: Some(stop), ended })
    }

    /// How the writer is, now and after each change.
    pub fn state(&self) -> watch::Receiver<WriterState> {
        self.state.clone()
    }
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        // The other end sees that there is no sender any more.
        drop(self.stop.take());
        // The lease lasts until it is over where that takes too long.
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

struct Writer {
    election: Election,
    client: Client,
    /// Our kinds as the API has them.
    kinds: [(ObjectKind, ApiResource); 2],
    pace: Pace,
    verdicts: watch::Receiver<Arc<Verdicts>>,
    /// What the API server has, as far as we know; nothing is known when we begin to lead.
    written: Verdicts,
    state: watch::Sender<WriterState>,
    /// Spreads the candidates over time.
    spread: u32,
}

impl Writer {
    fn new(
        client: Client,
        options: &Options,
        verdicts: watch::Receiver<Arc<Verdicts>>,
        state: watch::Sender<WriterState>,
    ) -> Self {
        let kind = |kind: ObjectKind, plural| {
            let named = GroupVersionKind::gvk(api::GROUP, "v1alpha1", kind.name());
            (kind, ApiResource::from_gvk_with_plural(&named, plural))
        };
        let kinds = [
            kind(ObjectKind::IdentityPolicy, "identitypolicies"),
            kind(ObjectKind::ClusterIdentityPolicy, "clusteridentitypolicies"),
        ];
        let hash = |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte));
        Self {
            election: Election::new(client.clone(), &options.namespace, &options.node, options.pace.lease),
            client,
            kinds,
            pace: options.pace,
            verdicts,
            written: Verdicts::new(),
            state,
            spread: options.node.bytes().fold(7, hash) % 1000,
        }
    }

    fn leading(&self) -> bool {
        self.state.borrow().leading
    }

    /// Campaigns and writes, for ever; it ends when nobody sends verdicts any more.
    async fn run(&mut self) {
        // Nothing is said about policies before something is known about them.
        if self.verdicts.changed().await.is_err() {
            return;
        }
        loop {
            let held = self.election.hold().await;
            let leading = matches!(held, Ok(true));
            if leading != self.leading() {
                info!(
                    leading,
                    "this agent {} the status of policies",
                    if leading { "writes" } else { "leaves" }
                );
                self.written.clear();
            }
            let result = match held {
                Ok(true) => self.write().await,
                Ok(false) => Ok(()),
                Err(error) => Err(explain("the Lease portcullis cannot be had", &error)),
            };
            let error = result.err();
            let failed = error.is_some();
            self.say(WriterState { leading, error });
            if !leading {
                // A candidate looks rarely, and not when all others do.
                let pause = if failed { self.pace.retry } else { self.pace.lease };
                sleep(pause + pause * self.spread / 1000).await;
                continue;
            }
            let renew = Instant::now() + self.pace.lease / 3;
            let retry = Instant::now() + self.pace.retry;
            loop {
                tokio::select! {
                    () = sleep_until(renew) => break,
                    () = sleep_until(retry), if failed => break,
                    changed = self.verdicts.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        if let Err(error) = self.write().await {
                            self.say(WriterState { leading, error: Some(error) });
                            break;
                        }
                        self.say(WriterState { leading, error: None });
                    }
                }
            }
        }
    }

    fn say(&self, state: WriterState) {
        if state.error != self.state.borrow().error
            && let Some(error) = &state.error
        {
            warn!(error, "the status of policies is not written now; what is enforced is not touched by it");
        }
        self.state.send_if_modified(|before| {
            let changed = *before != state;
            *before = state;
            changed
        });
    }

    /// Writes what is not written yet. What fails does not keep the rest from being written.
    async fn write(&mut self) -> Result<(), String> {
        let verdicts = Arc::clone(&self.verdicts.borrow_and_update());
        self.written.retain(|key, _| verdicts.contains_key(key));
        let mut failures = Vec::new();
        for kind in self.kinds.clone() {
            let due: Verdicts = verdicts
                .iter()
                .filter(|(key, verdict)| key.kind == kind.0 && self.written.get(*key) != Some(verdict))
                .map(|(key, verdict)| (key.clone(), verdict.clone()))
                .collect();
            self.write_kind(&kind, &due, &mut failures).await;
        }
        match failures.first() {
            None => Ok(()),
            Some(first) if failures.len() == 1 => Err(first.clone()),
            Some(first) => Err(format!("{first} (and {} more)", failures.len() - 1)),
        }
    }

    /// Writes what is due of a kind.
    async fn write_kind(
        &mut self,
        (kind, resource): &(ObjectKind, ApiResource),
        due: &Verdicts,
        failures: &mut Vec<String>,
    ) {
        if due.len() <= 10 {
            for (key, verdict) in due {
                match self.policies(resource, &key.namespace).get_opt(&key.name).await {
                    Ok(Some(object)) => {
                        if let Err(error) = self.bring(resource, key, verdict, &object).await {
                            failures.push(error);
                        }
                    }
                    // It has gone meanwhile.
                    Ok(None) => {}
                    Err(error) => failures.push(explain("a policy cannot be read for its status", &error)),
                }
            }
            return;
        }
        // At the beginning nearly all are as they should be, so that one list spares a request each.
        let mut page = ListParams::default().limit(500);
        loop {
            let list = match self.policies(resource, "").list(&page).await {
                Ok(list) => list,
                Err(error) => {
                    return failures.push(explain("policies cannot be listed for their status", &error));
                }
            };
            for object in list.items {
                let ObjectMeta { namespace, name, .. } = object.metadata.clone();
                let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
                let key = ObjectKey { kind: *kind, namespace, name };
                if let Some(verdict) = due.get(&key)
                    && let Err(error) = self.bring(resource, &key, verdict, &object).await
                {
                    failures.push(error);
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return,
            }
        }
    }

    /// The policies of a kind: in a namespace, or (without one) all of them, which is where those of the cluster are.
    fn policies(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        }
    }

    /// Brings the status of a policy to the verdict.
    async fn bring(
        &mut self,
        resource: &ApiResource,
        key: &ObjectKey,
        verdict: &Verdict,
        object: &DynamicObject,
    ) -> Result<(), String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("the status of {key} cannot be written: {error}");
        let value = serde_json::to_value(object).map_err(|error| failed(&error))?;
        if let Some(patch) = verdict.patch(&value, Timestamp::now()) {
            let policies = self.policies(resource, &key.namespace);
            let patched =
                policies.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            match patched {
                Ok(_) => {}
                // Changed meanwhile: looked at again with the next verdicts, or when the Lease is renewed.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
                Err(error) => {
                    let about = failed(&"");
                    return Err(explain(about.trim_end_matches([':', ' ']), &error));
                }
            }
        } else if value["metadata"]["generation"].as_i64().unwrap_or_default() != verdict.generation {
            return Ok(());
        }
        self.written.insert(key.clone(), verdict.clone());
        Ok(())
    }
}

/// An error with what to do about it.
fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "{what}: {}; the ClusterRole and the Role `portcullis` of deploy/portcullis.yaml have the rules that it \
             takes",
            status.message
        ),
        _ => format!("{what}: {error}"),
    }
}

#[cfg(test)]
mod tests;
