//! What would become of a call: the decision that the data path would take, without a socket.
//!
//! Input: a [`Snapshot`], the pods of the node and a [`Call`]. Output: a [`Decision`] that names every step. It calls
//! what the data path calls (look-up of the listener, inspection of the first bytes, filter chain, admission of the
//! request, virtual host, route, cluster, plan of the balancer), so that the two cannot differ, and changes nothing.
//! Used by the admin port (`/simulate`) and by pilot's tests.

mod clusters;
mod decision;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use crate::flags::{ResponseFlags, details};
use crate::http::headers::{Origin, Refused};
use crate::http::{admission, upgrade};
use crate::listener::accepted::Entrance;
use crate::listener::filter_chain::Candidates;
use crate::listener::inspector::{self, Detected, Needs, Progress};
use crate::listener::stats::Refusal;
use crate::pods::LocalPods;
use crate::resource::{
    Action, ClusterSpecifier, FilterChain, HttpConnectionManager, Listener, NetworkFilter,
    RouteAction, text,
};
use crate::route::match_route::is_grpc;
use crate::route::retry::RetryState;
use crate::route::timeout::Timeouts;
use crate::route::{Matched, NoRoute, RouteTable, action, rewrite};
use crate::snapshot::Snapshot;
use crate::upstream::attempt::Outgoing;
use clusters::Way;
pub use decision::{
    Answer, ChainStep, ClusterStep, Decision, EndpointStep, HostStep, Outcome, PassedOver, Retries,
    RouteStep, ServiceStep,
};

#[cfg(test)]
mod tests;

/// The first bytes of an HTTP/2 client (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A call to be decided.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which side of it.
    pub side: Side,
    /// The address that the caller asked for; for an inbound call the pod's own.
    pub destination: SocketAddr,
    /// Where it comes from.
    pub source: SocketAddr,
    /// What the client says.
    pub says: Says,
    /// Decides among weighted clusters and routes for a share of the requests. Without it every cluster is told,
    /// and routes for a share are taken.
    pub random: Option<u64>,
}

/// Which side of a call is looked at.
#[derive(Clone, Debug)]
pub enum Side {
    /// From a pod of this namespace; `None` for a proxy of one workload.
    Outbound(Option<String>),
    /// To the pod of this namespace and name; `None` for a proxy of one workload.
    Inbound(Option<(String, String)>),
    /// To this listener.
    Listener(String),
}

impl Side {
    fn entrance(&self) -> Entrance<'_> {
        match self {
            Self::Outbound(namespace) => Entrance::Outbound(namespace.as_deref()),
            Self::Inbound(pod) => Entrance::Inbound(
                pod.as_ref()
                    .map(|(namespace, name)| (&**namespace, &**name)),
            ),
            Self::Listener(name) => Entrance::Listener(name),
        }
    }
}

/// What a client says first.
#[derive(Clone, Debug)]
pub enum Says {
    /// A request.
    Http(Request),
    /// A TLS `ClientHello`, with this server name.
    Tls(Option<String>),
    /// Nothing that is known, or nothing before the server.
    Bytes,
}

/// An HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `:method`.
    pub method: Method,
    /// `:authority`.
    pub authority: HeaderValue,
    /// `:path` with its query.
    pub path: PathAndQuery,
    /// Everything else.
    pub headers: HeaderMap,
    /// Whether it comes by HTTP/2 rather than HTTP/1.1.
    pub http2: bool,
}

/// A call and what it is decided by.
struct Subject<'a> {
    snapshot: &'a Snapshot,
    pods: &'a LocalPods,
    call: &'a Call,
}

/// Decides a call.
pub fn simulate(snapshot: &Snapshot, pods: &LocalPods, call: &Call) -> Decision {
    let subject = Subject {
        snapshot,
        pods,
        call,
    };
    let mut decision = Decision::default();
    decision.answer = subject.listener(&mut decision);
    decision
}

