//! Gateways: read and judged, so that mistakes are told; no proxy runs as one in this release.

use std::collections::BTreeSet;

use crate::kube::crd;
use crate::model::Object;
use crate::model::names::Hostname;
use crate::model::problem::Finding;
use crate::model::validate::Validated;
use crate::model::validate::fields::Judge;

const NO_GATEWAY: &str = "no gateway runs in this release, so it has no effect";

fn left_out(mut judge: Judge<'_>) -> Validated<Object> {
    judge
        .findings
        .push(Finding::not_executed("kind", NO_GATEWAY));
    Validated {
        object: None,
        findings: judge.findings,
    }
}

/// Judges a `Gateway` of the Gateway API.
pub fn gateway(object: &crd::ApiObject<crd::GatewaySpec>, domain: &str) -> Validated<Object> {
    let mut judge = Judge::new(object.metadata.namespace(), domain);
    let spec = &object.spec;
    if spec.gateway_class_name.is_empty() {
        judge.error("spec.gatewayClassName", "a name is needed");
    }
    if spec.listeners.is_empty() {
        judge.error("spec.listeners", "at least one listener is needed");
    }
    let mut names = BTreeSet::new();
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        if listener.name.is_empty() || !names.insert(&listener.name) {
            let message = format!("{:?} is empty or another listener's", listener.name);
            judge.error(format!("{field}.name"), message);
        }
        judge.port(listener.port, &format!("{field}.port"));
        if let Some(host) = listener.hostname.as_deref().filter(|host| !host.is_empty())
            && let Err(error) = Hostname::literal(host)
        {
            judge.error(format!("{field}.hostname"), error.to_string());
        }
        let protocol = listener.protocol.as_str();
        if !["HTTP", "HTTPS", "TLS", "TCP", "UDP", "HBONE"].contains(&protocol) {
            let message = format!("{protocol:?} is not one of HTTP, HTTPS, TLS, TCP and UDP");
            judge.error(format!("{field}.protocol"), message);
        }
        if ["HTTPS", "TLS"].contains(&protocol) && listener.tls.is_none() {
            judge.error(format!("{field}.tls"), format!("{protocol} needs it"));
        }
    }
    left_out(judge)
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
    left_out(judge)
}

/// Judges an Istio `Gateway`.
pub fn istio_gateway(object: &crd::IstioGateway, domain: &str) -> Validated<Object> {
    let mut judge = Judge::new(object.metadata.namespace(), domain);
    if object.spec.servers.is_empty() {
        judge.error("spec.servers", "at least one server is needed");
    }
    for (index, server) in object.spec.servers.iter().enumerate() {
        let field = format!("spec.servers[{index}]");
        match &server.port {
            Some(port) => {
                judge.port(port.number, &format!("{field}.port.number"));
                if port.name.is_empty() {
                    judge.error(format!("{field}.port.name"), "a name is needed");
                }
            }
            None => judge.error(format!("{field}.port"), "a port is needed"),
        }
        if server.hosts.is_empty() {
            judge.error(format!("{field}.hosts"), "at least one host is needed");
        }
        for (at, host) in server.hosts.iter().enumerate() {
            let name = host.split_once('/').map_or(host.as_str(), |(_, name)| name);
            if let Err(error) = Hostname::literal(name) {
                judge.error(format!("{field}.hosts[{at}]"), error.to_string());
            }
        }
    }
    left_out(judge)
}
