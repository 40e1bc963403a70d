//! Gateways: what is let into the mesh. Plain HTTP is executed; what needs a certificate is named.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::kube::crd;
use crate::model::gateway::{CLASSES, Gateway, GatewayHost, GatewayServer, NAME_LABEL};
use crate::model::names::{Hostname, ObjectName};
use crate::model::place::Place;
use crate::model::problem::Finding;
use crate::model::validate::Validated;
use crate::model::validate::fields::Judge;
use crate::model::workload::Labels;
use crate::model::{Kind, Object};

const NO_CERTIFICATES: &str =
    "gateways of this release let in plain HTTP alone: nobody serves them certificates";

/// Judges a `Gateway` of the Gateway API. One of another class is another controller's.
pub fn gateway(object: &crd::ApiObject<crd::GatewaySpec>, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    let name = ObjectName::new(namespace, &object.metadata.name);
    if spec.gateway_class_name.is_empty() {
        judge.error("spec.gatewayClassName", "a name is needed");
    }
    if spec.listeners.is_empty() {
        judge.error("spec.listeners", "at least one listener is needed");
    }
    let mut names = BTreeSet::new();
    let mut servers = Vec::new();
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        if listener.name.is_empty() || !names.insert(&listener.name) {
            let message = format!("{:?} is empty or another listener's", listener.name);
            judge.error(format!("{field}.name"), message);
        }
        let place = Place::new(Kind::Gateway, &name, field.clone());
        servers.extend(api_listener(&mut judge, listener, place));
    }
    if !CLASSES.contains(&spec.gateway_class_name.as_str()) {
        let message = format!(
            "its class {:?} is another controller's, so it has no effect here",
            spec.gateway_class_name
        );
        let finding = Finding::not_executed("spec.gatewayClassName", message);
        judge.findings.push(finding);
        return Validated {
            object: None,
            findings: judge.findings,
        };
    }
    for (present, field) in [
        (&spec.addresses, "spec.addresses"),
        (&spec.infrastructure, "spec.infrastructure"),
        (&spec.allowed_listeners, "spec.allowedListeners"),
        (&spec.tls, "spec.tls"),
        (&spec.default_scope, "spec.defaultScope"),
    ] {
        judge.not_executed(present.as_ref(), field.to_owned());
    }
    let selector = Labels::from([(NAME_LABEL.to_owned(), object.metadata.name.clone())]);
    let gateway = Gateway {
        kind: Kind::Gateway,
        name,
        created: object.metadata.creation_timestamp.clone(),
        selector,
        at_home: true,
        servers,
        routes: Vec::new(),
    };
    Validated::judged(Object::Gateway(Arc::new(gateway)), judge.findings)
}

/// A listener that is executed; of another, what stands in the way is told.
fn api_listener(
    judge: &mut Judge<'_>,
    listener: &crd::GatewayListener,
    place: Place,
) -> Option<GatewayServer> {
    let field = place.field.clone();
    let port = judge.port(listener.port, &format!("{field}.port"));
    let named = listener.hostname.as_deref().filter(|host| !host.is_empty());
    let host = match Hostname::literal(named.unwrap_or("*")) {
        Ok(host) => Some(host),
        Err(error) => {
            judge.error(format!("{field}.hostname"), error.to_string());
            None
        }
    };
    let protocol = listener.protocol.as_str();
    if !["HTTP", "HTTPS", "TLS", "TCP", "UDP", "HBONE"].contains(&protocol) {
        let message = format!("{protocol:?} is not one of HTTP, HTTPS, TLS, TCP and UDP");
        judge.error(format!("{field}.protocol"), message);
        return None;
    }
    if ["HTTPS", "TLS"].contains(&protocol) && listener.tls.is_none() {
        judge.error(format!("{field}.tls"), format!("{protocol} needs it"));
    }
    if protocol != "HTTP" {
        let finding = Finding::not_executed(format!("{field}.protocol"), NO_CERTIFICATES);
        judge.findings.push(finding);
        return None;
    }
    let namespace = allowed_namespace(judge, listener, &field);
    Some(GatewayServer {
        name: listener.name.clone(),
        port,
        hosts: vec![GatewayHost {
            namespace,
            host: host?,
        }],
        place,
    })
}

