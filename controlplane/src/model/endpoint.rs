//! Endpoints: as a registry states them, and as the index derives them for a service.

use std::net::IpAddr;
use std::sync::Arc;

use super::Kind;
use super::entry::{Entry, EntryAddress, Resolution, WorkloadEntry};
use super::names::ObjectName;
use super::near::{Hints, Nearness, Reach};
use super::service::{Service, ServicePort, TargetPort};
use super::workload::{Labels, Workload};

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
    /// Whether it is ending and still answers: used where nothing is ready.
    pub ending: bool,
    /// Its label under a headless service.
    pub hostname: Option<String>,
    /// The zone it is in.
    pub zone: Option<String>,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// For whom it is meant.
    pub hints: Option<Arc<Hints>>,
    /// The pod behind it.
    pub pod: Option<ObjectName>,
}

/// What receives a service's traffic, by service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// For each service port that has endpoints, those endpoints sorted by address.
    pub ports: Vec<(u16, Vec<Endpoint>)>,
    /// For each port of a service whose endpoints DNS finds, the names to ask for.
    pub names: Vec<(u16, Vec<NamedEndpoint>)>,
    /// By which part of a client's place its endpoints may be chosen.
    pub nearness: Nearness,
}

/// Where an endpoint runs, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone in it.
    pub zone: String,
    /// The part of the zone.
    pub sub_zone: String,
}

impl Locality {
    /// A zone of a region that is not known.
    pub fn zone(zone: Option<&str>) -> Self {
        Self {
            zone: zone.unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }
}

impl std::str::FromStr for Locality {
    type Err = std::convert::Infallible;

    /// Reads `region/zone/sub-zone`, of which the later parts may be missing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Ok(Self {
            region: next(),
            zone: next(),
            sub_zone: next(),
        })
    }
}

/// A host and port that DNS knows the addresses of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedEndpoint {
    /// Where it runs.
    pub locality: Locality,
    /// The name, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Its share among its locality's endpoints.
    pub weight: u32,
    /// Its labels.
    pub labels: Labels,
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
    /// Where it runs.
    pub locality: Locality,
    /// Its share among its locality's endpoints.
    pub weight: u32,
    /// The node it is on, where the registry states it.
    pub node: Option<Arc<str>>,
    /// For whom it is meant; none where for everybody.
    pub hints: Option<Arc<Hints>>,
    /// The pod behind it, where known.
    pub workload: Option<Arc<Workload>>,
}

impl Endpoint {
    /// The node it is on, where known.
    pub fn node(&self) -> Option<&str> {
        let of_pod = || self.workload.as_ref()?.node.as_deref();
        self.node.as_deref().or_else(of_pod)
    }
}

impl ServiceEndpoints {
    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.names.is_empty()
    }

    /// The names behind one service port.
    pub fn names_of_port(&self, port: u16) -> &[NamedEndpoint] {
        self.names
            .iter()
            .find(|(number, _)| *number == port)
            .map_or(&[], |(_, names)| names.as_slice())
    }

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
        let (mut endpoints, mut ending) = (Vec::new(), Vec::new());
        for group in slices.clone().flat_map(|slice| &slice.groups) {
            for number in group
                .ports
                .iter()
                .filter(|p| p.name == port.name)
                .map(|p| p.port)
            {
                for stated in &group.endpoints {
                    let usable = stated.ready || service.publish_not_ready;
                    if usable || stated.ending {
                        let endpoint = from_slice(service, stated, number, workloads);
                        let list = if usable { &mut endpoints } else { &mut ending };
                        list.push(endpoint);
                    }
                }
            }
        }
        // As kube-proxy does: what is ending answers until there is something else.
        let used = if endpoints.is_empty() {
            ending
        } else {
            endpoints
        };
        push_port(&mut result, service, port.port, used);
    }
    result
}

fn from_slice(
    service: &Service,
    stated: &SliceEndpoint,
    port: u16,
    workloads: &impl WorkloadLookup,
) -> Endpoint {
    let workload = match &stated.pod {
        Some(pod) => workloads.by_name(pod),
        None => workloads.by_address(stated.address),
    };
    // A cluster writes hints for what a service prefers; where nobody does, they are made here.
    let made = || {
        service
            .reach
            .hints(stated.zone.as_deref(), stated.node.as_deref())
    };
    Endpoint {
        address: stated.address,
        port,
        hostname: stated.hostname.clone(),
        locality: Locality::zone(stated.zone.as_deref()),
        weight: 1,
        node: stated.node.clone(),
        hints: stated.hints.clone().or_else(|| made().map(Arc::new)),
        workload,
    }
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
            let made = service.reach.hints(None, workload.node.as_deref());
            let made = made.map(Arc::new);
            for address in &workload.addresses {
                endpoints.push(Endpoint {
                    address: *address,
                    port: number,
                    hostname: subdomain_hostname(service, workload),
                    locality: Locality::default(),
                    weight: 1,
                    node: None,
                    hints: made.clone(),
                    workload: Some(Arc::clone(workload)),
                });
            }
        }
        push_port(&mut result, service, port.port, endpoints);
    }
    result
}

