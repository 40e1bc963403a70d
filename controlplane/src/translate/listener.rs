//! LDS: what is listened for on the way out of a pod, in Istio's shape.
//!
//! `virtualOutbound` receives everything and hands each connection to the listener of its original
//! destination: `0.0.0.0_<port>` for what is told by what clients say ([`wildcard`]), `<address>_<port>`
//! where only the address tells the service. Inbound listeners are in [`super::inbound`].

mod joined;
mod wildcard;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3 as proto;
use millrace_xds::proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use millrace_xds::proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use millrace_xds::proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use millrace_xds::proto::{Any, Listener, pack};

use super::filter::{self, Routes};
use super::wrap::{duration, socket, truth, uint, written_at};
use super::{ProxyView, Translator, fault, gateway, grpc, inbound, netns};
use crate::model::Kind;
use crate::model::mesh::OutboundPolicy;
use crate::model::names::{ClusterName, ObjectName};
use crate::model::place::Place;
use crate::model::route::TcpRoute;
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort};
use crate::model::workload::Workload;
use crate::snapshot::claim;

/// Where captured outbound connections arrive.
pub(super) const OUTBOUND_PORT: u16 = 15001;
/// Where captured inbound connections arrive.
pub(super) const INBOUND_PORT: u16 = 15006;
const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// What plain HTTP is seen as by the inspector.
const HTTP_PROTOCOLS: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// The listeners of a sidecar, or those of all pods of a node with the namespaces they are in.
pub(super) fn names(translator: &Translator<'_>) -> Vec<String> {
    if matches!(translator.view, ProxyView::Router { .. }) {
        return gateway::listener_names(translator);
    }
    let outbound = namespaces(translator)
        .into_iter()
        .flat_map(|namespace| outbound_names(translator, namespace));
    let mut names: Vec<String> = outbound.collect();
    match translator.view {
        ProxyView::Sidecar { .. } => names.push(inbound::VIRTUAL_INBOUND.to_owned()),
        ProxyView::Router { .. } | ProxyView::Grpc { .. } => {}
        ProxyView::Node { name, netns, .. } => {
            let pods = pods_of(translator, name);
            names.extend(pods.map(|pod| inbound::name_of(&pod.name)));
            if netns.is_some() {
                // These stand for all that clients of their namespaces have.
                names.retain(|name| name.starts_with(inbound::POD_PREFIX));
                let pods = pods_of(translator, name);
                names.extend(pods.map(|pod| format!("{}{}", netns::OUTBOUND_PREFIX, pod.name)));
            }
        }
    }
    names
}

/// The namespaces of the clients behind a proxy.
pub(super) fn namespaces<'a>(translator: &Translator<'a>) -> BTreeSet<&'a str> {
    match translator.view {
        ProxyView::Sidecar { namespace, .. } | ProxyView::Router { namespace, .. } => {
            [namespace.as_str()].into()
        }
        // It asks for its targets.
        ProxyView::Grpc { .. } => BTreeSet::new(),
        ProxyView::Node { name, .. } => pods_of(translator, name)
            .map(|pod| &*pod.name.namespace)
            .collect(),
    }
}

fn pods_of<'a>(
    translator: &Translator<'a>,
    node: &'a str,
) -> impl Iterator<Item = &'a Arc<Workload>> {
    let pods = translator.snapshot.workloads.values();
    pods.filter(move |pod| inbound::is_on_node(pod, node))
}

/// The listeners in `<namespace>/*` or `pod/<namespace>/*`.
pub(super) fn collection(translator: &Translator<'_>, prefix: &str) -> Vec<String> {
    if !matches!(translator.view, ProxyView::Node { netns: None, .. }) {
        return Vec::new();
    }
    match prefix.strip_prefix(inbound::POD_PREFIX) {
        Some(namespace) => {
            let pods = translator.snapshot.workloads.in_namespace(namespace);
            pods.map(|pod| inbound::name_of(&pod.name)).collect()
        }
        None if prefix.contains('/') => Vec::new(),
        None => outbound_names(translator, prefix),
    }
}

