//! The documents of Envoy's REST v1 API, as JSON; field names and defaults are those of Envoy 1.5 to 1.7.

use serde::Serialize;

/// The answer of LDS.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Listeners {
    /// Sorted by address, each once.
    pub listeners: Vec<Listener>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listener {
    /// `tcp://<ip>:<port>`.
    pub address: String,
    /// `<http|tcp>_<ip>_<port>`, or `virtual`.
    pub name: String,
    /// What happens to its connections.
    pub filters: Vec<NetworkFilter>,
    /// Whether it has a socket of its own, or gets connections from the one that has.
    pub bind_to_port: bool,
    /// Whether it gives connections to the listener of their original destination.
    #[serde(skip_serializing_if = "is_false")]
    pub use_original_dst: bool,
}

/// A network filter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NetworkFilter {
    /// `read`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `http_connection_manager` or `tcp_proxy`.
    pub name: &'static str,
    /// Its configuration.
    pub config: FilterConfig,
}

/// The configuration of a network filter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum FilterConfig {
    /// Of `http_connection_manager`.
    Http(Box<HttpConnectionManager>),
    /// Of `tcp_proxy`.
    Tcp(TcpProxy),
}

/// Requests and where they go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpConnectionManager {
    /// `auto`.
    pub codec_type: &'static str,
    /// `http`.
    pub stat_prefix: &'static str,
    /// Whether requests without an id get one.
    pub generate_request_id: bool,
    /// Whether spans are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// Routes that stand here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_config: Option<RouteConfig>,
    /// Routes that RDS is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rds: Option<Rds>,
    /// HTTP filters.
    pub filters: Vec<HttpFilter>,
    /// Where requests are logged.
    pub access_log: Vec<AccessLog>,
}

/// Spans of a listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tracing {
    /// `ingress` or `egress`.
    pub operation_name: &'static str,
}

/// How routes are asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rds {
    /// The bootstrap's cluster of pilot.
    pub cluster: &'static str,
    /// The port.
    pub route_config_name: String,
    /// Time between two questions.
    pub refresh_delay_ms: u64,
}

/// An HTTP filter without configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpFilter {
    /// `decoder`; absent where the filter says it itself.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Its name.
    pub name: &'static str,
    /// Empty.
    pub config: Nothing,
}

/// `{}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Nothing {}

/// An access log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccessLog {
    /// The file.
    pub path: String,
    /// How a line looks, where it is not Envoy's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// Connections and where they go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpProxy {
    /// `tcp`.
    pub stat_prefix: &'static str,
    /// The routes, first match wins.
    pub route_config: TcpRouteConfig,
}

/// Routes of connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpRouteConfig {
    /// In order.
    pub routes: Vec<TcpRoute>,
}

/// A route of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpRoute {
    /// Where they go.
    pub cluster: String,
    /// The networks that the client asked for; empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ip_list: Vec<String>,
}

/// The answer of RDS.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteConfig {
    /// Whether routes to unknown clusters are refused.
    pub validate_clusters: bool,
    /// Sorted by name.
    pub virtual_hosts: Vec<VirtualHost>,
}

/// The routes of some domains.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VirtualHost {
    /// The service key.
    pub name: String,
    /// All names of the service, each with its port first.
    pub domains: Vec<String>,
    /// First match wins.
    pub routes: Vec<Route>,
}

/// A route of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Route {
    /// The path, as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A pattern of the whole path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Absent where case counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case_sensitive: Option<bool>,
    /// What the matched prefix becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<String>,
    /// What the authority becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_rewrite: Option<String>,
    /// The path that clients are sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_redirect: Option<String>,
    /// The host that clients are sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_redirect: Option<String>,
    /// The only cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Several clusters by weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weighted_clusters: Option<WeightedClusters>,
    /// Headers that must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// Query parameters that must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query_parameters: Vec<ValueMatch>,
    /// Time for the whole response; 0 for no limit.
    pub timeout_ms: u64,
    /// How failures are retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_policy: Option<RetryPolicy>,
    /// Headers that requests get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers_to_add: Vec<Header>,
    /// What spans are called.
    pub decorator: Decorator,
}

impl Route {
    /// Whether nothing can come after it.
    pub fn catches_all(&self) -> bool {
        self.prefix.as_deref() == Some("/")
            && self.headers.is_empty()
            && self.query_parameters.is_empty()
    }
}

/// Clusters by weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightedClusters {
    /// Their weights come to 100.
    pub clusters: Vec<WeightedCluster>,
}

/// One of several clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedCluster {
    /// Its name.
    pub name: String,
    /// Its part of 100.
    pub weight: u32,
}

/// A header or query parameter that must match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ValueMatch {
    /// Its name.
    pub name: String,
    /// Its value; absent where it only has to be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether the value is a pattern.
    #[serde(skip_serializing_if = "is_false")]
    pub regex: bool,
}

/// How failures are retried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RetryPolicy {
    /// Which failures.
    pub retry_on: String,
    /// How often.
    pub num_retries: u32,
    /// Time for each try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout_ms: Option<u64>,
}

/// A header that is added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What spans are called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Decorator {
    /// The rule's name, or `default-route`.
    pub operation: String,
}

/// The answer of CDS.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Clusters {
    /// Sorted by name.
    pub clusters: Vec<Cluster>,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// What SDS is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Time for a connection to be made.
    pub connect_timeout_ms: u64,
    /// `sds`, `static`, `strict_dns`, `logical_dns` or `original_dst`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// How a host is chosen.
    pub lb_type: &'static str,
    /// Requests on one connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
    /// Hosts that stand here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostUrl>,
    /// `http2` where hosts are spoken to in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<&'static str>,
    /// Limits where they are not Envoy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breakers: Option<CircuitBreakers>,
    /// When hosts that fail are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// When hosts that fail are left out; what is absent is Envoy's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutlierDetection {
    /// Answers of 5xx in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx: Option<u32>,
    /// Answers of 502, 503 and 504 in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_failure: Option<u32>,
    /// Time between two looks at who failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// How long the first time lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time_ms: Option<u64>,
    /// Of 100 hosts so many may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    /// 0 where nobody is left out for 5xx.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enforcing_consecutive_5xx: Option<u32>,
}

/// A host of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostUrl {
    /// `tcp://<host>:<port>`.
    pub url: String,
}

/// Limits by priority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CircuitBreakers {
    /// Of the only priority in use.
    pub default: Limits,
}

/// Limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Connections at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Retries at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// The answer of SDS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hosts {
    /// Empty where there are none, never absent.
    pub hosts: Vec<Host>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Its address.
    pub ip_address: String,
    /// Its port.
    pub port: u16,
    /// What else is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
}

/// What is known of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tags {
    /// Its zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub az: String,
    /// Its share, from 1 to 100; absent where all weigh the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancing_weight: Option<u32>,
}

/// One of all services, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// The key that SDS is asked by.
    #[serde(rename = "service-key")]
    pub service_key: String,
    /// Its endpoints.
    pub hosts: Vec<Host>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}
