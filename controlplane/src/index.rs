//! The index: the one writer of the mesh's state.
//!
//! Input: validated objects applied and deleted by registries; output: a [`ChangeSet`] for the push and
//! a [`MeshSnapshot`] on demand. Derived tables (endpoints, hosts, addresses) are kept up to date with
//! every call, touching only what the object can affect; a property test compares with a rebuild.

mod allocate;
mod changes;

pub use self::changes::ChangeSet;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::api_route::ApiRoute;
use crate::model::delegate;
use crate::model::endpoint::{self, EndpointSlice, ServiceEndpoints};
use crate::model::entry::{ServiceEntry, WorkloadEntry};
use crate::model::mesh::MeshConfig;
use crate::model::names::{Hostname, ObjectName};
use crate::model::node::Node;
use crate::model::policy::DestinationRule;
use crate::model::route::{HttpAction, VirtualService};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{Workload, selects};
use crate::model::{Kind, Object, ObjectId};
use crate::snapshot::{MeshSnapshot, Table};

/// All that is known, with what changed since it was last asked.
#[derive(Debug, Default)]
pub struct Index {
    state: MeshSnapshot,
    changes: ChangeSet,
}

impl Index {
    /// An empty index for a mesh with these settings.
    pub fn new(mesh: MeshConfig) -> Self {
        let state = MeshSnapshot {
            mesh: Arc::new(mesh),
            ..MeshSnapshot::default()
        };
        Self {
            state,
            changes: ChangeSet::default(),
        }
    }

    /// Replaces the mesh's settings. Hosts do not move: the domain is fixed for a process.
    pub fn set_mesh(&mut self, mesh: MeshConfig) {
        if *self.state.mesh != mesh {
            self.state.mesh = Arc::new(mesh);
            self.changes.mesh = true;
        }
    }

    /// Adds an object, or replaces the one of the same kind and name. Equal objects change nothing.
    pub fn apply(&mut self, object: Object) {
        let id = object.id();
        let name = id.name.clone();
        match object {
            Object::Namespace(_) => {
                Arc::make_mut(&mut self.state.namespaces).insert(name, ());
            }
            Object::Node(node) => self.put_node(&name, Some(node)),
            Object::ServiceAccount(_) => {
                Arc::make_mut(&mut self.state.service_accounts).insert(name, ());
            }
            Object::Service(service) => self.put_service(&name, Some(service)),
            Object::EndpointSlice(slice) => {
                let kind = slice.kind();
                self.put_slice(kind, &name, Some(slice));
            }
            Object::Workload(workload) => self.put_workload(&name, Some(workload)),
            Object::Template(template) => {
                put(&mut self.state.templates, &name, Some(template));
            }
            Object::VirtualService(rule) => {
                self.put_virtual_service(&name, Some(rule));
            }
            Object::DestinationRule(rule) => {
                self.put_destination_rule(&name, Some(rule));
            }
            Object::RouteRule(rule) => {
                self.changes.routes |= put(&mut self.state.route_rules, &name, Some(rule));
            }
            Object::ServiceEntry(entry) => self.put_service_entry(&id, Some(entry)),
            Object::ApiRoute(route) => {
                self.put_api_route(&id, Some(route));
            }
            Object::ReferenceGrant(grant) => {
                self.changes.routes |= put(&mut self.state.reference_grants, &name, Some(grant));
            }
            Object::WorkloadEntry(entry) => self.put_workload_entry(&name, Some(entry)),
            Object::Sidecar(sidecar) => {
                self.changes.scopes |= put(&mut self.state.sidecars, &name, Some(sidecar));
            }
        }
    }

