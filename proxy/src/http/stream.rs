//! One request, phases in order: framing and headers, path and host, route, action, upstream,
//! response.
//!
//! Input: a request as hyper read it. Output: the response whose body carries the rest of the
//! exchange. Called by `connection` for every request; never fails, since every fault has an
//! answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::headers::{self, Refused};
use super::upgrade::{self, Far};
use super::{Downstream, admission, local_reply};
use crate::access_log::Headers;
use crate::cluster::ClusterEntry;
use crate::flags::{ResponseFlags, details};
use crate::resource::route::HostRewrite;
use crate::resource::{Action, RouteAction, RouteSource};
use crate::route::retry::RetryState;
use crate::route::timeout::{EXPECTED_TIMEOUT_MS, Timeouts};
use crate::route::{Matched, NoRoute, RouteTable, action, match_route, rewrite};
use crate::snapshot::Snapshot;
use crate::upstream::attempt::Outgoing;
use crate::upstream::failure::Failure;
use crate::upstream::replay::Replay;
use crate::upstream::router::{self, Begun, Journey, Plan};

/// `x-envoy-upstream-service-time`.
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
/// `x-envoy-original-path`.
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// `x-envoy-overloaded`.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// A request between two phases.
struct Stream {
    exchange: Box<Exchange>,
    head: Outgoing,
    near: Option<OnUpgrade>,
    internal: bool,
    close: bool,
}

/// Takes a request through all phases.
pub async fn handle(
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let mut stream = Stream::new(downstream, request);
    let result = stream.run().await;
    stream.respond(result)
}

/// What a request comes to.
enum Outcome {
    /// A response has begun.
    Upstream(Box<Begun>),
    /// The proxy answers itself.
    Local(Response<Bytes>),
    /// A tunnel, with the head of the answer.
    Tunnel(Response<()>, Box<Far>),
}

impl From<Refused> for Outcome {
    fn from(refused: Refused) -> Self {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = refused.status;
        Self::Local(response)
    }
}

impl Stream {
    fn new(downstream: Rc<Downstream>, request: Request<Incoming>) -> Self {
        let (mut parts, body) = request.into_parts();
        let near = parts.extensions.remove::<OnUpgrade>();
        // RFC 8441: a CONNECT with a protocol is what an upgrade is in HTTP/1.1.
        let protocol = parts.extensions.remove::<Protocol>();
        let upgrade = protocol.and_then(|p| HeaderValue::from_str(p.as_str()).ok());
        if upgrade.is_some() {
            parts.method = Method::GET;
        }
        let body = Replay::new(body);
        let uri = std::mem::take(&mut parts.uri).into_parts();
        // CONNECT's form of a target (RFC 9112 section 3.2.3) in another request has no path to serve.
        let of_connect = uri.scheme.is_none() && uri.authority.is_some();
        let no_path = if of_connect && parts.method != Method::CONNECT {
            "?"
        } else {
            "/"
        };
        let authority = uri
            .authority
            .and_then(|a| HeaderValue::from_str(a.as_str()).ok())
            .or_else(|| parts.headers.get(header::HOST).cloned())
            .unwrap_or_else(|| HeaderValue::from_static(""));
        let path = uri
            .path_and_query
            .unwrap_or_else(|| PathAndQuery::from_static(no_path));
        let shown = HeaderValue::from_str(path.as_str());
        let exchange = Exchange::new(
            downstream,
            parts.method.clone(),
            shown.unwrap_or_else(|_| HeaderValue::from_static("/")),
            authority.clone(),
            parts.version,
            body,
        );
        Self {
            exchange: Box::new(exchange),
            head: Outgoing {
                method: parts.method,
                path,
                authority,
                scheme: Scheme::HTTP,
                headers: parts.headers,
                upgrade,
            },
            near,
            internal: false,
            close: false,
        }
    }