/// A listener by its name.
pub(super) fn listener(translator: &Translator<'_>, name: &str) -> Option<Listener> {
    if let ProxyView::Grpc { namespace, .. } = translator.view {
        return grpc::listener(translator, namespace, name);
    }
    if matches!(translator.view, ProxyView::Router { .. }) {
        return gateway::listener(translator, name);
    }
    if let ProxyView::Node {
        netns: Some(directory),
        ..
    } = translator.view
    {
        return in_pod(translator, directory, name);
    }
    if let Some(listener) = inbound::listener(translator, name) {
        return Some(listener);
    }
    let (namespace, own_name) = translator.view.split(name)?;
    if own_name == VIRTUAL_OUTBOUND {
        return Some(virtual_outbound(translator, namespace, name));
    }
    own(translator, namespace, own_name, name)
}

/// One of the two listeners that stock Envoy for a whole node has in a pod.
fn in_pod(translator: &Translator<'_>, directory: &str, name: &str) -> Option<Listener> {
    let outbound = name.strip_prefix(netns::OUTBOUND_PREFIX);
    let (namespace, pod) = outbound
        .or_else(|| name.strip_prefix(inbound::POD_PREFIX))?
        .split_once('/')?;
    let pod = ObjectName::new(namespace, pod);
    let pod = translator.snapshot.workloads.get(&pod)?;
    let (mut listener, port) = match outbound {
        Some(_) => (joined::outbound(translator, namespace, name), OUTBOUND_PORT),
        None => (inbound::listener(translator, name)?, INBOUND_PORT),
    };
    netns::enter(&mut listener, port, directory, pod);
    Some(listener)
}

/// The listener of a port, at an address or any.
fn own(
    translator: &Translator<'_>,
    namespace: &str,
    own_name: &str,
    name: &str,
) -> Option<Listener> {
    let (address, port) = own_name.rsplit_once('_')?;
    let (address, port): (IpAddr, u16) = (address.parse().ok()?, port.parse().ok()?);
    let maker = Maker {
        translator,
        namespace,
        name,
    };
    if address.is_unspecified() {
        return wildcard::Ports::of(translator, namespace, port).listener(&maker);
    }
    // Two services with one address is a mistake; the first by name has it.
    let mut ports = translator.snapshot.ports_for(namespace);
    ports.find_map(|(service, declared)| {
        let here =
            declared.port == port && addresses(translator, service, declared).contains(&address);
        here.then(|| maker.service(address, service, declared))
    })
}

fn outbound_names(translator: &Translator<'_>, namespace: &str) -> Vec<String> {
    let own = own_names(translator, namespace);
    let all = std::iter::once(VIRTUAL_OUTBOUND.to_owned()).chain(own);
    all.map(|name| translator.view.join(namespace, &name))
        .collect()
}

/// The listeners beside `virtualOutbound`.
fn own_names(translator: &Translator<'_>, namespace: &str) -> BTreeSet<String> {
    let mut own = BTreeSet::new();
    for (service, port) in translator.snapshot.ports_for(namespace) {
        if wildcard::is_on_any_address(translator, service, port) {
            own.insert(wildcard_name(port.port));
        }
        let addresses = addresses(translator, service, port);
        own.extend(
            addresses
                .iter()
                .map(|address| format!("{address}_{}", port.port)),
        );
    }
    own
}

/// Whether a port's service is told by the request's host. What is not HTTP for sure needs an address
/// that the service states; without one HTTP is the first thing to try.
pub(super) fn by_host(service: &Service, port: &ServicePort) -> bool {
    if port.protocol.is_http() {
        return true;
    }
    let addressless = match &service.kind {
        ServiceKind::ClusterIp => service.addresses.is_empty(),
        ServiceKind::Headless => false,
        ServiceKind::ExternalName(_) => true,
        ServiceKind::Entry(entry) => service.addresses.is_empty() && entry.networks.is_empty(),
    };
    addressless && port.protocol == Protocol::Auto
}

