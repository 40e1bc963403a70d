//! Which types a change can touch.
//!
//! Asked per stream and type before anything is compared, so that a pod that comes up does not make
//! every node look through its routes.

use millrace_xds::TypeUrl;
use millrace_xds::server::Generation;

use crate::index::ChangeSet;
use crate::translate::{ProxyView, ResourceKind};

/// For each part of the mesh, the generation that last changed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Services.
    pub services: Generation,
    /// Endpoints of services.
    pub endpoints: Generation,
    /// Pods.
    pub workloads: Generation,
    /// Nodes.
    pub nodes: Generation,
    /// `VirtualServices` and `RouteRules`.
    pub routes: Generation,
    /// `DestinationRules`.
    pub policies: Generation,
    /// `Sidecars`.
    pub scopes: Generation,
    /// The mesh's settings.
    pub mesh: Generation,
}

/// The generations of the parts that a resource was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([Generation; 6]);

impl Revisions {
    /// Notes what a generation changed.
    pub fn record(&mut self, changes: &ChangeSet, generation: Generation) {
        for (slot, changed) in [
            (&mut self.services, !changes.services.is_empty()),
            (&mut self.endpoints, !changes.endpoints.is_empty()),
            (&mut self.workloads, !changes.workloads.is_empty()),
            (&mut self.nodes, !changes.nodes.is_empty()),
            (&mut self.routes, changes.routes),
            (&mut self.policies, changes.policies),
            (&mut self.scopes, changes.scopes),
            (&mut self.mesh, changes.mesh),
        ] {
            if changed {
                *slot = generation;
            }
        }
    }

    /// What resources of a kind are made from, for a cache that also compares the endpoints of EDS.
    pub fn stamp(&self, kind: ResourceKind) -> Stamp {
        let without_endpoints = Self {
            endpoints: Generation::default(),
            ..*self
        };
        let parts = if kind == ResourceKind::Endpoints {
            &without_endpoints
        } else {
            self
        };
        Stamp(parts.of(&kind.type_url()))
    }

    /// Whether resources of a type can differ from what they were at `since`.
    pub fn affect(&self, type_url: &TypeUrl, since: Generation) -> bool {
        self.of(type_url).into_iter().any(|changed| changed > since)
    }

    /// Whether a client may stand elsewhere than at `since`, as far as it does not say itself where.
    pub fn moves(&self, view: &ProxyView, since: Generation) -> bool {
        let stated = view.stated_place();
        (stated.node.is_empty() && view.own_pod().is_some() && self.workloads > since)
            || (stated.zone.is_empty() && self.nodes > since)
    }

    /// The parts of the mesh that resources of a type are made from.
    fn of(&self, type_url: &TypeUrl) -> [Generation; 6] {
        let Self {
            services,
            endpoints,
            workloads,
            routes,
            policies,
            scopes,
            mesh,
            nodes: _,
        } = *self;
        if *type_url == TypeUrl::LISTENER {
            // Headless services have listeners per endpoint; inbound ones come from pods.
            [
                services,
                endpoints,
                workloads,
                routes.max(policies),
                scopes,
                mesh,
            ]
        } else if *type_url == TypeUrl::ROUTE || *type_url == TypeUrl::CLUSTER {
            // Routes name subsets, which may come from labels in routes and rules alike; clusters of a
            // sidecar include those of its pod's ports.
            [services, workloads, routes, policies, scopes, mesh]
        } else if *type_url == TypeUrl::ENDPOINT {
            [services, endpoints, routes, policies, mesh, mesh]
        } else {
            [services, endpoints, mesh, mesh, mesh, mesh]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::ObjectName;

    #[test]
    fn endpoints_that_move_leave_routes_and_clusters_alone() {
        let mut revisions = Revisions::default();
        let mut changes = ChangeSet::default();
        changes
            .endpoints
            .insert(ObjectName::new("default", "reviews"));
        revisions.record(&changes, Generation(7));
        assert!(revisions.affect(&TypeUrl::ENDPOINT, Generation(6)));
        assert!(!revisions.affect(&TypeUrl::ENDPOINT, Generation(7)));
        assert!(!revisions.affect(&TypeUrl::ROUTE, Generation(6)));
        assert!(!revisions.affect(&TypeUrl::CLUSTER, Generation(6)));
    }

    #[test]
    fn routes_reach_listeners_too_because_tcp_routes_live_there() {
        let mut revisions = Revisions::default();
        revisions.record(
            &ChangeSet {
                routes: true,
                ..ChangeSet::default()
            },
            Generation(1),
        );
        for url in [
            TypeUrl::LISTENER,
            TypeUrl::ROUTE,
            TypeUrl::CLUSTER,
            TypeUrl::ENDPOINT,
        ] {
            assert!(revisions.affect(&url, Generation(0)), "{url:?}");
        }
        assert!(!revisions.affect(&TypeUrl::NAME_TABLE, Generation(0)));
    }
}
