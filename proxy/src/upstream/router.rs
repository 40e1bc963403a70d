//! Forwards one request: picks a host, tries, and tries again as the route allows.
//!
//! Input: the request's head and body and what the route says. Output: the head of a response
//! with the connection it is read from, or the reason why there is none. Called by
//! `http::stream`, which bounds it by the route's timeouts.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::{Body, Incoming};

use super::attempt::{Lease, Outgoing, attempt};
use super::connect::UpstreamStream;
use super::failure::Failure;
use super::pool::Target;
use super::replay::Replay;
use crate::cluster::breaker::Resource;
use crate::cluster::host::Active;
use crate::cluster::{ClusterEntry, Host, HostId, Permit};
use crate::flags::ResponseFlags;
use crate::http::Downstream;
use crate::resource::{ClusterKind, RetryPolicy, UpstreamProtocol};
use crate::route::retry::{Outcome, RetryState};

/// `x-envoy-attempt-count`.
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// What a route says of forwarding.
pub struct Plan<'a> {
    /// The cluster.
    pub entry: Arc<ClusterEntry>,
    /// Retries.
    pub retry: Option<RetryState>,
    /// The policy they come from.
    pub policy: Option<&'a RetryPolicy>,
    /// Bound of each try.
    pub per_try: Option<Duration>,
    /// Whether the upstream is told which try it is.
    pub count_attempts: bool,
    /// Whether the endpoint's host name becomes the request's host.
    pub auto_host: bool,
}

/// What happened on the way, also where there is no response.
#[derive(Default)]
pub struct Journey {
    /// The host tried last.
    pub host: Option<Arc<Host>>,
    /// Tries.
    pub attempts: u32,
    /// Flags beyond that of the failure.
    pub flags: ResponseFlags,
}

/// A response that has begun.
pub struct Begun {
    /// Its head.
    pub response: Response<Incoming>,
    /// Where the rest comes from.
    pub lease: Lease,
    /// Counts the request at the host and the breaker until it has ended.
    pub active: (Active, Permit),
}

impl Begun {
    /// Whether the upstream changes to the protocol that was asked for, if one was.
    pub fn switched(&self, asked: bool) -> bool {
        match self.lease {
            Lease::H1(_) => self.response.status() == StatusCode::SWITCHING_PROTOCOLS,
            Lease::H2(_) => asked && self.response.status() == StatusCode::OK,
        }
    }
}

/// Tries until a response begins that is not to be repeated, or no try is left.
///
/// # Errors
/// The last try's failure.
pub async fn forward(
    downstream: &Downstream,
    plan: &mut Plan<'_>,
    head: &mut Outgoing,
    body: &Replay,
    journey: &mut Journey,
) -> Result<Begun, Failure> {
    let mut tried: Vec<HostId> = Vec::new();
    let mut _retry_permit: Option<Permit> = None;
    loop {
        journey.attempts += 1;
        if plan.count_attempts {
            let count = HeaderValue::from(journey.attempts);
            head.headers.insert(ATTEMPT_COUNT, count);
        }
        let result = one_try(downstream, plan, head, body, &tried, journey).await;
        let outcome = match &result {
            Ok(begun) => Some(response_outcome(&begun.response)),
            Err(failure) => failure.outcome(),
        };
        let Some(permit) = next_try(plan, outcome, body, journey) else {
            return result;
        };
        _retry_permit = Some(permit);
        if let Some(host) = &journey.host {
            tried.push(host.id());
        }
        drop(result);
        let backoff = plan.retry.as_ref().map(RetryState::backoff);
        if let Some(backoff) = backoff {
            tokio::time::sleep(backoff).await;
        }
    }
}

/// A permit for another try, where the outcome asks for one and everything allows it.
fn next_try(
    plan: &mut Plan<'_>,
    outcome: Option<Outcome>,
    body: &Replay,
    journey: &mut Journey,
) -> Option<Permit> {
    let retry = plan.retry.as_mut()?;
    if !retry.wants(outcome?) || !body.is_replayable() {
        return None;
    }
    if !retry.take() {
        journey
            .flags
            .insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        return None;
    }
    let permit = plan.entry.breakers().acquire(Resource::Retry);
    if permit.is_none() {
        journey.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
    }
    permit
}

