//! Endpoints: of EDS, and of clusters that bring their own.

use std::sync::Arc;

use millrace_xds::proto::ClusterLoadAssignment;
use millrace_xds::proto::envoy::config::core::v3::{
    HealthStatus as PbHealth, Locality as PbLocality, Metadata,
};
use millrace_xds::proto::envoy::config::endpoint::v3 as pb;
use millrace_xds::proto::google::protobuf::value::Kind;
use pb::lb_endpoint::HostIdentifier;

use super::address::{host_and_port, socket_addr};
use super::value::{enumeration, u32_or};
use super::{Cx, Invalid};
use crate::resource::endpoint::WorkloadRef;
use crate::resource::{Endpoint, Endpoints, HealthStatus, Locality, LocalityEndpoints};

/// Envoy's default overprovisioning factor.
const OVERPROVISIONING: u32 = 140;

/// Converts an assignment whose endpoints have addresses.
pub(super) fn convert(cx: &mut Cx, m: &ClusterLoadAssignment) -> Result<Endpoints, Invalid> {
    if m.cluster_name.is_empty() {
        return Err(cx.bad("cluster_name", "is required"));
    }
    assignment(cx, m)
}

/// Like [`convert`], for the assignment inside a cluster.
pub(super) fn assignment(cx: &mut Cx, m: &ClusterLoadAssignment) -> Result<Endpoints, Invalid> {
    let factor = m
        .policy
        .as_ref()
        .and_then(|p| p.overprovisioning_factor.as_ref());
    let overprovisioning_factor = u32_or(factor, OVERPROVISIONING);
    if overprovisioning_factor == 0 {
        return Err(cx.bad("policy.overprovisioning_factor", "must be greater than 0"));
    }
    let mut localities = cx.each("endpoints", &m.endpoints, locality)?;
    localities.sort_by_key(|l| l.priority);
    check_priorities(cx, &localities)?;
    Ok(Endpoints {
        localities,
        overprovisioning_factor,
    })
}

/// The host names of a DNS cluster's assignment.
pub(super) fn dns_hosts(
    cx: &mut Cx,
    m: &ClusterLoadAssignment,
) -> Result<Vec<(String, u16)>, Invalid> {
    let mut hosts = Vec::new();
    let groups = cx.each("endpoints", &m.endpoints, |cx, group| {
        if group.priority != 0 {
            cx.note("priority", "all hosts of a DNS cluster have priority 0");
        }
        cx.each("lb_endpoints", &group.lb_endpoints, |cx, endpoint| {
            let inner = identified(cx, endpoint)?;
            cx.at("endpoint", |cx| {
                let (host, port) = host_and_port(cx, "address", inner.address.as_ref())?;
                if port == 0 {
                    return Err(cx.bad("address", "port 0 is not an endpoint"));
                }
                Ok((host, port))
            })
        })
    })?;
    for group in groups {
        hosts.extend(group);
    }
    Ok(hosts)
}

/// Priorities count from 0 without gaps, so that failing over never meets an empty level.
fn check_priorities(cx: &mut Cx, localities: &[LocalityEndpoints]) -> Result<(), Invalid> {
    let mut expected = 0;
    for locality in localities {
        if locality.priority > expected {
            let found = locality.priority;
            let reason = format!("priority {found} is used, priority {expected} is not");
            return Err(cx.bad("endpoints", reason));
        }
        expected = locality.priority + 1;
    }
    Ok(())
}

fn locality(cx: &mut Cx, m: &pb::LocalityLbEndpoints) -> Result<LocalityEndpoints, Invalid> {
    if m.priority > 128 {
        return Err(cx.bad("priority", "must be at most 128"));
    }
    if m.lb_config.is_some() {
        return Err(cx.bad(
            "lb_config",
            "only endpoints listed in lb_endpoints are supported",
        ));
    }
    let endpoints = cx.each("lb_endpoints", &m.lb_endpoints, endpoint)?;
    let total = endpoints.iter().map(|e| u64::from(e.weight)).sum::<u64>();
    let Ok(total) = u32::try_from(total) else {
        return Err(cx.bad("lb_endpoints", "the sum of weights exceeds 4294967295"));
    };
    // Without a weight of its own a locality weighs what its endpoints do, which is what
    // balancing without regard to localities gives.
    let weight = m.load_balancing_weight.as_ref().map(|w| w.value);
    if weight == Some(0) {
        return Err(cx.bad("load_balancing_weight", "must be at least 1"));
    }
    Ok(LocalityEndpoints {
        locality: m.locality.as_ref().map(place).unwrap_or_default(),
        priority: m.priority,
        weight: weight.unwrap_or(total),
        endpoints,
    })
}

fn place(m: &PbLocality) -> Locality {
    Locality {
        region: m.region.as_str().into(),
        zone: m.zone.as_str().into(),
        sub_zone: m.sub_zone.as_str().into(),
    }
}

fn identified<'a>(cx: &mut Cx, m: &'a pb::LbEndpoint) -> Result<&'a pb::Endpoint, Invalid> {
    match &m.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => Ok(endpoint),
        Some(HostIdentifier::EndpointName(_)) => {
            Err(cx.bad("endpoint_name", "named endpoints are not supported"))
        }
        None => Err(cx.bad("endpoint", "is required")),
    }
}

fn endpoint(cx: &mut Cx, m: &pb::LbEndpoint) -> Result<Arc<Endpoint>, Invalid> {
    let inner = identified(cx, m)?;
    let address = cx.at("endpoint", |cx| {
        let address = socket_addr(cx, "address", inner.address.as_ref())?;
        if address.port() == 0 || address.ip().is_unspecified() {
            let reason = format!("{address} cannot be connected to");
            return Err(cx.bad("address", reason));
        }
        Ok(address)
    })?;
    let weight = u32_or(m.load_balancing_weight.as_ref(), 1);
    if weight == 0 {
        return Err(cx.bad("load_balancing_weight", "must be at least 1"));
    }
    let health = match enumeration(cx, "health_status", m.health_status)? {
        PbHealth::Unknown => HealthStatus::Unknown,
        PbHealth::Healthy => HealthStatus::Healthy,
        PbHealth::Unhealthy | PbHealth::Timeout => HealthStatus::Unhealthy,
        PbHealth::Draining => HealthStatus::Draining,
        PbHealth::Degraded => HealthStatus::Degraded,
    };
    Ok(Arc::new(Endpoint {
        address,
        hostname: Some(inner.hostname.as_str())
            .filter(|h| !h.is_empty())
            .map(Into::into),
        weight,
        health,
        canary: m.metadata.as_ref().is_some_and(is_canary),
        workload: m.metadata.as_ref().and_then(workload),
    }))
}

fn is_canary(metadata: &Metadata) -> bool {
    let value = metadata
        .filter_metadata
        .get("envoy.lb")
        .and_then(|lb| lb.fields.get("canary"));
    matches!(
        value.and_then(|v| v.kind.as_ref()),
        Some(Kind::BoolValue(true))
    )
}

/// Istio's `name;namespace;canonical-name;canonical-revision;cluster`.
pub(super) fn workload(metadata: &Metadata) -> Option<WorkloadRef> {
    let value = metadata
        .filter_metadata
        .get("istio")?
        .fields
        .get("workload")?;
    let Some(Kind::StringValue(text)) = &value.kind else {
        return None;
    };
    let mut parts = text.split(';');
    Some(WorkloadRef {
        name: parts.next()?.into(),
        namespace: parts.next()?.into(),
        canonical_name: parts.next()?.into(),
        canonical_revision: parts.next()?.into(),
    })
}
