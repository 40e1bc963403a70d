//! EDS: the addresses behind a cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_xds::proto::ClusterLoadAssignment;
use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::endpoint::v3 as proto;

use super::Translator;
use super::cluster::{self, Source};
use super::wrap::{istio_metadata, object, socket, text, uint};
use crate::model::endpoint::{Endpoint, Locality};
use crate::model::near::{self, Nearness};
use crate::model::service::Service;
use crate::model::workload::{Workload, has_all};

/// The clusters of a sidecar that take their endpoints from EDS.
pub(super) fn names(translator: &Translator<'_>) -> Vec<String> {
    let clusters = cluster::names(translator);
    clusters
        .into_iter()
        .filter(|name| source(translator, name).is_some())
        .collect()
}

/// The endpoints of a cluster; empty for one that has none, absent for one that does not exist or has
/// no EDS.
pub(super) fn assignment(translator: &Translator<'_>, name: &str) -> Option<ClusterLoadAssignment> {
    let source = source(translator, name)?;
    let endpoints = translator
        .snapshot
        .endpoints_of(&source.service.name, source.port.port);
    let fits = |endpoint: &&Endpoint| {
        let workload = endpoint.workload.as_ref();
        source.labels.is_empty()
            || workload.is_some_and(|workload| has_all(&source.labels, &workload.labels))
    };
    // Nearness is judged among those of the subset: one that is only elsewhere stays reachable.
    let all = once_per_pod(source.service, endpoints)
        .filter(fits)
        .collect();
    let behind = translator.snapshot.endpoints.get(&source.service.name);
    let used = match behind.map(|behind| behind.nearness) {
        None | Some(Nearness::Nothing) => all,
        Some(_) => near::select(source.service.reach, all, &translator.place()),
    };
    let mut localities: BTreeMap<&Locality, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in used {
        let locality = &endpoint.locality;
        localities.entry(locality).or_default().push(endpoint);
    }
    let endpoints = localities.into_iter().map(|(locality, endpoints)| {
        let weight = endpoints.iter().map(|endpoint| endpoint.weight).sum();
        locality_endpoints(
            locality,
            weight,
            endpoints.into_iter().map(lb_endpoint).collect(),
        )
    });
    Some(ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.collect(),
        ..Default::default()
    })
}

/// The endpoints of a locality. Envoy spreads over localities by their weight, so it is the sum of what
/// the endpoints in it weigh.
pub(super) fn locality_endpoints(
    locality: &Locality,
    weight: u32,
    lb_endpoints: Vec<proto::LbEndpoint>,
) -> proto::LocalityLbEndpoints {
    proto::LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        load_balancing_weight: uint(weight),
        lb_endpoints,
        ..Default::default()
    }
}

/// A pod of two families stands once, in the family of the service's first address as kube-proxy
/// serves it: twice it would weigh double, and a client would be seen under either of its addresses.
pub(crate) fn once_per_pod<'a>(
    service: &Service,
    endpoints: &'a [Endpoint],
) -> impl Iterator<Item = &'a Endpoint> {
    let v4 = service.addresses.first().is_none_or(IpAddr::is_ipv4);
    let is_first = move |address: &IpAddr| address.is_ipv4() == v4;
    let any_first = endpoints.iter().any(|e| is_first(&e.address));
    endpoints.iter().filter(move |endpoint| {
        let pod = endpoint.workload.as_ref();
        let has_first = any_first && pod.is_some_and(|pod| pod.addresses.iter().any(is_first));
        is_first(&endpoint.address) || !has_first
    })
}

fn source<'a>(translator: &Translator<'a>, name: &str) -> Option<Source<'a>> {
    let source = cluster::source(translator, name)?;
    source.uses_eds().then_some(source)
}

fn lb_endpoint(endpoint: &Endpoint) -> proto::LbEndpoint {
    proto::LbEndpoint {
        health_status: core::HealthStatus::Healthy.into(),
        metadata: endpoint
            .workload
            .as_deref()
            .map(|workload| istio_metadata(object([("workload", text(describe(workload)))]))),
        load_balancing_weight: uint(endpoint.weight),
        host_identifier: Some(proto::lb_endpoint::HostIdentifier::Endpoint(
            proto::Endpoint {
                address: Some(socket(endpoint.address, endpoint.port)),
                ..Default::default()
            },
        )),
    }
}

/// Istio's `workload;namespace;canonical-service;canonical-revision;cluster`.
pub(super) fn describe(workload: &Workload) -> String {
    format!(
        "{};{};{};{};Kubernetes",
        workload.owner,
        workload.name.namespace,
        workload.canonical_name(),
        workload.canonical_revision()
    )
}
