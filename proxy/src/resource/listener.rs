//! Listeners, filter chains and network filters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::endpoint::WorkloadRef;
use super::name::{ListenerName, RouteConfigName};
use super::origin::Origin;
use super::route::{ClusterSpecifier, RouteConfiguration};

/// A listener. In node mode the sockets are the broker's and `address` is only matched against
/// original destinations; alone from a file the proxy binds it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of Envoy's message and independent of the others"
)]
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name.
    pub name: ListenerName,
    /// The address it binds or stands for.
    pub address: SocketAddr,
    /// Whether a socket is bound at `address` (`bind_to_port`, true by default in Envoy).
    pub bind_to_port: bool,
    /// Whether connections are handed to the listener that stands for their original
    /// destination (`use_original_dst`).
    pub use_original_dst: bool,
    /// Whose traffic it is.
    pub direction: TrafficDirection,
    /// The workload whose listener it is (`filter_metadata.istio.workload`), for telemetry.
    pub workload: Option<WorkloadRef>,
    /// Whether the bytes before the first read decide the application protocol
    /// (`envoy.filters.listener.http_inspector`).
    pub http_inspector: bool,
    /// Whether a TLS `ClientHello` is read for SNI and ALPN
    /// (`envoy.filters.listener.tls_inspector`).
    pub tls_inspector: bool,
    /// How long the inspectors may wait for bytes; zero means for as long as it takes.
    pub listener_filters_timeout: Duration,
    /// Whether a connection goes on after that time rather than being closed.
    pub continue_on_listener_filters_timeout: bool,
    /// Filter chains, looked at in Envoy's order of specificity.
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// Taken where no filter chain matches.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// Access logs of connections that no filter chain took.
    pub access_log: Vec<AccessLog>,
}

/// `core.v3.TrafficDirection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrafficDirection {
    /// Not said.
    Unspecified,
    /// Towards the pod's application.
    Inbound,
    /// From the pod's application.
    Outbound,
}

/// A filter chain: what it matches and the one network filter that ends it.
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// Its name; empty where the configuration gives none.
    pub name: String,
    /// When it is taken.
    pub matches: FilterChainMatch,
    /// What handles the connection.
    pub filter: NetworkFilter,
    /// The rule that says where its connections go.
    pub origin: Option<Origin>,
}

/// `listener.v3.FilterChainMatch`; an empty list or `None` matches anything.
#[derive(Clone, Debug, Default)]
pub struct FilterChainMatch {
    /// Original destination port.
    pub destination_port: Option<u16>,
    /// Original destination address.
    pub prefix_ranges: Vec<IpNet>,
    /// SNI; `*.example.com` is a suffix match.
    pub server_names: Vec<String>,
    /// `raw_buffer` or `tls`; empty matches both.
    pub transport_protocol: String,
    /// ALPN or inspected protocols: `http/1.0`, `http/1.1`, `h2c`, `h2`.
    pub application_protocols: Vec<String>,
    /// Source address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Source ports.
    pub source_ports: Vec<u16>,
}

/// The terminal network filter of a chain.
#[derive(Clone, Debug)]
pub enum NetworkFilter {
    /// `envoy.filters.network.http_connection_manager`.
    Http(Arc<HttpConnectionManager>),
    /// `envoy.filters.network.tcp_proxy`.
    Tcp(Arc<TcpProxy>),
}

/// `HttpConnectionManager`, as far as this proxy executes it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of Envoy's message and independent of the others"
)]
#[derive(Clone, Debug)]
pub struct HttpConnectionManager {
    /// Which HTTP version downstream speaks.
    pub codec: Codec,
    /// Where its routes come from.
    pub routes: RouteSource,
    /// `server` response header; `None` passes the upstream's through.
    pub server_name: Option<String>,
    /// Whether the downstream address is taken from the connection (edge) rather than from
    /// `x-forwarded-for`.
    pub use_remote_address: bool,
    /// Trusted proxies before this one.
    pub xff_num_trusted_hops: u32,
    /// Whether a missing `x-request-id` is made.
    pub generate_request_id: bool,
    /// Whether an `x-request-id` from outside is kept even on the edge.
    pub preserve_external_request_id: bool,
    /// Protocols that may be upgraded to, lower case: `websocket`, `connect`.
    pub upgrades: Vec<String>,
    /// A stream without activity for this long is reset; zero disables.
    pub stream_idle_timeout: Duration,
    /// Time to receive a request's headers; zero disables.
    pub request_headers_timeout: Duration,
    /// Time to receive a whole request; zero disables.
    pub request_timeout: Duration,
    /// A connection without streams for this long is closed; zero disables.
    pub idle_timeout: Duration,
    /// Largest size of a request's headers in KiB.
    pub max_request_headers_kb: u32,
    /// Largest count of a request's headers.
    pub max_request_headers_count: u32,
    /// Largest count of concurrent HTTP/2 streams.
    pub max_concurrent_streams: u32,
    /// Whether paths are normalised (RFC 3986 section 6) before they are matched.
    pub normalize_path: bool,
    /// Whether adjacent slashes are merged.
    pub merge_slashes: bool,
    /// Whether the port is taken off the host before it is matched.
    pub strip_any_host_port: bool,
    /// One record per request.
    pub access_log: Vec<AccessLog>,
}

/// `HttpConnectionManager.CodecType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Decided by ALPN or the first bytes.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Where an HTTP connection manager's routes come from.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// RDS.
    Rds(RouteConfigName),
    /// Inline.
    Inline(Arc<RouteConfiguration>),
}

/// `TcpProxy`.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    /// Where connections go; a header-named cluster cannot occur here.
    pub cluster: ClusterSpecifier,
    /// A connection without bytes for this long is closed; zero disables.
    pub idle_timeout: Duration,
    /// Attempts to connect, at least one.
    pub max_connect_attempts: u32,
    /// One record per connection.
    pub access_log: Vec<AccessLog>,
}

/// `envoy.access_loggers.file` or `.stdout`.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// A path, `/dev/stdout` included.
    pub path: String,
    /// Envoy format string; `None` is the default format.
    pub format: Option<AccessLogFormat>,
}

/// How a record is written.
#[derive(Clone, Debug)]
pub enum AccessLogFormat {
    /// One line of text with `%COMMAND%` operators.
    Text(String),
    /// A JSON object whose values are format strings, in the order of their keys.
    Json(Vec<(String, String)>),
}
