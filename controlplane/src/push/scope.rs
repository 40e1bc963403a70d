//! Which resources a change can touch.
//!
//! Asked before anything is made or compared: per type for clients that leave the choice to pilot, per resource
//! for those that name what they want and for the cache. So a pod that comes up costs what its services cost,
//! whatever the size of the mesh. What is not known for sure counts as touched.

mod log;

use std::sync::Arc;

use millrace_xds::TypeUrl;
use millrace_xds::server::Generation;

use self::log::Log;
use crate::index::ChangeSet;
use crate::model::names::{Hostname, ObjectName};
use crate::model::route::{HttpAction, VirtualService};
use crate::model::service::Service;
use crate::snapshot::{MeshSnapshot, Table};
use crate::translate::{Part, ProxyView, ResourceKind};

/// Services changed in one generation beyond this number count as all of them.
const MANY: usize = 64;

/// For each part of the mesh, the generation that last changed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Services.
    pub services: Generation,
    /// Endpoints of services.
    pub endpoints: Generation,
    /// Endpoints of headless services.
    pub headless: Generation,
    /// Pods.
    pub workloads: Generation,
    /// Nodes.
    pub nodes: Generation,
    /// Routes of all kinds.
    pub routes: Generation,
    /// `RouteRules`.
    pub labels: Generation,
    /// Routes of the Gateway API.
    pub attached: Generation,
    /// `DestinationRules`.
    pub policies: Generation,
    /// `Sidecars`.
    pub scopes: Generation,
    /// Gateways.
    pub gateways: Generation,
    /// The mesh's settings.
    pub mesh: Generation,
}

impl Revisions {
    /// Notes what a generation changed.
    pub fn record(&mut self, changes: &ChangeSet, generation: Generation) {
        for (slot, changed) in [
            (&mut self.services, !changes.services.is_empty()),
            (&mut self.endpoints, !changes.endpoints.is_empty()),
            (&mut self.headless, changes.headless),
            (&mut self.workloads, !changes.workloads.is_empty()),
            (&mut self.nodes, !changes.nodes.is_empty()),
            (&mut self.routes, changes.routes),
            (&mut self.labels, changes.labels),
            (&mut self.attached, changes.attached),
            (&mut self.policies, changes.policies),
            (&mut self.scopes, changes.scopes),
            (&mut self.gateways, changes.gateways),
            (&mut self.mesh, changes.mesh),
        ] {
            if changed {
                *slot = generation;
            }
        }
    }

    /// Whether a client may stand elsewhere than at `since`, as far as it does not say itself where.
    pub fn moves(&self, view: &ProxyView, since: Generation) -> bool {
        let stated = view.stated_place();
        (stated.node.is_empty() && view.own_pod().is_some() && self.workloads > since)
            || (stated.zone.is_empty() && self.nodes > since)
    }

    /// Whether resources of a type can differ from what they were at `since`.
    pub fn affect(&self, type_url: &TypeUrl, since: Generation) -> bool {
        let Self {
            services,
            endpoints,
            headless,
            workloads,
            routes,
            policies,
            scopes,
            gateways,
            mesh,
            ..
        } = *self;
        let parts = if *type_url == TypeUrl::LISTENER {
            // Headless services have listeners per endpoint; inbound ones come from pods.
            [
                services,
                headless.max(gateways),
                workloads,
                routes.max(policies),
                scopes,
            ]
        } else if *type_url == TypeUrl::ROUTE || *type_url == TypeUrl::CLUSTER {
            // Routes name subsets, which may come from labels in routes and rules alike; clusters of a
            // sidecar include those of its pod's ports.
            [services, workloads.max(gateways), routes, policies, scopes]
        } else if *type_url == TypeUrl::ENDPOINT {
            [services, endpoints, routes, policies, scopes]
        } else {
            [services, headless, mesh, mesh, mesh]
        };
        mesh > since || parts.into_iter().any(|changed| changed > since)
    }
}

