//! What refers to what: the route configurations and clusters that a listener or a route
//! configuration names. Pure; used to subscribe on demand and to warm in the right order.

use std::collections::{BTreeMap, BTreeSet};

use crate::resource::{
    Action, Cluster, ClusterKind, ClusterSpecifier, Listener, NetworkFilter, RouteConfiguration,
    RouteSource, VirtualHost,
};

/// Names of the route configurations that a listener takes from RDS.
pub fn routes_of_listener(listener: &Listener) -> BTreeSet<String> {
    filters(listener)
        .filter_map(|filter| match filter {
            NetworkFilter::Http(hcm) => match &hcm.routes {
                RouteSource::Rds(name) => Some(name.to_string()),
                RouteSource::Inline(_) => None,
            },
            NetworkFilter::Tcp(_) => None,
        })
        .collect()
}

/// Names of the clusters that a listener names itself: in TCP proxies and inline routes.
pub fn clusters_of_listener(listener: &Listener) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for filter in filters(listener) {
        match filter {
            NetworkFilter::Tcp(tcp) => add(&mut names, &tcp.cluster),
            NetworkFilter::Http(hcm) => {
                if let RouteSource::Inline(config) = &hcm.routes {
                    names.extend(clusters_of_routes(config));
                }
            }
        }
    }
    names
}

/// Names of the clusters that a route configuration names.
pub fn clusters_of_routes(config: &RouteConfiguration) -> BTreeSet<String> {
    let hosts = config.virtual_hosts.iter();
    hosts.flat_map(|host| clusters_of_host(host)).collect()
}

/// Names of the clusters that virtual hosts name and did not name in an earlier version. Those of a host that was
/// not there are none: nothing served for it.
pub fn newly_routed(config: &RouteConfiguration, earlier: &RouteConfiguration) -> BTreeSet<String> {
    let earlier = earlier.virtual_hosts.iter();
    let earlier: BTreeMap<_, _> = earlier.map(|host| (&host.name, host)).collect();
    let mut names = BTreeSet::new();
    for host in &config.virtual_hosts {
        if let Some(earlier) = earlier.get(&host.name) {
            let before = clusters_of_host(earlier);
            names.extend(clusters_of_host(host).difference(&before).cloned());
        }
    }
    names
}

fn clusters_of_host(host: &VirtualHost) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for route in &host.routes {
        if let Action::Forward(action) = &route.action {
            add(&mut names, &action.cluster);
        }
    }
    names
}

/// The EDS resource that a cluster takes its endpoints from.
pub fn endpoints_of_cluster(cluster: &Cluster) -> Option<&str> {
    match &cluster.kind {
        ClusterKind::Eds(name) => Some(name),
        _ => None,
    }
}

/// Whether a route takes its cluster's name from a request header, so that the clusters it
/// needs cannot be told in advance.
pub fn names_clusters_by_header(config: &RouteConfiguration) -> bool {
    config.virtual_hosts.iter().any(|host| {
        host.routes.iter().any(|route| {
            matches!(&route.action, Action::Forward(action)
                if matches!(action.cluster, ClusterSpecifier::Header(_)))
        })
    })
}

fn filters(listener: &Listener) -> impl Iterator<Item = &NetworkFilter> {
    listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain)
        .map(|chain| &chain.filter)
}

fn add(names: &mut BTreeSet<String>, cluster: &ClusterSpecifier) {
    match cluster {
        ClusterSpecifier::Cluster(name) => {
            names.insert(name.to_string());
        }
        ClusterSpecifier::Weighted(weighted) => {
            names.extend(weighted.clusters.iter().map(|c| c.name.to_string()));
        }
        ClusterSpecifier::Header(_) => {}
    }
}
