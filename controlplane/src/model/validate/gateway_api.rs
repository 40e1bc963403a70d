//! `gateway.networking.k8s.io`: routes that belong to services, `ReferenceGrant`, and gateways.

mod connections;
mod filters;
mod gateways;
mod grpc;
mod http;

pub use self::connections::{tcp_route, tls_route};
pub use self::gateways::{gateway, gateway_class, istio_gateway};
pub use self::grpc::grpc_route;
pub use self::http::http_route;

use std::sync::Arc;

use super::Validated;
use super::fields::Judge;
use crate::kube::crd;
use crate::model::api_route::{ApiRoute, Parent, ReferenceGrant};
use crate::model::names::{Hostname, ObjectName};
use crate::model::problem::Finding;
use crate::model::route::{Destination, HeaderOperations, Reference, SubsetRef};
use crate::model::{Kind, Object};

/// The group of the kinds themselves, which parents are of unless they say otherwise.
const GROUP: &str = "gateway.networking.k8s.io";
const ISTIO: &str = "networking.istio.io";

/// Judges a `ReferenceGrant`.
pub fn reference_grant(
    object: &crd::ApiObject<crd::ReferenceGrantSpec>,
    domain: &str,
) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    for (field, empty) in [
        ("spec.from", spec.from.is_empty()),
        ("spec.to", spec.to.is_empty()),
    ] {
        if empty {
            judge.error(field, "at least one item is needed");
        }
    }
    let mut from = Vec::new();
    for (index, item) in spec.from.iter().enumerate() {
        let field = format!("spec.from[{index}]");
        if item.namespace.is_empty() {
            judge.error(format!("{field}.namespace"), "a namespace is needed");
        }
        match route_kind(&item.group, &item.kind) {
            Some(kind) => from.push((kind, item.namespace.clone())),
            None => judge.findings.push(Finding::not_executed(
                format!("{field}.kind"),
                format!("nothing of kind {} refers to others here", item.kind),
            )),
        }
    }
    let mut to = Vec::new();
    for (index, item) in spec.to.iter().enumerate() {
        if item.group.is_empty() && item.kind == "Service" {
            to.push(item.name.clone().filter(|name| !name.is_empty()));
        } else {
            judge.findings.push(Finding::not_executed(
                format!("spec.to[{index}].kind"),
                format!("routes of this release name services, not {}", item.kind),
            ));
        }
    }
    let name = ObjectName::new(namespace, &object.metadata.name);
    let grant = ReferenceGrant { name, from, to };
    Validated::judged(Object::ReferenceGrant(Arc::new(grant)), judge.findings)
}

fn route_kind(group: &str, kind: &str) -> Option<Kind> {
    let known = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TcpRoute,
        Kind::TlsRoute,
    ];
    let mut known = known.into_iter();
    known.find(|known| group == GROUP && known.as_str() == kind)
}

/// What is the same in every kind of route.
struct Common<'a> {
    kind: Kind,
    metadata: &'a crd::Metadata,
    parents: &'a [crd::ParentRef],
    default_gateways: Option<&'a crd::Unexecuted>,
    /// Where they are for gateways.
    hostnames: &'a [String],
}

impl Common<'_> {
    /// A route without rules.
    fn route(&self, judge: &mut Judge<'_>) -> ApiRoute {
        judge.not_executed(self.default_gateways, "spec.useDefaultGateways".to_owned());
        let mut parents = Vec::new();
        for (index, parent) in self.parents.iter().enumerate() {
            let field = format!("spec.parentRefs[{index}]");
            let parent = parent_ref(judge, parent, &field);
            let connections = matches!(self.kind, Kind::TcpRoute | Kind::TlsRoute);
            if connections && parent.as_ref().is_some_and(|it| it.kind == Kind::Gateway) {
                let message = "gateways of this release let in HTTP alone";
                judge.findings.push(Finding::not_executed(field, message));
            }
            parents.extend(parent);
        }
        ApiRoute {
            kind: self.kind,
            name: ObjectName::new(judge.namespace, &self.metadata.name),
            created: self.metadata.creation_timestamp.clone(),
            parents,
            hostnames: hostnames(judge, self.hostnames),
            http: Vec::new(),
            connections: None,
        }
    }
}