    async fn run(&mut self) -> Outcome {
        if let Err(refused) = self.accept() {
            self.exchange.details = refused.details;
            self.exchange
                .flags
                .insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
            self.close = true;
            return refused.into();
        }
        // Route and cluster are of one snapshot: the next may have dropped what this route names.
        let downstream = self.exchange.downstream.clone();
        let snapshot = downstream.worker.snapshot.load();
        let Ok(matched) = self.route(&snapshot) else {
            self.exchange.flags.insert(NoRoute::FLAG);
            self.exchange.details = NoRoute::DETAILS;
            return self.local(NoRoute::STATUS, Bytes::new());
        };
        self.exchange.route = Some(matched.clone());
        match &matched.route().action {
            Action::Direct { status, body } => {
                self.exchange.details = details::DIRECT_RESPONSE;
                let mut outcome = self.local(*status, body.clone());
                self.edit_response(&matched, None, &mut outcome);
                outcome
            }
            Action::Redirect(redirect) => {
                self.exchange.details = details::DIRECT_RESPONSE;
                let location = action::location(redirect, &matched, &self.head.to_route());
                let mut outcome = self.local(redirect.status, Bytes::new());
                if let Outcome::Local(response) = &mut outcome
                    && let Ok(value) = HeaderValue::from_str(&location)
                {
                    response.headers_mut().insert(header::LOCATION, value);
                }
                self.edit_response(&matched, None, &mut outcome);
                outcome
            }
            Action::Forward(action) => {
                let chosen = action::choose(&action.cluster, &self.head.headers, fastrand::u64(..));
                let entry = chosen
                    .as_ref()
                    .and_then(|c| snapshot.cluster(c.cluster.as_str()));
                let entry = entry.cloned();
                drop(snapshot);
                let weighted = chosen.and_then(|chosen| chosen.weighted);
                self.forward(&matched, &action.clone(), entry, weighted)
                    .await
            }
        }
    }

    /// Framing, hop-by-hop headers, forwarding headers, host and path.
    fn accept(&mut self) -> Result<(), Refused> {
        let exchange = &mut self.exchange;
        let downstream = exchange.downstream.clone();
        let headers = &mut self.head.headers;
        if exchange.version < Version::HTTP_2 {
            headers::check_framing(headers)?;
            if downstream.io.take_ambiguous() {
                return Err(admission::bad(details::HTTP1_BAD_TRANSFER_ENCODING));
            }
        } else {
            if headers.len() > downstream.hcm.max_request_headers_count as usize {
                return Err(Refused {
                    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    details: details::HEADERS_TOO_LARGE,
                });
            }
            headers::join_cookies(headers);
        }
        exchange.grpc = match_route::is_grpc(headers);
        let (hcm, peer) = (&downstream.hcm, downstream.info.peer.ip());
        let origin = admission::admit(&mut self.head, hcm, peer, exchange.version)?;
        exchange.remote = origin.remote;
        self.internal = origin.internal;
        admission::normalise(&mut self.head, hcm)
    }

    fn route(&self, snapshot: &Snapshot) -> Result<Matched, NoRoute> {
        let downstream = &self.exchange.downstream;
        let find = |table: &Arc<RouteTable>| {
            table.find(&self.head.to_route(), fastrand::u32(0..1_000_000))
        };
        match (&downstream.inline_routes, &downstream.hcm.routes) {
            (Some(table), _) => find(table),
            (None, RouteSource::Rds(name)) => {
                let table = snapshot.route_table(name.as_str());
                table.map_or(Err(NoRoute::VirtualHost), find)
            }
            (None, RouteSource::Inline(_)) => Err(NoRoute::VirtualHost),
        }
    }

    async fn forward(
        &mut self,
        matched: &Matched,
        action: &RouteAction,
        entry: Option<Arc<ClusterEntry>>,
        weighted: Option<usize>,
    ) -> Outcome {
        if let Some(refused) = self.check_upgrade(action) {
            return refused;
        }
        let Some(entry) = entry else {
            self.exchange.flags.insert(ResponseFlags::NO_CLUSTER);
            self.exchange.details = details::CLUSTER_NOT_FOUND;
            return self.local(action.cluster_not_found, Bytes::new());
        };
        self.exchange.cluster = Some(entry.clone());
        let policy = action
            .retry_policy
            .as_ref()
            .or(matched.vhost().retry_policy.as_ref());
        let timeouts = Timeouts::of(action, policy, &self.head.headers, self.internal);
        self.exchange
            .clock
            .set_route(action.idle_timeout, timeouts.global);
        let mut plan = Plan {
            entry,
            retry: RetryState::new(policy, &self.head.headers, self.internal),
            policy,
            per_try: timeouts.per_try,
            count_attempts: matched.vhost().include_request_attempt_count,
            auto_host: matches!(action.host_rewrite, Some(HostRewrite::Auto)),
        };
        self.prepare(matched, action, weighted, &timeouts);
        if self.head.method == Method::CONNECT {
            return self.connect(&plan).await;
        }
        let result = self.try_upstream(&mut plan).await;
        let mut outcome = match result {
            Ok(begun) => self.begun(Box::new(begun)),
            Err(failure) => self.failed(&failure),
        };
        self.edit_response(matched, weighted, &mut outcome);
        outcome
    }

