//! Destination rules: subsets and the traffic policy towards a host.

use std::time::Duration;

use super::names::{Hostname, ObjectName};
use super::route::ExportTo;
use super::workload::Labels;

/// Subsets and traffic policy of one host.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was created, as RFC 3339 text; sorts before the name where two rules meet.
    pub created: Option<String>,
    /// The host, possibly a wildcard.
    pub host: Hostname,
    /// Who may use it.
    pub export_to: ExportTo,
    /// The policy for the whole host.
    pub policy: TrafficPolicy,
    /// Policies for single ports, which replace the whole host's.
    pub port_policies: Vec<(u16, TrafficPolicy)>,
    /// Named groups of the host's endpoints.
    pub subsets: Vec<Subset>,
}

/// A named group of endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// The name that routes use.
    pub name: String,
    /// The labels its pods carry.
    pub labels: Labels,
    /// Its policy, over the host's.
    pub policy: TrafficPolicy,
    /// Its policies for single ports.
    pub port_policies: Vec<(u16, TrafficPolicy)>,
}

/// How connections to a host are balanced and limited. Absent values are inherited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and timeouts.
    pub pool: ConnectionPool,
    /// When endpoints that fail are left out.
    pub outlier: Option<OutlierDetection>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// In turn.
    RoundRobin,
    /// The less busy of two random ones.
    LeastRequest,
    /// At random.
    Random,
    /// The address that the client asked for.
    Passthrough,
    /// The same for what has the same hash.
    Hash(ConsistentHash),
}

/// What a hash is made of and looked up in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistentHash {
    /// What it is made of.
    pub key: HashKey,
    /// What it is looked up in.
    pub table: HashTable,
}

/// What a hash is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// A header of the request.
    Header(String),
    /// A cookie, which is given to clients that have none if it has a life.
    Cookie {
        /// Its name.
        name: String,
        /// Its path; empty for none.
        path: String,
        /// Its life; zero for as long as the client's session.
        ttl: Option<Duration>,
    },
    /// The client's address.
    SourceIp,
    /// A parameter in the request's query.
    QueryParameter(String),
}

/// What a hash is looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTable {
    /// A ring with at least so many places.
    Ring(u64),
    /// Maglev's table; its size where one is stated.
    Maglev(Option<u64>),
}

/// Istio's smallest ring.
pub const MINIMUM_RING_SIZE: u64 = 1024;

impl ConsistentHash {
    /// Each client at one endpoint, as `sessionAffinity: ClientIP` of a Service asks for.
    pub const CLIENT_IP: Self = Self {
        key: HashKey::SourceIp,
        table: HashTable::Ring(MINIMUM_RING_SIZE),
    };
}

/// When endpoints that fail are left out, and for how long. Absent values are the proxy's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Answers of 5xx in a row; 0 leaves nobody out for them.
    pub consecutive_5xx: Option<u32>,
    /// Answers of 502, 503 and 504 in a row; 0 leaves nobody out for them.
    pub consecutive_gateway: Option<u32>,
    /// Whether failures to reach the endpoint are counted apart.
    pub splits_local_origin: bool,
    /// These in a row, where they are.
    pub consecutive_local_origin: Option<u32>,
    /// Time between two looks at who failed.
    pub interval: Option<Duration>,
    /// How long the first time lasts.
    pub base_ejection_time: Option<Duration>,
    /// Of 100 endpoints so many may be left out.
    pub max_ejection_percent: Option<u32>,
    /// Below this share of healthy endpoints all are used.
    pub min_health_percent: u32,
}

/// Limits and timeouts of the connections to a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectionPool {
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// Time for a connection to be made.
    pub connect_timeout: Option<Duration>,
    /// Time after which an idle TCP connection is closed.
    pub tcp_idle_timeout: Option<Duration>,
    /// The longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Keep-alive probes.
    pub keepalive: Option<Keepalive>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests at once.
    pub max_requests: Option<u32>,
    /// Requests on one connection.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once.
    pub max_retries: Option<u32>,
    /// Time after which an idle HTTP connection is closed.
    pub http_idle_timeout: Option<Duration>,
    /// Streams at once on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Whether HTTP/1.1 requests are sent on as HTTP/2.
    pub upgrade_to_http2: Option<bool>,
    /// Whether the server is spoken to in the client's protocol.
    pub use_client_protocol: Option<bool>,
}

/// Keep-alive probes of a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

impl TrafficPolicy {
    /// This policy where it says something, else `base`: how a subset inherits from its host. As in
    /// Istio the connection pool is inherited as a whole, not value by value.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self {
            load_balancer: self
                .load_balancer
                .clone()
                .or_else(|| base.load_balancer.clone()),
            pool: if self.pool == ConnectionPool::default() {
                base.pool.clone()
            } else {
                self.pool.clone()
            },
            outlier: self.outlier.clone().or_else(|| base.outlier.clone()),
        }
    }
}
