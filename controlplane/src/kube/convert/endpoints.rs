//! `EndpointSlices` and Endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::api::discovery::v1 as discovery;

use super::{name_of, port_number};
use crate::model::Object;
use crate::model::endpoint::{EndpointSlice, SliceEndpoint, SliceGroup, SlicePort};
use crate::model::names::ObjectName;
use crate::model::near::Hints;
use crate::model::problem::Finding;
use crate::model::validate::Validated;

/// The label by which an `EndpointSlice` says whose it is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An `EndpointSlice`.
pub fn endpoint_slice(object: discovery::EndpointSlice, _domain: &str) -> Validated<Object> {
    let name = name_of(&object.metadata);
    let mut findings = Vec::new();
    let labels = object.metadata.labels.unwrap_or_default();
    let service = labels.get(SERVICE_NAME).cloned().unwrap_or_else(|| {
        findings.push(Finding::error(
            "metadata.labels",
            format!("the label {SERVICE_NAME} must name the service"),
        ));
        String::new()
    });
    let mut endpoints = Vec::new();
    // Addresses of the type FQDN are deprecated and nothing resolves them.
    if object.address_type == "FQDN" {
        findings.push(Finding::not_executed(
            "addressType",
            "no proxy of this release resolves FQDN endpoints",
        ));
    } else {
        for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
            slice_endpoints(endpoint, index, &name, &mut endpoints, &mut findings);
        }
    }
    let ports = object
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let ports = ports.filter_map(|port| {
        let number = port_number(port.port?)?;
        Some(SlicePort {
            name: port.name.clone().unwrap_or_default(),
            port: number,
        })
    });
    let slice = EndpointSlice {
        service: ObjectName::new(&name.namespace, &service),
        legacy: false,
        groups: vec![SliceGroup {
            ports: ports.collect(),
            endpoints,
        }],
        name,
    };
    Validated::judged(Object::EndpointSlice(Arc::new(slice)), findings)
}

fn slice_endpoints(
    endpoint: &discovery::Endpoint,
    index: usize,
    name: &ObjectName,
    result: &mut Vec<SliceEndpoint>,
    findings: &mut Vec<Finding>,
) {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // Absent means ready, as the API says.
    let terminating = conditions.terminating.unwrap_or(false);
    let ready = conditions.ready.unwrap_or(true) && !terminating;
    let ending = terminating && conditions.serving.unwrap_or(false);
    let (node, hints) = (
        endpoint.node_name.as_deref().map(Arc::from),
        hints(endpoint, result),
    );
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = target.and_then(|target| pod_of(target, name));
    for (position, text) in endpoint.addresses.iter().enumerate() {
        let field = format!("endpoints[{index}].addresses[{position}]");
        let Some(address) = address(text, &field, findings) else {
            continue;
        };
        result.push(SliceEndpoint {
            address,
            ready,
            ending,
            hostname: endpoint.hostname.clone(),
            zone: endpoint.zone.clone(),
            node: node.clone(),
            hints: hints.clone(),
            pod: pod.clone(),
        });
    }
}

/// For whom an endpoint is meant; most of a slice share that.
fn hints(endpoint: &discovery::Endpoint, before: &[SliceEndpoint]) -> Option<Arc<Hints>> {
    let stated = endpoint.hints.as_ref()?;
    let zones = stated.for_zones.iter().flatten().map(|zone| &zone.name);
    let nodes = stated.for_nodes.iter().flatten().map(|node| &node.name);
    let hints = Hints {
        zones: zones.cloned().collect(),
        nodes: nodes.cloned().collect(),
    };
    let mut known = before.iter().filter_map(|other| other.hints.as_ref());
    if hints == Hints::default() {
        return None;
    }
    let shared = known.find(|other| ***other == hints).cloned();
    Some(shared.unwrap_or_else(|| Arc::new(hints)))
}

/// An Endpoints object.
#[expect(
    clippy::needless_pass_by_value,
    reason = "every converter takes the object it was read as"
)]
pub fn endpoints(object: k8s::Endpoints, _domain: &str) -> Validated<Object> {
    let name = name_of(&object.metadata);
    let mut findings = Vec::new();
    let mut groups = Vec::new();
    for (index, subset) in object.subsets.iter().flatten().enumerate() {
        let mut endpoints = Vec::new();
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true, "addresses"));
        let others = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false, "notReadyAddresses"));
        for (stated, ready, list) in ready.chain(others) {
            let field = format!("subsets[{index}].{list}");
            if let Some(address) = address(&stated.ip, &field, &mut findings) {
                endpoints.push(subset_endpoint(stated, address, ready, &name));
            }
        }
        groups.push(SliceGroup {
            ports: legacy_ports(subset),
            endpoints,
        });
    }
    let slice = EndpointSlice {
        service: name.clone(),
        legacy: true,
        groups,
        name,
    };
    Validated::judged(Object::EndpointSlice(Arc::new(slice)), findings)
}

fn legacy_ports(subset: &k8s::EndpointSubset) -> Vec<SlicePort> {
    let ports = subset.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let read = tcp.filter_map(|port| {
        Some(SlicePort {
            name: port.name.clone().unwrap_or_default(),
            port: port_number(port.port)?,
        })
    });
    read.collect()
}

/// One address of a subset, of which nobody says a zone.
fn subset_endpoint(
    stated: &k8s::EndpointAddress,
    address: IpAddr,
    ready: bool,
    owner: &ObjectName,
) -> SliceEndpoint {
    let target = stated
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    SliceEndpoint {
        address,
        ready,
        ending: false,
        hostname: stated.hostname.clone(),
        zone: None,
        node: stated.node_name.as_deref().map(Arc::from),
        hints: None,
        pod: target.and_then(|target| pod_of(target, owner)),
    }
}

fn pod_of(target: &k8s::ObjectReference, owner: &ObjectName) -> Option<ObjectName> {
    let namespace = target.namespace.as_deref().unwrap_or(&owner.namespace);
    Some(ObjectName::new(namespace, target.name.as_deref()?))
}

fn address(text: &str, field: &str, findings: &mut Vec<Finding>) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        findings.push(Finding::error(field, format!("{text:?} is not an address")));
    }
    parsed
}
