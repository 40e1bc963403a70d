//! SDS: the endpoints behind a service key, which is the same for every client.

use super::names::ServiceKey;
use super::schema::{Host, Hosts, Registration, Tags};
use crate::model::endpoint::Endpoint;
use crate::model::names::Hostname;
use crate::model::service::{Service, ServicePort};
use crate::model::workload::{Labels, has_all};
use crate::snapshot::MeshSnapshot;
use crate::translate::once_per_pod;

/// The largest share that the era's API can say.
const MAX_WEIGHT: u32 = 100;

/// The endpoints of a key; none of what nobody knows, so that an Envoy forgets what is gone.
pub(super) fn hosts(snapshot: &MeshSnapshot, key: &ServiceKey) -> Hosts {
    let found = Hostname::literal(&key.host).ok().and_then(|host| {
        let mut services = snapshot.services_with(&host);
        services.find_map(|service| Some((service, port(service, &key.port)?)))
    });
    Hosts {
        hosts: found.map_or_else(Vec::new, |(service, port)| {
            of(snapshot, service, port, &key.labels)
        }),
    }
}

/// All services with their endpoints, for people.
pub(super) fn registrations(snapshot: &MeshSnapshot) -> Vec<Registration> {
    let mut all = Vec::new();
    for service in snapshot.services.values() {
        for port in &service.ports {
            all.push(Registration {
                service_key: ServiceKey::of(service, port, &Labels::new()).to_string(),
                hosts: of(snapshot, service, port, &Labels::new()),
            });
        }
    }
    all.sort_by(|one, other| one.service_key.cmp(&other.service_key));
    all
}

/// A port by its name; the only one needs none.
pub(crate) fn port<'a>(service: &'a Service, name: &str) -> Option<&'a ServicePort> {
    match &service.ports[..] {
        [only] if name.is_empty() => Some(only),
        ports => ports.iter().find(|port| port.name == name),
    }
}

fn of(
    snapshot: &MeshSnapshot,
    service: &Service,
    port: &ServicePort,
    labels: &Labels,
) -> Vec<Host> {
    let all = snapshot.endpoints_of(&service.name, port.port);
    let fits = |endpoint: &&Endpoint| {
        let workload = endpoint.workload.as_ref();
        labels.is_empty() || workload.is_some_and(|workload| has_all(labels, &workload.labels))
    };
    let endpoints: Vec<&Endpoint> = once_per_pod(service, all).filter(fits).collect();
    let heaviest = endpoints.iter().map(|endpoint| endpoint.weight).max();
    let heaviest = heaviest.unwrap_or(1).max(1);
    let equal = endpoints.iter().all(|endpoint| endpoint.weight == heaviest);
    endpoints
        .into_iter()
        .map(|endpoint| {
            let weight = (!equal).then(|| share(endpoint.weight, heaviest));
            let az = endpoint.locality.zone.clone();
            Host {
                ip_address: endpoint.address.to_string(),
                port: endpoint.port,
                tags: (weight.is_some() || !az.is_empty()).then_some(Tags {
                    az,
                    load_balancing_weight: weight,
                }),
            }
        })
        .collect()
}

/// A weight from 1 to 100: as it is where all fit, else as a part of the heaviest.
fn share(weight: u32, heaviest: u32) -> u32 {
    if heaviest <= MAX_WEIGHT {
        return weight.max(1);
    }
    let part = u64::from(weight) * u64::from(MAX_WEIGHT) / u64::from(heaviest);
    u32::try_from(part).unwrap_or(MAX_WEIGHT).max(1)
}
