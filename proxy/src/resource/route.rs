//! Route configurations: virtual hosts, routes, actions.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use regex::Regex;

use super::header::HeaderMutation;
use super::matcher::{HeaderMatcher, QueryMatcher};
use super::name::{ClusterName, RouteConfigName};
use super::origin::Origin;

/// `route.v3.RouteConfiguration`.
#[derive(Clone, Debug)]
pub struct RouteConfiguration {
    /// Its name.
    pub name: RouteConfigName,
    /// Virtual hosts; no domain occurs twice (checked on conversion, as Envoy does).
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Whether matching leaves the port of `:authority` out of account.
    pub ignore_port_in_host_matching: bool,
    /// Least specific header mutations.
    pub request_headers: HeaderMutation,
    /// Least specific header mutations.
    pub response_headers: HeaderMutation,
}

/// `route.v3.VirtualHost`.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: String,
    /// Exact names, `*.suffix`, `prefix.*` or `*`, lower case.
    pub domains: Vec<String>,
    /// Routes; the first that matches is taken.
    pub routes: Vec<Arc<Route>>,
    /// Header mutations between the route's and the configuration's.
    pub request_headers: HeaderMutation,
    /// Header mutations between the route's and the configuration's.
    pub response_headers: HeaderMutation,
    /// Used by routes that have none of their own.
    pub retry_policy: Option<RetryPolicy>,
    /// Whether `x-envoy-attempt-count` is added to requests.
    pub include_request_attempt_count: bool,
    /// Whose host it is, where the control plane says so.
    pub origin: Option<Origin>,
}

/// `route.v3.Route`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name; empty where the configuration gives none.
    pub name: String,
    /// When it is taken.
    pub matches: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Most specific header mutations.
    pub request_headers: HeaderMutation,
    /// Most specific header mutations.
    pub response_headers: HeaderMutation,
    /// `decorator.operation`, the name of its spans.
    pub operation: Option<String>,
    /// The rule that it was made from.
    pub origin: Option<Origin>,
}

/// `route.v3.RouteMatch`: all conditions must hold.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// Condition on the path.
    pub path: PathMatcher,
    /// Conditions on headers.
    pub headers: Vec<HeaderMatcher>,
    /// Conditions on query parameters.
    pub query: Vec<QueryMatcher>,
    /// Whether only gRPC requests match.
    pub grpc_only: bool,
    /// Share of requests that match, in millionths; `None` is all of them.
    pub runtime_fraction: Option<u32>,
}

/// Condition on the path, query excluded.
#[derive(Clone, Debug)]
pub enum PathMatcher {
    /// Begins with; `ignore_case` folds ASCII case.
    Prefix {
        /// The prefix.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// Begins with, at a path separator.
    PathSeparatedPrefix {
        /// The prefix without its last slash.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// Equals.
    Exact {
        /// The path.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// The whole path matches.
    Regex(Regex),
    /// A CONNECT request.
    Connect,
}

/// What a route does with a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Forward it.
    Forward(Arc<RouteAction>),
    /// Answer with a redirect.
    Redirect(RedirectAction),
    /// Answer directly.
    Direct {
        /// Status of the answer.
        status: StatusCode,
        /// Body of the answer.
        body: bytes::Bytes,
    },
}

/// `route.v3.RouteAction`.
#[derive(Clone, Debug)]
pub struct RouteAction {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// Answer where the cluster does not exist (503 by default).
    pub cluster_not_found: StatusCode,
    /// From the end of the request to the end of the response; zero disables.
    pub timeout: Duration,
    /// Overrides the connection manager's stream idle timeout.
    pub idle_timeout: Option<Duration>,
    /// Retries; the virtual host's where absent.
    pub retry_policy: Option<RetryPolicy>,
    /// Change of the path.
    pub path_rewrite: Option<PathRewrite>,
    /// Change of the host.
    pub host_rewrite: Option<HostRewrite>,
    /// Upgrades allowed on this route on top of the connection manager's, and those forbidden.
    pub upgrades: Vec<(String, bool)>,
}

/// Change of the path before it is forwarded.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// Replaces what the path matcher matched.
    Prefix(String),
    /// Replaces every match.
    Regex {
        /// What is looked for.
        pattern: Regex,
        /// Its replacement, in the `regex` crate's syntax.
        substitution: String,
    },
}

/// Change of the host before it is forwarded.
#[derive(Clone, Debug)]
pub enum HostRewrite {
    /// A fixed host.
    Literal(String),
    /// The endpoint's host name.
    Auto,
    /// The value of this request header.
    Header(HeaderName),
}

/// `route.v3.RedirectAction`.
#[derive(Clone, Debug)]
pub struct RedirectAction {
    /// New host.
    pub host: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New scheme.
    pub scheme: Option<String>,
    /// New path.
    pub path: Option<PathRedirect>,
    /// Whether the query is left out.
    pub strip_query: bool,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// New path of a redirect.
#[derive(Clone, Debug)]
pub enum PathRedirect {
    /// The whole path.
    Full(String),
    /// What the path matcher matched.
    Prefix(String),
}

/// Which cluster a request or connection goes to.
#[derive(Clone, Debug)]
pub enum ClusterSpecifier {
    /// This one.
    Cluster(ClusterName),
    /// The one that the request header names.
    Header(HeaderName),
    /// One of several, by weight.
    Weighted(WeightedClusters),
}

/// Clusters by weight.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    /// Sum of the weights, at least 1.
    pub total: u32,
    /// The clusters; at least one.
    pub clusters: Vec<WeightedCluster>,
}

/// One of several clusters.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Its name.
    pub name: ClusterName,
    /// Its weight.
    pub weight: u32,
    /// Header mutations of this choice alone.
    pub request_headers: HeaderMutation,
    /// Header mutations of this choice alone.
    pub response_headers: HeaderMutation,
}

