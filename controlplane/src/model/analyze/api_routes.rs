//! Routes of the Gateway API: parents and backends that are not there, references that nobody allowed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Analysis;
use crate::model::api_route::{ApiRoute, Parent};
use crate::model::names::Hostname;
use crate::model::problem::{Finding, Reason};
use crate::model::route::{Destination, HttpAction, VirtualService};
use crate::model::service::Protocol;
use crate::model::{Kind, ObjectId};
use crate::snapshot::MeshSnapshot;

/// Which `VirtualService` routes a host for clients of a namespace, looked up once for each of these.
#[derive(Default)]
struct Claims<'a>(BTreeMap<&'a str, BTreeMap<&'a Hostname, &'a Arc<VirtualService>>>);

impl<'a> Claims<'a> {
    fn of(
        &mut self,
        snapshot: &'a MeshSnapshot,
        namespace: &'a str,
        host: &Hostname,
    ) -> Option<&'a Arc<VirtualService>> {
        let rules = self.0.entry(namespace).or_insert_with(|| {
            let mut first = BTreeMap::new();
            for rule in snapshot.virtual_services_for(namespace) {
                for host in &rule.hosts {
                    first.entry(host).or_insert(rule);
                }
            }
            first
        });
        // The most specific claim first.
        let claims = host.and_wildcards();
        claims.iter().find_map(|claim| rules.get(claim).copied())
    }
}

impl<'a> Analysis<'a> {
    pub(super) fn api_routes(&mut self) {
        let snapshot = self.snapshot;
        let only = self.only;
        let mut claims = Claims::default();
        let judged = snapshot.api_routes.iter();
        for (id, route) in judged.filter(|(id, _)| only.is_none_or(|only| only == *id)) {
            for (index, parent) in route.parents.iter().enumerate() {
                let field = format!("spec.parentRefs[{index}]");
                if parent.kind == Kind::Gateway {
                    self.gateway_parent(id, route, parent, field);
                } else {
                    self.api_parent(&mut claims, (id, route), parent, field);
                }
            }
            for (index, rule) in route.http.iter().enumerate() {
                if let HttpAction::Forward(destinations) = &rule.action {
                    let field = format!("spec.rules[{index}].backendRefs");
                    self.api_backends(id, destinations, &field, "requests get 500");
                }
            }
            if let Some(rule) = &route.connections {
                let field = "spec.rules[0].backendRefs";
                self.api_backends(id, &rule.destinations, field, "connections are closed");
            }
        }
    }

    fn say(&mut self, id: &ObjectId, reason: Reason, field: String, message: String) {
        self.found
            .push((id.clone(), Finding::warning(reason, field, message)));
    }

    fn api_parent(
        &mut self,
        claims: &mut Claims<'a>,
        (id, route): (&ObjectId, &ApiRoute),
        parent: &Parent,
        field: String,
    ) {
        let snapshot = self.snapshot;
        let service = if parent.kind == Kind::Service {
            snapshot.services.get(&parent.name)
        } else {
            let entry = ObjectId {
                kind: parent.kind,
                name: parent.name.clone(),
            };
            let entry = snapshot.service_entries.get(&entry);
            entry.and_then(|entry| entry.services.first())
        };
        let Some(service) = service.filter(|service| parent.is_service(service)) else {
            let message = format!(
                "no {} {} is known, so the route has no effect there",
                parent.kind.as_str(),
                parent.name
            );
            return self.say(id, Reason::UnknownReference, field, message);
        };
        let ports: Vec<_> = service
            .ports
            .iter()
            .filter(|port| parent.is(service, port))
            .collect();
        if ports.is_empty() {
            let message = format!("{} has no such port", service.hostname);
            return self.say(id, Reason::UnknownReference, field, message);
        }
        if !route.is_http() {
            return;
        }
        let http = |protocol: Protocol| protocol.is_http() || protocol == Protocol::Auto;
        if !ports.iter().any(|port| http(port.protocol)) {
            let message = format!(
                "{} is not HTTP there: a port's name or appProtocol says so",
                service.hostname
            );
            return self.say(id, Reason::Invalid, field, message);
        }
        let namespace = &service.name.namespace;
        let loser = claims.of(snapshot, namespace, &service.hostname);
        if let Some(loser) = loser.filter(|rule| !rule.http.is_empty()) {
            let message = format!(
                "{} is routed by VirtualService {} too, which loses",
                service.hostname, loser.name
            );
            self.say(id, Reason::Conflict, field, message);
        }
    }

    fn api_backends(&mut self, id: &ObjectId, to: &[Destination], field: &str, effect: &str) {
        let snapshot = self.snapshot;
        for (index, to) in to.iter().enumerate() {
            let field = format!("{field}[{index}]");
            if let Some(reference) = &to.reference
                && !snapshot.is_granted(reference.kind, &reference.from, &reference.to)
            {
                let message = format!(
                    "no ReferenceGrant of {} lets {}s of {} refer to {}: {effect}",
                    reference.to.namespace,
                    reference.kind.as_str(),
                    reference.from,
                    reference.to
                );
                self.say(id, Reason::NotPermitted, field, message);
                continue;
            }
            let port = to.port.unwrap_or_default();
            if snapshot.service(&to.host).is_none() {
                let message = format!("no service {} is known: {effect}", to.host);
                self.say(
                    id,
                    Reason::UnknownReference,
                    format!("{field}.name"),
                    message,
                );
            } else if snapshot.service_on(&to.host, port, None).is_none() {
                let message = format!("{} has no port {port}: {effect}", to.host);
                self.say(
                    id,
                    Reason::UnknownReference,
                    format!("{field}.port"),
                    message,
                );
            }
        }
    }
}
