//! The proxy's own view of its configuration: validated, immutable types without I/O and
//! without proto.
//!
//! `xds::convert` builds them from protobuf, `bootstrap` from a static file; `snapshot`
//! ties them together and the data path reads them. A value of one of these types cannot be
//! wrong: everything that can fail was checked on the way in.

pub mod cluster;
pub mod endpoint;
pub mod header;
pub mod listener;
pub mod matcher;
pub mod name;
pub mod origin;
pub mod route;
pub mod text;

pub use cluster::{BindSource, Cluster, ClusterKind, LbPolicy, Thresholds, UpstreamProtocol};
pub use endpoint::{Endpoint, Endpoints, HealthStatus, Locality, LocalityEndpoints};
pub use header::HeaderMutation;
pub use listener::{
    AccessLog, AccessLogFormat, Codec, FilterChain, FilterChainMatch, HttpConnectionManager,
    Listener, NetworkFilter, RouteSource, TcpProxy, TrafficDirection,
};
pub use matcher::{HeaderMatcher, QueryMatcher, StringMatcher};
pub use name::{ClusterName, ListenerName, RouteConfigName};
pub use origin::Origin;
pub use route::{
    Action, ClusterSpecifier, PathMatcher, RetryOn, RetryPolicy, Route, RouteAction,
    RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, WeightedClusters,
};
