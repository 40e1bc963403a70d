//! What a simulated call comes to, step by step, in a form for people and programs.

use std::net::SocketAddr;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use crate::flags::ResponseFlags;
use crate::http::local_reply;
use crate::resource::{HealthStatus, Origin};

/// What would happen, step by step; a step that is not reached is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decision {
    /// The listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// The filter chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_chain: Option<ChainStep>,
    /// The route configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_config: Option<String>,
    /// The virtual host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_host: Option<HostStep>,
    /// The route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteStep>,
    /// Every cluster that it may go to; the one chosen where the call says the random number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterStep>,
    /// How it ends. Where that depends on the cluster, how it ends at the first.
    pub answer: Answer,
}

/// A filter chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainStep {
    /// Its name; its place where it has none.
    pub name: String,
    /// When it is taken.
    pub matches: String,
    /// What handles the connection: `http` or `tcp`.
    pub filter: &'static str,
    /// The rule behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A virtual host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostStep {
    /// Its name.
    pub name: String,
    /// The domains that it has.
    pub domains: Vec<String>,
    /// Whose host it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Its routes that do not match and come before the one that does, or all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
}

/// A route that does not match.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PassedOver {
    /// When it is taken.
    pub matches: String,
    /// The rule behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A route and what it makes of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteStep {
    /// Its name.
    pub name: String,
    /// When it is taken.
    pub matches: String,
    /// The rule behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Bound of the whole response, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Bound of a stream without activity, in milliseconds, where the route has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// What is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// The path that is forwarded, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The host that is forwarded, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Changes of the request's headers, the most specific first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<String>,
    /// Changes of the response's headers, the most specific first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
    /// Where a redirect sends the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}

/// What is tried again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retries {
    /// Tries beyond the first.
    pub attempts: u32,
    /// After which failures.
    pub on: Vec<&'static str>,
    /// After which statuses besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    /// Bound of each try, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout_ms: Option<u64>,
}

/// A cluster that the call may go to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterStep {
    /// Its name.
    pub name: String,
    /// Its share of the calls, in percent.
    pub share: f64,
    /// The service that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceStep>,
    /// The subset of the service's endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// The `DestinationRule` in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// How one endpoint is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb_policy: Option<&'static str>,
    /// Time to open a connection, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// Its endpoints, those that get nothing included.
    pub endpoints: Vec<EndpointStep>,
    /// How a call ends that goes here.
    pub answer: Answer,
}

/// The service behind a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceStep {
    /// Its full host name.
    pub host: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The object that made it, where that is no Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// An endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointStep {
    /// Where it listens.
    pub address: SocketAddr,
    /// What the control plane says of it.
    pub health: &'static str,
    /// Its weight.
    pub weight: u32,
    /// Its locality, as far as that is known.
    pub locality: String,
    /// Its priority, 0 being the highest.
    pub priority: u32,
    /// Its share of what goes to the cluster, in percent.
    pub share: f64,
    /// Namespace and name of the workload behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The pod of this node that it is, into which the proxy delivers by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_pod: Option<String>,
}

/// How a call ends, as the access log would have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What happens.
    pub outcome: Outcome,
    /// The status, where the proxy answers by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The `grpc-status` of that answer, where the call is gRPC's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// `%RESPONSE_FLAGS%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// `%RESPONSE_CODE_DETAILS%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<&'static str>,
}

/// What happens in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No listener stands for the destination; the connection is reset.
    #[default]
    NoListener,
    /// No filter chain matches; the connection is reset.
    NoFilterChain,
    /// The request is refused as it stands.
    Refused,
    /// The route configuration is not there.
    NoRouteConfig,
    /// No virtual host has the request's host.
    NoVirtualHost,
    /// The virtual host has no route for the request.
    NoRoute,
    /// The cluster does not exist.
    NoCluster,
    /// The cluster has no endpoint that can be used. A connection is reset.
    NoEndpoint,
    /// It goes to one of the endpoints.
    Forwarded,
    /// It goes to its original destination.
    Passthrough,
    /// The proxy answers.
    Answered,
    /// The client is sent elsewhere.
    Redirected,
}

impl Answer {
    /// An end without an answer of the proxy's own.
    pub(super) fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            ..Self::default()
        }
    }

    /// A connection that is reset.
    pub(super) fn reset(outcome: Outcome, flags: ResponseFlags) -> Self {
        Self {
            flags: (!flags.is_empty()).then(|| flags.to_string()),
            ..Self::of(outcome)
        }
    }

    /// An answer of the proxy's own, to a gRPC call or another.
    pub(super) fn status(
        outcome: Outcome,
        status: StatusCode,
        flags: ResponseFlags,
        details: &'static str,
        grpc: bool,
    ) -> Self {
        let reply = local_reply::reply(status, Bytes::new(), grpc);
        let told = reply.headers().get(local_reply::GRPC_STATUS);
        Self {
            status: Some(reply.status().as_u16()),
            grpc_status: told.and_then(|value| value.to_str().ok()?.parse().ok()),
            details: Some(details),
            ..Self::reset(outcome, flags)
        }
    }
}

/// Health in words.
pub(super) fn health(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Unknown => "unknown",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
        HealthStatus::Draining => "draining",
        HealthStatus::Degraded => "degraded",
    }
}
