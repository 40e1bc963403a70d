//! Clusters: where endpoints come from and how they are used.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoints;
use super::name::ClusterName;
use super::origin::Origin;

/// `cluster.v3.Cluster`, as far as this proxy executes it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Name in statistics; the name where the configuration gives none.
    pub alt_stat_name: Option<String>,
    /// Where its endpoints come from.
    pub kind: ClusterKind,
    /// How one endpoint is chosen.
    pub lb_policy: LbPolicy,
    /// Time to open a connection.
    pub connect_timeout: Duration,
    /// Limits of default priority.
    pub default_thresholds: Thresholds,
    /// Limits of high priority.
    pub high_thresholds: Thresholds,
    /// Which HTTP version upstream speaks.
    pub protocol: UpstreamProtocol,
    /// An idle pooled connection is closed after this time; zero disables.
    pub idle_timeout: Duration,
    /// A pooled connection is closed after this time; zero disables.
    pub max_connection_duration: Duration,
    /// Requests on one connection; zero is unbounded.
    pub max_requests_per_connection: u32,
    /// Concurrent HTTP/2 streams on one connection.
    pub max_concurrent_streams: u32,
    /// Keep-alive probes of upstream TCP connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Source addresses of upstream connections where the proxy makes its own sockets.
    pub bind_source: BindSource,
    /// Share of healthy hosts, in percent, under which health is left out of account.
    pub panic_threshold: u8,
    /// Whether a cluster was added by CDS (`added_via_api` of `/clusters`).
    pub added_via_api: bool,
    /// Istio's service metadata (`filter_metadata.istio.services[0]`), for telemetry.
    pub service: Option<ServiceRef>,
    /// The subset of the service's endpoints that it is; `None` for all of them.
    pub subset: Option<Arc<str>>,
    /// The `DestinationRule` in force.
    pub origin: Option<Origin>,
}

/// The service that a cluster belongs to, for telemetry labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    /// `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// `reviews`.
    pub name: Arc<str>,
    /// `default`.
    pub namespace: Arc<str>,
    /// The object that made it, where that is no Service (`filter_metadata.millrace.service`).
    pub object: Option<Arc<str>>,
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug)]
pub enum ClusterKind {
    /// Given with the cluster.
    Static(Arc<Endpoints>),
    /// EDS, under this resource name.
    Eds(String),
    /// Every address that DNS gives for each host, refreshed.
    StrictDns(DnsHosts),
    /// One address that DNS gives for the one host, taken anew for each connection.
    LogicalDns(DnsHosts),
    /// The connection's own original destination.
    OriginalDst,
}

/// Hosts that DNS resolves.
#[derive(Clone, Debug)]
pub struct DnsHosts {
    /// Host names and ports.
    pub hosts: Vec<(String, u16)>,
    /// How often they are resolved (5 s in Envoy).
    pub refresh_rate: Duration,
    /// Whether the record's time to live is followed instead.
    pub respect_ttl: bool,
    /// Which addresses are asked for.
    pub family: DnsFamily,
}

/// `Cluster.DnsLookupFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6 where there is one, else IPv4.
    Auto,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
    /// IPv4 where there is one, else IPv6.
    V4Preferred,
    /// Both.
    All,
}

/// How one endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbPolicy {
    /// In turn, by weight.
    RoundRobin,
    /// The less busy of `choices` random hosts.
    LeastRequest {
        /// Hosts compared, at least 2.
        choices: u32,
    },
    /// Any.
    Random,
    /// The cluster names its one endpoint itself (`CLUSTER_PROVIDED`).
    ClusterProvided,
}

/// `circuit_breakers.thresholds`; Envoy's defaults are 1024, 1024, 1024 and 3 (R70).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Connections.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Retries under way.
    pub max_retries: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
        }
    }
}

/// Which HTTP version a cluster's endpoints speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// What downstream speaks (`use_downstream_protocol_config`).
    UseDownstream,
}

/// `upstream_bind_config`: at most one source address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindSource {
    /// Towards IPv4 endpoints.
    pub v4: Option<SocketAddr>,
    /// Towards IPv6 endpoints.
    pub v6: Option<SocketAddr>,
}

impl BindSource {
    /// The source address of connections to `endpoint`.
    pub fn towards(self, endpoint: IpAddr) -> Option<SocketAddr> {
        if endpoint.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// TCP keep-alive probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection is given up.
    pub probes: u32,
}
