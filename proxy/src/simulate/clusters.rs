//! The clusters that a call may go to, with the endpoints of each and what each gets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::HeaderMap;

use super::decision::{Answer, ClusterStep, EndpointStep, Outcome, ServiceStep, health};
use super::{Subject, millis};
use crate::cluster::{ClusterEntry, Host};
use crate::flags::{ResponseFlags, details};
use crate::resource::cluster::ServiceRef;
use crate::resource::{
    ClusterKind, ClusterName, ClusterSpecifier, HealthStatus, RouteAction, text,
};
use crate::route::action::{self, Chosen};
use crate::route::match_route::is_grpc;
use crate::tcp::upstream as tcp;
use crate::upstream::failure::Failure;

/// What says where a call goes.
pub(super) enum Way<'a> {
    /// A route, for a request with these headers.
    Http(&'a RouteAction, &'a HeaderMap),
    /// A TCP proxy.
    Tcp(&'a ClusterSpecifier),
}

impl Way<'_> {
    fn specifier(&self) -> &ClusterSpecifier {
        match self {
            Self::Http(action, _) => &action.cluster,
            Self::Tcp(specifier) => specifier,
        }
    }

    /// The data path's choice.
    fn choose(&self, random: u64) -> Option<Chosen> {
        match self {
            Self::Http(action, headers) => action::choose(&action.cluster, headers, random),
            Self::Tcp(specifier) => tcp::choose(specifier, random).map(|cluster| Chosen {
                cluster,
                weighted: None,
            }),
        }
    }

    fn no_cluster(&self, name: &str) -> Answer {
        match self {
            Self::Http(action, headers) => Answer::status(
                Outcome::NoCluster,
                action.cluster_not_found,
                ResponseFlags::NO_CLUSTER,
                details::CLUSTER_NOT_FOUND,
                is_grpc(headers),
            ),
            Self::Tcp(_) => {
                let failure = tcp::Failure::NoCluster(name.to_owned());
                Answer::reset(Outcome::NoCluster, failure.flag())
            }
        }
    }

    fn no_endpoint(&self, name: &ClusterName) -> Answer {
        match self {
            Self::Http(_, headers) => {
                let (failure, grpc) = (Failure::NoHost, is_grpc(headers));
                let (status, flag) = (failure.status(), failure.flag());
                Answer::status(Outcome::NoEndpoint, status, flag, failure.details(), grpc)
            }
            Self::Tcp(_) => {
                let failure = tcp::Failure::NoHost(name.clone());
                Answer::reset(Outcome::NoEndpoint, failure.flag())
            }
        }
    }
}

/// Every cluster that a call may go to, or the one that its random number chooses; how it ends where
/// no cluster is named at all.
pub(super) fn clusters(subject: &Subject<'_>, way: &Way<'_>) -> Result<Vec<ClusterStep>, Answer> {
    let only = || way.choose(0).ok_or_else(|| way.no_cluster(""));
    let all: Vec<(ClusterName, f64)> = match way.specifier() {
        ClusterSpecifier::Weighted(weighted) => {
            let total = u64::from(weighted.total);
            let clusters = weighted.clusters.iter();
            clusters
                .map(|one| (one.name.clone(), percent(one.weight.into(), total)))
                .collect()
        }
        ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => {
            vec![(only()?.cluster, 100.0)]
        }
    };
    let chosen = subject.call.random.and_then(|random| way.choose(random));
    let told = all
        .into_iter()
        .filter(|(name, _)| chosen.as_ref().is_none_or(|chosen| chosen.cluster == *name));
    Ok(told
        .map(|(name, share)| cluster(subject, way, &name, share))
        .collect())
}

fn cluster(subject: &Subject<'_>, way: &Way<'_>, name: &ClusterName, share: f64) -> ClusterStep {
    let mut step = ClusterStep {
        name: name.to_string(),
        share,
        ..ClusterStep::default()
    };
    let Some(entry) = subject.snapshot.cluster(name.as_str()) else {
        step.answer = way.no_cluster(name.as_str());
        return step;
    };
    let config = &entry.config;
    step.service = config.service.as_ref().map(service);
    step.subset = config.subset.as_deref().map(str::to_owned);
    step.origin.clone_from(&config.origin);
    step.lb_policy = Some(text::lb_policy(config.lb_policy));
    step.connect_timeout_ms = Some(millis(config.connect_timeout));
    if matches!(config.kind, ClusterKind::OriginalDst) {
        step.endpoints = vec![original(subject, subject.call.destination)];
        step.answer = Answer::of(Outcome::Passthrough);
        return step;
    }
    step.endpoints = endpoints(subject, entry);
    step.answer = if step.endpoints.iter().any(|endpoint| endpoint.share > 0.0) {
        Answer::of(Outcome::Forwarded)
    } else {
        way.no_endpoint(name)
    };
    step
}

fn service(service: &ServiceRef) -> ServiceStep {
    ServiceStep {
        host: service.host.to_string(),
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
        object: service.object.as_deref().map(str::to_owned),
    }
}

/// The hosts of a cluster, with what the balancer's plan gives each: of every hundredth of the calls the
/// group that it falls into, and in a group by weight.
fn endpoints(subject: &Subject<'_>, entry: &ClusterEntry) -> Vec<EndpointStep> {
    let mut shares = vec![0.0; entry.hosts.len()];
    let mut loads: BTreeMap<usize, u64> = BTreeMap::new();
    for group in (0..100).filter_map(|point| entry.plan.choose(point)) {
        *loads.entry(group).or_default() += 1;
    }
    for (group, load) in loads {
        let members = entry.plan.members(group);
        let weight = |member: &usize| {
            let host = entry.hosts.get(*member);
            host.map_or(0, |host| u64::from(host.endpoint.weight))
        };
        let total: u64 = members.iter().map(weight).sum();
        for member in members {
            if let Some(share) = shares.get_mut(*member) {
                *share += percent(weight(member) * load, total * 100);
            }
        }
    }
    let hosts = entry.hosts.iter().zip(shares);
    hosts
        .map(|(host, share)| endpoint(subject, host, share))
        .collect()
}

fn endpoint(subject: &Subject<'_>, host: &Host, share: f64) -> EndpointStep {
    let workload = host.endpoint.workload.as_ref();
    EndpointStep {
        address: host.address(),
        health: health(host.endpoint.health),
        weight: host.endpoint.weight,
        locality: text::locality(&host.locality),
        priority: host.priority,
        share,
        workload: workload.map(|workload| format!("{}/{}", workload.namespace, workload.name)),
        local_pod: local_pod(subject, host.address()),
    }
}

/// Where the client wanted to go by itself.
fn original(subject: &Subject<'_>, address: SocketAddr) -> EndpointStep {
    EndpointStep {
        address,
        health: health(HealthStatus::Unknown),
        weight: 1,
        locality: String::new(),
        priority: 0,
        share: 100.0,
        workload: None,
        local_pod: local_pod(subject, address),
    }
}

fn local_pod(subject: &Subject<'_>, address: SocketAddr) -> Option<String> {
    let pod = subject.pods.by_ip(address.ip())?;
    Some(pod.spec.qualified_name())
}

/// Percent, to two digits after the point.
fn percent(part: u64, of: u64) -> f64 {
    let hundredths = part.saturating_mul(10_000) / of.max(1);
    f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0
}