/// `route.v3.RetryPolicy`.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// What is retried.
    pub on: RetryOn,
    /// Retries beyond the first try.
    pub num_retries: u32,
    /// Bound of one try; `None` is the route's.
    pub per_try_timeout: Option<Duration>,
    /// Further statuses that are retried with [`RetryOn::RETRIABLE_STATUS_CODES`].
    pub retriable_status_codes: Vec<StatusCode>,
    /// First back-off (25 ms in Envoy).
    pub base_interval: Duration,
    /// Largest back-off (10 times the first in Envoy).
    pub max_interval: Duration,
    /// Whether hosts already tried are avoided (`envoy.retry_host_predicates.previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// How often another host is chosen for that (`host_selection_retry_max_attempts`).
    pub host_selection_attempts: u32,
}

/// A set of retry conditions (`x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(pub u32);

impl RetryOn {
    /// Any 5xx, or no response at all.
    pub const FIVE_XX: Self = Self(1);
    /// 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// No response at all (disconnect, reset, read timeout).
    pub const RESET: Self = Self(1 << 2);
    /// Reset before the request was sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// Connecting failed.
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// HTTP/2 `REFUSED_STREAM`.
    pub const REFUSED_STREAM: Self = Self(1 << 5);
    /// 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    /// The policy's own list of statuses.
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 7);
    /// gRPC status 1.
    pub const CANCELLED: Self = Self(1 << 8);
    /// gRPC status 4.
    pub const DEADLINE_EXCEEDED: Self = Self(1 << 9);
    /// gRPC status 13.
    pub const INTERNAL: Self = Self(1 << 10);
    /// gRPC status 8.
    pub const RESOURCE_EXHAUSTED: Self = Self(1 << 11);
    /// gRPC status 14.
    pub const UNAVAILABLE: Self = Self(1 << 12);

    /// The conditions by the names that they have in configuration and headers.
    const NAMED: [(&'static str, Self); 13] = [
        ("5xx", Self::FIVE_XX),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("retriable-status-codes", Self::RETRIABLE_STATUS_CODES),
        ("cancelled", Self::CANCELLED),
        ("deadline-exceeded", Self::DEADLINE_EXCEEDED),
        ("internal", Self::INTERNAL),
        ("resource-exhausted", Self::RESOURCE_EXHAUSTED),
        ("unavailable", Self::UNAVAILABLE),
    ];

    /// The condition of this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut named = Self::NAMED.iter();
        named.find(|(known, _)| *known == name).map(|(_, on)| *on)
    }

    /// The names of the conditions in this set.
    pub fn names(self) -> Vec<&'static str> {
        let set = Self::NAMED.iter().filter(|(_, one)| self.contains(*one));
        set.map(|(name, _)| *name).collect()
    }

    /// Whether every condition of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
