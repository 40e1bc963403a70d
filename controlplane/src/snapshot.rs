//! The mesh at one moment: immutable, shared by every stream, cheap to take.
//!
//! Made by [`crate::index::Index`], whose tables it shares; read by the analysis and the translation.
//! Of a table that a snapshot still holds the index copies only what it changes.

mod api_route;
mod gateway;
mod reach;
mod resolve;
mod services;
mod sidecar;
mod table;

pub use self::reach::Reach;
pub use self::resolve::{Policy, ResolvedSubset, claim};
pub use self::table::{Iter, Table};

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::ObjectId;
use crate::model::api_route::{ApiRoute, ReferenceGrant};
use crate::model::endpoint::{EndpointSlice, ServiceEndpoints, WorkloadLookup};
use crate::model::entry::{ServiceEntry, WorkloadEntry};
use crate::model::gateway::Gateway;
use crate::model::mesh::MeshConfig;
use crate::model::names::{Hostname, ObjectName};
use crate::model::node::Node;
use crate::model::policy::DestinationRule;
use crate::model::route::{RouteRule, VirtualService};
use crate::model::service::Service;
use crate::model::sidecar::Sidecar;
use crate::model::workload::{Workload, WorkloadTemplate};

/// The mesh at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshSnapshot {
    /// Settings of the whole mesh.
    pub mesh: Arc<MeshConfig>,
    /// Known namespaces.
    pub namespaces: Table<ObjectName, ()>,
    /// Known nodes.
    pub nodes: Table<ObjectName, Arc<Node>>,
    /// Known service accounts.
    pub service_accounts: Table<ObjectName, ()>,
    /// Services by name.
    pub services: Table<ObjectName, Arc<Service>>,
    /// Services by host, in the order in which they claim it.
    pub hosts: Table<Hostname, Vec<ObjectName>>,
    /// `ServiceEntries` and `EgressRules`; their services are among the others.
    pub service_entries: Table<ObjectId, Arc<ServiceEntry>>,
    /// `WorkloadEntries` by name.
    pub workload_entries: Table<ObjectName, Arc<WorkloadEntry>>,
    /// Derived: the address of each host that needs one and states none.
    pub allocated: Table<Hostname, IpAddr>,
    /// Endpoints as registries state them.
    pub slices: Table<ObjectName, Arc<EndpointSlice>>,
    /// Endpoints as `Endpoints` objects state them.
    pub legacy_endpoints: Table<ObjectName, Arc<EndpointSlice>>,
    /// Pods by name.
    pub workloads: Table<ObjectName, Arc<Workload>>,
    /// Pods by address, those with an address of their own.
    pub addresses: Table<IpAddr, ObjectName>,
    /// Deployments by name.
    pub templates: Table<ObjectName, Arc<WorkloadTemplate>>,
    /// `VirtualServices` by name.
    pub virtual_services: Table<ObjectName, Arc<VirtualService>>,
    /// Derived: those that have hosts, with the routes of those that they delegate to.
    pub routed: Table<ObjectName, Arc<VirtualService>>,
    /// `Sidecars` by name.
    pub sidecars: Table<ObjectName, Arc<Sidecar>>,
    /// Routes of the Gateway API.
    pub api_routes: Table<ObjectId, Arc<ApiRoute>>,
    /// `ReferenceGrants` by name.
    pub reference_grants: Table<ObjectName, Arc<ReferenceGrant>>,
    /// Gateways of all kinds.
    pub gateways: Table<ObjectId, Arc<Gateway>>,
    /// `DestinationRules` by name.
    pub destination_rules: Table<ObjectName, Arc<DestinationRule>>,
    /// Derived: `DestinationRules` by the host that they name.
    pub ruled: Table<Hostname, BTreeSet<ObjectName>>,
    /// Derived: routes of the Gateway API by what they belong to.
    pub attached: Table<ObjectId, BTreeSet<ObjectId>>,
    /// `RouteRules` by name.
    pub route_rules: Table<ObjectName, Arc<RouteRule>>,
    /// Derived: the endpoints of each service that has any.
    pub endpoints: Table<ObjectName, Arc<ServiceEndpoints>>,
    /// Derived when asked: the ports that clients of a namespace reach.
    pub reach: Arc<Reach>,
}

impl MeshSnapshot {
    /// The endpoints of a service port.
    pub fn endpoints_of(
        &self,
        service: &ObjectName,
        port: u16,
    ) -> &[crate::model::endpoint::Endpoint] {
        self.endpoints
            .get(service)
            .map_or(&[], |endpoints| endpoints.of_port(port))
    }

    /// Services whose selector matches this pod, by name.
    pub fn services_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let services = self.services.in_namespace(&workload.name.namespace);
        services
            .filter(|service| crate::model::workload::selects(&service.selector, &workload.labels))
    }
}

impl WorkloadLookup for MeshSnapshot {
    fn by_name(&self, name: &ObjectName) -> Option<Arc<Workload>> {
        self.workloads.get(name).cloned()
    }

    fn by_address(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.addresses
            .get(&address)
            .and_then(|name| self.by_name(name))
    }
}
