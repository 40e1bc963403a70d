//! Outlier detection: endpoints that fail are left out for a time.
//!
//! Stock Envoy counts failures in a row, as `DestinationRules` mean it. gRPC's own clients (gRFC A50) judge shares of
//! the calls of an interval alone, so they are told the nearest to it: who failed all of at least as many calls.
//! Millrace's proxy is told what stock Envoy is, where it says that it leaves anybody out.

use millrace_xds::proto::Cluster;
use millrace_xds::proto::envoy::config::cluster::v3 as proto;
use millrace_xds::proto::envoy::r#type::v3::Percent;

use super::ProxyView;
use super::view::Program;
use super::wrap::{duration, uint};
use crate::model::node::Feature;
use crate::model::policy::OutlierDetection;

/// Envoy's, where nothing is said.
const CONSECUTIVE_5XX: u32 = 5;
/// What gRPC compares with is exceeded by no share but all.
const ALMOST_ALL: u32 = 99;

/// Adds to a cluster what its client executes of a policy.
pub(super) fn detect(view: &ProxyView, cluster: &mut Cluster, policy: &OutlierDetection) {
    if !view.executes(Feature::Outliers) {
        return;
    }
    match view.program() {
        Program::Envoy | Program::Millrace => {
            cluster.outlier_detection = Some(in_a_row(policy));
            let common = cluster.common_lb_config.get_or_insert_default();
            // As Istio: with few pods to a service, using those that failed is seldom meant.
            common.healthy_panic_threshold = Some(Percent {
                value: f64::from(policy.min_health_percent),
            });
        }
        Program::Grpc => cluster.outlier_detection = by_share(policy),
    }
}

fn in_a_row(policy: &OutlierDetection) -> proto::OutlierDetection {
    let enforced =
        |count: Option<u32>| count.and_then(|count| uint(if count > 0 { 100 } else { 0 }));
    let splits = policy.splits_local_origin;
    proto::OutlierDetection {
        consecutive_5xx: policy.consecutive_5xx.and_then(uint),
        enforcing_consecutive_5xx: enforced(policy.consecutive_5xx),
        consecutive_gateway_failure: policy.consecutive_gateway.and_then(uint),
        enforcing_consecutive_gateway_failure: enforced(policy.consecutive_gateway),
        split_external_local_origin_errors: splits,
        consecutive_local_origin_failure: policy.consecutive_local_origin.and_then(uint),
        enforcing_consecutive_local_origin_failure: enforced(policy.consecutive_local_origin),
        enforcing_local_origin_success_rate: splits.then(|| uint(0)).flatten(),
        enforcing_success_rate: uint(0),
        ..times(policy)
    }
}

fn by_share(policy: &OutlierDetection) -> Option<proto::OutlierDetection> {
    let counts = [policy.consecutive_5xx, policy.consecutive_gateway];
    let least = match counts
        .into_iter()
        .flatten()
        .filter(|count| *count > 0)
        .min()
    {
        Some(count) => count,
        None if policy.consecutive_5xx.is_none() => CONSECUTIVE_5XX,
        None => return None,
    };
    Some(proto::OutlierDetection {
        enforcing_success_rate: uint(0),
        enforcing_failure_percentage: uint(100),
        failure_percentage_threshold: uint(ALMOST_ALL),
        failure_percentage_minimum_hosts: uint(1),
        failure_percentage_request_volume: uint(least),
        ..times(policy)
    })
}

fn times(policy: &OutlierDetection) -> proto::OutlierDetection {
    proto::OutlierDetection {
        interval: policy.interval.and_then(duration),
        base_ejection_time: policy.base_ejection_time.and_then(duration),
        max_ejection_percent: policy.max_ejection_percent.and_then(uint),
        ..Default::default()
    }
}
