//! Services that a registry outside Kubernetes lists, as what a `ServiceEntry` makes: in the mesh, at the addresses of
//! their instances, by a host that DNS in captured pods answers.
//!
//! Input: instances with an address and a port each; output: objects of the model, and what changed since the last
//! time. Instances of one service may stand at different ports; each port is one of the host's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::kube::document::Sourced;
use crate::model::endpoint::Locality;
use crate::model::entry::{Entry, EntryAddress, Resolution, ServiceEntry, WorkloadEntry};
use crate::model::names::{Hostname, ObjectName};
use crate::model::near::Reach;
use crate::model::problem::{Problem, Reason, Severity};
use crate::model::route::ExportTo;
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort, TargetPort};
use crate::model::workload::{Labels, Workload, share};
use crate::model::{Kind, Object, ObjectId};
use crate::registry::RegistryEvent;

/// One place where a service is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    /// The registry's name for it.
    pub(super) id: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// What is spoken there; empty where it is not said.
    pub(super) protocol: String,
    pub(super) labels: Labels,
    pub(super) locality: Locality,
    pub(super) weight: u32,
}

/// A service of a registry, in a namespace that is called like the registry.
pub(super) fn service_entry(
    registry: &'static str,
    name: &str,
    host: &Hostname,
    instances: &[Instance],
) -> Object {
    let object = ObjectId {
        kind: Kind::ServiceEntry,
        name: ObjectName::new(registry, name),
    };
    let mut by_port: BTreeMap<u16, Vec<&Instance>> = BTreeMap::new();
    for instance in instances {
        by_port.entry(instance.port).or_default().push(instance);
    }
    let services = by_port.into_iter().map(|(port, instances)| {
        let declared = instances.iter().map(|instance| instance.protocol.as_str());
        let protocol = declared.max().unwrap_or_default();
        let entry = Entry {
            object: object.clone(),
            resolution: Resolution::Static,
            external: false,
            networks: Vec::new(),
            endpoints: instances
                .iter()
                .map(|instance| Arc::new(endpoint(registry, instance)))
                .collect(),
            allocate: true,
        };
        Arc::new(Service {
            name: ObjectName::new(registry, &format!("{name}/{port}")),
            created: None,
            hostname: host.clone(),
            kind: ServiceKind::Entry(Arc::new(entry)),
            addresses: Vec::new(),
            ports: vec![ServicePort {
                name: format!(
                    "{}-{port}",
                    if protocol.is_empty() {
                        "auto"
                    } else {
                        protocol
                    }
                ),
                port,
                target: TargetPort::Number(port),
                protocol: Protocol::of_port(protocol, None, port),
            }],
            selector: Labels::new(),
            publish_not_ready: false,
            client_affinity: false,
            reach: Reach::Anywhere,
            export_to: ExportTo::Everyone,
        })
    });
    let services = services.collect();
    Object::ServiceEntry(Arc::new(ServiceEntry {
        kind: object.kind,
        name: object.name.clone(),
        services,
    }))
}

fn endpoint(registry: &'static str, instance: &Instance) -> WorkloadEntry {
    WorkloadEntry {
        address: EntryAddress::Ip(instance.address),
        ports: BTreeMap::new(),
        weight: instance.weight,
        locality: instance.locality.clone(),
        workload: Arc::new(Workload {
            name: ObjectName::new(registry, &instance.id),
            addresses: vec![instance.address],
            labels: share(instance.labels.clone()),
            service_account: String::new(),
            node: None,
            ready: true,
            host_network: false,
            ports: Vec::new(),
            hostname: instance.id.clone(),
            subdomain: None,
            owner: instance.id.clone(),
        }),
    }
}

/// What a registry's service comes to: its object, unless it has no instance that can be used, and what is wrong.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) object: Option<Object>,
    pub(super) problems: Vec<String>,
}

/// What has been told of a registry's services.
#[derive(Debug)]
pub(super) struct Told {
    registry: &'static str,
    services: BTreeMap<String, Listed>,
    /// Why the registry cannot be read, by what was asked.
    broken: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Told {
    pub(super) fn new(registry: &'static str) -> Self {
        Self {
            registry,
            services: BTreeMap::new(),
            broken: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// A service is new, different or (without anything listed) gone.
    pub(super) fn put(&mut self, name: &str, listed: Option<Listed>) -> Option<RegistryEvent> {
        let object = |listed: &Listed| listed.object.clone();
        let before = self.services.get(name).and_then(object);
        let now = listed.as_ref().and_then(object);
        match listed {
            Some(listed) => self.services.insert(name.to_owned(), listed),
            None => self.services.remove(name),
        };
        if before == now {
            return None;
        }
        let (mut applied, mut deleted) = (Vec::new(), Vec::new());
        match (now, before) {
            (Some(object), _) => applied.push(Sourced {
                object,
                origin: None,
            }),
            (None, Some(object)) => deleted.push(object.id()),
            (None, None) => return None,
        }
        Some(RegistryEvent::Changed { applied, deleted })
    }

    /// The services that are known.
    pub(super) fn names(&self) -> Vec<String> {
        self.services.keys().cloned().collect()
    }

    /// Something that is asked cannot be had, or can again.
    pub(super) fn set_broken(&mut self, what: &str, message: Option<String>) {
        match message {
            Some(message) => self.broken.insert(what.to_owned(), message),
            None => self.broken.remove(what),
        };
    }

    /// All that is wrong, if it is not what was said before.
    pub(super) fn problems(&mut self) -> Option<RegistryEvent> {
        let problem = |reason, object, message| Problem {
            severity: Severity::Warning,
            reason,
            file: None,
            line: None,
            object,
            field: String::new(),
            message,
        };
        let registry = self.registry;
        let broken = self.broken.values().map(|message| {
            let message = format!(
                "registry {registry} cannot be read, what is known of it keeps serving: {message}"
            );
            problem(Reason::Unreadable, None, message)
        });
        let services = self.services.iter().flat_map(|(name, listed)| {
            let of_it = listed.problems.iter();
            of_it.map(move |message| {
                let object = format!("{registry} service {name}");
                problem(Reason::Invalid, Some(object), message.clone())
            })
        });
        let problems: Vec<Problem> = broken.chain(services).collect();
        if problems == self.problems {
            return None;
        }
        self.problems.clone_from(&problems);
        Some(RegistryEvent::Problems(problems))
    }
}
