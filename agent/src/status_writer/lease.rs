//! Which of the agents writes: the holder of a Lease.
//!
//! As other leader elections do it, a Lease is over when it was seen unchanged for its whole duration by the clock of
//! whoever looks: clocks of different machines are never compared. Every write carries the version that was read, so of
//! two that take it at once one fails. Two may still write for a moment; they write the same.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};

/// Name of the Lease.
pub const NAME: &str = "portcullis";

/// A try to hold the Lease.
#[derive(Debug)]
pub struct Election {
    api: Api<Lease>,
    /// Who we are: one agent a node, so a restarted one goes on with what it held.
    identity: String,
    duration: Duration,
    /// What somebody else's Lease looked like, and since when.
    seen: Option<(Observed, Instant)>,
}

/// What changes when a holder renews.
type Observed = (Option<String>, Option<MicroTime>, Option<i32>);

impl Election {
    /// A candidate for the Lease in a namespace.
    pub fn new(client: Client, namespace: &str, identity: &str, duration: Duration) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, identity: identity.to_owned(), duration, seen: None }
    }

    /// Takes or renews the Lease if that is possible; whether we hold it now.
    ///
    /// # Errors
    /// What the API server says, but for that another one was faster.
    pub async fn hold(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            return lost_races(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.may_take(&spec, Instant::now()) {
            return Ok(false);
        }
        let next = Lease { spec: Some(self.spec(Some(spec))), ..lease };
        lost_races(self.api.replace(NAME, &PostParams::default(), &next).await)
    }

    /// Gives the Lease back, if it is ours, so that the next one need not wait.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn release(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
        let Some(spec) = &mut lease.spec else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = None;
        lost_races(self.api.replace(NAME, &PostParams::default(), &lease).await).map(drop)
    }

    /// Whether the Lease is ours, free, or over.
    fn may_take(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let observed = (spec.holder_identity.clone(), spec.renew_time.clone(), spec.lease_transitions);
        let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = lasts.map_or(self.duration, Duration::from_secs);
        match &self.seen {
            Some((before, since)) if *before == observed => now.duration_since(*since) > lasts,
            _ => {
                self.seen = Some((observed, now));
                false
            }
        }
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let transitions = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs().max(1)).ok(),
            acquire_time: if ours { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

/// That another one was faster is no error: it holds the Lease.
fn lost_races<T>(result: kube::Result<T>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
