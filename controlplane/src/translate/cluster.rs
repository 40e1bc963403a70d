//! CDS: clusters of services and their subsets, of the pod's own ports, and the fixed ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use indexmap::IndexSet;
use millrace_xds::proto::envoy::config::cluster::v3 as proto;
use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::endpoint::v3 as endpoint;
use millrace_xds::proto::envoy::extensions::upstreams::http::v3 as http;
use millrace_xds::proto::{Cluster, ClusterLoadAssignment, pack};

use proto::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbPolicy,
};

use super::endpoint::locality_endpoints;
use super::listener::{self, any_addresses};
use super::wrap::{
    ads, duration, istio_metadata, list, named_socket, nested, object, socket_address, text, uint,
    yes,
};
use super::{ProxyView, Translator, canonical, grpc, hash, inbound, netns, outlier};
use crate::model::endpoint::{Locality, NamedEndpoint};
use crate::model::entry::Resolution;
use crate::model::names::ClusterName;
use crate::model::place::Place;
use crate::model::policy::{
    ConnectionPool, ConsistentHash, Keepalive, LoadBalancer, TrafficPolicy,
};
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort};
use crate::model::workload::{Labels, has_all};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// `Cluster.metadata`'s field number.
const METADATA_TAG: u64 = 25;
/// Circuit breakers of services, for both priorities, where no `DestinationRule` says otherwise.
const MAX_CONNECTIONS: u32 = 1024;
const MAX_RETRIES: u32 = 3;
/// Istio's `dnsRefreshRate`, where a record says no time of its own.
const DNS_REFRESH: Duration = Duration::from_mins(1);
/// Where a sidecar's deliveries come from, by which Istio's iptables rules know them.
const DELIVERY_V4: &str = "127.0.0.6";
/// The same for IPv6; `millrace-agent init` gives it to the loopback device.
const DELIVERY_V6: &str = "::6";

/// Any source of each family.
const ANY: [&str; 2] = ["0.0.0.0", "::"];

/// What an outbound cluster is made from.
pub(super) struct Source<'a> {
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
    /// Labels of the subset; empty for the whole service.
    pub(super) labels: Labels,
    subset: String,
    policy: TrafficPolicy,
    /// The client has no original destination to go by.
    by_name_only: bool,
    /// Where subset and policy are written.
    place: Option<Place>,
}

impl Source<'_> {
    pub(super) fn uses_eds(&self) -> bool {
        let known = match &self.service.kind {
            ServiceKind::ClusterIp => true,
            ServiceKind::Entry(entry) => entry.resolution == Resolution::Static,
            ServiceKind::Headless => self.by_name_only,
            ServiceKind::ExternalName(_) => false,
        };
        known && self.policy.load_balancer != Some(LoadBalancer::Passthrough)
    }

    /// How requests are hashed, where they are.
    pub(super) fn hash(&self) -> Option<&ConsistentHash> {
        match &self.policy.load_balancer {
            Some(LoadBalancer::Hash(hash)) => Some(hash),
            _ => None,
        }
    }
}

/// All clusters that a proxy is meant to have without asking by name.
pub(super) fn names(translator: &Translator<'_>) -> Vec<String> {
    let mut names = IndexSet::new();
    for namespace in listener::namespaces(translator) {
        let routed = translator.snapshot.hosts_routed_to(namespace);
        let reached: BTreeSet<_> = translator
            .snapshot
            .ports_for(namespace)
            .map(|(service, port)| (&service.name, port.port))
            .collect();
        // What a Sidecar lets nobody call may still be where a route leads.
        let meant = |service: &Service, port: &ServicePort| {
            // A Sidecar is for pods, and not for what lets others in.
            matches!(translator.view, ProxyView::Router { .. })
                || reached.contains(&(&service.name, port.port))
                || routed.contains(&service.hostname)
        };
        for (service, port) in translator.snapshot.ports_exported_to(namespace) {
            if !meant(service, port) {
                continue;
            }
            let policy = translator.snapshot.policy_of(service, Some(namespace));
            let subsets = policy.subsets();
            for subset in std::iter::once("").chain(subsets.keys().map(String::as_str)) {
                let name = ClusterName::outbound(port.port, subset, &service.hostname);
                names.insert(translator.cluster_name(namespace, &name));
            }
        }
    }
    let mut names: Vec<String> = names.into_iter().collect();
    for port in inbound::own_ports(translator) {
        names.push(ClusterName::Inbound { port }.to_string());
    }
    let fixed = [
        ClusterName::Passthrough,
        ClusterName::BlackHole,
        ClusterName::InboundPassthrough,
    ];
    names.extend(fixed.iter().map(ToString::to_string));
    names
}

