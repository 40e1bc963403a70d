//! What gRPC's own xDS client is told: it asks for its target, `host:port`, and has no proxy beside it (gRFC A27).
//!
//! Such a client says `GENERATOR: grpc` in its metadata, as Istio's do. Input: the name of a listener, a route
//! configuration or a cluster that was made for Envoy; output: the same in the words that gRPC reads. What gRPC does
//! not know of (access logs, upgrades, HTTP versions) it passes over, so it stays.

use millrace_xds::proto::envoy::config::cluster::v3::Cluster;
use millrace_xds::proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use millrace_xds::proto::envoy::config::listener::v3::ApiListener;
use millrace_xds::proto::envoy::config::route::v3 as route;
use millrace_xds::proto::{Listener, RouteConfiguration};

use route::route::Action;
use route::route_action::MaxStreamDuration;

use super::filter::{self, Routes};
use super::{ProxyView, Translator, fault};
use crate::model::names::Hostname;

/// The listener of a target: routes by name, for this one service.
pub(super) fn listener(
    translator: &Translator<'_>,
    namespace: &str,
    name: &str,
) -> Option<Listener> {
    let (host, port) = name.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let service = full_names(translator, namespace, host)
        .find_map(|host| translator.snapshot.service_on(&host, port, Some(namespace)))?;
    let routes = Routes::Rds(format!("{}:{port}", service.hostname));
    let faults = fault::filters(translator.view);
    Some(Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(filter::manager(translator, name, routes, faults)),
        }),
        ..Default::default()
    })
}

/// What a target may mean, as a resolver would complete it.
fn full_names<'a>(
    translator: &'a Translator<'_>,
    namespace: &'a str,
    host: &'a str,
) -> impl Iterator<Item = Hostname> + 'a {
    let domain = &translator.snapshot.mesh.domain;
    let names = [
        host.to_owned(),
        format!("{host}.{namespace}.svc.{domain}"),
        format!("{host}.svc.{domain}"),
        format!("{host}.{domain}"),
    ];
    names
        .into_iter()
        .filter_map(|name| Hostname::literal(&name).ok())
}

/// Adapts routes: of a route's timeouts gRPC reads the one of streams (gRFC A31).
pub(super) fn adapt_routes(view: &ProxyView, routes: &mut RouteConfiguration) {
    if !matches!(view, ProxyView::Grpc { .. }) {
        return;
    }
    let all = routes
        .virtual_hosts
        .iter_mut()
        .flat_map(|host| &mut host.routes);
    for route in all {
        let Some(Action::Route(action)) = &mut route.action else {
            continue;
        };
        let timeout = action.timeout.as_ref();
        let timeout = timeout.filter(|timeout| (timeout.seconds, timeout.nanos) != (0, 0));
        action.max_stream_duration = timeout.map(|timeout| MaxStreamDuration {
            max_stream_duration: Some(*timeout),
            ..Default::default()
        });
    }
}

/// Adapts a cluster: gRPC refuses balancers and ways of discovery that it does not have.
pub(super) fn adapt_cluster(view: &ProxyView, cluster: &mut Cluster) {
    if !matches!(view, ProxyView::Grpc { .. }) {
        return;
    }
    let balancer = cluster.lb_policy();
    if matches!(balancer, LbPolicy::LeastRequest | LbPolicy::Random) {
        cluster.lb_policy = LbPolicy::RoundRobin.into();
    }
    let strict: i32 = DiscoveryType::StrictDns.into();
    if cluster.cluster_discovery_type == Some(ClusterDiscoveryType::Type(strict)) {
        cluster.cluster_discovery_type =
            Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into()));
    }
}
