//! The index: the one writer of the mesh's state.
//!
//! Input: validated objects applied and deleted by registries; output: a [`ChangeSet`] for the push and
//! a [`MeshSnapshot`] on demand. Derived tables (endpoints, hosts, addresses) are kept up to date with
//! every call, touching only what the object can affect; a property test compares with a rebuild.

mod allocate;
mod changes;
mod links;

pub use self::changes::ChangeSet;
use self::links::Links;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::api_route::{ApiRoute, ReferenceGrant};
use crate::model::delegate;
use crate::model::endpoint::{self, EndpointSlice, ServiceEndpoints};
use crate::model::entry::{ServiceEntry, WorkloadEntry};
use crate::model::gateway::Gateway;
use crate::model::mesh::MeshConfig;
use crate::model::names::{Hostname, ObjectName};
use crate::model::node::Node;
use crate::model::policy::DestinationRule;
use crate::model::route::{HttpAction, RouteRule, VirtualService};
use crate::model::service::{Service, ServiceKind};
use crate::model::sidecar::Sidecar;
use crate::model::workload::{Workload, selects};
use crate::model::{Kind, Object, ObjectId};
use crate::snapshot::{MeshSnapshot, Table};

/// All that is known, with what changed since it was last asked.
#[derive(Debug, Default)]
pub struct Index {
    state: MeshSnapshot,
    links: Links,
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
            links: Links::default(),
            changes: ChangeSet::default(),
        }
    }

    /// An index that goes on from a snapshot, whose tables it shares until it changes them: to judge objects in, not to
    /// serve from, since endpoints of what is applied are not derived from slices and pods that came before.
    pub fn over(snapshot: MeshSnapshot) -> Self {
        Self {
            state: snapshot,
            links: Links::default(),
            changes: ChangeSet::default(),
        }
    }

    /// Replaces the mesh's settings. Hosts do not move: the domain is fixed for a process.
    pub fn set_mesh(&mut self, mesh: MeshConfig) {
        if *self.state.mesh != mesh {
            self.state.mesh = Arc::new(mesh);
            self.state.reach = Arc::default();
            self.changes.mesh = true;
        }
    }

    /// Adds an object, or replaces the one of the same kind and name. Equal objects change nothing.
    pub fn apply(&mut self, object: Object) {
        let id = object.id();
        let name = id.name.clone();
        match object {
            Object::Namespace(_) => {
                self.state.namespaces.insert(name, ());
            }
            Object::Node(node) => self.put_node(&name, Some(node)),
            Object::ServiceAccount(_) => {
                self.state.service_accounts.insert(name, ());
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
            Object::RouteRule(rule) => self.put_route_rule(&name, Some(rule)),
            Object::ServiceEntry(entry) => self.put_service_entry(&id, Some(entry)),
            Object::ApiRoute(route) => {
                self.put_api_route(&id, Some(route));
            }
            Object::ReferenceGrant(grant) => self.put_grant(&name, Some(grant)),
            Object::Gateway(gateway) => self.put_gateway(&id, Some(gateway)),
            Object::WorkloadEntry(entry) => self.put_workload_entry(&name, Some(entry)),
            Object::Sidecar(sidecar) => self.put_sidecar(&name, Some(sidecar)),
        }
    }

    /// Removes an object; nothing happens when it is not there.
    pub fn delete(&mut self, id: &ObjectId) {
        let name = &id.name;
        match id.kind {
            Kind::Namespace => {
                self.state.namespaces.remove(name);
            }
            Kind::Node => self.put_node(name, None),
            Kind::ServiceAccount => {
                self.state.service_accounts.remove(name);
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
            Kind::RouteRule => self.put_route_rule(name, None),
            Kind::ServiceEntry | Kind::EgressRule => self.put_service_entry(id, None),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.put_api_route(id, None);
            }
            Kind::ReferenceGrant => self.put_grant(name, None),
            Kind::Gateway | Kind::IstioGateway | Kind::Ingress => self.put_gateway(id, None),
            // Judged and never kept.
            Kind::GatewayClass => {}
            Kind::WorkloadEntry => self.put_workload_entry(name, None),
            Kind::Sidecar => self.put_sidecar(name, None),
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

    fn put_route_rule(&mut self, name: &ObjectName, rule: Option<Arc<RouteRule>>) {
        if put(&mut self.state.route_rules, name, rule) {
            self.changes.routes = true;
            self.changes.labels = true;
        }
    }

    fn put_grant(&mut self, name: &ObjectName, grant: Option<Arc<ReferenceGrant>>) {
        if put(&mut self.state.reference_grants, name, grant) {
            self.changes.routes = true;
            self.changes.attached = true;
        }
    }

    fn put_gateway(&mut self, id: &ObjectId, gateway: Option<Arc<Gateway>>) {
        if put(&mut self.state.gateways, id, gateway) {
            self.changes.gateways = true;
        }
    }

    fn put_sidecar(&mut self, name: &ObjectName, sidecar: Option<Arc<Sidecar>>) {
        if put(&mut self.state.sidecars, name, sidecar) {
            self.changes.scopes = true;
            self.changes.scoped.insert(Arc::clone(&name.namespace));
            self.state.reach = Arc::default();
        }
    }

    fn put_service(&mut self, name: &ObjectName, service: Option<Arc<Service>>) {
        let old = self.state.services.get(name).cloned();
        if !put(&mut self.state.services, name, service.clone()) {
            return;
        }
        self.changes.services.insert(name.clone());
        let versions = old.iter().chain(&service);
        self.changes.versions.extend(versions.cloned());
        self.state.reach = Arc::default();
        self.links
            .set_service(name, old.as_deref(), service.as_deref());
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
            self.changes.ruled.extend(old.iter().chain(&new).cloned());
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
            self.changes.attached = true;
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
            let before = self.state.routed.get(&root).cloned();
            if put(&mut self.state.routed, &root, resolved.clone()) {
                self.changes
                    .rules
                    .extend(before.into_iter().chain(resolved));
            }
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
        self.state.allocated = allocate::addresses(&self.state).into();
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
            .in_namespace(&name.namespace)
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
        let old = table.get(name).cloned();
        if !put(table, name, slice.clone()) {
            return;
        }
        self.links
            .set_slice(kind, name, old.as_deref(), slice.as_deref());
        let services = old.into_iter().chain(slice).map(|it| it.service.clone());
        for service in services.collect::<BTreeSet<_>>() {
            self.derive_endpoints(&service);
        }
    }

    fn put_workload(&mut self, name: &ObjectName, workload: Option<Arc<Workload>>) {
        let old = self.state.workloads.get(name).cloned();
        if !put(&mut self.state.workloads, name, workload.clone()) {
            return;
        }
        self.changes.workloads.insert(name.clone());
        self.links
            .set_workload(name, old.as_deref(), workload.as_deref());
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
        let names = self.links.claimants(&address);
        let owner = names
            .filter_map(|name| self.state.workloads.get(name))
            .max_by_key(|w| (w.ready, std::cmp::Reverse(&w.name)));
        let owner = owner.map(|workload| workload.name.clone());
        put(&mut self.state.addresses, &address, owner);
    }

    /// Services that a pod can be an endpoint of: because a slice names it or one of its addresses, or
    /// by selector where nothing states the endpoints.
    fn services_touched_by(
        &self,
        name: &ObjectName,
        versions: &[Arc<Workload>],
    ) -> BTreeSet<ObjectName> {
        let addresses = versions.iter().flat_map(|version| &version.addresses);
        let slices = self.links.slices_naming(name, addresses).into_iter();
        let named = slices.filter_map(|(kind, slice)| match kind {
            Kind::Endpoints => self.state.legacy_endpoints.get(slice),
            _ => self.state.slices.get(slice),
        });
        let may = versions
            .iter()
            .flat_map(|version| self.links.may_select(&name.namespace, &version.labels));
        let selected = may
            .filter_map(|service| self.state.services.get(service))
            .filter(|service| service.entry().is_some() || !self.links.are_stated(&service.name))
            .filter(|service| {
                let mut labels = versions.iter().map(|version| &version.labels);
                labels.any(|labels| selects(&service.selector, labels))
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
            .and_then(|service| derive(&self.state, &self.links, service));
        let before = self.state.endpoints.get(service).cloned();
        let names = |endpoints: &ServiceEndpoints| !endpoints.names.is_empty();
        let by_dns = before.as_deref().is_some_and(names) || derived.as_ref().is_some_and(names);
        if put(&mut self.state.endpoints, service, derived.map(Arc::new)) {
            self.changes.endpoints.insert(service.clone());
            self.changes
                .note_endpoints(self.state.services.get(service));
            // Names that DNS resolves stand in the cluster itself.
            if by_dns {
                self.changes.services.insert(service.clone());
                let version = self.state.services.get(service);
                self.changes.versions.extend(version.cloned());
            }
        }
    }
}

/// Endpoints by `EndpointSlices`, else by an Endpoints object, else by the selector.
fn derive(state: &MeshSnapshot, links: &Links, service: &Service) -> Option<ServiceEndpoints> {
    if matches!(service.kind, ServiceKind::ExternalName(_)) {
        return None;
    }
    let stated = |kind: Kind, table: &Table<ObjectName, Arc<EndpointSlice>>| {
        let names = links.slices_of(&service.name, kind).into_iter();
        let slices = names.filter_map(|name| table.get(name).cloned());
        slices.collect::<Vec<Arc<EndpointSlice>>>()
    };
    let mut slices = stated(Kind::EndpointSlice, &state.slices);
    if slices.is_empty() {
        slices = stated(Kind::Endpoints, &state.legacy_endpoints);
    }
    let namespace = &service.name.namespace;
    let pods = state.workloads.in_namespace(namespace);
    let pods = pods.filter(|workload| selects(&service.selector, &workload.labels));
    let entries = state.workload_entries.in_namespace(namespace);
    let entries: Vec<Arc<WorkloadEntry>> = entries
        .filter(|entry| selects(&service.selector, &entry.workload.labels))
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
    table: &mut Table<K, BTreeSet<V>>,
    old: impl IntoIterator<Item = K>,
    new: impl IntoIterator<Item = K>,
    value: &V,
) {
    for key in old {
        if let Some(values) = table.get_mut(&key) {
            values.remove(value);
            if values.is_empty() {
                table.remove(&key);
            }
        }
    }
    for key in new {
        match table.get_mut(&key) {
            Some(values) => {
                values.insert(value.clone());
            }
            None => {
                table.insert(key, BTreeSet::from([value.clone()]));
            }
        }
    }
}

/// Sets or removes an entry; says whether anything is different now.
fn put<K: Ord + Clone, V: Clone + PartialEq>(
    table: &mut Table<K, V>,
    key: &K,
    value: Option<V>,
) -> bool {
    if table.get(key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => table.insert(key.clone(), value),
        None => table.remove(key),
    };
    true
}

#[cfg(test)]
mod tests;
