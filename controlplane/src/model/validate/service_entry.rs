//! `ServiceEntry` and `WorkloadEntry`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Validated;
use super::fields::Judge;
use crate::kube::crd;
use crate::model::endpoint::Locality;
use crate::model::entry::{Entry, EntryAddress, Resolution, ServiceEntry, WorkloadEntry};
use crate::model::names::{Hostname, ObjectName};
use crate::model::near::Reach;
use crate::model::problem::Finding;
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort, TargetPort};
use crate::model::workload::{Labels, Workload, share};
use crate::model::{Kind, Object, ObjectId};

/// The label by which an entry refuses an address of pilot's.
const ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

/// Judges a `ServiceEntry`.
pub fn service_entry(object: &crd::ServiceEntry, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let name = ObjectName::new(namespace, &object.metadata.name);
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    let resolution = resolution(&mut judge, spec.resolution.as_deref());
    let hosts = hosts(&mut judge, spec, resolution);
    let ports = ports(&mut judge, &spec.ports);
    let (addresses, networks) = addresses(&mut judge, &spec.addresses, resolution);
    let selector = selector(&mut judge, spec);
    let endpoints = endpoints(&mut judge, spec, &name, resolution);
    judge.not_executed(
        (!spec.subject_alt_names.is_empty()).then_some(&()),
        "spec.subjectAltNames".to_owned(),
    );
    let external = is_external(&mut judge, spec.location.as_deref());
    let labels = object.metadata.labels.as_ref();
    let refused = labels
        .and_then(|labels| labels.get(ALLOCATE))
        .map(String::as_str)
        == Some("false");
    let export_to = judge.export_to(&spec.export_to);
    let id = ObjectId {
        kind: Kind::ServiceEntry,
        name: name.clone(),
    };
    let services = hosts.iter().map(|host| {
        let entry = Entry {
            object: id.clone(),
            resolution,
            external,
            networks: networks.clone(),
            endpoints: endpoints.clone(),
            allocate: resolution != Resolution::None
                && networks.is_empty()
                && !host.is_wildcard()
                && !refused,
        };
        Arc::new(Service {
            name: ObjectName::new(namespace, &format!("{}/{host}", name.name)),
            created: object.metadata.creation_timestamp.clone(),
            hostname: host.clone(),
            kind: ServiceKind::Entry(Arc::new(entry)),
            addresses: addresses.clone(),
            ports: ports.clone(),
            selector: selector.clone(),
            publish_not_ready: false,
            client_affinity: false,
            reach: Reach::Anywhere,
            export_to: export_to.clone(),
        })
    });
    let services = services.collect();
    let entry = ServiceEntry {
        kind: Kind::ServiceEntry,
        name,
        services,
    };
    Validated::judged(Object::ServiceEntry(Arc::new(entry)), judge.findings)
}

/// Judges a `WorkloadEntry`.
pub fn workload_entry(object: &crd::WorkloadEntry, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let name = ObjectName::new(namespace, &object.metadata.name);
    let mut judge = Judge::new(namespace, domain);
    let mut spec = object.spec.clone();
    // Istio lets the labels of the object itself stand for those of the workload.
    if spec.labels.is_empty() {
        spec.labels = object.metadata.labels.clone().unwrap_or_default();
    }
    if spec.address.is_empty() {
        judge.error("spec.address", "an address or a DNS name is needed");
        return Validated {
            object: None,
            findings: judge.findings,
        };
    }
    let entry = endpoint(&mut judge, &spec, name, "spec");
    let findings = judge.findings;
    match entry {
        Some(entry) => Validated::judged(Object::WorkloadEntry(Arc::new(entry)), findings),
        None => Validated {
            object: None,
            findings,
        },
    }
}

fn is_external(judge: &mut Judge<'_>, location: Option<&str>) -> bool {
    match location.unwrap_or("MESH_EXTERNAL") {
        "MESH_EXTERNAL" => true,
        "MESH_INTERNAL" => false,
        other => {
            let message = format!("{other:?} is not MESH_EXTERNAL or MESH_INTERNAL");
            judge.error("spec.location", message);
            true
        }
    }
}