async fn one_try(
    downstream: &Downstream,
    plan: &Plan<'_>,
    head: &mut Outgoing,
    body: &Replay,
    tried: &[HostId],
    journey: &mut Journey,
) -> Result<Begun, Failure> {
    let worker = &downstream.worker;
    let host = pick(downstream, plan, tried).ok_or(Failure::NoHost)?;
    journey.host = Some(host.clone());
    let permit = plan
        .entry
        .breakers()
        .acquire(Resource::Request)
        .ok_or(Failure::Overflow)?;
    if plan.auto_host
        && let Some(name) = &host.endpoint.hostname
        && let Ok(value) = HeaderValue::from_str(name)
    {
        head.authority = value;
    }
    let active = host.request();
    let target = target(downstream, plan, host);
    let h2 = match plan.entry.config.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::UseDownstream => downstream.h2,
    };
    let trying = attempt(worker, &target, h2, head, body);
    let result = match plan.per_try {
        None => trying.await,
        Some(limit) => match tokio::time::timeout(limit, trying).await {
            Ok(result) => result,
            Err(_) => Err(Failure::PerTryTimeout),
        },
    };
    let stats = &target.host.stats;
    match &result {
        Ok((response, _)) if response.status().is_server_error() => stats.rq_error.add(1),
        Ok(_) => stats.rq_success.add(1),
        Err(Failure::PerTryTimeout) => {
            stats.rq_timeout.add(1);
            stats.rq_error.add(1);
        }
        Err(_) => stats.rq_error.add(1),
    }
    let (response, lease) = result?;
    Ok(Begun {
        response,
        lease,
        active: (active, permit),
    })
}

/// Opens a plain connection to an endpoint, for CONNECT. It counts as a connection and a request.
///
/// # Errors
/// Where there is no host or connecting fails.
pub async fn open_tunnel(
    downstream: &Downstream,
    plan: &Plan<'_>,
) -> Result<(UpstreamStream, Arc<Host>, (Active, Active)), Failure> {
    let host = pick(downstream, plan, &[]).ok_or(Failure::NoHost)?;
    let target = target(downstream, plan, host.clone());
    let active = (host.connection(), host.request());
    let connector = &downstream.worker.connector;
    match connector.connect(&target.connect_target()).await {
        Ok(stream) => Ok((stream, host, active)),
        Err(error) => {
            host.stats.cx_connect_fail.add(1);
            Err(Failure::Connect(error))
        }
    }
}

fn target(downstream: &Downstream, plan: &Plan<'_>, host: Arc<Host>) -> Target {
    Target {
        entry: plan.entry.clone(),
        host,
        source: downstream.info.pod.clone(),
        source_key: downstream.pod_key,
        client: downstream
            .info
            .pod
            .is_some()
            .then_some(downstream.info.peer),
    }
}

fn pick(downstream: &Downstream, plan: &Plan<'_>, tried: &[HostId]) -> Option<Arc<Host>> {
    if matches!(plan.entry.config.kind, ClusterKind::OriginalDst) {
        return Some(plan.entry.original_dst(downstream.info.orig_dst));
    }
    let (tried, attempts) = match plan.policy {
        Some(policy) if policy.avoid_previous_hosts => (tried, policy.host_selection_attempts),
        _ => (&[][..], 0),
    };
    downstream.worker.pools.pick(&plan.entry, tried, attempts)
}

/// The outcome of a response: its status and, where it has no body, its gRPC status.
fn response_outcome(response: &Response<Incoming>) -> Outcome {
    let grpc = response
        .headers()
        .get("grpc-status")
        .filter(|_| response.body().is_end_stream())
        .and_then(|value| value.to_str().ok()?.parse().ok());
    Outcome::Response(response.status(), grpc)
}