/// Whether a port has listeners of its own in which HTTP is told from other bytes.
pub(super) fn is_sniffed(
    translator: &Translator<'_>,
    service: &Service,
    port: &ServicePort,
) -> bool {
    let in_networks = service
        .entry()
        .is_some_and(|entry| !entry.networks.is_empty());
    port.protocol == Protocol::Auto
        && (in_networks || !addresses(translator, service, port).is_empty())
}

/// The addresses at which a port has a listener of its own.
fn addresses(translator: &Translator<'_>, service: &Service, port: &ServicePort) -> Vec<IpAddr> {
    if port.protocol.is_http() {
        return Vec::new();
    }
    if service.kind == ServiceKind::Headless {
        let endpoints = translator.snapshot.endpoints_of(&service.name, port.port);
        return endpoints.iter().map(|endpoint| endpoint.address).collect();
    }
    translator.snapshot.addresses_of(service)
}

fn wildcard_name(port: u16) -> String {
    format!("0.0.0.0_{port}")
}

/// The any-address of the families that a proxy has: one, and a second where it has both.
pub(super) fn any_addresses(view: &ProxyView) -> (IpAddr, Option<IpAddr>) {
    match view {
        // Its proxy knows both families of each of its pods.
        ProxyView::Node { .. } | ProxyView::Grpc { .. } => any_of(&[]),
        ProxyView::Sidecar { addresses, .. } | ProxyView::Router { addresses, .. } => {
            any_of(addresses)
        }
    }
}

/// The same of a pod with these addresses.
pub(super) fn any_of(addresses: &[IpAddr]) -> (IpAddr, Option<IpAddr>) {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    let has_v4 = addresses.is_empty() || addresses.iter().any(IpAddr::is_ipv4);
    let has_v6 = addresses.iter().any(IpAddr::is_ipv6);
    if has_v4 {
        (v4, has_v6.then_some(v6))
    } else {
        (v6, None)
    }
}

/// A listener without chains.
pub(super) fn base(
    name: &str,
    address: IpAddr,
    port: u16,
    direction: core::TrafficDirection,
) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(socket(address, port)),
        traffic_direction: direction.into(),
        ..Default::default()
    }
}

/// The same listener on a second address.
pub(super) fn also_on(listener: &mut Listener, address: Option<IpAddr>, port: u16) {
    listener
        .additional_addresses
        .extend(address.map(|address| proto::AdditionalAddress {
            address: Some(socket(address, port)),
            ..Default::default()
        }));
}

fn virtual_outbound(translator: &Translator<'_>, namespace: &str, name: &str) -> Listener {
    let (address, second) = any_addresses(translator.view);
    let mut listener = base(
        name,
        address,
        OUTBOUND_PORT,
        core::TrafficDirection::Outbound,
    );
    also_on(&mut listener, second, OUTBOUND_PORT);
    listener.use_original_dst = truth(true);
    listener.filter_chains.push(to_itself(translator));
    listener.filter_chains.push(unknown(
        translator,
        namespace,
        "virtualOutbound-catchall-tcp",
    ));
    listener
}

/// A connection made to the capture port itself would be passed to itself for ever.
fn to_itself(translator: &Translator<'_>) -> proto::FilterChain {
    proto::FilterChain {
        name: "virtualOutbound-blackhole".to_owned(),
        filter_chain_match: Some(proto::FilterChainMatch {
            destination_port: uint(u32::from(OUTBOUND_PORT)),
            ..Default::default()
        }),
        filters: vec![to_cluster(translator, &ClusterName::BlackHole)],
        ..Default::default()
    }
}

/// What happens to a connection that no service is known for.
fn unknown(translator: &Translator<'_>, namespace: &str, name: &str) -> proto::FilterChain {
    let cluster = match translator.snapshot.outbound_policy(namespace) {
        OutboundPolicy::AllowAny => ClusterName::Passthrough,
        OutboundPolicy::RegistryOnly => ClusterName::BlackHole,
    };
    proto::FilterChain {
        name: name.to_owned(),
        filters: vec![to_cluster(translator, &cluster)],
        metadata: policy_place(translator, namespace).as_ref().map(written_at),
        ..Default::default()
    }
}