/// The hosts of a route at gateways.
fn hostnames(judge: &mut Judge<'_>, named: &[String]) -> Vec<Hostname> {
    let mut hosts = Vec::new();
    for (index, name) in named.iter().enumerate() {
        match Hostname::literal(name) {
            Ok(host) => hosts.push(host),
            Err(error) => judge.error(format!("spec.hostnames[{index}]"), error.to_string()),
        }
    }
    hosts
}

/// A parent that is a service or a gateway; others are named and left out.
fn parent_ref(judge: &mut Judge<'_>, parent: &crd::ParentRef, field: &str) -> Option<Parent> {
    if parent.name.is_empty() {
        judge.error(format!("{field}.name"), "a name is needed");
    }
    let port = parent
        .port
        .map(|port| judge.port(port, &format!("{field}.port")));
    let group = parent.group.as_deref().unwrap_or(GROUP);
    let kind = match (group, parent.kind.as_deref().unwrap_or("Gateway")) {
        ("", "Service") => Kind::Service,
        (ISTIO, "ServiceEntry") => Kind::ServiceEntry,
        (GROUP, "Gateway") => Kind::Gateway,
        (GROUP, "ListenerSet") => {
            let message = "sets of listeners are not read, so it has no effect there";
            judge.findings.push(Finding::not_executed(field, message));
            return None;
        }
        (_, kind) => {
            let message =
                format!("{kind} is no parent of routes: Service, ServiceEntry and Gateway are");
            judge.error(format!("{field}.kind"), message);
            return None;
        }
    };
    let namespace = parent.namespace.as_deref().filter(|name| !name.is_empty());
    Some(Parent {
        kind,
        name: ObjectName::new(namespace.unwrap_or(judge.namespace), &parent.name),
        port,
        section: parent.section_name.clone().filter(|name| !name.is_empty()),
    })
}

/// The most that weights may be, as the Gateway API has it.
const MAX_WEIGHT: i64 = 1_000_000;

/// A backend with its weight; none with a finding that says why.
fn backend(
    judge: &mut Judge<'_>,
    kind: Kind,
    backend: &crd::BackendRef,
    headers: HeaderOperations,
    field: &str,
) -> Option<Destination> {
    let weight = backend.weight.unwrap_or(1);
    let weight = match u32::try_from(weight) {
        Ok(weight) if i64::from(weight) <= MAX_WEIGHT => weight,
        _ => {
            let message = format!("{weight} is not a weight, which is 0 to {MAX_WEIGHT}");
            judge.error(format!("{field}.weight"), message);
            return None;
        }
    };
    let Some(port) = backend.port else {
        judge.error(format!("{field}.port"), "a port is needed");
        return None;
    };
    let port = judge.port(port, &format!("{field}.port"));
    let namespace = backend.namespace.as_deref().filter(|name| !name.is_empty());
    let namespace = namespace.unwrap_or(judge.namespace);
    let group = backend.group.as_deref().unwrap_or_default();
    let (host, reference) = match (group, backend.kind.as_deref().unwrap_or("Service")) {
        ("", "Service") => {
            let host = Hostname::resolve(&backend.name, namespace, judge.domain)
                .ok()
                .filter(|_| !backend.name.contains('.'))
                .map(|_| Hostname::service(&backend.name, namespace, judge.domain));
            let foreign = namespace != judge.namespace;
            let reference = foreign.then(|| Reference {
                kind,
                from: judge.namespace.to_owned(),
                to: ObjectName::new(namespace, &backend.name),
            });
            (host, reference)
        }
        (ISTIO, "Hostname") => (Hostname::literal(&backend.name).ok(), None),
        (_, kind) => {
            let message = format!("{kind} is no backend: Service and Hostname are");
            judge.error(format!("{field}.kind"), message);
            return None;
        }
    };
    let Some(host) = host.filter(|host| !host.is_wildcard()) else {
        let message = format!("{:?} is not the name of a backend", backend.name);
        judge.error(format!("{field}.name"), message);
        return None;
    };
    Some(Destination {
        host,
        subset: SubsetRef::All,
        port: Some(port),
        weight,
        headers,
        reference,
    })
}