impl Subject<'_> {
    fn listener(&self, decision: &mut Decision) -> Answer {
        let entrance = self.call.side.entrance();
        let Some(listener) = entrance.listener(self.snapshot, self.call.destination) else {
            return Answer::reset(Outcome::NoListener, Refusal::NoListener.flag());
        };
        decision.listener = Some(listener.name.to_string());
        let candidates = Candidates::narrow(listener, self.call.destination);
        let detected = self.detect(candidates.needs());
        let Some(chain) = candidates.select(&detected, self.call.source) else {
            return Answer::reset(Outcome::NoFilterChain, Refusal::NoFilterChain.flag());
        };
        decision.filter_chain = Some(chain_step(listener, chain));
        match &chain.filter {
            NetworkFilter::Tcp(tcp) => self.clusters(&Way::Tcp(&tcp.cluster), decision),
            NetworkFilter::Http(hcm) => self.http(hcm, decision),
        }
    }

    /// What the inspectors would find in the client's first bytes.
    fn detect(&self, needs: Needs) -> Detected {
        let first = match &self.call.says {
            // The inspector's reading of a `ClientHello`, which has more to it than the name.
            Says::Tls(server_name) if needs.tls => {
                return Detected {
                    tls: true,
                    server_name: server_name.as_ref().map(|name| name.to_ascii_lowercase()),
                    ..Detected::default()
                };
            }
            Says::Http(request) if request.http2 => HTTP2_PREFACE.to_vec(),
            Says::Http(request) => {
                format!("{} {} HTTP/1.1\r\n", request.method, request.path).into_bytes()
            }
            Says::Tls(_) | Says::Bytes => Vec::new(),
        };
        match inspector::inspect(&first, needs) {
            Progress::Done(detected) => detected,
            Progress::More => Detected::default(),
        }
    }

    fn http(&self, hcm: &HttpConnectionManager, decision: &mut Decision) -> Answer {
        let Says::Http(request) = &self.call.says else {
            // Bytes that are no HTTP on a chain that speaks nothing else.
            let flag = ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
            let (status, why) = (StatusCode::BAD_REQUEST, details::HTTP1_CODEC_ERROR);
            return Answer::status(Outcome::Refused, status, flag, why, false);
        };
        let mut head = request.head();
        let origin = match self.admit(request, &mut head, hcm) {
            Ok(origin) => origin,
            Err(refused) => {
                let flag = ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
                let (status, why) = (refused.status, refused.details);
                return Answer::status(Outcome::Refused, status, flag, why, false);
            }
        };
        let Some(table) = self.snapshot.routes_of(&hcm.routes) else {
            return no_route(Outcome::NoRouteConfig, &head);
        };
        decision.route_config = table.config().map(|config| config.name.to_string());
        let point = self.call.random.unwrap_or_default() % 1_000_000;
        let point = u32::try_from(point).unwrap_or_default();
        let found = table.find(&head.to_route(), point);
        decision.virtual_host = host_step(table, &head, found.as_ref().ok());
        match found {
            Ok(matched) => self.action(&matched, &head, &origin, hcm, decision),
            Err(NoRoute::VirtualHost) => no_route(Outcome::NoVirtualHost, &head),
            Err(NoRoute::Route) => no_route(Outcome::NoRoute, &head),
        }
    }

    fn admit(
        &self,
        request: &Request,
        head: &mut Outgoing,
        hcm: &HttpConnectionManager,
    ) -> Result<Origin, Refused> {
        let version = if request.http2 {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        let origin = admission::admit(head, hcm, self.call.source.ip(), version)?;
        admission::normalise(head, hcm)?;
        Ok(origin)
    }

    fn action(
        &self,
        matched: &Matched,
        head: &Outgoing,
        origin: &Origin,
        hcm: &HttpConnectionManager,
        decision: &mut Decision,
    ) -> Answer {
        let route = matched.route();
        let mut step = RouteStep {
            name: route.name.clone(),
            matches: text::route_match(&route.matches),
            origin: route.origin.clone(),
            ..RouteStep::default()
        };
        let grpc = is_grpc(&head.headers);
        let answered = |outcome, status| {
            let why = details::DIRECT_RESPONSE;
            Answer::status(outcome, status, ResponseFlags::NONE, why, grpc)
        };
        let answer = match &route.action {
            Action::Direct { status, .. } => Some(answered(Outcome::Answered, *status)),
            Action::Redirect(redirect) => {
                step.location = Some(action::location(redirect, matched, &head.to_route()));
                Some(answered(Outcome::Redirected, redirect.status))
            }
            Action::Forward(forward) => {
                forwarding(&mut step, matched, forward, head, origin);
                refused_upgrade(forward, head, hcm)
            }
        };
        header_changes(&mut step, matched);
        decision.route = Some(step);
        match (&route.action, answer) {
            (_, Some(answer)) => answer,
            (Action::Forward(forward), None) => {
                self.clusters(&Way::Http(forward, &head.headers), decision)
            }
            (Action::Direct { .. } | Action::Redirect(_), None) => Answer::default(),
        }
    }

    fn clusters(&self, way: &Way<'_>, decision: &mut Decision) -> Answer {
        match clusters::clusters(self, way) {
            Ok(steps) => {
                decision.clusters = steps;
                let first = decision.clusters.first();
                first.map(|step| step.answer.clone()).unwrap_or_default()
            }
            Err(answer) => answer,
        }
    }
}

