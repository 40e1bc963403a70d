//! What is known of one request: written to log and metrics when it ends, however it ends.
//!
//! `stream` fills an [`Exchange`] in as the request goes through its phases; it then travels in
//! the response's body. Dropping it is the end of the request: after the last byte, or before,
//! when the client went away.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use tokio::time::Instant;

use super::Downstream;
use super::clock::Clock;
use super::local_reply::GRPC_STATUS;
use crate::access_log::{Headers, Record, Which};
use crate::cluster::{ClusterEntry, Host};
use crate::flags::{ResponseFlags, details};
use crate::handover::message::TunnelRequest;
use crate::handover::parcel::micros;
use crate::metrics::labels::{HttpKey, HttpLabels, Peers, Protocol, Reporter, TcpKey, Workload};
use crate::pods::LocalPod;
use crate::resource::TrafficDirection;
use crate::route::Matched;
use crate::upstream::replay::Replay;

/// Headers kept for the access log travel with a tunnel up to this size, else not at all.
const KEPT_BYTES: usize = 16 << 10;

/// One request and its response.
pub struct Exchange {
    /// The connection it came on.
    pub downstream: Rc<Downstream>,
    /// When it began.
    pub started: Instant,
    /// `:method`.
    pub method: Method,
    /// `:path` as it came.
    pub path: HeaderValue,
    /// `:authority`.
    pub authority: HeaderValue,
    /// HTTP version.
    pub version: Version,
    /// The client, as far as it can be trusted.
    pub remote: IpAddr,
    /// Whether it is a gRPC call.
    pub grpc: bool,
    /// The request's body.
    pub body: Replay,
    /// Its route.
    pub route: Option<Matched>,
    /// Its cluster.
    pub cluster: Option<Arc<ClusterEntry>>,
    /// The host tried last.
    pub host: Option<Arc<Host>>,
    /// This end of the upstream connection.
    pub upstream_local: Option<std::net::SocketAddr>,
    /// The pod of this node that the upstream connection leads into.
    pub delivery: Option<Arc<LocalPod>>,
    /// Tries.
    pub attempts: u32,
    /// Status; 0 before there is one.
    pub status: u16,
    /// `grpc-status`.
    pub grpc_status: Option<u32>,
    /// Flags.
    pub flags: ResponseFlags,
    /// Details of the status.
    pub details: &'static str,
    /// Why the upstream connection failed.
    pub transport_failure: Option<String>,
    /// Bytes of the response's body.
    pub bytes_sent: u64,
    /// Whether the response has been given to the client to its end.
    pub complete: bool,
    /// Timeouts of the stream.
    pub clock: Clock,
    wall: Option<SystemTime>,
    response_started: Option<Instant>,
    tunnel_received: u64,
    /// Name of the route of a tunnel that another epoch opened.
    route_name: Option<String>,
    /// Another epoch reports it.
    handed_over: bool,
    kept: Kept,
}

#[derive(Default)]
struct Kept {
    request: Vec<(HeaderName, HeaderValue)>,
    response: Vec<(HeaderName, HeaderValue)>,
    trailers: Vec<(HeaderName, HeaderValue)>,
}

impl Exchange {
    /// A request that has just come.
    pub fn new(
        downstream: Rc<Downstream>,
        method: Method,
        path: HeaderValue,
        authority: HeaderValue,
        version: Version,
        body: Replay,
    ) -> Self {
        let now = Instant::now();
        downstream.active.set(downstream.active.get() + 1);
        let read = downstream.io.bytes_read();
        // Nothing was read since the last request ended: this one had come before.
        if downstream.read_mark.replace(read) == read && !downstream.h2 {
            downstream.io.exchanged(true);
        }
        let logs = !downstream.loggers.is_empty();
        Self {
            clock: Clock::new(
                now,
                downstream.hcm.stream_idle_timeout,
                downstream.hcm.request_timeout,
            ),
            remote: downstream.info.peer.ip(),
            downstream,
            started: now,
            method,
            path,
            authority,
            version,
            grpc: false,
            body,
            route: None,
            cluster: None,
            host: None,
            upstream_local: None,
            delivery: None,
            attempts: 0,
            status: 0,
            grpc_status: None,
            flags: ResponseFlags::NONE,
            details: "",
            transport_failure: None,
            bytes_sent: 0,
            complete: false,
            wall: logs.then(SystemTime::now),
            response_started: None,
            tunnel_received: 0,
            route_name: None,
            handed_over: false,
            kept: Kept::default(),
        }
    }

