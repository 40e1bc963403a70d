//! Clusters.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use millrace_xds::proto::envoy::config::cluster::v3 as pb;
use millrace_xds::proto::envoy::config::core::v3::{
    Metadata, RoutingPriority, SocketAddress, TcpKeepalive,
};
use millrace_xds::proto::google::protobuf::UInt32Value;
use millrace_xds::proto::google::protobuf::value::Kind;
use pb::circuit_breakers::Thresholds as PbThresholds;
use pb::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily};

use super::metadata::{self, text};
use super::value::{enumeration, positive_duration, u32_or};
use super::{Cx, Invalid, address, endpoint, listener};
use crate::resource::cluster::{DnsFamily, DnsHosts, ServiceRef, TcpKeepalive as Keepalive};
use crate::resource::{BindSource, Cluster, ClusterKind, Thresholds};

mod balancing;
mod protocol;

/// Envoy's default of `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default of `dns_refresh_rate`.
const DNS_REFRESH: Duration = Duration::from_secs(5);

/// Converts a cluster.
pub(super) fn convert(
    cx: &mut Cx,
    m: &pb::Cluster,
    added_via_api: bool,
) -> Result<Cluster, Invalid> {
    if m.name.is_empty() {
        return Err(cx.bad("name", "is required"));
    }
    if let Some(socket) = &m.transport_socket {
        cx.at("transport_socket", |cx| listener::plaintext(cx, socket))?;
    }
    cx.each(
        "transport_socket_matches",
        &m.transport_socket_matches,
        |cx, item| match &item.transport_socket {
            Some(socket) => cx.at("transport_socket", |cx| listener::plaintext(cx, socket)),
            None => Ok(()),
        },
    )?;
    let kind = kind(cx, m)?;
    let protocol = protocol::convert(cx, m)?;
    let [default_thresholds, high_thresholds] = thresholds(cx, m)?;
    Ok(Cluster {
        name: m.name.as_str().into(),
        alt_stat_name: Some(m.alt_stat_name.clone()).filter(|n| !n.is_empty()),
        lb_policy: balancing::policy(cx, m, &kind)?,
        kind,
        connect_timeout: positive_duration(
            cx,
            "connect_timeout",
            m.connect_timeout.as_ref(),
            CONNECT_TIMEOUT,
        )?,
        default_thresholds,
        high_thresholds,
        protocol: protocol.upstream,
        idle_timeout: protocol.idle_timeout,
        max_connection_duration: protocol.max_connection_duration,
        max_requests_per_connection: protocol.max_requests_per_connection,
        max_concurrent_streams: protocol.max_concurrent_streams,
        tcp_keepalive: m
            .upstream_connection_options
            .as_ref()
            .and_then(|o| o.tcp_keepalive.as_ref())
            .map(keepalive),
        bind_source: bind_source(cx, m)?,
        panic_threshold: balancing::panic_threshold(cx, m)?,
        added_via_api,
        service: m.metadata.as_ref().and_then(service),
        subset: m
            .metadata
            .as_ref()
            .and_then(|own| metadata::of(own, "istio", "subset"))
            .map(Into::into),
        origin: metadata::origin(m.metadata.as_ref()),
    })
}

fn kind(cx: &mut Cx, m: &pb::Cluster) -> Result<ClusterKind, Invalid> {
    let kind = match &m.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => enumeration(cx, "type", *kind)?,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let reason = format!("cluster type {:?} is not supported", custom.name);
            return Err(cx.bad("cluster_type", reason));
        }
        None => DiscoveryType::Static,
    };
    if m.load_assignment.is_some()
        && matches!(kind, DiscoveryType::Eds | DiscoveryType::OriginalDst)
    {
        let reason = format!("a cluster of type {} has none", kind.as_str_name());
        return Err(cx.bad("load_assignment", reason));
    }
    match kind {
        DiscoveryType::Static => {
            let endpoints = match &m.load_assignment {
                Some(assignment) => {
                    cx.at("load_assignment", |cx| endpoint::assignment(cx, assignment))?
                }
                None => return Err(cx.bad("load_assignment", "a STATIC cluster needs it")),
            };
            Ok(ClusterKind::Static(Arc::new(endpoints)))
        }
        DiscoveryType::Eds => eds(cx, m),
        DiscoveryType::StrictDns => dns(cx, m).map(ClusterKind::StrictDns),
        DiscoveryType::LogicalDns => {
            let hosts = dns(cx, m)?;
            if hosts.hosts.len() != 1 {
                let reason = "a LOGICAL_DNS cluster needs exactly one endpoint";
                return Err(cx.bad("load_assignment", reason));
            }
            Ok(ClusterKind::LogicalDns(hosts))
        }
        DiscoveryType::OriginalDst => Ok(ClusterKind::OriginalDst),
    }
}

fn eds(cx: &mut Cx, m: &pb::Cluster) -> Result<ClusterKind, Invalid> {
    let Some(config) = &m.eds_cluster_config else {
        return Err(cx.bad("eds_cluster_config", "an EDS cluster needs it"));
    };
    if config.eds_config.is_none() {
        return Err(cx.bad("eds_cluster_config.eds_config", "is required"));
    }
    Ok(ClusterKind::Eds(if config.service_name.is_empty() {
        m.name.clone()
    } else {
        config.service_name.clone()
    }))
}