/// Adds `WorkloadEntries` that a service's selector matches to its endpoints.
pub fn add_entries(
    service: &Service,
    entries: &[Arc<WorkloadEntry>],
    endpoints: &mut ServiceEndpoints,
) {
    for port in &service.ports {
        let at = endpoints
            .ports
            .iter()
            .position(|(number, _)| *number == port.port);
        let mut all = at.map_or_else(Vec::new, |at| endpoints.ports.remove(at).1);
        all.extend(entries.iter().filter_map(|entry| stated(port, entry)));
        push_port(endpoints, service, port.port, all);
    }
    endpoints.ports.sort_by_key(|(port, _)| {
        service
            .ports
            .iter()
            .position(|declared| declared.port == *port)
    });
}

/// Endpoints of a service that a `ServiceEntry` made: those it lists, else those that its selector
/// matches, else, where DNS finds them, its host.
pub fn from_entry<'a>(
    service: &Service,
    entry: &Entry,
    entries: &[Arc<WorkloadEntry>],
    pods: &(impl Iterator<Item = &'a Arc<Workload>> + Clone),
) -> ServiceEndpoints {
    match entry.resolution {
        Resolution::None => ServiceEndpoints::default(),
        Resolution::Static => {
            let mut result = from_workloads(service, pods);
            add_entries(service, &entry.endpoints, &mut result);
            add_entries(service, entries, &mut result);
            result
        }
        Resolution::Dns | Resolution::DnsRoundRobin => by_dns(service, entry, entries, pods),
    }
}

fn by_dns<'a>(
    service: &Service,
    entry: &Entry,
    entries: &[Arc<WorkloadEntry>],
    pods: &(impl Iterator<Item = &'a Arc<Workload>> + Clone),
) -> ServiceEndpoints {
    let mut result = ServiceEndpoints::default();
    for port in &service.ports {
        let stated = entry.endpoints.iter().chain(entries);
        let mut names: Vec<NamedEndpoint> = stated
            .map(|entry| NamedEndpoint {
                locality: entry.locality.clone(),
                host: entry.address.host(),
                port: entry_port(port, entry),
                weight: entry.weight,
                labels: Labels::clone(&entry.workload.labels),
            })
            .collect();
        for pod in pods.clone().filter(|pod| pod.ready) {
            let number = target_port(&port.target, pod).unwrap_or(port.port);
            names.extend(pod.addresses.iter().map(|address| NamedEndpoint {
                locality: Locality::default(),
                host: address.to_string(),
                port: number,
                weight: 1,
                labels: Labels::clone(&pod.labels),
            }));
        }
        if entry.endpoints.is_empty() && service.selector.is_empty() {
            names.push(NamedEndpoint {
                locality: Locality::default(),
                host: service.hostname.to_string(),
                port: match port.target {
                    TargetPort::Number(number) => number,
                    TargetPort::Name(_) => port.port,
                },
                weight: 1,
                labels: Labels::new(),
            });
        }
        names.sort();
        names.dedup_by(|one, other| (&one.host, one.port) == (&other.host, other.port));
        if entry.resolution == Resolution::DnsRoundRobin {
            names.truncate(1);
        }
        if !names.is_empty() {
            result.names.push((port.port, names));
        }
    }
    result
}

/// A stated endpoint as one of a service port; none where only DNS knows its address.
fn stated(port: &ServicePort, entry: &Arc<WorkloadEntry>) -> Option<Endpoint> {
    let EntryAddress::Ip(address) = entry.address else {
        return None;
    };
    Some(Endpoint {
        address,
        port: entry_port(port, entry),
        hostname: None,
        locality: entry.locality.clone(),
        weight: entry.weight,
        node: None,
        hints: None,
        workload: Some(Arc::clone(&entry.workload)),
    })
}

/// The port of a stated endpoint: by the service port's name, by its target's, else the target itself.
fn entry_port(port: &ServicePort, entry: &WorkloadEntry) -> u16 {
    let named = |name: &String| entry.ports.get(name).copied();
    named(&port.name).unwrap_or_else(|| match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => named(name).unwrap_or(port.port),
    })
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

fn push_port(
    result: &mut ServiceEndpoints,
    service: &Service,
    port: u16,
    mut endpoints: Vec<Endpoint>,
) {
    let hinted = endpoints.iter().filter_map(|e| e.hints.as_deref());
    let nearness = hinted.map(Nearness::of_hints).max().unwrap_or_default();
    let local = match service.reach {
        Reach::Local => Nearness::Node,
        _ => Nearness::Nothing,
    };
    result.nearness = result.nearness.max(nearness).max(local);
    endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.port));
    endpoints.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
    if !endpoints.is_empty() {
        result.ports.push((port, endpoints));
    }
}
