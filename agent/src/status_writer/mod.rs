//! Writes into the status of our policies whether they are understood, so that `kubectl get` tells it.
//!
//! One agent of the cluster writes, the holder of a Lease ([`lease`]). Invariants: nothing here touches what is enforced,
//! and what cannot be written is said and tried again; a status is written only when it changes.

mod condition;
mod lease;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::api;
pub use condition::Verdict;
use lease::Election;

/// What became of each IdentityPolicy, by namespace and name.
pub type Verdicts = BTreeMap<(String, String), Verdict>;

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
                    _ = stopped.changed() => {
                        if writer.leading()
                            && let Err(error) = writer.election.release().await
                        {
                            debug!(%error, "the Lease was not given back");
                        }
                    }
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
    policies: Api<DynamicObject>,
    client: Client,
    resource: ApiResource,
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
        let kind = GroupVersionKind::gvk(api::GROUP, "v1alpha1", "IdentityPolicy");
        let resource = ApiResource::from_gvk_with_plural(&kind, "identitypolicies");
        let hash = |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte));
        Self {
            election: Election::new(client.clone(), &options.namespace, &options.node, options.pace.lease),
            policies: Api::all_with(client.clone(), &resource),
            client,
            resource,
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
        let due: BTreeSet<&(String, String)> = verdicts
            .iter()
            .filter(|(key, verdict)| self.written.get(*key) != Some(verdict))
            .map(|(key, _)| key)
            .collect();
        let mut failures = Vec::new();
        if due.len() > 10 {
            // At the beginning nearly all are as they should be, so that one list spares a request each.
            let mut page = ListParams::default().limit(500);
            loop {
                let list = self
                    .policies
                    .list(&page)
                    .await
                    .map_err(|error| explain("policies cannot be listed for their status", &error))?;
                for object in list.items {
                    let meta = &object.metadata;
                    let key =
                        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
                    if due.contains(&key)
                        && let Some(verdict) = verdicts.get(&key)
                        && let Err(error) = self.bring(&key, verdict, &object).await
                    {
                        failures.push(error);
                    }
                }
                match list.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => page = page.continue_token(&token),
                    None => break,
                }
            }
        } else {
            for key in due {
                let Some(verdict) = verdicts.get(key) else { continue };
                let policies: Api<DynamicObject> =
                    Api::namespaced_with(self.client.clone(), &key.0, &self.resource);
                match policies.get_opt(&key.1).await {
                    Ok(Some(object)) => {
                        if let Err(error) = self.bring(key, verdict, &object).await {
                            failures.push(error);
                        }
                    }
                    // It has gone meanwhile.
                    Ok(None) => {}
                    Err(error) => failures.push(explain("a policy cannot be read for its status", &error)),
                }
            }
        }
        match failures.first() {
            None => Ok(()),
            Some(first) if failures.len() == 1 => Err(first.clone()),
            Some(first) => Err(format!("{first} (and {} more)", failures.len() - 1)),
        }
    }

    /// Brings the status of a policy to the verdict.
    async fn bring(
        &mut self,
        key: &(String, String),
        verdict: &Verdict,
        object: &DynamicObject,
    ) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("the status of IdentityPolicy {}/{} cannot be written: {error}", key.0, key.1)
        };
        let value = serde_json::to_value(object).map_err(|error| failed(&error))?;
        if let Some(patch) = verdict.patch(&value, Timestamp::now()) {
            let policies: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &key.0, &self.resource);
            let patched = policies.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(patch)).await;
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