    /// Notes the request's headers as they go upstream.
    pub fn keep_request(&mut self, headers: &HeaderMap) {
        let loggers = &self.downstream.loggers;
        loggers.keep(Which::Request, headers, &mut self.kept.request);
    }

    /// Notes the head of the response.
    pub fn begin_response(&mut self, status: u16, headers: &HeaderMap) {
        self.status = status;
        self.response_started = Some(Instant::now());
        self.note_grpc(headers);
        let loggers = &self.downstream.loggers;
        loggers.keep(Which::Response, headers, &mut self.kept.response);
    }

    /// Notes the trailers of the response.
    pub fn keep_trailers(&mut self, trailers: &HeaderMap) {
        self.note_grpc(trailers);
        let loggers = &self.downstream.loggers;
        loggers.keep(Which::Trailers, trailers, &mut self.kept.trailers);
    }

    /// Notes what went through a tunnel.
    pub fn tunnelled(&mut self, received: u64, sent: u64) {
        self.tunnel_received = received;
        self.bytes_sent += sent;
    }

    /// What the next epoch needs to report the request, which has become a tunnel.
    pub fn tunnel(&self) -> TunnelRequest {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let kept = [&self.kept.request, &self.kept.response];
        let size = |list: &[(HeaderName, HeaderValue)]| -> usize {
            list.iter().map(|(n, v)| n.as_str().len() + v.len()).sum()
        };
        let fits = kept.iter().map(|list| size(list)).sum::<usize>() <= KEPT_BYTES;
        let headers = kept.map(|list| {
            let pairs = list.iter().filter(|_| fits);
            pairs
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect()
        });
        TunnelRequest {
            method: self.method.to_string(),
            path: text(&self.path),
            authority: text(&self.authority),
            remote: self.remote,
            status: self.status,
            route: self.route_name().map(str::to_owned),
            upstream_local: self.upstream_local,
            delivery: self.delivery.as_ref().map(|pod| pod.spec.uid.clone()),
            age_us: micros(self.started.elapsed()),
            idle_timeout_us: micros(self.clock.idle()),
            headers,
        }
    }

