//! `EgressRule`, which says what a `ServiceEntry` says today.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Validated;
use super::fields::Judge;
use crate::kube::crd;
use crate::model::entry::{Entry, Resolution, ServiceEntry};
use crate::model::names::{Hostname, ObjectName};
use crate::model::near::Reach;
use crate::model::problem::Finding;
use crate::model::route::ExportTo;
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort, TargetPort};
use crate::model::workload::Labels;
use crate::model::{Kind, Object, ObjectId};

/// Judges an `EgressRule`.
pub fn egress_rule(object: &crd::EgressRule, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let name = ObjectName::new(namespace, &object.metadata.name);
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    if spec.use_egress_proxy {
        judge.findings.push(Finding::not_executed(
            "spec.useEgressProxy",
            "no egress proxy runs in this release: pods' own proxies go there",
        ));
    }
    let service = spec.destination.service.as_deref().unwrap_or_default();
    let (host, addresses, networks) = destination(&mut judge, service, &name);
    let by_address = !addresses.is_empty() || !networks.is_empty();
    let ports = ports(&mut judge, &spec.ports, by_address);
    let Some(host) = host else {
        return Validated {
            object: None,
            findings: judge.findings,
        };
    };
    let resolution = if by_address || host.is_wildcard() {
        Resolution::None
    } else {
        Resolution::Dns
    };
    let id = ObjectId {
        kind: Kind::EgressRule,
        name: name.clone(),
    };
    let entry = Entry {
        object: id,
        resolution,
        external: true,
        networks,
        endpoints: Vec::new(),
        allocate: resolution == Resolution::Dns,
    };
    let service = Service {
        name: ObjectName::new(namespace, &format!("{}/egress/{host}", name.name)),
        created: object.metadata.creation_timestamp.clone(),
        hostname: host,
        kind: ServiceKind::Entry(Arc::new(entry)),
        addresses,
        ports,
        selector: Labels::new(),
        publish_not_ready: false,
        client_affinity: false,
        reach: Reach::Anywhere,
        export_to: ExportTo::Everyone,
    };
    let entry = ServiceEntry {
        kind: Kind::EgressRule,
        name,
        services: vec![Arc::new(service)],
    };
    Validated::judged(Object::ServiceEntry(Arc::new(entry)), judge.findings)
}

/// The host, or the address or network, which then has a host made up from the rule's name.
fn destination(
    judge: &mut Judge<'_>,
    service: &str,
    name: &ObjectName,
) -> (Option<Hostname>, Vec<IpAddr>, Vec<IpNet>) {
    let field = "spec.destination.service";
    let made_up =
        || Hostname::literal(&format!("{}.{}.egressrule", name.name, name.namespace)).ok();
    if let Ok(address) = service.parse::<IpAddr>() {
        return (made_up(), vec![address], Vec::new());
    }
    if let Ok(network) = service.parse::<IpNet>() {
        return (made_up(), Vec::new(), vec![network.trunc()]);
    }
    match Hostname::literal(service) {
        Ok(host) if host.as_str() != "*" => (Some(host), Vec::new(), Vec::new()),
        Ok(_) => {
            let message = "the host \"*\" would take the traffic of every host";
            judge.error(field, message);
            (None, Vec::new(), Vec::new())
        }
        Err(error) => {
            judge.error(field, error.to_string());
            (None, Vec::new(), Vec::new())
        }
    }
}

fn ports(judge: &mut Judge<'_>, ports: &[crd::EgressPort], by_address: bool) -> Vec<ServicePort> {
    if ports.is_empty() {
        judge.error("spec.ports", "at least one port is needed");
    }
    let mut result: Vec<ServicePort> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let number = judge.port(port.port, &format!("{field}.port"));
        if result.iter().any(|known| known.port == number) {
            let message = format!("the port {number} is there twice");
            judge.error(format!("{field}.port"), message);
        }
        let word = port.protocol.to_ascii_lowercase();
        match word.as_str() {
            "http" | "http2" | "grpc" if by_address => {
                let message = format!("{word} is told by its host: an address takes tcp and mongo");
                judge.error(format!("{field}.protocol"), message);
            }
            "tcp" | "mongo" if !by_address => {
                let message = format!("{word} needs an address or a network, not a host");
                judge.error(format!("{field}.protocol"), message);
            }
            "http" | "http2" | "grpc" | "tcp" | "mongo" => {}
            "https" => judge.findings.push(Finding::not_executed(
                format!("{field}.protocol"),
                "no proxy of this release starts TLS: what the client sends goes through as it is",
            )),
            other => {
                let message =
                    format!("{other:?} is not one of http, https, http2, grpc, tcp and mongo");
                judge.error(format!("{field}.protocol"), message);
            }
        }
        result.push(ServicePort {
            name: format!("{word}-{number}"),
            port: number,
            target: TargetPort::Number(number),
            protocol: Protocol::of_port(&word, None, number),
        });
    }
    result
}