/// What generations have changed, part by part.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By part of the mesh.
    pub revisions: Revisions,
    /// The generations that last changed a host's services, and moved its endpoints.
    services_of: Table<Hostname, Generation>,
    moved: Table<Hostname, Generation>,
    pods: Table<ObjectName, Generation>,
    /// What the tables do not have has not changed after this.
    forgotten: Generation,
    services: Log<Change>,
    rules: Log<Arc<VirtualService>>,
    policies: Log<Ruled>,
    /// Namespaces of `Sidecars`.
    scopes: Log<Arc<str>>,
    /// Hosts whose endpoints moved, and pods.
    moves: Log<Hostname>,
    workloads: Log<ObjectName>,
}

/// A version of a service that came or went.
#[derive(Clone, Debug)]
struct Change {
    version: Arc<Service>,
    named: Named,
}

/// A host that a `DestinationRule` names which came or went.
#[derive(Clone, Debug)]
struct Ruled {
    host: Hostname,
    named: Named,
}

/// Which rules route a host, or to it, so that it may be in routes of those who may not call it.
#[derive(Clone, Debug)]
enum Named {
    /// Some that may be for anybody.
    Anywhere,
    By(Arc<[Arc<VirtualService>]>),
}

impl History {
    /// Notes what a generation changed, and what the mesh is since.
    pub fn record(&mut self, changes: &ChangeSet, snapshot: &MeshSnapshot, generation: Generation) {
        self.revisions.record(changes, generation);
        for version in &changes.versions {
            self.services_of
                .insert(version.hostname.clone(), generation);
        }
        for host in &changes.moved {
            self.moved.insert(host.clone(), generation);
        }
        for pod in &changes.workloads {
            self.pods.insert(pod.clone(), generation);
        }
        if changes.versions.len() > MANY {
            self.services.restart(generation);
        } else {
            for version in &changes.versions {
                let change = Change {
                    version: Arc::clone(version),
                    named: Named::of(snapshot, &version.hostname),
                };
                self.services.push(generation, change);
            }
        }
        self.rules.extend(generation, changes.rules.iter().cloned());
        if changes.ruled.len() > MANY {
            self.policies.restart(generation);
        } else {
            let ruled = changes.ruled.iter().map(|host| Ruled {
                host: host.clone(),
                named: Named::of(snapshot, host),
            });
            self.policies.extend(generation, ruled);
        }
        self.scopes
            .extend(generation, changes.scoped.iter().cloned());
        self.moves.extend(generation, changes.moved.iter().cloned());
        self.workloads
            .extend(generation, changes.workloads.iter().cloned());
        self.forget(snapshot, generation);
    }

    /// Forgets names that come and go, as those of pods do.
    fn forget(&mut self, snapshot: &MeshSnapshot, generation: Generation) {
        let much = |kept: usize, there: usize| kept > 2 * there + 1024;
        let hosts = snapshot.hosts.len();
        if much(self.pods.len(), snapshot.workloads.len())
            || much(self.moved.len(), hosts)
            || much(self.services_of.len(), hosts)
        {
            self.pods = Table::default();
            self.moved = Table::default();
            self.services_of = Table::default();
            self.forgotten = generation;
        }
    }

