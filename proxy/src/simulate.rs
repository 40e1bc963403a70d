//! What would become of a call: the decision that the data path would take, without a socket.
//!
//! Input: a [`Snapshot`] and a [`Call`]. Output: a [`Decision`] that names every step. It calls
//! the data path's own matchers, so the two cannot differ. Used by the admin port (`/simulate`)
//! and by pilot's tests.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};
use serde::Serialize;

use crate::listener::filter_chain::Candidates;
use crate::listener::inspector::Detected;
use crate::resource::{
    Action, ClusterKind, ClusterSpecifier, FilterChain, Listener, NetworkFilter,
};
use crate::route::{Head, NoRoute, action};
use crate::snapshot::Snapshot;

#[cfg(test)]
mod tests;

/// A call to be decided.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which side of it.
    pub side: Side,
    /// The address that the caller asked for; for an inbound call the pod's own.
    pub destination: SocketAddr,
    /// Where it comes from.
    pub source: SocketAddr,
    /// What is said; `None` is a TCP connection that says nothing known.
    pub request: Option<Request>,
    /// Decides among weighted clusters and routes for a share of the requests.
    pub random: u64,
}

/// Which side of a call is looked at.
#[derive(Clone, Debug)]
pub enum Side {
    /// From a pod of this namespace; `None` for a proxy of one workload.
    Outbound(Option<String>),
    /// To this pod.
    Inbound {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// To this listener.
    Listener(String),
}

/// An HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `:method`.
    pub method: Method,
    /// `:authority`.
    pub authority: String,
    /// `:path` with its query.
    pub path: String,
    /// Everything else.
    pub headers: HeaderMap,
}

/// What would happen, step by step; a step that is not reached is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The listener.
    pub listener: Option<String>,
    /// The filter chain; its place where it has no name.
    pub filter_chain: Option<String>,
    /// The route configuration.
    pub route_config: Option<String>,
    /// The virtual host.
    pub virtual_host: Option<String>,
    /// The route; its match where it has no name.
    pub route: Option<String>,
    /// The cluster.
    pub cluster: Option<String>,
    /// Endpoints that it may go to.
    pub endpoints: Vec<SocketAddr>,
    /// What happens.
    pub outcome: Outcome,
}

/// How it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No listener stands for the destination; the connection is reset.
    #[default]
    NoListener,
    /// No filter chain matches; the connection is reset.
    NoFilterChain,
    /// The route configuration is not there: 404.
    NoRouteConfig,
    /// No virtual host has the request's host: 404.
    NoVirtualHost,
    /// The virtual host has no route for the request: 404.
    NoRoute,
    /// The cluster does not exist: 503 with flag `NC`.
    NoCluster,
    /// The cluster has no healthy endpoint: 503 with flag `UH`.
    NoEndpoint,
    /// It goes to one of the endpoints.
    Forwarded,
    /// It goes to its original destination.
    Passthrough,
    /// It is answered at once, or redirected.
    Answered(u16),
}

/// Decides a call.
pub fn simulate(snapshot: &Snapshot, call: &Call) -> Decision {
    let mut decision = Decision::default();
    decision.outcome = listener(snapshot, call, &mut decision);
    decision
}

fn listener(snapshot: &Snapshot, call: &Call, decision: &mut Decision) -> Outcome {
    let found = match &call.side {
        Side::Outbound(namespace) => snapshot.outbound(namespace.as_deref(), call.destination),
        Side::Inbound { namespace, pod } => snapshot.inbound(namespace, pod),
        Side::Listener(name) => snapshot.listener(name),
    };
    let Some(listener) = found else {
        return Outcome::NoListener;
    };
    decision.listener = Some(listener.name.to_string());
    let Some(chain) = filter_chain(listener, call) else {
        return Outcome::NoFilterChain;
    };
    decision.filter_chain = Some(chain_name(listener, chain));
    match &chain.filter {
        NetworkFilter::Tcp(tcp) => {
            let headers = HeaderMap::new();
            cluster(snapshot, &tcp.cluster, &headers, call, decision)
        }
        NetworkFilter::Http(hcm) => match (snapshot.routes_of(&hcm.routes), &call.request) {
            (Some(table), Some(request)) => route(snapshot, table, request, call, decision),
            (None, _) => Outcome::NoRouteConfig,
            // Bytes that are no HTTP on a chain that speaks nothing else.
            (Some(_), None) => Outcome::Answered(400),
        },
    }
}

