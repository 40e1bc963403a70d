//! The `tcp_proxy` network filter.

use std::sync::Arc;
use std::time::Duration;

use millrace_xds::proto::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use millrace_xds::proto::google::protobuf::Any;
use millrace_xds::proto::unpack;
use pb::tcp_proxy::ClusterSpecifier as PbCluster;

use super::route::{checked_total, plain_weighted};
use super::value::{duration, u32_or};
use super::{Cx, Invalid, access_log};
use crate::resource::{ClusterSpecifier, TcpProxy, WeightedClusters};

/// Envoy's default idle timeout.
const IDLE_TIMEOUT: Duration = Duration::from_hours(1);

/// Converts the filter's configuration.
pub(super) fn convert(cx: &mut Cx, any: &Any) -> Result<Arc<TcpProxy>, Invalid> {
    let m: pb::TcpProxy = cx.unpacked(unpack(any))?;
    if m.stat_prefix.is_empty() {
        return Err(cx.bad("stat_prefix", "is required"));
    }
    if m.tunneling_config.is_some() {
        return Err(cx.bad("tunneling_config", "tunnelling is not supported"));
    }
    if m.on_demand.is_some() {
        return Err(cx.bad("on_demand", "clusters on demand are not supported"));
    }
    let attempts = u32_or(m.max_connect_attempts.as_ref(), 1);
    if attempts == 0 {
        return Err(cx.bad("max_connect_attempts", "must be at least 1"));
    }
    Ok(Arc::new(TcpProxy {
        cluster: cluster(cx, &m)?,
        idle_timeout: duration(cx, "idle_timeout", m.idle_timeout.as_ref(), IDLE_TIMEOUT)?,
        max_connect_attempts: attempts,
        access_log: access_log::convert(cx, "access_log", &m.access_log)?,
    }))
}

fn cluster(cx: &mut Cx, m: &pb::TcpProxy) -> Result<ClusterSpecifier, Invalid> {
    match &m.cluster_specifier {
        Some(PbCluster::Cluster(name)) if name.is_empty() => Err(cx.bad("cluster", "is empty")),
        Some(PbCluster::Cluster(name)) => Ok(ClusterSpecifier::Cluster(name.as_str().into())),
        Some(PbCluster::WeightedClusters(weighted)) => cx.at("weighted_clusters", |cx| {
            let clusters = cx.each("clusters", &weighted.clusters, |cx, c| {
                if c.name.is_empty() {
                    return Err(cx.bad("name", "is required"));
                }
                if c.weight == 0 {
                    return Err(cx.bad("weight", "must be at least 1"));
                }
                Ok(plain_weighted(&c.name, c.weight))
            })?;
            let total = clusters.iter().map(|c| u64::from(c.weight)).sum();
            let total = checked_total(cx, total)?;
            Ok(ClusterSpecifier::Weighted(WeightedClusters {
                total,
                clusters,
            }))
        }),
        None => Err(cx.invalid("a cluster specifier is required")),
    }
}