    /// Changes that the route makes to the request.
    fn prepare(
        &mut self,
        matched: &Matched,
        action: &RouteAction,
        weighted: Option<usize>,
        timeouts: &Timeouts,
    ) {
        if let Some(expected) = timeouts.expected() {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            let value = HeaderValue::from(millis);
            self.head.headers.insert(EXPECTED_TIMEOUT_MS, value);
        }
        if matched.mutations(weighted).any(|m| !m.request().is_empty()) {
            let snapshot = self.head.headers.clone();
            let record = self.exchange.record(Headers::Map(&snapshot));
            for level in matched.mutations(weighted) {
                level.request().apply(&mut self.head.headers, &record);
            }
        }
        if let Some(change) = &action.path_rewrite {
            let before = self.head.path.as_str();
            let after = rewrite::path(change, &matched.route().matches.path, before);
            if let Ok(path) = PathAndQuery::try_from(after) {
                if let Ok(value) = HeaderValue::from_str(before) {
                    self.head.headers.insert(ORIGINAL_PATH, value);
                }
                self.head.path = path;
            }
        }
        if let Some(change) = &action.host_rewrite {
            let host = rewrite::host(change, &self.head.headers, None);
            if let Some(Ok(value)) = host.map(HeaderValue::from_str) {
                self.head.authority = value;
            }
        }
        self.exchange.keep_request(&self.head.headers);
    }

    /// Refuses an upgrade or CONNECT that neither route nor connection manager allows.
    fn check_upgrade(&mut self, action: &RouteAction) -> Option<Outcome> {
        let hcm = &self.exchange.downstream.hcm;
        let protocol = upgrade::asked(&self.head)?;
        if upgrade::is_allowed(&protocol, hcm, action) {
            return None;
        }
        self.exchange.details = details::UPGRADE_FAILED;
        Some(self.local(StatusCode::FORBIDDEN, Bytes::new()))
    }

    /// Forwards within the stream's timeouts.
    async fn try_upstream(&mut self, plan: &mut Plan<'_>) -> Result<Begun, Failure> {
        let exchange = &mut *self.exchange;
        let downstream = exchange.downstream.clone();
        let body = exchange.body.clone();
        let mut journey = Journey::default();
        let result = {
            let forwarding =
                router::forward(&downstream, plan, &mut self.head, &body, &mut journey);
            let mut forwarding = pin!(forwarding);
            let clock = &mut exchange.clock;
            poll_fn(|cx| {
                if let Poll::Ready(result) = forwarding.as_mut().poll(cx) {
                    return Poll::Ready(result);
                }
                clock.poll(cx, &body).map(Err)
            })
            .await
        };
        exchange.attempts = journey.attempts;
        exchange.flags.insert(journey.flags);
        if let (Some(host), Err(Failure::Timeout)) = (&journey.host, &result) {
            host.stats.rq_timeout.add(1);
        }
        exchange.host = journey.host;
        result
    }

