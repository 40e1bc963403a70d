//! `Sidecar`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Validated;
use super::fields::Judge;
use crate::kube::crd;
use crate::model::Object;
use crate::model::mesh::OutboundPolicy;
use crate::model::names::{Hostname, ObjectName};
use crate::model::problem::Finding;
use crate::model::service::Protocol;
use crate::model::sidecar::{EgressListener, Import, ImportNamespace, IngressListener, Sidecar};
use crate::model::workload::Labels;

/// Judges a `Sidecar`.
pub fn sidecar(object: &crd::Sidecar, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    let selector = selector(&mut judge, spec);
    let egress = egress(&mut judge, &spec.egress);
    let ingress = ingress(&mut judge, &spec.ingress);
    judge.not_executed(
        spec.inbound_connection_pool.as_ref(),
        "spec.inboundConnectionPool".to_owned(),
    );
    let outbound = outbound(&mut judge, spec.outbound_traffic_policy.as_ref());
    if !selector.is_empty() {
        let scoped = [
            ("spec.egress", egress.is_some()),
            ("spec.outboundTrafficPolicy", outbound.is_some()),
        ];
        for (field, set) in scoped {
            if set {
                let message = "pods of a namespace share listeners, so with a workloadSelector it has no effect";
                judge.findings.push(Finding::not_executed(field, message));
            }
        }
    }
    let model = Sidecar {
        name: ObjectName::new(namespace, &object.metadata.name),
        created: object.metadata.creation_timestamp.clone(),
        selector,
        egress,
        ingress,
        outbound,
    };
    Validated::judged(Object::Sidecar(Arc::new(model)), judge.findings)
}

fn selector(judge: &mut Judge<'_>, spec: &crd::SidecarSpec) -> Labels {
    let Some(selector) = &spec.workload_selector else {
        return Labels::new();
    };
    if selector.labels.is_empty() {
        let message = "at least one label is needed; without workloadSelector it is for all pods";
        judge.error("spec.workloadSelector.labels", message);
    }
    selector.labels.clone()
}

fn outbound(
    judge: &mut Judge<'_>,
    policy: Option<&crd::OutboundTrafficPolicy>,
) -> Option<OutboundPolicy> {
    let policy = policy?;
    judge.not_executed(
        policy.egress_proxy.as_ref(),
        "spec.outboundTrafficPolicy.egressProxy".to_owned(),
    );
    match policy.mode.as_deref() {
        // Istio's own zero value.
        None | Some("REGISTRY_ONLY") => Some(OutboundPolicy::RegistryOnly),
        Some("ALLOW_ANY") => Some(OutboundPolicy::AllowAny),
        Some(other) => {
            let message = format!("{other:?} is not REGISTRY_ONLY or ALLOW_ANY");
            judge.error("spec.outboundTrafficPolicy.mode", message);
            None
        }
    }
}

fn egress(judge: &mut Judge<'_>, listeners: &[crd::SidecarEgress]) -> Option<Vec<EgressListener>> {
    let mut result = Vec::new();
    let (mut ports, mut rest) = (BTreeSet::new(), false);
    for (index, listener) in listeners.iter().enumerate() {
        let field = format!("spec.egress[{index}]");
        bound(
            judge,
            listener.bind.as_ref(),
            listener.capture_mode.as_ref(),
            &field,
        );
        let port = listener.port.as_ref();
        let port = port.map(|port| judge.port(port.number, &format!("{field}.port.number")));
        match port {
            Some(port) if !ports.insert(port) => {
                let message = format!("another listener is for port {port}");
                judge.error(format!("{field}.port"), message);
            }
            None if rest => judge.error(field.clone(), "only one listener may be without a port"),
            None => rest = true,
            Some(_) => {}
        }
        if listener.hosts.is_empty() {
            let message = "at least one host is needed, as namespace/host";
            judge.error(format!("{field}.hosts"), message);
        }
        let hosts = listener
            .hosts
            .iter()
            .enumerate()
            .filter_map(|(at, text)| import(judge, text, &format!("{field}.hosts[{at}]")));
        let hosts = hosts.collect();
        result.push(EgressListener { port, hosts });
    }
    (!result.is_empty()).then_some(result)
}

