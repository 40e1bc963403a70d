//! A service as the `ServiceEntry` that says the same: its host, ports, addresses and endpoints.
//!
//! Pure. What a `ServiceEntry` has no field for stays behind: which endpoints a service prefers for a client's place,
//! and that a headless service has no address (its client gives it one).

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_xds::mcp;
use serde_json::{Value, json};

use crate::model::endpoint::{Endpoint, Locality, NamedEndpoint, ServiceEndpoints};
use crate::model::entry::Resolution;
use crate::model::route::ExportTo;
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort};

/// The object; none for a service that has no port.
pub(super) fn entry(
    service: &Service,
    endpoints: Option<&ServiceEndpoints>,
) -> Option<mcp::Object> {
    if service.ports.is_empty() {
        return None;
    }
    let dns = match &service.kind {
        ServiceKind::ExternalName(_) => Some("DNS"),
        ServiceKind::Entry(entry) => match entry.resolution {
            Resolution::Dns => Some("DNS"),
            Resolution::DnsRoundRobin => Some("DNS_ROUND_ROBIN"),
            Resolution::None | Resolution::Static => None,
        },
        _ => None,
    };
    let external = match &service.kind {
        ServiceKind::ExternalName(_) => true,
        ServiceKind::Entry(entry) => entry.external,
        _ => false,
    };
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let mut spec = json!({
        "hosts": [service.hostname.as_str()],
        "addresses": addresses,
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
        "location": if external { "MESH_EXTERNAL" } else { "MESH_INTERNAL" },
        "resolution": dns.unwrap_or("STATIC"),
        "endpoints": stated(service, endpoints, dns.is_some()),
    });
    if let ExportTo::Namespaces(names) = &service.export_to {
        let none = vec!["~".to_owned()];
        spec["exportTo"] = if names.is_empty() { &none } else { names }.clone().into();
    }
    Some(mcp::Object {
        namespace: service.name.namespace.to_string(),
        // A port's service of a host has a name that no object may have.
        name: format!("synthetic-{}", service.name.name.replace('/', "-")),
        created: service.created.clone().unwrap_or_default(),
        spec,
        ..mcp::Object::default()
    })
}

fn port(port: &ServicePort) -> Value {
    let mut value = json!({"number": port.port, "name": port_name(port)});
    let protocol = match port.protocol {
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-Web",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Auto => return value,
    };
    value["protocol"] = protocol.into();
    value
}

fn port_name(port: &ServicePort) -> String {
    if port.name.is_empty() {
        format!("port-{}", port.port)
    } else {
        port.name.clone()
    }
}

/// One place with the service's ports there.
#[derive(Default)]
struct Stated {
    ports: BTreeMap<String, u16>,
    weight: u32,
    labels: BTreeMap<String, String>,
    account: String,
    locality: Locality,
}

/// All places that serve a part of the service, each with its number of every port that it serves.
fn stated(service: &Service, endpoints: Option<&ServiceEndpoints>, by_name: bool) -> Vec<Value> {
    let mut places: BTreeMap<String, Stated> = BTreeMap::new();
    if let (ServiceKind::ExternalName(host), true) = (&service.kind, by_name) {
        places.insert(host.clone(), Stated::default());
    } else if let Some(endpoints) = endpoints {
        for port in &service.ports {
            for endpoint in endpoints.of_port(port.port) {
                place(&mut places, port, endpoint);
            }
            for named in endpoints.names_of_port(port.port) {
                name(&mut places, port, named);
            }
        }
    }
    places
        .into_iter()
        .map(|(address, it)| it.value(&address))
        .collect()
}

fn place(places: &mut BTreeMap<String, Stated>, port: &ServicePort, endpoint: &Endpoint) {
    let address: IpAddr = endpoint.address;
    let place = places.entry(address.to_string()).or_default();
    place.ports.insert(port_name(port), endpoint.port);
    place.weight = endpoint.weight;
    place.locality = endpoint.locality.clone();
    if let Some(workload) = &endpoint.workload {
        place.labels.clone_from(&workload.labels);
        place.account.clone_from(&workload.service_account);
    }
}

fn name(places: &mut BTreeMap<String, Stated>, port: &ServicePort, named: &NamedEndpoint) {
    let place = places.entry(named.host.clone()).or_default();
    place.ports.insert(port_name(port), named.port);
    place.weight = named.weight;
    place.locality = named.locality.clone();
    place.labels.clone_from(&named.labels);
}

impl Stated {
    fn value(self, address: &str) -> Value {
        let mut value = json!({"address": address, "labels": self.labels, "ports": self.ports});
        if self.weight > 1 {
            value["weight"] = self.weight.into();
        }
        if !self.account.is_empty() {
            value["serviceAccount"] = self.account.into();
        }
        let Locality {
            region,
            zone,
            sub_zone,
        } = self.locality;
        let locality = format!("{region}/{zone}/{sub_zone}");
        if locality != "//" {
            value["locality"] = locality.trim_end_matches('/').into();
        }
        value
    }
}