    fn begun(&mut self, mut begun: Box<Begun>) -> Outcome {
        let exchange = &mut *self.exchange;
        exchange.details = details::VIA_UPSTREAM;
        exchange.upstream_local = begun.lease.local();
        exchange.delivery = begun.lease.delivery();
        exchange.body.release();
        exchange.clock.responding();
        let switched = begun.switched(self.head.upgrade.is_some());
        let response = &mut begun.response;
        let agreed = response.headers_mut().remove(header::UPGRADE);
        headers::strip_response_hops(response.headers_mut());
        let millis = u64::try_from(exchange.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        response
            .headers_mut()
            .insert(SERVICE_TIME, HeaderValue::from(millis));
        if switched {
            return self.switch(*begun, agreed);
        }
        // To a client that asked by CONNECT any success means that it has its tunnel.
        if exchange.downstream.h2 && self.head.upgrade.is_some() && response.status().is_success() {
            self.exchange.details = details::UPGRADE_FAILED;
            return self.local(StatusCode::BAD_GATEWAY, Bytes::new());
        }
        Outcome::Upstream(begun)
    }

    /// Both sides change to another protocol, each in the form that its HTTP version has.
    fn switch(&mut self, begun: Begun, agreed: Option<HeaderValue>) -> Outcome {
        let Begun {
            mut response,
            lease,
            active,
        } = begun;
        let Some(far) = response.extensions_mut().remove::<OnUpgrade>() else {
            return self.failed(&Failure::Terminated { sent: true });
        };
        let mut answer = Response::new(());
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        let headers = answer.headers_mut();
        if self.exchange.downstream.h2 {
            // The answer to the key that `attempt` made up; the client knows neither.
            if !self.head.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
                headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            }
            headers.remove(header::CONTENT_LENGTH);
        } else {
            if let Some(protocol) = agreed.or_else(|| self.head.upgrade.clone()) {
                headers.insert(header::UPGRADE, protocol);
            }
            let connection = HeaderValue::from_static("upgrade");
            headers.insert(header::CONNECTION, connection);
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        Outcome::Tunnel(
            answer,
            Box::new(Far::Upgraded(Box::new((far, lease, active)))),
        )
    }

    fn failed(&mut self, failure: &Failure) -> Outcome {
        let exchange = &mut *self.exchange;
        exchange.flags.insert(failure.flag());
        exchange.details = failure.details();
        if let Failure::Connect(error) = failure {
            exchange.transport_failure = Some(error.to_string().replace(' ', "_"));
        }
        let mut outcome = self.local(failure.status(), failure.body().into());
        if let (Failure::Overflow, Outcome::Local(response)) = (failure, &mut outcome) {
            let value = HeaderValue::from_static("true");
            response.headers_mut().insert(OVERLOADED, value);
        }
        outcome
    }

    /// CONNECT ends here: its bytes go to the endpoint as they are.
    async fn connect(&mut self, plan: &Plan<'_>) -> Outcome {
        let downstream = self.exchange.downstream.clone();
        let opened = router::open_tunnel(&downstream, plan).await;
        match opened {
            Ok((stream, host, active)) => {
                self.exchange.attempts = 1;
                self.exchange.upstream_local = stream.local_addr().ok();
                self.exchange.host = Some(host);
                self.exchange.details = details::VIA_UPSTREAM;
                let far = Far::Plain(Box::new((stream, active.0, active.1)));
                Outcome::Tunnel(Response::new(()), Box::new(far))
            }
            Err(failure) => self.failed(&failure),
        }
    }

    fn edit_response(&self, matched: &Matched, weighted: Option<usize>, outcome: &mut Outcome) {
        if matched.mutations(weighted).all(|m| m.response().is_empty()) {
            return;
        }
        let record = self.exchange.record(Headers::Map(&self.head.headers));
        let headers: &mut HeaderMap = match outcome {
            Outcome::Upstream(begun) => begun.response.headers_mut(),
            Outcome::Local(response) => response.headers_mut(),
            Outcome::Tunnel(response, _) => response.headers_mut(),
        };
        for level in matched.mutations(weighted) {
            level.response().apply(headers, &record);
        }
    }

    fn local(&self, status: StatusCode, body: Bytes) -> Outcome {
        Outcome::Local(local_reply::reply(status, body, self.exchange.grpc))
    }

    /// The response's head as the client gets it, and its body.
    fn respond(mut self, outcome: Outcome) -> Response<ResponseBody> {
        let server = self.exchange.downstream.hcm.server_name.clone();
        let finish = |head: &mut HeaderMap| {
            if let Some(Ok(name)) = server.map(|name| HeaderValue::from_str(&name)) {
                head.insert(header::SERVER, name);
            }
        };
        match outcome {
            Outcome::Upstream(begun) => {
                let (mut parts, incoming) = begun.response.into_parts();
                finish(&mut parts.headers);
                parts.extensions.clear();
                let h1 = !self.exchange.downstream.h2;
                if h1 && self.exchange.grpc {
                    announce_trailers(&mut parts.headers);
                }
                self.exchange
                    .begin_response(parts.status.as_u16(), &parts.headers);
                let exchange = self.exchange;
                let body = ResponseBody::upstream(incoming, begun.lease, begun.active, exchange);
                let mut response = Response::new(body);
                *response.status_mut() = parts.status;
                *response.headers_mut() = parts.headers;
                response
            }
            Outcome::Local(response) => {
                let (mut parts, bytes) = response.into_parts();
                finish(&mut parts.headers);
                if self.close {
                    let value = HeaderValue::from_static("close");
                    parts.headers.insert(header::CONNECTION, value);
                }
                self.exchange
                    .begin_response(parts.status.as_u16(), &parts.headers);
                let bodiless = self.exchange.method == Method::HEAD;
                let body = ResponseBody::full(bytes, bodiless, self.exchange);
                Response::from_parts(parts, body)
            }
            Outcome::Tunnel(response, far) => {
                let (mut parts, ()) = response.into_parts();
                finish(&mut parts.headers);
                self.exchange
                    .begin_response(parts.status.as_u16(), &parts.headers);
                let body = match self.near.take() {
                    Some(near) => {
                        upgrade::spawn(near, *far, self.exchange);
                        ResponseBody::none()
                    }
                    None => ResponseBody::full(Bytes::new(), true, self.exchange),
                };
                Response::from_parts(parts, body)
            }
        }
    }
}

/// hyper writes HTTP/1.1 trailers only where a header announces them, and only to a client that
/// asked for them.
fn announce_trailers(headers: &mut HeaderMap) {
    if !headers.contains_key(header::TRAILER) && !headers.contains_key(header::CONTENT_LENGTH) {
        let names = "grpc-status, grpc-message, grpc-status-details-bin";
        headers.insert(header::TRAILER, HeaderValue::from_static(names));
    }
}
