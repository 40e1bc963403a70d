//! Which routes of the Gateway API hold at a port, and which of their references are allowed.

use std::sync::Arc;

use super::MeshSnapshot;
use crate::model::api_route::{ApiRoute, by_precedence};
use crate::model::names::ObjectName;
use crate::model::route::{HttpRoute, TcpRoute};
use crate::model::service::{Service, ServicePort};
use crate::model::{Kind, ObjectId};

impl MeshSnapshot {
    /// The rules that route requests of a namespace's clients at a port; none where no route holds.
    pub fn api_http_rules(
        &self,
        client: &str,
        service: &Service,
        port: &ServicePort,
    ) -> Option<Vec<HttpRoute>> {
        let routes = self.api_routes_at(client, service, port);
        let routes: Vec<_> = routes.into_iter().filter(|route| route.is_http()).collect();
        (!routes.is_empty()).then(|| by_precedence(routes))
    }

    /// The routes of connections of a namespace's clients at a port, by kind, older ones first.
    pub fn api_connection_rules(
        &self,
        kind: Kind,
        client: &str,
        service: &Service,
        port: &ServicePort,
    ) -> Vec<&TcpRoute> {
        let mut routes = self.api_routes_at(client, service, port);
        routes.retain(|route| route.kind == kind);
        routes.sort_by_key(|route| route.order());
        let rules = routes.into_iter();
        rules
            .filter_map(|route| route.connections.as_ref())
            .collect()
    }

    /// Routes of the clients' own namespace, else those of the service's.
    fn api_routes_at(&self, client: &str, service: &Service, port: &ServicePort) -> Vec<&ApiRoute> {
        if self.attached.is_empty() {
            return Vec::new();
        }
        let parent = match service.entry() {
            Some(entry) => entry.object.clone(),
            None => ObjectId {
                kind: Kind::Service,
                name: service.name.clone(),
            },
        };
        let ids = self.attached.get(&parent).into_iter().flatten();
        let routes = ids
            .filter_map(|id| self.api_routes.get(id))
            .map(Arc::as_ref);
        let holding = routes.filter(|route| route.holds_for(client, service, port));
        let (theirs, own): (Vec<_>, Vec<_>) =
            holding.partition(|route| route.name.namespace != service.name.namespace);
        if theirs.is_empty() { own } else { theirs }
    }

    /// Whether a route may name a service of another namespace.
    pub fn is_granted(&self, kind: Kind, namespace: &str, to: &ObjectName) -> bool {
        let mut grants = self.reference_grants.in_namespace(&to.namespace);
        grants.any(|grant| {
            let from = grant
                .from
                .iter()
                .any(|(of, name)| *of == kind && name == namespace);
            let mut names = grant.to.iter();
            from && names.any(|name| name.as_deref().is_none_or(|name| *name == *to.name))
        })
    }
}