    /// Removes an object; nothing happens when it is not there.
    pub fn delete(&mut self, id: &ObjectId) {
        let name = &id.name;
        match id.kind {
            Kind::Namespace => {
                Arc::make_mut(&mut self.state.namespaces).remove(name);
            }
            Kind::Node => self.put_node(name, None),
            Kind::ServiceAccount => {
                Arc::make_mut(&mut self.state.service_accounts).remove(name);
            }
            Kind::Service => self.put_service(name, None),
            Kind::EndpointSlice | Kind::Endpoints => self.put_slice(id.kind, name, None),
            Kind::Pod => self.put_workload(name, None),
            Kind::Deployment => {
                put(&mut self.state.templates, name, None);
            }
            Kind::VirtualService => {
                self.put_virtual_service(name, None);
            }
            Kind::DestinationRule => {
                self.put_destination_rule(name, None);
            }
            Kind::RouteRule => self.changes.routes |= put(&mut self.state.route_rules, name, None),
            Kind::ServiceEntry | Kind::EgressRule => self.put_service_entry(id, None),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.put_api_route(id, None);
            }
            Kind::ReferenceGrant => {
                self.changes.routes |= put(&mut self.state.reference_grants, name, None);
            }
            // Judged and never kept.
            Kind::Gateway | Kind::GatewayClass | Kind::IstioGateway => {}
            Kind::WorkloadEntry => self.put_workload_entry(name, None),
            Kind::Sidecar => self.changes.scopes |= put(&mut self.state.sidecars, name, None),
        }
    }

    /// The mesh as it is now.
    pub fn snapshot(&self) -> MeshSnapshot {
        self.state.clone()
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> ChangeSet {
        std::mem::take(&mut self.changes)
    }

    fn put_node(&mut self, name: &ObjectName, node: Option<Arc<Node>>) {
        if put(&mut self.state.nodes, name, node) {
            self.changes.nodes.insert(name.clone());
        }
    }

    fn put_service(&mut self, name: &ObjectName, service: Option<Arc<Service>>) {
        let old = self.state.services.get(name).cloned();
        if !put(&mut self.state.services, name, service.clone()) {
            return;
        }
        self.changes.services.insert(name.clone());
        let hosts: BTreeSet<Hostname> = old
            .into_iter()
            .chain(service)
            .map(|version| version.hostname.clone())
            .collect();
        for host in hosts {
            self.derive_claims(&host, name);
        }
        self.derive_endpoints(name);
    }

    /// The services with a host, of which `changed` is new, different or gone.
    fn derive_claims(&mut self, host: &Hostname, changed: &ObjectName) {
        let known = self.state.hosts.get(host).into_iter().flatten();
        let names: BTreeSet<&ObjectName> = known.chain([changed]).collect();
        let mut services: Vec<&Arc<Service>> = names
            .into_iter()
            .filter_map(|name| self.state.services.get(name))
            .filter(|service| service.hostname == *host)
            .collect();
        services.sort_by_key(|service| MeshSnapshot::claim_order(service));
        let names: Vec<ObjectName> = services
            .iter()
            .map(|service| service.name.clone())
            .collect();
        put(
            &mut self.state.hosts,
            host,
            (!names.is_empty()).then_some(names),
        );
    }

    fn put_destination_rule(&mut self, name: &ObjectName, rule: Option<Arc<DestinationRule>>) {
        let host = |rule: &Arc<DestinationRule>| rule.host.clone();
        let old = self.state.destination_rules.get(name).map(host);
        let new = rule.as_ref().map(host);
        if put(&mut self.state.destination_rules, name, rule) {
            self.changes.policies = true;
            refile(&mut self.state.ruled, old, new, name);
        }
    }

    fn put_api_route(&mut self, id: &ObjectId, route: Option<Arc<ApiRoute>>) {
        let parents = |route: &Arc<ApiRoute>| {
            let parents = route.parents.iter();
            let ids = parents.map(|parent| ObjectId {
                kind: parent.kind,
                name: parent.name.clone(),
            });
            ids.collect::<BTreeSet<_>>()
        };
        let old = self.state.api_routes.get(id).map(parents);
        let new = route.as_ref().map(parents);
        if put(&mut self.state.api_routes, id, route) {
            self.changes.routes = true;
            let old = old.into_iter().flatten();
            refile(&mut self.state.attached, old, new.into_iter().flatten(), id);
        }
    }

    /// Keeps the rules with hosts resolved: this one, or those that delegate to it.
    fn put_virtual_service(&mut self, name: &ObjectName, rule: Option<Arc<VirtualService>>) {
        if !put(&mut self.state.virtual_services, name, rule) {
            return;
        }
        self.changes.routes = true;
        let delegates_here = |rule: &&Arc<VirtualService>| {
            rule.http
                .iter()
                .any(|route| matches!(&route.action, HttpAction::Delegate(to) if to == name))
        };
        let others = self.state.virtual_services.values().filter(delegates_here);
        let touched: BTreeSet<ObjectName> = others
            .map(|rule| rule.name.clone())
            .chain([name.clone()])
            .collect();
        for root in touched {
            let rules = &self.state.virtual_services;
            let rule = rules.get(&root).filter(|rule| !rule.hosts.is_empty());
            let resolved = rule.map(|rule| delegate::resolve(rule, |name| rules.get(name)).0);
            put(&mut self.state.routed, &root, resolved);
        }
    }

    fn put_service_entry(&mut self, id: &ObjectId, entry: Option<Arc<ServiceEntry>>) {
        let services_of = |entry: Option<&Arc<ServiceEntry>>| {
            let services = entry.into_iter().flat_map(|entry| &entry.services);
            services.cloned().collect::<Vec<_>>()
        };
        let old = services_of(self.state.service_entries.get(id));
        let new = services_of(entry.as_ref());
        if !put(&mut self.state.service_entries, id, entry) {
            return;
        }
        for gone in old {
            if new.iter().all(|service| service.name != gone.name) {
                self.put_service(&gone.name, None);
            }
        }
        for service in new {
            self.put_service(&service.name.clone(), Some(service));
        }
        self.state.allocated = Arc::new(allocate::addresses(&self.state));
    }

    fn put_workload_entry(&mut self, name: &ObjectName, entry: Option<Arc<WorkloadEntry>>) {
        let old = self.state.workload_entries.get(name).cloned();
        if !put(&mut self.state.workload_entries, name, entry.clone()) {
            return;
        }
        let versions: Vec<_> = old.into_iter().chain(entry).collect();
        let touched: Vec<ObjectName> = self
            .state
            .services
            .values()
            .filter(|service| service.name.namespace == name.namespace)
            .filter(|service| {
                let labels = versions.iter().map(|version| &version.workload.labels);
                labels
                    .into_iter()
                    .any(|labels| selects(&service.selector, labels))
            })
            .map(|service| service.name.clone())
            .collect();
        for service in touched {
            self.derive_endpoints(&service);
        }
    }

    fn put_slice(&mut self, kind: Kind, name: &ObjectName, slice: Option<Arc<EndpointSlice>>) {
        let table = match kind {
            Kind::Endpoints => &mut self.state.legacy_endpoints,
            _ => &mut self.state.slices,
        };
        let old = table.get(name).map(|slice| slice.service.clone());
        let new = slice.as_ref().map(|slice| slice.service.clone());
        if !put(table, name, slice) {
            return;
        }
        for service in old.into_iter().chain(new).collect::<BTreeSet<_>>() {
            self.derive_endpoints(&service);
        }
    }

    fn put_workload(&mut self, name: &ObjectName, workload: Option<Arc<Workload>>) {
        let old = self.state.workloads.get(name).cloned();
        if !put(&mut self.state.workloads, name, workload.clone()) {
            return;
        }
        self.changes.workloads.insert(name.clone());
        let versions: Vec<_> = old.into_iter().chain(workload).collect();
        let addresses: BTreeSet<IpAddr> = versions
            .iter()
            .flat_map(|version| version.addresses.clone())
            .collect();
        for address in addresses {
            self.derive_address(address);
        }
        for service in self.services_touched_by(name, &versions) {
            self.derive_endpoints(&service);
        }
    }

    /// Who an address belongs to: among pods that claim it (a new pod may get the address of one that
    /// is just going), a ready one, then the first by name.
    fn derive_address(&mut self, address: IpAddr) {
        let claims = |workload: &&Arc<Workload>| {
            !workload.host_network && workload.addresses.contains(&address)
        };
        let owner = self
            .state
            .workloads
            .values()
            .filter(claims)
            .max_by_key(|w| (w.ready, std::cmp::Reverse(&w.name)));
        let owner = owner.map(|workload| workload.name.clone());
        put(&mut self.state.addresses, &address, owner);
    }

    /// Services that a pod can be an endpoint of: by selector, or because a slice names it or one of
    /// its addresses.
    fn services_touched_by(
        &self,
        name: &ObjectName,
        versions: &[Arc<Workload>],
    ) -> BTreeSet<ObjectName> {
        let selected = self.state.services.values().filter(|service| {
            service.name.namespace == name.namespace
                && versions
                    .iter()
                    .any(|version| selects(&service.selector, &version.labels))
        });
        let named = self
            .state
            .slices
            .values()
            .chain(self.state.legacy_endpoints.values())
            .filter(|slice| {
                slice
                    .groups
                    .iter()
                    .flat_map(|group| &group.endpoints)
                    .any(|stated| match &stated.pod {
                        Some(pod) => pod == name,
                        None => versions
                            .iter()
                            .any(|version| version.addresses.contains(&stated.address)),
                    })
            });
        selected
            .map(|service| service.name.clone())
            .chain(named.map(|slice| slice.service.clone()))
            .collect()
    }

    fn derive_endpoints(&mut self, service: &ObjectName) {
        let derived = self
            .state
            .services
            .get(service)
            .and_then(|service| derive(&self.state, service));
        let before = self.state.endpoints.get(service).cloned();
        let names = |endpoints: &ServiceEndpoints| !endpoints.names.is_empty();
        let by_dns = before.as_deref().is_some_and(names) || derived.as_ref().is_some_and(names);
        if put(&mut self.state.endpoints, service, derived.map(Arc::new)) {
            self.changes.endpoints.insert(service.clone());
            // Names that DNS resolves stand in the cluster itself.
            if by_dns {
                self.changes.services.insert(service.clone());
            }
        }
    }
}