    /// Whether a resource can differ from what it was at `since`, for a proxy that asks for it by name and
    /// stands where it stood.
    pub fn touched(
        &self,
        snapshot: &MeshSnapshot,
        view: &ProxyView,
        (kind, name): (ResourceKind, &str),
        since: Generation,
    ) -> bool {
        let at = &self.revisions;
        if at.mesh > since || at.labels > since {
            return true;
        }
        match view.part(kind, name) {
            Part::Cluster(host) => self.cluster(&host, kind, since),
            Part::Routes(namespace, host) => {
                let own = host.map(|host| self.last(&self.services_of, &host));
                own.is_some_and(|changed| changed > since)
                    || self.routes(snapshot, namespace, since, |_| true)
            }
            Part::Outbound(namespace) => self.outbound(snapshot, namespace, since),
            Part::OutboundOf(pod) => {
                self.last(&self.pods, &pod) > since
                    || self.outbound(snapshot, &pod.namespace, since)
            }
            Part::Inbound { namespace, pod } => {
                let pods = match pod {
                    Some(pod) => self.last(&self.pods, &pod),
                    // One that is known by its address alone may be of any namespace.
                    None => at.workloads.max(at.services),
                };
                let here = |change: &Change| *change.version.name.namespace == *namespace;
                pods > since
                    || self.scoped(snapshot, namespace, since)
                    || self.services.any(since, here)
            }
            // Any of them may be of a host that a gateway lets in, and the pod's labels choose gateways.
            Part::Gateways => [
                at.services,
                at.workloads,
                at.routes,
                at.policies,
                at.gateways,
            ]
            .iter()
            .any(|part| *part > since),
            // What a target of gRPC's means depends on what a Sidecar lets its namespace see.
            Part::Names => [at.services, at.headless, at.scopes]
                .iter()
                .any(|part| *part > since),
            Part::Fixed => false,
        }
    }

    fn cluster(&self, host: &Hostname, kind: ResourceKind, since: Generation) -> bool {
        self.last(&self.services_of, host) > since
            || (kind == ResourceKind::Endpoints && self.last(&self.moved, host) > since)
            || self.policies.any(since, |ruled| ruled.host.covers(host))
    }

    /// Whether another `Sidecar` may be for a namespace: one of its own, or of all that have none.
    fn scoped(&self, snapshot: &MeshSnapshot, namespace: &str, since: Generation) -> bool {
        let root = snapshot.mesh.root_namespace.as_str();
        let concerns = |of: &Arc<str>| **of == *namespace || **of == *root;
        self.revisions.scopes > since && self.scopes.any(since, concerns)
    }

    fn outbound(&self, snapshot: &MeshSnapshot, namespace: &str, since: Generation) -> bool {
        let of_connections = |rule: &VirtualService| !rule.tcp.is_empty() || !rule.tls.is_empty();
        self.revisions.headless > since || self.routes(snapshot, namespace, since, of_connections)
    }

    /// What clients of a namespace find routes made from: services that they may call, rules that hold
    /// for them. An entry may give other hosts other addresses, so it is everybody's.
    fn routes(
        &self,
        snapshot: &MeshSnapshot,
        namespace: &str,
        since: Generation,
        counts: impl Fn(&VirtualService) -> bool,
    ) -> bool {
        let at = &self.revisions;
        if at.attached > since || self.scoped(snapshot, namespace, since) {
            return true;
        }
        if at.services.max(at.routes).max(at.policies) <= since {
            return false;
        }
        let sidecar = snapshot.sidecar_of(namespace);
        let reached = |service: &Service| {
            let imported = || {
                sidecar.is_none_or(|sidecar| {
                    let own = &service.name.namespace;
                    let mut ports = service.ports.iter();
                    ports.any(|port| sidecar.imports(namespace, own, &service.hostname, port.port))
                })
            };
            service.export_to.includes(namespace) && imported()
        };
        let holds = |rule: &Arc<VirtualService>| {
            let imported = || {
                sidecar.is_none_or(|sidecar| {
                    let own = &rule.name.namespace;
                    let mut hosts = rule.hosts.iter();
                    hosts.any(|host| sidecar.imports_rules(namespace, own, host))
                })
            };
            rule.export_to.includes(namespace) && imported()
        };
        let of_service = |change: &Change| {
            let service = &change.version;
            service.entry().is_some() || reached(service) || change.named.any(holds)
        };
        let of_policy = |ruled: &Ruled| {
            let mut services = snapshot.services_with(&ruled.host);
            ruled.host.is_wildcard()
                || services.any(|service| reached(service))
                || ruled.named.any(holds)
        };
        self.services.any(since, of_service)
            || self.policies.any(since, of_policy)
            || self.rules.any(since, |rule| counts(rule) && holds(rule))
    }