    /// A request that another epoch took and that is a tunnel now.
    pub fn resume(downstream: Rc<Downstream>, request: &TunnelRequest) -> Self {
        let value = |text: &str| {
            HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
        };
        let mut exchange = Self::new(
            downstream,
            Method::from_bytes(request.method.as_bytes()).unwrap_or(Method::GET),
            value(&request.path),
            value(&request.authority),
            Version::HTTP_11,
            Replay::empty(),
        );
        let age = Duration::from_micros(request.age_us);
        exchange.started = exchange
            .started
            .checked_sub(age)
            .unwrap_or(exchange.started);
        exchange.wall = exchange.wall.and_then(|wall| wall.checked_sub(age));
        exchange.response_started = Some(exchange.started);
        exchange.remote = request.remote;
        exchange.status = request.status;
        exchange.details = details::VIA_UPSTREAM;
        exchange.attempts = 1;
        exchange.upstream_local = request.upstream_local;
        exchange.route_name.clone_from(&request.route);
        let idle = Duration::from_micros(request.idle_timeout_us);
        exchange.clock.set_route(Some(idle), None);
        let [kept_request, kept_response] = &request.headers;
        let list = |pairs: &[(String, String)]| {
            let parse = |(name, text): &(String, String)| {
                Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value(text)))
            };
            pairs.iter().filter_map(parse).collect()
        };
        exchange.kept.request = list(kept_request);
        exchange.kept.response = list(kept_response);
        exchange
    }

    /// The request goes on in another epoch, which reports it.
    pub fn hand_over(mut self) {
        self.handed_over = true;
    }

    fn route_name(&self) -> Option<&str> {
        let route = self.route.as_ref().map(|m| m.route().name.as_str());
        route
            .or(self.route_name.as_deref())
            .filter(|name| !name.is_empty())
    }

    fn bytes_received(&self) -> u64 {
        self.body.received() + self.tunnel_received
    }

    /// A record of the request as it stands, with these request headers.
    pub fn record<'a>(&'a self, request: Headers<'a>) -> Record<'a> {
        let info = &self.downstream.info;
        let since = |at: Instant| at - self.started;
        let config = self.cluster.as_ref().map(|c| &c.config);
        let text = |value: &'a HeaderValue| value.to_str().ok().filter(|v| !v.is_empty());
        Record {
            duration: self.started.elapsed(),
            request_duration: self.body.is_ended().then(|| self.started.elapsed()),
            response_duration: self.response_started.map(since),
            method: (self.status != 0 || !self.authority.is_empty())
                .then_some(self.method.as_str()),
            path: text(&self.path),
            authority: text(&self.authority),
            scheme: Some("http"),
            protocol: Some(match self.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            }),
            request,
            response: Headers::Kept(&self.kept.response),
            trailers: Headers::Kept(&self.kept.trailers),
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            details: (!self.details.is_empty()).then_some(self.details),
            transport_failure: self.transport_failure.as_deref(),
            bytes_received: self.bytes_received(),
            bytes_sent: self.bytes_sent,
            upstream_host: self.host.as_ref().map(|h| h.address()),
            upstream_local: self.upstream_local,
            upstream_cluster: config.map(|c| c.alt_stat_name.as_deref().unwrap_or(c.name.as_str())),
            upstream_cluster_raw: config.map(|c| c.name.as_str()),
            attempts: self.attempts,
            downstream_remote: std::net::SocketAddr::new(self.remote, info.peer.port()),
            downstream_direct_remote: info.peer,
            route_name: self.route_name(),
            filter_chain: Some(info.filter_chain.as_str()).filter(|name| !name.is_empty()),
            connection_id: info.id,
            ..Record::new(
                self.wall.unwrap_or(SystemTime::UNIX_EPOCH),
                info.orig_dst,
                info.peer,
            )
        }
    }

    fn note_grpc(&mut self, headers: &HeaderMap) {
        if self.grpc
            && let Some(value) = headers.get(GRPC_STATUS)
        {
            self.grpc_status = value.to_str().ok().and_then(|v| v.parse().ok());
        }
    }

    fn finish(&mut self) {
        if self.handed_over {
            self.downstream.active.set(self.downstream.active.get() - 1);
            return;
        }
        if !self.complete && self.flags.is_empty() {
            self.flags
                .insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            self.details = details::DOWNSTREAM_DISCONNECT;
        }
        let downstream = &self.downstream;
        downstream.active.set(downstream.active.get() - 1);
        downstream.read_mark.set(downstream.io.bytes_read());
        downstream.io.next_head();
        if !downstream.h2 {
            downstream.io.exchanged(false);
        }
        if !downstream.loggers.is_empty() {
            let record = self.record(Headers::Kept(&self.kept.request));
            downstream.loggers.record(&record);
        }
        self.measure();
    }

    fn measure(&self) {
        let reporter = match self.downstream.info.direction {
            TrafficDirection::Inbound => Reporter::Destination,
            _ => Reporter::Source,
        };
        self.count(reporter);
        // One traversal stands for both sides where the upstream is a pod of this node.
        if reporter == Reporter::Source && self.delivery.is_some() {
            self.count(Reporter::Destination);
        }
    }

    fn count(&self, reporter: Reporter) {
        let telemetry = &self.downstream.worker.telemetry;
        let key = HttpKey {
            peers: TcpKey {
                reporter,
                pod: self.downstream.pod_key,
                peer: 0,
                cluster: self.cluster.as_ref().map(|c| c.id()),
                host: self.host.as_ref().map(|h| h.id()),
                flags: self.flags,
            },
            status: self.status,
            grpc_status: self.grpc_status,
            grpc: self.grpc,
        };
        let series = telemetry.http(key, || self.labels(reporter));
        series.record(
            self.started.elapsed(),
            self.bytes_received(),
            self.bytes_sent,
        );
    }

    fn labels(&self, reporter: Reporter) -> HttpLabels {
        let info = &self.downstream.info;
        let snapshot = self.downstream.worker.snapshot.load();
        let own = match &info.pod {
            Some(pod) => Some(Workload::from(&pod.spec)),
            None => snapshot.own_workload().map(Workload::from),
        };
        let host = self
            .host
            .as_ref()
            .and_then(|h| h.endpoint.workload.as_ref());
        let outbound = info.direction != TrafficDirection::Inbound;
        let (source, destination) = if outbound {
            let delivered = self.delivery.as_ref().map(|pod| Workload::from(&pod.spec));
            (own, host.map(Workload::from).or(delivered))
        } else {
            let worker = &self.downstream.worker;
            let peer = worker.pods.by_ip(info.peer.ip());
            (peer.map(|pod| Workload::from(&pod.spec)), own)
        };
        let service = self
            .cluster
            .as_ref()
            .and_then(|c| Peers::service_of(c.config.service.as_ref()));
        HttpLabels {
            peers: Peers {
                reporter,
                source,
                destination,
                service,
            },
            protocol: if self.grpc {
                Protocol::Grpc
            } else {
                Protocol::Http
            },
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags.to_string(),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.finish();
    }
}
