//! Endpoints of a cluster, by priority and locality.

use std::net::SocketAddr;
use std::sync::Arc;

/// `endpoint.v3.ClusterLoadAssignment`: localities in the order of their priority.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Localities; priorities have no gaps (checked on conversion).
    pub localities: Vec<LocalityEndpoints>,
    /// Share by which the healthy hosts of a priority are overrated, in percent (140 in Envoy).
    pub overprovisioning_factor: u32,
}

/// Endpoints of one locality and priority.
#[derive(Clone, Debug)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// 0 is the highest.
    pub priority: u32,
    /// Weight among the localities of this priority.
    pub weight: u32,
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Region, zone and sub-zone; each may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Sub-zone.
    pub sub_zone: Arc<str>,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address, in canonical form (no v4-mapped address).
    pub address: SocketAddr,
    /// Its host name, where it has one.
    pub hostname: Option<Arc<str>>,
    /// Its weight, at least 1.
    pub weight: u32,
    /// What the control plane says of it.
    pub health: HealthStatus,
    /// Whether it is a canary (`envoy.lb` metadata).
    pub canary: bool,
    /// The workload behind it (`filter_metadata.istio.workload`), for telemetry.
    pub workload: Option<WorkloadRef>,
}

/// The workload behind an endpoint: Istio's `name;namespace;canonical-name;canonical-revision;cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadRef {
    /// Name of the workload.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Canonical service.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
}

/// `core.v3.HealthStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// Not known; counts as healthy.
    Unknown,
    /// Healthy.
    Healthy,
    /// Unhealthy, timed out included.
    Unhealthy,
    /// Gets no new connections.
    Draining,
    /// Used where too few healthy ones are left.
    Degraded,
}

impl Endpoints {
    /// Every endpoint with its locality.
    pub fn iter(&self) -> impl Iterator<Item = (&LocalityEndpoints, &Arc<Endpoint>)> {
        self.localities
            .iter()
            .flat_map(|l| l.endpoints.iter().map(move |e| (l, e)))
    }
}