#[expect(deprecated, reason = "these are how DNS clusters are written")]
fn dns(cx: &mut Cx, m: &pb::Cluster) -> Result<DnsHosts, Invalid> {
    let Some(assignment) = &m.load_assignment else {
        return Err(cx.bad("load_assignment", "a DNS cluster needs it"));
    };
    let hosts = cx.at("load_assignment", |cx| endpoint::dns_hosts(cx, assignment))?;
    if hosts.is_empty() {
        return Err(cx.bad("load_assignment", "names no host"));
    }
    let refresh_rate = positive_duration(
        cx,
        "dns_refresh_rate",
        m.dns_refresh_rate.as_ref(),
        DNS_REFRESH,
    )?;
    Ok(DnsHosts {
        hosts,
        refresh_rate: refresh_rate.max(Duration::from_millis(1)),
        respect_ttl: m.respect_dns_ttl,
        family: match enumeration(cx, "dns_lookup_family", m.dns_lookup_family)? {
            DnsLookupFamily::Auto => DnsFamily::Auto,
            DnsLookupFamily::V4Only => DnsFamily::V4Only,
            DnsLookupFamily::V6Only => DnsFamily::V6Only,
            DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
            DnsLookupFamily::All => DnsFamily::All,
        },
    })
}

/// Limits of default and of high priority; the last entry of a priority counts. High ones take
/// effect through a route of high priority alone, which is where the lack of it is listed.
fn thresholds(cx: &mut Cx, m: &pb::Cluster) -> Result<[Thresholds; 2], Invalid> {
    let mut both = [Thresholds::default(); 2];
    let Some(breakers) = &m.circuit_breakers else {
        return Ok(both);
    };
    let entries = cx.at("circuit_breakers", |cx| {
        cx.each("thresholds", &breakers.thresholds, |cx, entry| {
            let priority: RoutingPriority = enumeration(cx, "priority", entry.priority)?;
            Ok((priority, limits(entry)))
        })
    })?;
    for (priority, limits) in entries {
        both[usize::from(priority == RoutingPriority::High)] = limits;
    }
    Ok(both)
}

fn limits(m: &PbThresholds) -> Thresholds {
    let defaults = Thresholds::default();
    let or = |value: &Option<UInt32Value>, default| u32_or(value.as_ref(), default);
    Thresholds {
        max_connections: or(&m.max_connections, defaults.max_connections),
        max_pending_requests: or(&m.max_pending_requests, defaults.max_pending_requests),
        max_requests: or(&m.max_requests, defaults.max_requests),
        max_retries: or(&m.max_retries, defaults.max_retries),
    }
}

/// Absent values are the kernel's own defaults.
fn keepalive(m: &TcpKeepalive) -> Keepalive {
    let seconds = |value: &Option<UInt32Value>, default| {
        Duration::from_secs(u64::from(u32_or(value.as_ref(), default)).max(1))
    };
    Keepalive {
        time: seconds(&m.keepalive_time, 7200),
        interval: seconds(&m.keepalive_interval, 75),
        probes: u32_or(m.keepalive_probes.as_ref(), 9).max(1),
    }
}

/// Envoy's default selection: the first address of the endpoint's family.
fn bind_source(cx: &mut Cx, m: &pb::Cluster) -> Result<BindSource, Invalid> {
    let mut sources = BindSource::default();
    let Some(config) = &m.upstream_bind_config else {
        return Ok(sources);
    };
    cx.at("upstream_bind_config", |cx| {
        let mut given = Vec::new();
        if let Some(source) = &config.source_address {
            given.push(cx.at("source_address", |cx| source_address(cx, source))?);
        }
        let extra = &config.extra_source_addresses;
        given.extend(cx.each(
            "extra_source_addresses",
            extra,
            |cx, extra| match &extra.address {
                Some(address) => cx.at("address", |cx| source_address(cx, address)),
                None => Err(cx.bad("address", "is required")),
            },
        )?);
        for address in given {
            let of_family = match address.ip() {
                IpAddr::V4(_) => &mut sources.v4,
                IpAddr::V6(_) => &mut sources.v6,
            };
            of_family.get_or_insert(address);
        }
        Ok(sources)
    })
}

fn source_address(cx: &mut Cx, m: &SocketAddress) -> Result<SocketAddr, Invalid> {
    let (host, port) = address::tcp(cx, m)?;
    let ip: IpAddr = host
        .parse()
        .map_err(|_| cx.bad("address", format_args!("{host:?} is not an IP address")))?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

/// Istio's `filter_metadata.istio.services[0]`.
fn service(own: &Metadata) -> Option<ServiceRef> {
    let istio = own.filter_metadata.get("istio")?;
    let Some(Kind::ListValue(list)) = &istio.fields.get("services")?.kind else {
        return None;
    };
    let Some(Kind::StructValue(first)) = &list.values.first()?.kind else {
        return None;
    };
    Some(ServiceRef {
        host: text(first, "host")?.into(),
        name: text(first, "name")?.into(),
        namespace: text(first, "namespace")?.into(),
        object: metadata::of(own, "millrace", "service").map(Into::into),
    })
}