/// The service, port and subset that an outbound cluster's name means.
pub(super) fn source<'a>(translator: &Translator<'a>, name: &str) -> Option<Source<'a>> {
    let (client, name) = translator.view.split_cluster(name)?;
    let ClusterName::Outbound { port, subset, host } = name else {
        return None;
    };
    let service = translator.snapshot.service_on(&host, port, client)?;
    let policy = translator.snapshot.policy_of(service, client);
    let found = if subset.is_empty() {
        None
    } else {
        Some(policy.subsets().remove(&subset)?)
    };
    let mut traffic = policy.on_port(port, found.as_ref().and_then(|found| found.subset));
    if traffic.load_balancer.is_none() && service.client_affinity {
        traffic.load_balancer = Some(LoadBalancer::Hash(ConsistentHash::CLIENT_IP));
    }
    let (labels, place) = match found {
        Some(found) => (found.labels, found.place),
        None => (Labels::default(), None),
    };
    Some(Source {
        service,
        port: service.port(port)?,
        labels,
        subset,
        policy: traffic,
        by_name_only: matches!(translator.view, ProxyView::Grpc { .. }),
        place: place.or_else(|| policy.place()),
    })
}

/// An encoded cluster.
pub(super) fn cluster(translator: &Translator<'_>, text: &str) -> Option<Vec<u8>> {
    let (_, name) = translator.view.split_cluster(text)?;
    let timeout = duration(translator.snapshot.mesh.connect_timeout);
    let mut cluster = Cluster {
        name: text.to_owned(),
        connect_timeout: timeout,
        ..Default::default()
    };
    match &name {
        ClusterName::Outbound { .. } => {
            let source = source(translator, text)?;
            outbound(translator, &mut cluster, &source);
            netns::bind(translator.view, &mut cluster, ANY);
            grpc::adapt_cluster(translator.view, &mut cluster);
            return Some(encode(&cluster, &source));
        }
        ClusterName::Inbound { .. } | ClusterName::InboundPassthrough => {
            to_original_dst(&mut cluster);
            cluster.typed_extension_protocol_options =
                http_options(Some(UpstreamHttp::AsDownstream), &ConnectionPool::default());
            if matches!(translator.view, ProxyView::Sidecar { .. }) {
                cluster.upstream_bind_config = Some(delivery_source(translator.view));
            }
            netns::bind(translator.view, &mut cluster, [DELIVERY_V4, DELIVERY_V6]);
        }
        ClusterName::Passthrough => {
            to_original_dst(&mut cluster);
            cluster.typed_extension_protocol_options =
                http_options(Some(UpstreamHttp::AsDownstream), &ConnectionPool::default());
            netns::bind(translator.view, &mut cluster, ANY);
        }
        ClusterName::BlackHole => {
            cluster.load_assignment = Some(ClusterLoadAssignment {
                cluster_name: text.to_owned(),
                ..Default::default()
            });
            cluster.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
        }
    }
    Some(pack(&cluster).value)
}