fn filter_chain<'a>(listener: &'a Listener, call: &Call) -> Option<&'a Arc<FilterChain>> {
    let detected = Detected {
        application_protocols: match &call.request {
            Some(_) => vec!["http/1.1".into()],
            None => Vec::new(),
        },
        ..Detected::default()
    };
    Candidates::narrow(listener, call.destination).select(&detected, call.source)
}

fn chain_name(listener: &Listener, chain: &Arc<FilterChain>) -> String {
    if !chain.name.is_empty() {
        return chain.name.clone();
    }
    let place = listener
        .filter_chains
        .iter()
        .position(|c| Arc::ptr_eq(c, chain));
    place.map_or_else(|| "default".to_owned(), |i| format!("[{i}]"))
}

fn route(
    snapshot: &Snapshot,
    table: &Arc<crate::route::RouteTable>,
    request: &Request,
    call: &Call,
    decision: &mut Decision,
) -> Outcome {
    decision.route_config = table.config().map(|c| c.name.to_string());
    let head = Head {
        method: &request.method,
        path: &request.path,
        authority: &request.authority,
        scheme: "http",
        headers: &request.headers,
    };
    let point = u32::try_from(call.random % 1_000_000).unwrap_or_default();
    let matched = match table.find(&head, point) {
        Ok(matched) => matched,
        Err(NoRoute::VirtualHost) => return Outcome::NoVirtualHost,
        Err(NoRoute::Route) => {
            let host = table.virtual_host(&request.authority);
            decision.virtual_host = host.map(|h| h.name.clone());
            return Outcome::NoRoute;
        }
    };
    decision.virtual_host = Some(matched.vhost().name.clone());
    let route = matched.route();
    decision.route = Some(if route.name.is_empty() {
        format!("{:?}", route.matches.path)
    } else {
        route.name.clone()
    });
    match &route.action {
        Action::Forward(forward) => {
            cluster(snapshot, &forward.cluster, &request.headers, call, decision)
        }
        Action::Redirect(redirect) => Outcome::Answered(redirect.status.as_u16()),
        Action::Direct { status, .. } => Outcome::Answered(status.as_u16()),
    }
}

fn cluster(
    snapshot: &Snapshot,
    specifier: &ClusterSpecifier,
    headers: &HeaderMap,
    call: &Call,
    decision: &mut Decision,
) -> Outcome {
    let Some(chosen) = action::choose(specifier, headers, call.random) else {
        return Outcome::NoCluster;
    };
    decision.cluster = Some(chosen.cluster.to_string());
    let Some(entry) = snapshot.cluster(chosen.cluster.as_str()) else {
        return Outcome::NoCluster;
    };
    if matches!(entry.config.kind, ClusterKind::OriginalDst) {
        decision.endpoints = vec![call.destination];
        return Outcome::Passthrough;
    }
    let point = u32::try_from(call.random % 100).unwrap_or_default();
    let group = entry.plan.choose(point);
    let members = group.map(|group| entry.plan.members(group));
    let hosts = members.into_iter().flatten();
    decision.endpoints = hosts
        .filter_map(|host| entry.hosts.get(*host))
        .map(|host| host.address())
        .collect();
    if decision.endpoints.is_empty() {
        return Outcome::NoEndpoint;
    }
    Outcome::Forwarded
}