fn resolution(judge: &mut Judge<'_>, text: Option<&str>) -> Resolution {
    match text.unwrap_or("NONE") {
        "NONE" => Resolution::None,
        "STATIC" => Resolution::Static,
        "DNS" => Resolution::Dns,
        "DNS_ROUND_ROBIN" => Resolution::DnsRoundRobin,
        other => {
            let message = format!("{other:?} is not one of NONE, STATIC, DNS and DNS_ROUND_ROBIN");
            judge.error("spec.resolution", message);
            Resolution::None
        }
    }
}

fn hosts(
    judge: &mut Judge<'_>,
    spec: &crd::ServiceEntrySpec,
    resolution: Resolution,
) -> Vec<Hostname> {
    if spec.hosts.is_empty() {
        judge.error("spec.hosts", "at least one host is needed");
    }
    let by_dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let mut result: Vec<Hostname> = Vec::new();
    for (index, text) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let host = match Hostname::literal(text) {
            Ok(host) => host,
            Err(error) => {
                judge.error(field, error.to_string());
                continue;
            }
        };
        if host.as_str() == "*" {
            judge.error(field, "the host \"*\" would take the traffic of every host");
        } else if host.is_wildcard()
            && by_dns
            && spec.endpoints.is_empty()
            && spec.workload_selector.is_none()
        {
            let message =
                "DNS cannot resolve a wildcard: endpoints or another resolution are needed";
            judge.error(field, message);
        } else if result.contains(&host) {
            judge.error(field, format!("the host {host} is there twice"));
        } else {
            result.push(host);
        }
    }
    result
}

fn ports(judge: &mut Judge<'_>, ports: &[crd::EntryPort]) -> Vec<ServicePort> {
    if ports.is_empty() {
        judge.error("spec.ports", "at least one port is needed");
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut result = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let number = judge.port(port.number, &format!("{field}.number"));
        if port.name.is_empty() {
            judge.error(format!("{field}.name"), "a name is needed");
        } else if !names.insert(&port.name) {
            let message = format!("the name {:?} is there twice", port.name);
            judge.error(format!("{field}.name"), message);
        }
        if !numbers.insert(port.number) {
            let message = format!("the port {} is there twice", port.number);
            judge.error(format!("{field}.number"), message);
        }
        let target = match port.target_port.filter(|target| *target != 0) {
            Some(target) => judge.port(target, &format!("{field}.targetPort")),
            None => number,
        };
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if !protocol.is_empty() && !is_protocol(protocol) {
            let message = format!("{protocol:?} is not a protocol that Istio knows");
            judge.error(format!("{field}.protocol"), message);
        }
        if protocol.eq_ignore_ascii_case("UDP") {
            let field = format!("{field}.protocol");
            judge.findings.push(Finding::not_executed(
                field,
                "no proxy of this release takes UDP, so the port is left out",
            ));
            continue;
        }
        result.push(ServicePort {
            name: port.name.clone(),
            port: number,
            target: TargetPort::Number(target),
            protocol: Protocol::of_port(
                &port.name,
                Some(protocol).filter(|text| !text.is_empty()),
                number,
            ),
        });
    }
    result
}

/// Istio's names of protocols.
fn is_protocol(text: &str) -> bool {
    const KNOWN: [&str; 14] = [
        "HTTP",
        "HTTP2",
        "HTTPS",
        "GRPC",
        "GRPC-WEB",
        "TCP",
        "TLS",
        "MONGO",
        "REDIS",
        "MYSQL",
        "UDP",
        "HTTP_PROXY",
        "HBONE",
        "GRPC-Web",
    ];
    KNOWN.iter().any(|known| known.eq_ignore_ascii_case(text))
}

fn addresses(
    judge: &mut Judge<'_>,
    texts: &[String],
    resolution: Resolution,
) -> (Vec<IpAddr>, Vec<IpNet>) {
    let (mut addresses, mut networks) = (Vec::new(), Vec::new());
    for (index, text) in texts.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        if let Ok(address) = text.parse::<IpAddr>() {
            addresses.push(address);
        } else if let Ok(network) = text.parse::<IpNet>() {
            if network.prefix_len() == network.max_prefix_len() {
                addresses.push(network.addr());
            } else {
                networks.push(network.trunc());
            }
            if matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
                let message = "networks go with the resolutions NONE and STATIC only";
                judge.error(field, message);
            }
        } else {
            judge.error(field, format!("{text:?} is not an address or a network"));
        }
    }
    (addresses, networks)
}