/// The source addresses of deliveries in the families that a sidecar has. Without one of IPv6 its
/// deliveries over that would look like the application's calls to itself, which the rules send to the
/// sidecar's own inbound port.
fn delivery_source(view: &ProxyView) -> core::BindConfig {
    let source = |any: IpAddr| {
        let address = if any.is_ipv4() {
            DELIVERY_V4
        } else {
            DELIVERY_V6
        };
        socket_address(address, 0)
    };
    let (first, second) = any_addresses(view);
    core::BindConfig {
        source_address: Some(source(first)),
        extra_source_addresses: second
            .map(|second| core::ExtraSourceAddress {
                address: Some(source(second)),
                ..Default::default()
            })
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

/// The cluster with metadata that says which service it is and who made its rules, in Istio's form.
fn encode(cluster: &Cluster, source: &Source<'_>) -> Vec<u8> {
    let service = nested([
        ("host", text(source.service.hostname.as_str())),
        ("name", text(source.service.short_name())),
        ("namespace", text(&*source.service.name.namespace)),
    ]);
    let mut fields = vec![("services", list(vec![service]))];
    if !source.subset.is_empty() {
        fields.push(("subset", text(source.subset.as_str())));
    }
    if source.service.entry().is_some_and(|entry| entry.external) {
        fields.push(("external", yes()));
    }
    let mut own = Vec::new();
    if let Some(place) = &source.place {
        fields.push(("config", text(place.config())));
        if !place.field.is_empty() {
            own.push(("field", text(place.field.as_str())));
        }
    }
    if let Some(entry) = source.service.entry() {
        let place = Place {
            object: entry.object.clone(),
            field: String::new(),
        };
        own.push(("service", text(place.config())));
    }
    let mut metadata = istio_metadata(object(fields));
    if !own.is_empty() {
        let own = object(own);
        metadata.filter_metadata.insert("millrace".to_owned(), own);
    }
    let mut body = pack(cluster).value;
    canonical::append(&mut body, METADATA_TAG, &canonical::metadata(&metadata));
    body
}

fn outbound(translator: &Translator<'_>, cluster: &mut Cluster, source: &Source<'_>) {
    let default_timeout = translator.snapshot.mesh.connect_timeout;
    let Source {
        service,
        port,
        policy,
        ..
    } = source;
    let pool = &policy.pool;
    cluster.connect_timeout = duration(pool.connect_timeout.unwrap_or(default_timeout));
    cluster.lb_policy = lb_policy(policy.load_balancer.as_ref()).into();
    let kind = match &service.kind {
        ServiceKind::ExternalName(target) => {
            cluster.load_assignment = Some(external(&cluster.name, target, port.port));
            DiscoveryType::StrictDns
        }
        _ if source.uses_eds() => {
            cluster.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: ads(),
                service_name: cluster.name.clone(),
            });
            DiscoveryType::Eds
        }
        ServiceKind::Entry(entry)
            if matches!(
                entry.resolution,
                Resolution::Dns | Resolution::DnsRoundRobin
            ) =>
        {
            by_dns(translator, cluster, source, entry.resolution)
        }
        ServiceKind::ClusterIp | ServiceKind::Headless | ServiceKind::Entry(_) => {
            cluster.lb_policy = LbPolicy::ClusterProvided.into();
            DiscoveryType::OriginalDst
        }
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
    cluster.circuit_breakers = Some(circuit_breakers(&Limits {
        connections: pool.max_connections.unwrap_or(MAX_CONNECTIONS),
        pending: pool.max_pending_requests.unwrap_or(MAX_CONNECTIONS),
        requests: pool.max_requests.unwrap_or(MAX_CONNECTIONS),
        retries: pool.max_retries.unwrap_or(MAX_RETRIES),
    }));
    if let Some(hash) = source
        .hash()
        .filter(|_| cluster.lb_policy() != LbPolicy::ClusterProvided)
    {
        hash::balance(translator.view, cluster, hash);
    }
    if let Some(outlier) = &policy.outlier {
        outlier::detect(translator.view, cluster, outlier);
    }
    cluster.upstream_connection_options = pool.keepalive.map(keepalive);
    cluster.typed_extension_protocol_options =
        http_options(upstream_http(port.protocol, pool), pool);
}

/// The names that DNS resolves, as Istio has them asked for. A cluster by DNS must name something, so
/// one without any name is a static one without endpoints.
#[expect(
    deprecated,
    reason = "these are how DNS clusters are written for every proxy"
)]
fn by_dns(
    translator: &Translator<'_>,
    cluster: &mut Cluster,
    source: &Source<'_>,
    resolution: Resolution,
) -> DiscoveryType {
    let endpoints = translator.snapshot.endpoints.get(&source.service.name);
    let names = endpoints.map_or(&[][..], |endpoints| {
        endpoints.names_of_port(source.port.port)
    });
    let mut localities: BTreeMap<&Locality, Vec<&NamedEndpoint>> = BTreeMap::new();
    for name in names
        .iter()
        .filter(|name| has_all(&source.labels, &name.labels))
    {
        localities.entry(&name.locality).or_default().push(name);
    }
    let found = !localities.is_empty();
    let endpoints = localities.into_iter().map(|(locality, names)| {
        let weight = names.iter().map(|name| name.weight).sum();
        let weighed = |name: &NamedEndpoint| endpoint::LbEndpoint {
            load_balancing_weight: uint(name.weight),
            ..named_endpoint(&name.host, name.port)
        };
        let names = names.into_iter().map(weighed).collect();
        locality_endpoints(locality, weight, names)
    });
    cluster.load_assignment = Some(ClusterLoadAssignment {
        cluster_name: cluster.name.clone(),
        endpoints: endpoints.collect(),
        ..Default::default()
    });
    if !found {
        return DiscoveryType::Static;
    }
    cluster.dns_refresh_rate = duration(DNS_REFRESH);
    cluster.respect_dns_ttl = true;
    cluster.dns_lookup_family = DnsLookupFamily::V4Preferred.into();
    match resolution {
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
        _ => DiscoveryType::StrictDns,
    }
}

fn to_original_dst(cluster: &mut Cluster) {
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(
        DiscoveryType::OriginalDst.into(),
    ));
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    // These carry the traffic of many destinations, so one service's limits would be wrong.
    let none = Limits {
        connections: u32::MAX,
        pending: u32::MAX,
        requests: u32::MAX,
        retries: u32::MAX,
    };
    cluster.circuit_breakers = Some(circuit_breakers(&none));
}

