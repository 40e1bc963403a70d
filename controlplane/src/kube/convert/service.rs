//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{created, name_of, port_number};
use crate::model::Object;
use crate::model::names::Hostname;
use crate::model::near::Reach;
use crate::model::problem::Finding;
use crate::model::route::ExportTo;
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort, TargetPort};
use crate::model::validate::Validated;

/// A service.
pub fn service(object: k8s::Service, domain: &str) -> Validated<Object> {
    let name = name_of(&object.metadata);
    let spec = object.spec.unwrap_or_default();
    let mut findings = Vec::new();
    let addresses = addresses(&spec, &mut findings);
    let kind = kind(&spec, &mut findings);
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        ports.extend(service_port(
            port,
            &format!("spec.ports[{index}]"),
            &mut findings,
        ));
    }
    let reach = match kind {
        // Its clients choose among its addresses themselves.
        ServiceKind::Headless => Reach::Anywhere,
        _ => reach(&spec, &mut findings),
    };
    findings.extend(unexecuted(&spec));
    // Clients of a headless one have chosen before anybody balances.
    let client_affinity = kind == ServiceKind::ClusterIp && has_affinity(&spec);
    let service = Service {
        created: created(&object.metadata),
        export_to: export_to(&object.metadata),
        hostname: Hostname::service(&name.name, &name.namespace, domain),
        name,
        kind,
        addresses,
        ports,
        selector: spec.selector.unwrap_or_default(),
        reach,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        client_affinity,
    };
    Validated::judged(Object::Service(Arc::new(service)), findings)
}

/// The annotation by which a service says which namespaces may use it.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

fn export_to(metadata: &ObjectMeta) -> ExportTo {
    let annotations = metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(EXPORT_TO));
    let Some(text) = text else {
        return ExportTo::Everyone;
    };
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    ExportTo::of(&names, metadata.namespace.as_deref().unwrap_or("default"))
}

/// What a service asks for and no proxy of this release does.
fn unexecuted(spec: &k8s::ServiceSpec) -> Vec<Finding> {
    let finding = || {
        Finding::not_executed(
            "spec.sessionAffinity",
            "stock Envoys execute it without its timeout, gRPC's own clients keep each channel at one endpoint, Millrace's \
             proxy does not execute it",
        )
    };
    has_affinity(spec).then(finding).into_iter().collect()
}

/// Whether each client is to stay at one endpoint.
fn has_affinity(spec: &k8s::ServiceSpec) -> bool {
    spec.session_affinity.as_deref() == Some("ClientIP")
}

/// How near the endpoints have to be. What only prefers must not take a service away, so a preference that is not known
/// is none.
fn reach(spec: &k8s::ServiceSpec, findings: &mut Vec<Finding>) -> Reach {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => {}
        Some("Local") => return Reach::Local,
        Some(other) => findings.push(Finding::error(
            "spec.internalTrafficPolicy",
            format!("{other:?} is not Cluster or Local"),
        )),
    }
    match spec.traffic_distribution.as_deref() {
        None | Some("") => Reach::Anywhere,
        Some("PreferClose" | "PreferSameZone") => Reach::PreferZone,
        Some("PreferSameNode") => Reach::PreferNode,
        Some(other) => {
            findings.push(Finding::not_executed(
                "spec.trafficDistribution",
                format!("{other:?} is not PreferClose, PreferSameZone or PreferSameNode"),
            ));
            Reach::Anywhere
        }
    }
}

/// The virtual addresses. One that is `None` means headless; none at all, a file without the address
/// that a cluster would have given.
fn addresses(spec: &k8s::ServiceSpec, findings: &mut Vec<Finding>) -> Vec<IpAddr> {
    let mut texts: Vec<&str> = spec
        .cluster_ips
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    if let Some(first) = spec.cluster_ip.as_deref()
        && !texts.contains(&first)
    {
        texts.insert(0, first);
    }
    let mut result = Vec::new();
    for text in texts
        .into_iter()
        .filter(|text| !text.is_empty() && *text != "None")
    {
        match text.parse::<IpAddr>() {
            Ok(address) => result.push(address),
            Err(_) => findings.push(Finding::error(
                "spec.clusterIP",
                format!("{text:?} is not an address"),
            )),
        }
    }
    result
}

fn kind(spec: &k8s::ServiceSpec, findings: &mut Vec<Finding>) -> ServiceKind {
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.clone().unwrap_or_default();
        if let Err(error) = Hostname::resolve(&name, "", "") {
            findings.push(Finding::error("spec.externalName", error.to_string()));
        }
        return ServiceKind::ExternalName(name);
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return ServiceKind::Headless;
    }
    ServiceKind::ClusterIp
}

fn service_port(
    port: &k8s::ServicePort,
    field: &str,
    findings: &mut Vec<Finding>,
) -> Option<ServicePort> {
    match port.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => {}
        "UDP" | "SCTP" => return None,
        other => {
            findings.push(Finding::error(
                format!("{field}.protocol"),
                format!("{other:?} is not TCP, UDP or SCTP"),
            ));
            return None;
        }
    }
    let Some(number) = port_number(port.port) else {
        findings.push(Finding::error(
            format!("{field}.port"),
            format!("{} is not a port", port.port),
        ));
        return None;
    };
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => {
            if let Some(target) = port_number(*target) {
                TargetPort::Number(target)
            } else {
                findings.push(Finding::error(
                    format!("{field}.targetPort"),
                    format!("{target} is not a port"),
                ));
                return None;
            }
        }
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    let name = port.name.clone().unwrap_or_default();
    let protocol = Protocol::of_port(&name, port.app_protocol.as_deref(), number);
    Some(ServicePort {
        name,
        port: number,
        target,
        protocol,
    })
}