fn selector(judge: &mut Judge<'_>, spec: &crd::ServiceEntrySpec) -> Labels {
    let Some(selector) = &spec.workload_selector else {
        return Labels::new();
    };
    if selector.labels.is_empty() {
        let message = "at least one label is needed";
        judge.error("spec.workloadSelector.labels", message);
    }
    if !spec.endpoints.is_empty() {
        let message = "only one of endpoints and workloadSelector may be set";
        judge.error("spec.workloadSelector", message);
    }
    selector.labels.clone()
}

fn endpoints(
    judge: &mut Judge<'_>,
    spec: &crd::ServiceEntrySpec,
    name: &ObjectName,
    resolution: Resolution,
) -> Vec<Arc<WorkloadEntry>> {
    match resolution {
        Resolution::None if !spec.endpoints.is_empty() => {
            let message = "with the resolution NONE connections go where the client asked";
            judge.error("spec.endpoints", message);
        }
        Resolution::DnsRoundRobin if spec.endpoints.len() > 1 => {
            let message = "DNS_ROUND_ROBIN takes one endpoint at most";
            judge.error("spec.endpoints", message);
        }
        Resolution::Static if spec.endpoints.is_empty() && spec.workload_selector.is_none() => {
            let message = "without endpoints and workloadSelector every call gets 503 (UH)";
            judge.warn_invalid("spec.endpoints", message);
        }
        _ => {}
    }
    let declared: BTreeSet<&str> = spec.ports.iter().map(|port| port.name.as_str()).collect();
    let mut result = Vec::new();
    for (index, item) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        for port in item.ports.keys() {
            if !declared.contains(port.as_str()) {
                let message = format!("the entry has no port {port:?}");
                judge.error(format!("{field}.ports.{port}"), message);
            }
        }
        let Some(entry) = endpoint(judge, item, name.clone(), &field) else {
            continue;
        };
        if resolution == Resolution::Static && matches!(entry.address, EntryAddress::Name(_)) {
            let message = format!(
                "{:?} is not an address, which the resolution STATIC needs",
                item.address
            );
            judge.error(format!("{field}.address"), message);
        }
        result.push(Arc::new(entry));
    }
    result
}

/// A stated endpoint; none with a finding that says why.
fn endpoint(
    judge: &mut Judge<'_>,
    spec: &crd::WorkloadEntrySpec,
    name: ObjectName,
    field: &str,
) -> Option<WorkloadEntry> {
    let address = entry_address(judge, &spec.address, &format!("{field}.address"))?;
    let mut ports = BTreeMap::new();
    for (port, number) in &spec.ports {
        let number = judge.port(*number, &format!("{field}.ports.{port}"));
        ports.insert(port.clone(), number);
    }
    judge.not_executed(
        spec.network.as_ref().filter(|network| !network.is_empty()),
        format!("{field}.network"),
    );
    let locality: Locality = match spec.locality.as_deref() {
        Some(text) => text.parse().unwrap_or_default(),
        None => Locality::default(),
    };
    let addresses = match &address {
        EntryAddress::Ip(address) => vec![*address],
        EntryAddress::Name(_) => Vec::new(),
    };
    Some(WorkloadEntry {
        ports,
        // Istio counts a weight of zero as not given.
        weight: spec.weight.filter(|weight| *weight > 0).unwrap_or(1),
        locality,
        workload: Arc::new(Workload {
            addresses,
            labels: share(spec.labels.clone()),
            service_account: spec.service_account.clone().unwrap_or_default(),
            node: None,
            ready: true,
            host_network: false,
            ports: Vec::new(),
            hostname: name.name.to_string(),
            subdomain: None,
            owner: name.name.to_string(),
            name,
        }),
        address,
    })
}

fn entry_address(judge: &mut Judge<'_>, text: &str, field: &str) -> Option<EntryAddress> {
    if let Ok(address) = text.parse() {
        return Some(EntryAddress::Ip(address));
    }
    if text.starts_with("unix://") {
        let message =
            "no proxy of this release connects to a unix socket, so the endpoint is left out";
        judge.findings.push(Finding::not_executed(field, message));
        return None;
    }
    match Hostname::literal(text) {
        Ok(host) if !host.is_wildcard() => Some(EntryAddress::Name(host.to_string())),
        Ok(_) => {
            judge.error(field, "an endpoint cannot be a wildcard");
            None
        }
        Err(error) => {
            judge.error(field, error.to_string());
            None
        }
    }
}