    /// Whether nothing of a kind can differ for a proxy, whatever it asks for: pods make inbound listeners and
    /// the clusters behind them, and others' pods make none of a sidecar's.
    pub fn leaves_alone(
        &self,
        snapshot: &MeshSnapshot,
        view: &ProxyView,
        kind: ResourceKind,
        since: Generation,
    ) -> bool {
        let at = &self.revisions;
        let others = [
            at.mesh,
            at.labels,
            at.services,
            at.headless,
            at.routes,
            at.policies,
            at.scopes,
            at.gateways,
        ];
        if kind == ResourceKind::Endpoints || others.iter().any(|part| *part > since) {
            return false;
        }
        // One that is not known may be known by its address, which may be any pod's.
        view.own_pod().is_some_and(|pod| {
            snapshot.workloads.contains_key(&pod) && self.last(&self.pods, &pod) <= since
        })
    }

    /// Hosts among which all are whose clusters, or whose endpoints, are not what they were at `since`; none
    /// where that may be any.
    pub fn hosts_since(&self, kind: ResourceKind, since: Generation) -> Option<Vec<&Hostname>> {
        let at = &self.revisions;
        if at.mesh > since || at.labels > since {
            return None;
        }
        let services = self.services.since(since)?;
        let mut hosts: Vec<&Hostname> = services.map(|it| &it.version.hostname).collect();
        if kind == ResourceKind::Endpoints {
            hosts.extend(self.moves.since(since)?);
        }
        hosts.extend(self.policies.since(since)?.map(|ruled| &ruled.host));
        if hosts.iter().any(|host| host.is_wildcard()) {
            return None;
        }
        hosts.sort_unstable();
        hosts.dedup();
        Some(hosts)
    }

    /// Pods among which all are whose inbound listeners on nodes are not what they were at `since`; none where
    /// that may be any.
    pub fn pods_since(&self, since: Generation) -> Option<Vec<&ObjectName>> {
        let at = &self.revisions;
        let all = [at.mesh, at.labels, at.services, at.scopes];
        if all.iter().any(|part| *part > since) {
            return None;
        }
        let mut pods: Vec<&ObjectName> = self.workloads.since(since)?.collect();
        pods.sort_unstable();
        pods.dedup();
        Some(pods)
    }

    fn last<K: Ord>(&self, table: &Table<K, Generation>, key: &K) -> Generation {
        table.get(key).copied().unwrap_or(self.forgotten)
    }
}

impl Named {
    fn of(snapshot: &MeshSnapshot, host: &Hostname) -> Self {
        if !snapshot.api_routes.is_empty() || !snapshot.route_rules.is_empty() {
            return Self::Anywhere;
        }
        let rules = snapshot.routed.values().filter(|rule| names(rule, host));
        Self::By(rules.cloned().collect())
    }

    /// Whether such a rule names the host.
    fn any(&self, holds: impl FnMut(&Arc<VirtualService>) -> bool) -> bool {
        match self {
            Self::Anywhere => true,
            Self::By(rules) => rules.iter().any(holds),
        }
    }
}

/// Whether a rule routes a host, or to it.
fn names(rule: &VirtualService, host: &Hostname) -> bool {
    let http = rule.http.iter().filter_map(|route| match &route.action {
        HttpAction::Forward(destinations) => Some(destinations),
        _ => None,
    });
    let connections = rule
        .tcp
        .iter()
        .chain(&rule.tls)
        .map(|route| &route.destinations);
    let mut to = http.chain(connections).flatten();
    rule.hosts.iter().any(|claim| claim.covers(host)) || to.any(|to| to.host == *host)
}

#[cfg(test)]
pub(crate) mod tests;
