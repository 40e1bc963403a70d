//! Leader election among replicas: who writes statuses and the webhook's registration.
//!
//! Input: a Lease of `coordination.k8s.io` that all replicas know; output: whether this one leads. The rules are those of
//! client-go: a leader renews, gives up by itself when it could not for a while, and lets go when it stops; the others
//! take over once the Lease has not changed for as long as it says, by their own clock, as clocks of nodes differ.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The name of the Lease, in pilot's own namespace.
pub const NAME: &str = "millrace-leader";

/// How long things take, as shares of how long the Lease holds: client-go's 15 s, 10 s and 2 s.
const GIVE_UP: f64 = 2.0 / 3.0;
const RETRY: f64 = 2.0 / 15.0;
/// A Lease that nobody holds runs out at once.
const RELEASED: i32 = 1;

/// A replica that wants to lead.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    duration: Duration,
    leads: watch::Sender<bool>,
    /// The Lease as it was last seen to change, and when that was.
    observed: Option<(LeaseSpec, Instant)>,
    /// When it was last renewed by this replica.
    renewed: Option<Instant>,
    /// Whether the last try failed: only the first failure is worth a warning.
    failing: bool,
}

impl Candidate {
    /// One of this name, which no other replica has. A Lease holds for `duration`.
    pub fn new(client: Client, namespace: &str, identity: String, duration: Duration) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            duration,
            leads: watch::Sender::new(false),
            observed: None,
            renewed: None,
            failing: false,
        }
    }

    /// Whether this replica leads.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Takes part until stopped, and lets go then.
    pub async fn run(mut self, stop: CancellationToken) {
        let retry = self.duration.mul_f64(RETRY);
        loop {
            // A write that hangs must not keep a leader that others have replaced.
            let limit = self.duration.mul_f64(GIVE_UP);
            let took = match tokio::time::timeout(limit, self.try_lead()).await {
                Ok(Ok(leads)) => Some(leads),
                Ok(Err(error)) if !self.failing => {
                    tracing::warn!(%error, "the leader's lease cannot be held");
                    None
                }
                _ => None,
            };
            self.failing = took.is_none();
            let overdue = |renewed: Instant| renewed.elapsed() >= limit;
            match took {
                Some(leads) => self.set(leads),
                None if self.renewed.is_none_or(overdue) => self.set(false),
                None => {}
            }
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(retry) => {}
            }
        }
        let led = *self.leads.borrow();
        self.set(false);
        if led && let Err(error) = self.release().await {
            tracing::debug!(%error, "the leader's lease is left to run out");
        }
    }

    fn set(&mut self, leads: bool) {
        if !leads {
            self.renewed = None;
        }
        let changed = self.leads.send_if_modified(|known| {
            let differs = *known != leads;
            *known = leads;
            differs
        });
        if changed {
            tracing::info!(identity = self.identity, leads, "leader election");
        }
    }

    /// Takes or renews the Lease if that is possible, and says whether it is this replica's now.
    async fn try_lead(&mut self) -> Result<bool, Error> {
        let asked = Instant::now();
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.claim(None)),
            };
            let made = self.api.create(&PostParams::default(), &lease).await;
            return self.settle(made, asked);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.is_free(&spec) {
            return Ok(false);
        }
        lease.spec = Some(self.claim(Some(&spec)));
        let written = self.api.replace(NAME, &PostParams::default(), &lease).await;
        self.settle(written, asked)
    }

    /// Whether the Lease is nobody's, this replica's already, or has run out.
    fn is_free(&mut self, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let holds = spec.lease_duration_seconds.unwrap_or_default();
        let holds = Duration::from_secs(holds.try_into().unwrap_or_default());
        let since = match &self.observed {
            Some((seen, since)) if seen == spec => *since,
            _ => {
                let now = Instant::now();
                self.observed = Some((spec.clone(), now));
                now
            }
        };
        holder.is_empty() || holder == self.identity || since.elapsed() >= holds
    }

    /// The Lease as this replica's.
    fn claim(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let own = before.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions);
        let seconds = self.duration.as_secs().max(1);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(seconds.try_into().unwrap_or(i32::MAX)),
            acquire_time: own
                .and_then(|spec| spec.acquire_time.clone())
                .or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: match (before, own) {
                (Some(_), None) => Some(transitions.unwrap_or_default() + 1),
                _ => transitions.or(Some(0)),
            },
            ..LeaseSpec::default()
        }
    }

    /// What a write came to: somebody else may have been faster.
    fn settle(&mut self, written: Result<Lease, Error>, asked: Instant) -> Result<bool, Error> {
        match written {
            Ok(_) => {
                self.renewed = Some(asked);
                Ok(true)
            }
            Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets go, so that nobody needs to wait.
    async fn release(&self) -> Result<(), Error> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(RELEASED);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.api
            .replace(NAME, &PostParams::default(), &lease)
            .await
            .map(drop)
    }
}
