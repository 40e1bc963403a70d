//! Pods, and what a Deployment says about pods to come.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{name_of, port_number};
use crate::model::Object;
use crate::model::problem::Finding;
use crate::model::service::Protocol;
use crate::model::validate::Validated;
use crate::model::workload::{ContainerPort, Workload, WorkloadTemplate, share};

/// A pod.
pub fn pod(object: k8s::Pod, _domain: &str) -> Validated<Object> {
    let name = name_of(&object.metadata);
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let mut findings = Vec::new();
    let addresses = addresses(&status, &mut findings);
    let workload = Workload {
        ready: is_ready(&status)
            && object.metadata.deletion_timestamp.is_none()
            && !addresses.is_empty(),
        addresses,
        owner: owner(&object.metadata),
        hostname: spec
            .hostname
            .clone()
            .unwrap_or_else(|| name.name.to_string()),
        subdomain: spec.subdomain.clone(),
        service_account: spec
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        node: spec.node_name.clone(),
        host_network: spec.host_network.unwrap_or_default(),
        ports: container_ports(&spec, &mut findings),
        labels: share(object.metadata.labels.unwrap_or_default()),
        name,
    };
    Validated::judged(Object::Workload(Arc::new(workload)), findings)
}

/// A Deployment: no pods come of it here, but its ports and labels are known.
pub fn deployment(object: Deployment, _domain: &str) -> Validated<Object> {
    let name = name_of(&object.metadata);
    let template = object.spec.unwrap_or_default().template;
    let spec = template.spec.unwrap_or_default();
    let mut findings = Vec::new();
    let template = WorkloadTemplate {
        name,
        labels: template
            .metadata
            .and_then(|metadata| metadata.labels)
            .unwrap_or_default(),
        service_account: spec
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        ports: container_ports(&spec, &mut findings),
    };
    Validated::judged(Object::Template(Arc::new(template)), findings)
}

fn addresses(status: &k8s::PodStatus, findings: &mut Vec<Finding>) -> Vec<IpAddr> {
    let mut texts: Vec<&str> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    if let Some(first) = status.pod_ip.as_deref()
        && !texts.contains(&first)
    {
        texts.insert(0, first);
    }
    let mut result = Vec::new();
    for text in texts.into_iter().filter(|text| !text.is_empty()) {
        match text.parse() {
            Ok(address) => result.push(address),
            Err(_) => findings.push(Finding::error(
                "status.podIP",
                format!("{text:?} is not an address"),
            )),
        }
    }
    result
}

/// Running and Ready. A file written by hand has an address and no conditions: that counts as ready.
fn is_ready(status: &k8s::PodStatus) -> bool {
    let running = matches!(status.phase.as_deref(), None | Some("Running"));
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    running && condition.is_none_or(|condition| condition.status == "True")
}

fn container_ports(spec: &k8s::PodSpec, findings: &mut Vec<Finding>) -> Vec<ContainerPort> {
    let mut result: Vec<ContainerPort> = Vec::new();
    for (container, port) in spec.containers.iter().flat_map(|container| {
        container
            .ports
            .iter()
            .flatten()
            .map(move |port| (container, port))
    }) {
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let Some(number) = port_number(port.container_port) else {
            let message = format!(
                "container {:?}: {} is not a port",
                container.name, port.container_port
            );
            findings.push(Finding::error("spec.containers", message));
            continue;
        };
        let name = port.name.clone().unwrap_or_default();
        let protocol = Protocol::of_port(&name, None, number);
        if !result
            .iter()
            .any(|known| known.port == number && known.name == name)
        {
            result.push(ContainerPort {
                name,
                port: number,
                protocol,
            });
        }
    }
    result
}

/// The Deployment's name where a `ReplicaSet` made the pod, else the owner's, else the pod's.
fn owner(metadata: &ObjectMeta) -> String {
    let own = metadata.name.clone().unwrap_or_default();
    let hash = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("pod-template-hash"));
    let owners = metadata.owner_references.iter().flatten();
    let controller = owners
        .into_iter()
        .find(|owner| owner.controller.unwrap_or(false));
    let Some(controller) = controller else {
        // Without a reference the hash still marks where the Deployment's name ends.
        let stem = hash.and_then(|hash| own.split_once(&format!("-{hash}")));
        return stem.map_or(own.clone(), |(name, _)| name.to_owned());
    };
    let deployment = hash.and_then(|hash| controller.name.strip_suffix(&format!("-{hash}")));
    deployment.unwrap_or(&controller.name).to_owned()
}