/// The only namespace whose routes a listener takes; none where it takes everyone's.
fn allowed_namespace(
    judge: &mut Judge<'_>,
    listener: &crd::GatewayListener,
    field: &str,
) -> Option<String> {
    let allowed = listener.allowed_routes.clone().unwrap_or_default();
    let from = allowed.namespaces.unwrap_or_default();
    judge.not_executed(
        allowed.kinds.as_ref(),
        format!("{field}.allowedRoutes.kinds"),
    );
    match from.from.as_deref().unwrap_or("Same") {
        "All" => None,
        "Same" => Some(judge.namespace.to_owned()),
        other => {
            let field = format!("{field}.allowedRoutes.namespaces.from");
            if other == "Selector" {
                let message =
                    "labels of namespaces are not read: routes of all others are left out";
                judge.findings.push(Finding::not_executed(field, message));
            } else if other != "None" {
                judge.error(
                    field,
                    format!("{other:?} is not All, Same, Selector or None"),
                );
            }
            // No namespace is called nothing.
            Some(if other == "Selector" {
                judge.namespace.to_owned()
            } else {
                String::new()
            })
        }
    }
}

/// Judges a `GatewayClass`.
pub fn gateway_class(
    object: &crd::ApiObject<crd::GatewayClassSpec>,
    domain: &str,
) -> Validated<Object> {
    let mut judge = Judge::new("", domain);
    let controller = object.spec.controller_name.as_str();
    let is_path = controller
        .split_once('/')
        .is_some_and(|(host, path)| Hostname::literal(host).is_ok() && !path.is_empty());
    if !is_path {
        let message = format!("{controller:?} is not a domain, a slash and a path");
        judge.error("spec.controllerName", message);
    }
    Validated {
        object: None,
        findings: judge.findings,
    }
}

/// Judges an Istio `Gateway`.
pub fn istio_gateway(object: &crd::IstioGateway, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let name = ObjectName::new(namespace, &object.metadata.name);
    if object.spec.servers.is_empty() {
        judge.error("spec.servers", "at least one server is needed");
    }
    let mut servers = Vec::new();
    for (index, server) in object.spec.servers.iter().enumerate() {
        let place = Place::new(Kind::IstioGateway, &name, format!("spec.servers[{index}]"));
        servers.extend(istio_server(&mut judge, server, place));
    }
    let gateway = Gateway {
        kind: Kind::IstioGateway,
        name,
        created: object.metadata.creation_timestamp.clone(),
        selector: object.spec.selector.clone(),
        at_home: false,
        servers,
        routes: Vec::new(),
    };
    Validated::judged(Object::Gateway(Arc::new(gateway)), judge.findings)
}

/// A server that is executed; of another, what stands in the way is told.
fn istio_server(
    judge: &mut Judge<'_>,
    server: &crd::GatewayServer,
    place: Place,
) -> Option<GatewayServer> {
    let field = place.field.clone();
    let hosts = istio_hosts(judge, &server.hosts, &field);
    let Some(port) = &server.port else {
        judge.error(format!("{field}.port"), "a port is needed");
        return None;
    };
    let number = judge.port(port.number, &format!("{field}.port.number"));
    if port.name.is_empty() {
        judge.error(format!("{field}.port.name"), "a name is needed");
    }
    judge.not_executed(server.bind.as_ref(), format!("{field}.bind"));
    judge.not_executed(
        server.default_endpoint.as_ref(),
        format!("{field}.defaultEndpoint"),
    );
    let protocol = port.protocol.as_deref().unwrap_or_default();
    let protocol = protocol.to_ascii_uppercase();
    if protocol.is_empty() {
        judge.error(format!("{field}.port.protocol"), "a protocol is needed");
        return None;
    }
    if !["HTTP", "HTTP2", "GRPC", "GRPC-WEB"].contains(&protocol.as_str()) {
        let field = format!("{field}.port.protocol");
        judge
            .findings
            .push(Finding::not_executed(field, NO_CERTIFICATES));
        return None;
    }
    judge.not_executed(server.tls.as_ref(), format!("{field}.tls"));
    Some(GatewayServer {
        name: server.name.clone().unwrap_or_default(),
        port: number,
        hosts,
        place,
    })
}

/// Hosts, each with the namespace before it whose rules alone may have it.
fn istio_hosts(judge: &mut Judge<'_>, hosts: &[String], field: &str) -> Vec<GatewayHost> {
    if hosts.is_empty() {
        judge.error(format!("{field}.hosts"), "at least one host is needed");
    }
    let mut found = Vec::new();
    for (at, text) in hosts.iter().enumerate() {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text.as_str()),
        };
        let namespace = match namespace {
            None | Some("*") => None,
            Some(".") => Some(judge.namespace.to_owned()),
            Some(other) => Some(other.to_owned()),
        };
        match Hostname::literal(name) {
            Ok(host) => found.push(GatewayHost { namespace, host }),
            Err(error) => judge.error(format!("{field}.hosts[{at}]"), error.to_string()),
        }
    }
    found
}