/// Where a `Sidecar` says what happens to traffic of no service; none where the mesh's settings do.
pub(super) fn policy_place(translator: &Translator<'_>, namespace: &str) -> Option<Place> {
    let sidecar = translator.snapshot.sidecar_of(namespace)?;
    sidecar.outbound?;
    Some(Place::new(
        Kind::Sidecar,
        &sidecar.name,
        "spec.outboundTrafficPolicy",
    ))
}

fn to_cluster(translator: &Translator<'_>, cluster: &ClusterName) -> proto::Filter {
    let cluster = cluster.to_string();
    filter::tcp(translator, &cluster, &[(cluster.clone(), 100)], None)
}

/// The inspector that tells HTTP from other bytes.
pub(super) fn http_inspector() -> proto::ListenerFilter {
    listener_filter(
        "envoy.filters.listener.http_inspector",
        pack(&HttpInspector::default()),
    )
}

/// What makes chains match where the client meant to go, before capture, and nothing else: with `use_original_dst`
/// Envoy would hand the connection to another listener.
pub(super) fn original_dst() -> proto::ListenerFilter {
    listener_filter(
        "envoy.filters.listener.original_dst",
        pack(&OriginalDst::default()),
    )
}

fn listener_filter(name: &str, config: Any) -> proto::ListenerFilter {
    proto::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(proto::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// Matches what the inspector saw to be plain HTTP.
pub(super) fn plain_http() -> proto::FilterChainMatch {
    proto::FilterChainMatch {
        transport_protocol: "raw_buffer".to_owned(),
        application_protocols: HTTP_PROTOCOLS.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

/// The inspector that reads the server name of a TLS client.
fn tls_inspector() -> proto::ListenerFilter {
    listener_filter(
        "envoy.filters.listener.tls_inspector",
        pack(&TlsInspector::default()),
    )
}

/// The chain for TLS clients that ask for one of these names.
fn by_server_names(chain: proto::FilterChain, names: Vec<String>) -> proto::FilterChain {
    proto::FilterChain {
        filter_chain_match: Some(proto::FilterChainMatch {
            server_names: names,
            transport_protocol: "tls".to_owned(),
            ..Default::default()
        }),
        ..chain
    }
}

/// Each server name in the first chain that has it: Envoy refuses a listener in which two have it.
fn once_per_name(
    chains: Vec<proto::FilterChain>,
    taken: &mut BTreeSet<String>,
) -> Vec<proto::FilterChain> {
    let mut result = Vec::new();
    for mut chain in chains {
        if let Some(matches) = &mut chain.filter_chain_match {
            matches
                .server_names
                .retain(|name| taken.insert(name.clone()));
            if matches.server_names.is_empty() {
                continue;
            }
        }
        result.push(chain);
    }
    result
}

/// Makes one outbound listener.
struct Maker<'a> {
    translator: &'a Translator<'a>,
    namespace: &'a str,
    name: &'a str,
}

impl Maker<'_> {
    fn base(&self, address: IpAddr, port: u16) -> Listener {
        let mut listener = base(self.name, address, port, core::TrafficDirection::Outbound);
        listener.bind_to_port = truth(false);
        listener
    }

    fn route_chain(
        &self,
        route: &str,
        prefix: &str,
        matches: Option<proto::FilterChainMatch>,
    ) -> proto::FilterChain {
        let routes = Routes::Rds(self.translator.view.join(self.namespace, route));
        let faults = fault::filters(self.translator.view);
        proto::FilterChain {
            filter_chain_match: matches,
            filters: vec![filter::http(self.translator, prefix, routes, faults)],
            ..Default::default()
        }
    }

    fn service(&self, address: IpAddr, service: &Service, port: &ServicePort) -> Listener {
        let mut listener = self.base(address, port.port);
        let tcp = self.tcp_chain(service, port);
        if port.protocol == Protocol::Auto {
            listener.listener_filters = vec![http_inspector()];
            listener.listener_filters_timeout =
                duration(self.translator.snapshot.mesh.detection_timeout);
            listener.continue_on_listener_filters_timeout = true;
            let prefix = format!("outbound_{address}_{}", port.port);
            let route = format!("{}:{}", service.hostname, port.port);
            listener.filter_chains = vec![self.route_chain(&route, &prefix, Some(plain_http()))];
            listener.default_filter_chain = Some(tcp);
        } else {
            if port.protocol == Protocol::Tls {
                let mut taken = BTreeSet::new();
                listener.filter_chains = once_per_name(self.tls_chains(service, port), &mut taken);
            }
            if listener.filter_chains.is_empty() {
                listener.filter_chains = vec![tcp];
            } else {
                listener.listener_filters = vec![tls_inspector()];
                listener.listener_filters_timeout = duration(Duration::ZERO);
                listener.continue_on_listener_filters_timeout = true;
                listener.default_filter_chain = Some(tcp);
            }
        }
        listener
    }

    /// Bytes to the service, by the first TCP route for the port if there is one.
    fn tcp_chain(&self, service: &Service, port: &ServicePort) -> proto::FilterChain {
        let snapshot = self.translator.snapshot;
        let attached = snapshot.api_connection_rules(Kind::TcpRoute, self.namespace, service, port);
        if let Some(route) = attached.first() {
            return self.chain_to(service, port, Some(route));
        }
        let rules = snapshot.virtual_services_for(self.namespace);
        let rule = claim(&rules, &service.hostname);
        let route = rule.and_then(|rule| {
            let mut routes = rule.tcp.iter();
            routes.find(|route| route.fits(port.port, self.namespace))
        });
        self.chain_to(service, port, route)
    }

    /// Bytes of TLS to where routes send the server names that clients ask for.
    fn tls_chains(&self, service: &Service, port: &ServicePort) -> Vec<proto::FilterChain> {
        let rules = self
            .translator
            .snapshot
            .virtual_services_for(self.namespace);
        let rule = claim(&rules, &service.hostname);
        let snapshot = self.translator.snapshot;
        let attached = snapshot.api_connection_rules(Kind::TlsRoute, self.namespace, service, port);
        let routes = rule.into_iter().flat_map(|rule| &rule.tls);
        let mut chains = Vec::new();
        for route in attached.into_iter().chain(routes) {
            let here = route
                .matches
                .iter()
                .filter(|condition| condition.fits(port.port, self.namespace));
            let names: Vec<String> = here
                .flat_map(|condition| condition.sni_hosts.clone())
                .collect();
            if !names.is_empty() {
                let chain = self.chain_to(service, port, Some(route));
                chains.push(by_server_names(chain, names));
            }
        }
        chains
    }

    fn chain_to(
        &self,
        service: &Service,
        port: &ServicePort,
        route: Option<&TcpRoute>,
    ) -> proto::FilterChain {
        let snapshot = self.translator.snapshot;
        let client = Some(self.namespace);
        let own = ClusterName::outbound(port.port, "", &service.hostname);
        let own = self.translator.cluster_name(self.namespace, &own);
        let clusters = match route {
            None => vec![(own.clone(), 100)],
            Some(route) => route
                .destinations
                .iter()
                .filter(|to| to.weight > 0)
                .map(|to| {
                    let name = self.translator.destination(self.namespace, to, port.port);
                    (name, to.weight)
                })
                .collect(),
        };
        // Where every weight is zero nothing is to be reached, and Envoy takes no empty list.
        let clusters = if clusters.is_empty() {
            vec![(ClusterName::BlackHole.to_string(), 100)]
        } else {
            clusters
        };
        let idle_timeout = snapshot
            .policy_of(service, client)
            .on_port(port.port, None)
            .pool
            .tcp_idle_timeout;
        proto::FilterChain {
            filters: vec![filter::tcp(self.translator, &own, &clusters, idle_timeout)],
            metadata: route
                .and_then(|route| route.place.as_deref())
                .map(written_at),
            ..Default::default()
        }
    }
}