fn import(judge: &mut Judge<'_>, text: &str, field: &str) -> Option<Import> {
    let Some((namespace, host)) = text.split_once('/') else {
        judge.error(field, format!("{text:?} is not namespace/host"));
        return None;
    };
    let namespace = match namespace {
        "*" => ImportNamespace::Any,
        "~" => ImportNamespace::None,
        "." => ImportNamespace::Own,
        "" => {
            judge.error(field, "a namespace is needed before the slash");
            return None;
        }
        name => ImportNamespace::Named(name.to_owned()),
    };
    match Hostname::literal(host) {
        Ok(host) => Some(Import { namespace, host }),
        Err(error) => {
            judge.error(field, error.to_string());
            None
        }
    }
}

fn ingress(
    judge: &mut Judge<'_>,
    listeners: &[crd::SidecarIngress],
) -> Option<Vec<IngressListener>> {
    let mut result: Vec<IngressListener> = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        let field = format!("spec.ingress[{index}]");
        bound(
            judge,
            listener.bind.as_ref(),
            listener.capture_mode.as_ref(),
            &field,
        );
        judge.not_executed(listener.tls.as_ref(), format!("{field}.tls"));
        judge.not_executed(
            listener.connection_pool.as_ref(),
            format!("{field}.connectionPool"),
        );
        let port = judge.port(listener.port.number, &format!("{field}.port.number"));
        if result.iter().any(|known| known.port == port) {
            let message = format!("another listener is for port {port}");
            judge.error(format!("{field}.port"), message);
        }
        default_endpoint(
            judge,
            listener.default_endpoint.as_deref(),
            port,
            &format!("{field}.defaultEndpoint"),
        );
        let name = &listener.port.name;
        let protocol = listener.port.protocol.as_deref();
        result.push(IngressListener {
            port,
            protocol: Protocol::of_port(name, protocol.filter(|text| !text.is_empty()), port),
        });
    }
    (!result.is_empty()).then_some(result)
}

/// Calls are delivered to the port that they came for; anywhere else is named.
fn default_endpoint(judge: &mut Judge<'_>, endpoint: Option<&str>, port: u16, field: &str) {
    let Some(text) = endpoint.filter(|text| !text.is_empty()) else {
        return;
    };
    if text.starts_with("unix://") {
        let message =
            format!("no proxy of this release connects to a unix socket: calls go to port {port}");
        judge.findings.push(Finding::not_executed(field, message));
        return;
    }
    let Some((host, number)) = text.rsplit_once(':') else {
        judge.error(field, format!("{text:?} is not address:port"));
        return;
    };
    let known = ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"].contains(&host);
    match number.parse::<u16>() {
        Err(_) | Ok(0) => judge.error(field, format!("{number:?} is not a port")),
        Ok(_) if !known => {
            let message = format!("{host:?} is not 127.0.0.1, 0.0.0.0, [::1] or [::]");
            judge.error(field, message);
        }
        Ok(number) if number != port => {
            let message = format!(
                "calls are delivered to the port that they came for: they go to port {port}"
            );
            judge.findings.push(Finding::not_executed(field, message));
        }
        Ok(_) => {}
    }
}

fn bound(judge: &mut Judge<'_>, bind: Option<&String>, mode: Option<&String>, field: &str) {
    judge.not_executed(
        bind.filter(|bind| !bind.is_empty()),
        format!("{field}.bind"),
    );
    match mode.map_or("DEFAULT", String::as_str) {
        "DEFAULT" | "IPTABLES" => {}
        "NONE" => {
            let message = "every connection is captured";
            judge.findings.push(Finding::not_executed(
                format!("{field}.captureMode"),
                message,
            ));
        }
        other => {
            let message = format!("{other:?} is not DEFAULT, IPTABLES or NONE");
            judge.error(format!("{field}.captureMode"), message);
        }
    }
}