impl Request {
    /// The head as it comes to `http::stream`.
    fn head(&self) -> Outgoing {
        Outgoing {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            scheme: Scheme::HTTP,
            headers: self.headers.clone(),
            upgrade: None,
        }
    }
}

fn no_route(outcome: Outcome, head: &Outgoing) -> Answer {
    let (status, flag, why) = (NoRoute::STATUS, NoRoute::FLAG, NoRoute::DETAILS);
    Answer::status(outcome, status, flag, why, is_grpc(&head.headers))
}

fn chain_step(listener: &Listener, chain: &Arc<FilterChain>) -> ChainStep {
    let mut chains = listener.filter_chains.iter();
    let place = chains.position(|known| Arc::ptr_eq(known, chain));
    let name = match place {
        _ if !chain.name.is_empty() => chain.name.clone(),
        Some(place) => format!("[{place}]"),
        None => "default".to_owned(),
    };
    ChainStep {
        name,
        matches: match place {
            Some(_) => text::chain_match(&chain.matches),
            None => "otherwise".to_owned(),
        },
        filter: match &chain.filter {
            NetworkFilter::Http(_) => "http",
            NetworkFilter::Tcp(_) => "tcp",
        },
        origin: chain.origin.clone(),
    }
}

fn host_step(table: &RouteTable, head: &Outgoing, found: Option<&Matched>) -> Option<HostStep> {
    let host = table.virtual_host(head.to_route().authority)?;
    let others = host
        .routes
        .iter()
        .take_while(|route| found.is_none_or(|found| !Arc::ptr_eq(route, found.route())));
    let passed_over = others.map(|route| PassedOver {
        matches: text::route_match(&route.matches),
        origin: route.origin.clone(),
    });
    Some(HostStep {
        name: host.name.clone(),
        domains: host.domains.clone(),
        origin: host.origin.clone(),
        passed_over: passed_over.collect(),
    })
}

/// What a route makes of a request that it forwards.
fn forwarding(
    step: &mut RouteStep,
    matched: &Matched,
    action: &RouteAction,
    head: &Outgoing,
    origin: &Origin,
) {
    let own = action.retry_policy.as_ref();
    let policy = own.or(matched.vhost().retry_policy.as_ref());
    let timeouts = Timeouts::of(action, policy, &head.headers, origin.internal);
    step.timeout_ms = timeouts.global.map(millis);
    step.idle_timeout_ms = action.idle_timeout.map(millis);
    let retries = RetryState::new(policy, &head.headers, origin.internal);
    step.retries = retries.map(|state| Retries {
        attempts: state.left(),
        on: state.on().names(),
        statuses: state.statuses().iter().map(StatusCode::as_u16).collect(),
        per_try_timeout_ms: timeouts.per_try.map(millis),
    });
    if let Some(change) = &action.path_rewrite {
        let path = rewrite::path(change, &matched.route().matches.path, head.path.as_str());
        step.path = Some(path);
    }
    if let Some(change) = &action.host_rewrite {
        let host = rewrite::host(change, &head.headers, None);
        step.host = Some(host.unwrap_or("the endpoint's host name").to_owned());
    }
}

fn refused_upgrade(
    action: &RouteAction,
    head: &Outgoing,
    hcm: &HttpConnectionManager,
) -> Option<Answer> {
    let protocol = upgrade::asked(head)?;
    (!upgrade::is_allowed(&protocol, hcm, action)).then(|| {
        let (status, why) = (StatusCode::FORBIDDEN, details::UPGRADE_FAILED);
        let grpc = is_grpc(&head.headers);
        Answer::status(Outcome::Refused, status, ResponseFlags::NONE, why, grpc)
    })
}

/// Header mutations of the route and the levels above it; those of single clusters of several are
/// told with their share.
fn header_changes(step: &mut RouteStep, matched: &Matched) {
    let (route, host) = (matched.route(), matched.vhost());
    for own in [&route.request_headers, &host.request_headers] {
        step.request_headers.extend(text::header_changes(own));
    }
    for own in [&route.response_headers, &host.response_headers] {
        step.response_headers.extend(text::header_changes(own));
    }
    let Action::Forward(forward) = &route.action else {
        return;
    };
    if let ClusterSpecifier::Weighted(weighted) = &forward.cluster {
        for one in &weighted.clusters {
            let told = |change: String| format!("{change} ({})", one.name);
            let request = text::header_changes(&one.request_headers);
            step.request_headers.extend(request.into_iter().map(told));
            let response = text::header_changes(&one.response_headers);
            step.response_headers.extend(response.into_iter().map(told));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