fn lb_policy(balancer: Option<&LoadBalancer>) -> LbPolicy {
    match balancer {
        Some(LoadBalancer::RoundRobin) => LbPolicy::RoundRobin,
        // Hashing is added for those who can.
        None | Some(LoadBalancer::LeastRequest | LoadBalancer::Hash(_)) => LbPolicy::LeastRequest,
        Some(LoadBalancer::Random) => LbPolicy::Random,
        Some(LoadBalancer::Passthrough) => LbPolicy::ClusterProvided,
    }
}

struct Limits {
    connections: u32,
    pending: u32,
    requests: u32,
    retries: u32,
}

fn circuit_breakers(limits: &Limits) -> proto::CircuitBreakers {
    let thresholds = |priority: core::RoutingPriority| proto::circuit_breakers::Thresholds {
        priority: priority.into(),
        max_connections: uint(limits.connections),
        max_pending_requests: uint(limits.pending),
        max_requests: uint(limits.requests),
        max_retries: uint(limits.retries),
        track_remaining: true,
        ..Default::default()
    };
    proto::CircuitBreakers {
        thresholds: vec![
            thresholds(core::RoutingPriority::Default),
            thresholds(core::RoutingPriority::High),
        ],
        ..Default::default()
    }
}

fn keepalive(keepalive: Keepalive) -> proto::UpstreamConnectionOptions {
    let seconds = |duration: Duration| uint(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX));
    proto::UpstreamConnectionOptions {
        tcp_keepalive: Some(core::TcpKeepalive {
            keepalive_probes: keepalive.probes.and_then(uint),
            keepalive_time: keepalive.time.and_then(seconds),
            keepalive_interval: keepalive.interval.and_then(seconds),
        }),
        ..Default::default()
    }
}

/// The HTTP version in which a server is spoken to.
#[derive(Clone, Copy)]
enum UpstreamHttp {
    Http1,
    Http2,
    AsDownstream,
}

fn upstream_http(protocol: Protocol, pool: &ConnectionPool) -> Option<UpstreamHttp> {
    if pool.use_client_protocol == Some(true) && (protocol.is_http() || protocol == Protocol::Auto)
    {
        return Some(UpstreamHttp::AsDownstream);
    }
    match protocol {
        Protocol::Http | Protocol::GrpcWeb if pool.upgrade_to_http2 == Some(true) => {
            Some(UpstreamHttp::Http2)
        }
        Protocol::Http | Protocol::GrpcWeb => Some(UpstreamHttp::Http1),
        Protocol::Http2 | Protocol::Grpc => Some(UpstreamHttp::Http2),
        Protocol::Auto => Some(UpstreamHttp::AsDownstream),
        Protocol::Tcp | Protocol::Tls => None,
    }
}

type ProtocolOptions = std::collections::HashMap<String, millrace_xds::proto::Any>;

fn http_options(version: Option<UpstreamHttp>, pool: &ConnectionPool) -> ProtocolOptions {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    };

    let common = core::HttpProtocolOptions {
        idle_timeout: pool
            .http_idle_timeout
            .or(pool.tcp_idle_timeout)
            .and_then(duration),
        max_connection_duration: pool.max_connection_duration.and_then(duration),
        max_requests_per_connection: pool.max_requests_per_connection.and_then(uint),
        ..Default::default()
    };
    let common = (common != core::HttpProtocolOptions::default()).then_some(common);
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: pool.max_concurrent_streams.and_then(uint),
        ..Default::default()
    };
    let explicit = |config| {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(config),
            },
        ))
    };
    let upstream_protocol_options = match version {
        // Envoy wants a version wherever there are options; TCP never looks at it.
        None | Some(UpstreamHttp::Http1) => explicit(ProtocolConfig::HttpProtocolOptions(
            core::Http1ProtocolOptions::default(),
        )),
        Some(UpstreamHttp::Http2) => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        Some(UpstreamHttp::AsDownstream) => Some(
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2),
                ..Default::default()
            }),
        ),
    };
    // HTTP/1.1 without anything else is what Envoy does anyway.
    if common.is_none() && matches!(version, None | Some(UpstreamHttp::Http1)) {
        return ProtocolOptions::new();
    }
    let options = http::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options,
        ..Default::default()
    };
    [(HTTP_OPTIONS.to_owned(), pack(&options))].into()
}

/// The one DNS name of an `ExternalName` service.
fn external(cluster: &str, target: &str, port: u16) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![named_endpoint(target, port)],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn named_endpoint(host: &str, port: u16) -> endpoint::LbEndpoint {
    let host = endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
        address: Some(named_socket(host, port)),
        ..Default::default()
    });
    endpoint::LbEndpoint {
        host_identifier: Some(host),
        ..Default::default()
    }
}
