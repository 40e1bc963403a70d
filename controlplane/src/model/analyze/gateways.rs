//! Gateways: rules and routes that name none, backends of Ingresses that are not there.

use super::Analysis;
use crate::model::api_route::{ApiRoute, Parent};
use crate::model::gateway::{Gateway, IngressPort};
use crate::model::names::Hostname;
use crate::model::problem::{Finding, Reason};
use crate::model::route::VirtualService;
use crate::model::{Kind, ObjectId};

impl Analysis<'_> {
    /// Gateways that a rule names and nobody knows.
    pub(super) fn named_gateways(&mut self, rule: &VirtualService) {
        let listed = rule.gateways.iter().enumerate();
        for (index, gateway) in listed {
            let id = ObjectId {
                kind: Kind::IstioGateway,
                name: gateway.clone(),
            };
            if !self.snapshot.gateways.contains_key(&id) {
                let message =
                    format!("no Gateway {gateway} is known, so the rule has no effect there");
                let field = format!("spec.gateways[{index}]");
                let reason = Reason::UnknownReference;
                self.warn(Kind::VirtualService, &rule.name, reason, field, message);
            }
        }
    }

    /// A gateway that a route names as its parent: it may be another controller's, and then nothing is said.
    pub(super) fn gateway_parent(
        &mut self,
        id: &ObjectId,
        route: &ApiRoute,
        parent: &Parent,
        field: String,
    ) {
        let gateway = ObjectId {
            kind: Kind::Gateway,
            name: parent.name.clone(),
        };
        let Some(gateway) = self.snapshot.gateways.get(&gateway) else {
            return;
        };
        if takes(gateway, route, parent) {
            return;
        }
        let message = format!(
            "Gateway {} has no listener that takes the route there",
            gateway.name
        );
        let finding = Finding::warning(Reason::UnknownReference, field, message);
        self.found.push((id.clone(), finding));
    }

    pub(super) fn ingresses(&mut self) {
        let snapshot = self.snapshot;
        let all = snapshot.gateways.values();
        for gateway in all.filter(|gateway| gateway.kind == Kind::Ingress) {
            for route in &gateway.routes {
                let service = snapshot.services.get(&route.service);
                let has = service.map(|service| match &route.port {
                    IngressPort::Number(number) => service.port(*number).is_some(),
                    IngressPort::Name(name) => service.ports.iter().any(|port| port.name == *name),
                });
                let message = match has {
                    Some(true) => continue,
                    Some(false) => format!("service {} has no such port", route.service),
                    None => format!("no service {} is known", route.service),
                };
                let prefix = &route.place.field;
                let field = if prefix.starts_with("spec.default") {
                    prefix.clone()
                } else {
                    format!("{prefix}.backend")
                };
                let message = format!("{message}: requests get 503");
                let reason = Reason::UnknownReference;
                self.warn(Kind::Ingress, &gateway.name, reason, field, message);
            }
        }
    }
}

/// Whether any listener of a gateway takes a route that names it so.
fn takes(gateway: &Gateway, route: &ApiRoute, parent: &Parent) -> bool {
    let mut servers = gateway.servers.iter();
    servers.any(|server| takes_at(gateway, &server.name, route, parent))
}

/// Whether the listener of this name takes a route that names its gateway so.
pub fn takes_at(gateway: &Gateway, listener: &str, route: &ApiRoute, parent: &Parent) -> bool {
    let any: Vec<Hostname> = Hostname::literal("*").into_iter().collect();
    let named = if route.hostnames.is_empty() {
        &any
    } else {
        &route.hostnames
    };
    let namespace = &*route.name.namespace;
    let mut servers = gateway.servers.iter();
    servers.any(|server| {
        let mut hosts = server.hosts.iter();
        server.name == listener
            && parent.is_at(&gateway.name, server)
            && hosts.any(|own| {
                let mut named = named.iter();
                named.any(|host| own.of_route(namespace, host).is_some())
            })
    })
}