/// Endpoints by `EndpointSlices`, else by an Endpoints object, else by the selector.
fn derive(state: &MeshSnapshot, service: &Service) -> Option<ServiceEndpoints> {
    if matches!(service.kind, ServiceKind::ExternalName(_)) {
        return None;
    }
    let in_namespace = |table: &Table<ObjectName, Arc<EndpointSlice>>| -> Vec<Arc<EndpointSlice>> {
        table
            .values()
            .filter(|slice| slice.service == service.name)
            .cloned()
            .collect()
    };
    let mut slices = in_namespace(&state.slices);
    if slices.is_empty() {
        slices = in_namespace(&state.legacy_endpoints);
    }
    let pods = state.workloads.values().filter(|workload| {
        workload.name.namespace == service.name.namespace
            && selects(&service.selector, &workload.labels)
    });
    let entries: Vec<Arc<WorkloadEntry>> = state
        .workload_entries
        .values()
        .filter(|entry| {
            entry.workload.name.namespace == service.name.namespace
                && selects(&service.selector, &entry.workload.labels)
        })
        .cloned()
        .collect();
    let mut endpoints = match service.entry() {
        Some(entry) => endpoint::from_entry(service, entry, &entries, &pods),
        None if slices.is_empty() => endpoint::from_workloads(service, &pods),
        None => endpoint::from_slices(service, &slices.iter().map(|slice| &**slice), state),
    };
    if service.entry().is_none() && !entries.is_empty() {
        endpoint::add_entries(service, &entries, &mut endpoints);
    }
    (!endpoints.is_empty()).then_some(endpoints)
}

/// Takes a value from where it was filed, and files it where it belongs now.
fn refile<K: Ord + Clone, V: Ord + Clone>(
    table: &mut Arc<BTreeMap<K, BTreeSet<V>>>,
    old: impl IntoIterator<Item = K>,
    new: impl IntoIterator<Item = K>,
    value: &V,
) {
    let table = Arc::make_mut(table);
    for key in old {
        if let Some(values) = table.get_mut(&key) {
            values.remove(value);
            if values.is_empty() {
                table.remove(&key);
            }
        }
    }
    for key in new {
        table.entry(key).or_default().insert(value.clone());
    }
}

/// Sets or removes an entry; says whether anything is different now.
fn put<K: Ord + Clone, V: Clone + PartialEq>(
    table: &mut Arc<BTreeMap<K, V>>,
    key: &K,
    value: Option<V>,
) -> bool {
    if table.get(key) == value.as_ref() {
        return false;
    }
    let table = Arc::make_mut(table);
    match value {
        Some(value) => table.insert(key.clone(), value),
        None => table.remove(key),
    };
    true
}

#[cfg(test)]
mod tests;
