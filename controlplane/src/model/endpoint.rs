//! Endpoints: as a registry states them, and as the index derives them for a service.

use std::net::IpAddr;
use std::sync::Arc;

use super::Kind;
use super::names::ObjectName;
use super::service::{Service, TargetPort};
use super::workload::Workload;

/// An `EndpointSlice`, or an Endpoints object with its subsets as groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the object.
    pub name: ObjectName,
    /// The service it belongs to.
    pub service: ObjectName,
    /// Whether it was an `Endpoints` object.
    pub legacy: bool,
    /// Addresses with the ports that they share.
    pub groups: Vec<SliceGroup>,
}

impl EndpointSlice {
    /// The kind of the object it was read from.
    pub fn kind(&self) -> Kind {
        if self.legacy {
            Kind::Endpoints
        } else {
            Kind::EndpointSlice
        }
    }
}

/// Addresses with the ports that they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceGroup {
    /// The ports, by the service port's name.
    pub ports: Vec<SlicePort>,
    /// The addresses.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The service port's name.
    pub name: String,
    /// The port on the address.
    pub port: u16,
}

/// An address of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The address.
    pub address: IpAddr,
    /// Whether it may receive traffic.
    pub ready: bool,
    /// Its label under a headless service.
    pub hostname: Option<String>,
    /// The zone it is in.
    pub zone: Option<String>,
    /// The pod behind it.
    pub pod: Option<ObjectName>,
}

/// What receives a service's traffic, by service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// For each service port that has endpoints, those endpoints sorted by address.
    pub ports: Vec<(u16, Vec<Endpoint>)>,
}

/// One address and port that receives a service port's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Its label under a headless service.
    pub hostname: Option<String>,
    /// The zone it is in.
    pub zone: Option<String>,
    /// The pod behind it, where known.
    pub workload: Option<Arc<Workload>>,
}

impl ServiceEndpoints {
    /// The endpoints of one service port.
    pub fn of_port(&self, port: u16) -> &[Endpoint] {
        self.ports
            .iter()
            .find(|(number, _)| *number == port)
            .map_or(&[], |(_, endpoints)| endpoints.as_slice())
    }
}

/// Where a pod is found by what an endpoint says of it.
pub trait WorkloadLookup {
    /// The pod with this name.
    fn by_name(&self, name: &ObjectName) -> Option<Arc<Workload>>;
    /// The pod that has this address.
    fn by_address(&self, address: IpAddr) -> Option<Arc<Workload>>;
}

/// Endpoints of a service from what the registry states.
pub fn from_slices<'a>(
    service: &Service,
    slices: &(impl Iterator<Item = &'a EndpointSlice> + Clone),
    workloads: &impl WorkloadLookup,
) -> ServiceEndpoints {
    let mut result = ServiceEndpoints::default();
    for port in &service.ports {
        let mut endpoints = Vec::new();
        for group in slices.clone().flat_map(|slice| &slice.groups) {
            for number in group
                .ports
                .iter()
                .filter(|p| p.name == port.name)
                .map(|p| p.port)
            {
                for stated in &group.endpoints {
                    if !stated.ready && !service.publish_not_ready {
                        continue;
                    }
                    let workload = match &stated.pod {
                        Some(pod) => workloads.by_name(pod),
                        None => workloads.by_address(stated.address),
                    };
                    endpoints.push(Endpoint {
                        address: stated.address,
                        port: number,
                        hostname: stated.hostname.clone(),
                        zone: stated.zone.clone(),
                        workload,
                    });
                }
            }
        }
        push_port(&mut result, port.port, endpoints);
    }
    result
}

/// Endpoints of a service from the pods that its selector matches.
pub fn from_workloads<'a>(
    service: &Service,
    workloads: &(impl Iterator<Item = &'a Arc<Workload>> + Clone),
) -> ServiceEndpoints {
    let mut result = ServiceEndpoints::default();
    for port in &service.ports {
        let mut endpoints = Vec::new();
        for workload in workloads
            .clone()
            .filter(|w| w.ready || service.publish_not_ready)
        {
            let Some(number) = target_port(&port.target, workload) else {
                continue;
            };
            for address in &workload.addresses {
                endpoints.push(Endpoint {
                    address: *address,
                    port: number,
                    hostname: subdomain_hostname(service, workload),
                    zone: None,
                    workload: Some(Arc::clone(workload)),
                });
            }
        }
        push_port(&mut result, port.port, endpoints);
    }
    result
}

/// The number that a service port's target has on this pod; none when it has no port of that name.
pub fn target_port(target: &TargetPort, workload: &Workload) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => workload
            .ports
            .iter()
            .find(|p| p.name == *name)
            .map(|p| p.port),
    }
}

fn subdomain_hostname(service: &Service, workload: &Workload) -> Option<String> {
    (workload.subdomain.as_deref() == Some(&*service.name.name)).then(|| workload.hostname.clone())
}

fn push_port(result: &mut ServiceEndpoints, port: u16, mut endpoints: Vec<Endpoint>) {
    endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.port));
    endpoints.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
    if !endpoints.is_empty() {
        result.ports.push((port, endpoints));
    }
}
