//! The upstream of a raw TCP connection: which cluster, which host, and the connection to it.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;

use crate::cluster::breaker::Resource;
use crate::cluster::host::Active;
use crate::cluster::{ClusterEntry, Host, Permit};
use crate::flags::ResponseFlags;
use crate::listener::DownstreamInfo;
use crate::resource::listener::TrafficDirection;
use crate::resource::{ClusterKind, ClusterName, ClusterSpecifier, TcpProxy};
use crate::route::action;
use crate::upstream::connect::{ConnectError, ConnectTarget, UpstreamStream};
use crate::worker::Worker;

/// An open upstream connection; its counts end with it.
pub struct Connected {
    /// The connection.
    pub stream: UpstreamStream,
    /// The cluster that was chosen.
    pub cluster: Arc<ClusterEntry>,
    /// The host that was chosen.
    pub host: Arc<Host>,
    /// How many connects it took.
    pub attempts: u32,
    /// Its place under the cluster's `max_connections`; none where it came from another epoch and
    /// there was none left.
    _permit: Option<Permit>,
    /// A connection counts as a request too, as in Envoy: least request goes by it.
    _active: [Active; 2],
}

impl Connected {
    /// A connection that another epoch opened.
    pub fn adopt(
        stream: UpstreamStream,
        cluster: Arc<ClusterEntry>,
        host: Arc<Host>,
        attempts: u32,
    ) -> Self {
        Self {
            stream,
            _permit: cluster.breakers().acquire(Resource::Connection),
            _active: [host.connection(), host.request()],
            cluster,
            host,
            attempts,
        }
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected")
            .field("cluster", self.cluster.name())
            .field("host", &self.host.address())
            .finish_non_exhaustive()
    }
}

/// Why there is no upstream connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The proxy names no cluster, or one that does not exist.
    #[error("there is no cluster {0}")]
    NoCluster(String),
    /// The cluster has no host to give.
    #[error("cluster {0} has no healthy host")]
    NoHost(ClusterName),
    /// `max_connections` is reached.
    #[error("cluster {0} has as many connections as its circuit breaker allows")]
    Overflow(ClusterName),
    /// No host could be connected to.
    #[error("cluster {cluster}, {attempts} attempts")]
    Connect {
        /// The cluster.
        cluster: ClusterName,
        /// The host that was tried last.
        host: Arc<Host>,
        /// How many connects were tried.
        attempts: u32,
        /// What the last one said.
        source: ConnectError,
    },
}

impl Failure {
    /// The cluster that was chosen, where it exists.
    pub fn cluster(&self) -> Option<&ClusterName> {
        match self {
            Self::NoCluster(_) => None,
            Self::NoHost(cluster) | Self::Overflow(cluster) | Self::Connect { cluster, .. } => {
                Some(cluster)
            }
        }
    }

    /// As the access log has it.
    pub fn flag(&self) -> ResponseFlags {
        match self {
            Self::NoCluster(_) => ResponseFlags::NO_CLUSTER,
            Self::NoHost(_) => ResponseFlags::NO_HEALTHY_UPSTREAM,
            Self::Overflow(_) => ResponseFlags::UPSTREAM_OVERFLOW,
            Self::Connect { attempts, .. } => {
                let flag = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
                if *attempts > 1 {
                    flag | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED
                } else {
                    flag
                }
            }
        }
    }
}

/// Chooses cluster and host and connects, as often as the proxy allows.
///
/// # Errors
/// See [`Failure`].
pub async fn connect(
    worker: &Worker,
    info: &DownstreamInfo,
    proxy: &TcpProxy,
) -> Result<Connected, Failure> {
    let name = choose(&proxy.cluster, fastrand::u64(..))
        .ok_or_else(|| Failure::NoCluster("named by a header".to_owned()))?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        // Each attempt asks the newest configuration: hosts change while one is tried.
        let cluster = worker.snapshot.load().cluster(name.as_str()).cloned();
        let cluster = cluster.ok_or_else(|| Failure::NoCluster(name.to_string()))?;
        let host = pick(worker, &cluster, info).ok_or_else(|| Failure::NoHost(name.clone()))?;
        let permit = cluster.breakers().acquire(Resource::Connection);
        let permit = permit.ok_or_else(|| Failure::Overflow(name.clone()))?;
        let active = [host.connection(), host.request()];
        match worker
            .connector
            .connect(&target(&cluster, &host, info))
            .await
        {
            Ok(stream) => {
                return Ok(Connected {
                    stream,
                    cluster,
                    host,
                    attempts,
                    _permit: Some(permit),
                    _active: active,
                });
            }
            Err(source) => {
                host.stats.cx_connect_fail.add(1);
                tracing::debug!(id = info.id, cluster = %name, %source, attempts, "not connected");
                if attempts >= proxy.max_connect_attempts.max(1) {
                    return Err(Failure::Connect {
                        cluster: name.clone(),
                        host,
                        attempts,
                        source,
                    });
                }
            }
        }
    }
}

/// The cluster for a random number; none where a header would name it, of which bytes have none.
pub fn choose(specifier: &ClusterSpecifier, random: u64) -> Option<ClusterName> {
    action::choose(specifier, &HeaderMap::new(), random).map(|chosen| chosen.cluster)
}

fn pick(worker: &Worker, cluster: &ClusterEntry, info: &DownstreamInfo) -> Option<Arc<Host>> {
    match cluster.config.kind {
        ClusterKind::OriginalDst => Some(cluster.original_dst(info.orig_dst)),
        _ => worker.pools.pick(cluster, &[], 0),
    }
}

fn target(cluster: &ClusterEntry, host: &Host, info: &DownstreamInfo) -> ConnectTarget {
    ConnectTarget {
        address: host.address(),
        source: info.pod.clone(),
        client: Some(info.peer),
        // An inbound connection is delivered to the very address that it came for, in the same
        // namespace. With the client's port too both would be one connection to the kernel: the SYN
        // would reach the socket that is there, or conntrack would redirect it as it did the first.
        keep_port: info.direction == TrafficDirection::Outbound || info.orig_dst != host.address(),
        connect_timeout: cluster.config.connect_timeout,
        keepalive: cluster.config.tcp_keepalive,
        bind_source: cluster.config.bind_source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{HeaderMutation, WeightedCluster, WeightedClusters};

    #[test]
    fn clusters_are_chosen_by_weight() {
        let weighted = |name: &str, weight| WeightedCluster {
            name: name.into(),
            weight,
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
        };
        let specifier = ClusterSpecifier::Weighted(WeightedClusters {
            total: 100,
            clusters: vec![weighted("v1", 1), weighted("v2", 0), weighted("v3", 99)],
        });
        let chosen = |n| choose(&specifier, n).unwrap().to_string();
        let v3 = (0..100).filter(|n| chosen(*n) == "v3").count();
        assert_eq!((chosen(0).as_str(), v3), ("v1", 99));
    }
}
