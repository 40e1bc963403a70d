//! Listeners and filter chains.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_xds::proto::envoy::config::core::v3::TrafficDirection as PbDirection;
use millrace_xds::proto::envoy::config::listener::v3 as pb;
use millrace_xds::proto::google::protobuf::Any;
use pb::filter::ConfigType;
use pb::filter_chain_match::ConnectionSourceType;
use pb::listener_filter::ConfigType as ListenerFilterType;

use super::address::{cidr, socket_addr};
use super::value::{bool_or, duration, enumeration, type_name};
use super::{Cx, Invalid, access_log, endpoint, hcm, metadata, tcp_proxy};
use crate::resource::{FilterChain, FilterChainMatch, Listener, NetworkFilter, TrafficDirection};

/// Envoy's default of `listener_filters_timeout`.
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

const HTTP: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// Network filters before the last whose absence changes neither where bytes go nor whether
/// they may.
const SKIPPED_FILTERS: [&str; 4] = [
    "envoy.extensions.filters.network.set_filter_state.v3.Config",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "stats.PluginConfig",
    "udpa.type.v1.TypedStruct",
];

/// Converts a listener.
pub(super) fn convert(cx: &mut Cx, m: &pb::Listener) -> Result<Listener, Invalid> {
    if m.name.is_empty() {
        return Err(cx.bad("name", "is required"));
    }
    refuse(cx, m)?;
    let inspectors = listener_filters(cx, &m.listener_filters)?;
    let filter_chains = cx.each("filter_chains", &m.filter_chains, |cx, chain| {
        filter_chain(cx, chain).map(Arc::new)
    })?;
    check_distinct(cx, &m.filter_chains)?;
    let default_filter_chain = match &m.default_filter_chain {
        Some(chain) => Some(Arc::new(
            cx.at("default_filter_chain", |cx| filter_chain(cx, chain))?,
        )),
        None => None,
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return Err(cx.bad("filter_chains", "at least one is required"));
    }
    Ok(Listener {
        name: m.name.as_str().into(),
        address: socket_addr(cx, "address", m.address.as_ref())?,
        bind_to_port: bind_to_port(m),
        use_original_dst: bool_or(m.use_original_dst.as_ref(), false),
        direction: match enumeration(cx, "traffic_direction", m.traffic_direction)? {
            PbDirection::Unspecified => TrafficDirection::Unspecified,
            PbDirection::Inbound => TrafficDirection::Inbound,
            PbDirection::Outbound => TrafficDirection::Outbound,
        },
        workload: m.metadata.as_ref().and_then(endpoint::workload),
        http_inspector: inspectors.http,
        tls_inspector: inspectors.tls,
        listener_filters_timeout: duration(
            cx,
            "listener_filters_timeout",
            m.listener_filters_timeout.as_ref(),
            LISTENER_FILTERS_TIMEOUT,
        )?,
        continue_on_listener_filters_timeout: m.continue_on_listener_filters_timeout,
        filter_chains,
        default_filter_chain,
        access_log: access_log::convert(cx, "access_log", &m.access_log)?,
    })
}

fn refuse(cx: &mut Cx, m: &pb::Listener) -> Result<(), Invalid> {
    let refused = [
        ("udp_listener_config", m.udp_listener_config.is_some()),
        ("api_listener", m.api_listener.is_some()),
        ("internal_listener", m.listener_specifier.is_some()),
        ("filter_chain_matcher", m.filter_chain_matcher.is_some()),
        ("fcds_config", m.fcds_config.is_some()),
    ];
    for (field, set) in refused {
        if set {
            return Err(cx.bad(field, "is not supported"));
        }
    }
    Ok(())
}

fn bind_to_port(m: &pb::Listener) -> bool {
    #[expect(deprecated, reason = "control planes still send it")]
    let old = m
        .deprecated_v1
        .as_ref()
        .and_then(|d| d.bind_to_port.as_ref());
    bool_or(m.bind_to_port.as_ref().or(old), true)
}

#[derive(Default)]
struct Inspectors {
    http: bool,
    tls: bool,
}

fn listener_filters(cx: &mut Cx, filters: &[pb::ListenerFilter]) -> Result<Inspectors, Invalid> {
    let mut found = Inspectors::default();
    cx.each("listener_filters", filters, |cx, filter| {
        if filter.filter_disabled.is_some() {
            cx.note("filter_disabled", "the filter runs on every connection");
        }
        let name = match &filter.config_type {
            Some(ListenerFilterType::TypedConfig(any)) => type_name(any),
            Some(ListenerFilterType::ConfigDiscovery(_)) => {
                return Err(cx.bad("config_discovery", "is not supported"));
            }
            None => filter.name.as_str(),
        };
        match name {
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
            | "envoy.filters.listener.http_inspector" => found.http = true,
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
            | "envoy.filters.listener.tls_inspector" => found.tls = true,
            // The original destination is always recovered.
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            | "envoy.filters.listener.original_dst"
            | "envoy.listener.original_dst" => {}
            other => {
                let reason = format!("listener filter {other} is not supported");
                return Err(cx.invalid(reason));
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Envoy refuses two chains with the same conditions, as one could never be taken.
fn check_distinct(cx: &mut Cx, chains: &[pb::FilterChain]) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for (i, chain) in chains.iter().enumerate() {
        let key = chain.filter_chain_match.clone().unwrap_or_default();
        if !seen.insert(format!("{key:?}")) {
            let reason = format!("[{i}] has the same conditions as a chain before it");
            return Err(cx.bad("filter_chains", reason));
        }
    }
    Ok(())
}

fn filter_chain(cx: &mut Cx, m: &pb::FilterChain) -> Result<FilterChain, Invalid> {
    #[expect(deprecated, reason = "control planes still send it")]
    let proxy_protocol = bool_or(m.use_proxy_proto.as_ref(), false);
    if proxy_protocol {
        return Err(cx.bad("use_proxy_proto", "the PROXY protocol is not supported"));
    }
    if let Some(socket) = &m.transport_socket {
        cx.at("transport_socket", |cx| plaintext(cx, socket))?;
    }
    let matches = match &m.filter_chain_match {
        Some(matches) => cx.at("filter_chain_match", |cx| chain_match(cx, matches))?,
        None => FilterChainMatch::default(),
    };
    Ok(FilterChain {
        name: m.name.clone(),
        matches,
        filter: network_filters(cx, &m.filters)?,
        origin: metadata::origin(m.metadata.as_ref()),
    })
}

/// Anything but plain bytes is refused: serving it in plain text would drop its protection.
pub(super) fn plaintext(
    cx: &mut Cx,
    m: &millrace_xds::proto::envoy::config::core::v3::TransportSocket,
) -> Result<(), Invalid> {
    use millrace_xds::proto::envoy::config::core::v3::transport_socket::ConfigType;
    let kind = match &m.config_type {
        Some(ConfigType::TypedConfig(any)) => type_name(any),
        None => m.name.as_str(),
    };
    if kind == RAW_BUFFER || kind == "envoy.transport_sockets.raw_buffer" {
        return Ok(());
    }
    Err(cx.invalid(format_args!("transport socket {kind} is not supported")))
}

fn chain_match(cx: &mut Cx, m: &pb::FilterChainMatch) -> Result<FilterChainMatch, Invalid> {
    let source: ConnectionSourceType = enumeration(cx, "source_type", m.source_type)?;
    let refused = [
        ("source_type", source != ConnectionSourceType::Any),
        ("address_suffix", !m.address_suffix.is_empty()),
        ("suffix_len", m.suffix_len.is_some()),
        (
            "direct_source_prefix_ranges",
            !m.direct_source_prefix_ranges.is_empty(),
        ),
    ];
    for (field, set) in refused {
        if set {
            return Err(cx.bad(field, "this condition is not supported"));
        }
    }
    let destination_port = match &m.destination_port {
        Some(port) => Some(cx.at("destination_port", |cx| self::port(cx, port.value))?),
        None => None,
    };
    if !["", "raw_buffer", "tls"].contains(&m.transport_protocol.as_str()) {
        let reason = format!("{:?} is never detected", m.transport_protocol);
        return Err(cx.bad("transport_protocol", reason));
    }
    Ok(FilterChainMatch {
        destination_port,
        prefix_ranges: cx.each("prefix_ranges", &m.prefix_ranges, cidr)?,
        server_names: cx.each("server_names", &m.server_names, server_name)?,
        transport_protocol: m.transport_protocol.clone(),
        application_protocols: m.application_protocols.clone(),
        source_prefix_ranges: cx.each("source_prefix_ranges", &m.source_prefix_ranges, cidr)?,
        source_ports: cx.each("source_ports", &m.source_ports, |cx, p| port(cx, *p))?,
    })
}

fn port(cx: &mut Cx, port: u32) -> Result<u16, Invalid> {
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(cx.invalid(format_args!("{port} is not a port"))),
    }
}

fn server_name(cx: &mut Cx, name: &String) -> Result<String, Invalid> {
    let inner = name.strip_prefix("*.").unwrap_or(name);
    if inner.is_empty() || inner.contains('*') {
        let reason = format!("{name:?}: only a name or '*.' before one is allowed");
        return Err(cx.invalid(reason));
    }
    Ok(name.to_ascii_lowercase())
}

fn network_filters(cx: &mut Cx, filters: &[pb::Filter]) -> Result<NetworkFilter, Invalid> {
    let Some(last) = filters.len().checked_sub(1) else {
        return Err(cx.bad("filters", "at least one is required"));
    };
    let mut index = 0;
    let mut converted = cx.each("filters", filters, |cx, filter| {
        let is_last = index == last;
        index += 1;
        network_filter(cx, filter, is_last)
    })?;
    converted
        .pop()
        .flatten()
        .ok_or_else(|| cx.bad("filters", "the last filter must end the chain"))
}

fn network_filter(
    cx: &mut Cx,
    filter: &pb::Filter,
    is_last: bool,
) -> Result<Option<NetworkFilter>, Invalid> {
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(cx.bad("config_discovery", "is not supported"));
        }
        None => return Err(cx.bad("typed_config", "is required")),
    };
    let name = filter.name.as_str();
    match type_name(any) {
        HTTP | TCP if !is_last => {
            Err(cx.invalid(format_args!("{name} ends a chain and must stand last")))
        }
        HTTP | TCP => cx.at("typed_config", |cx| terminal(cx, any).map(Some)),
        kind if !is_last && SKIPPED_FILTERS.contains(&kind) => {
            cx.key(kind, |cx| cx.note("", "the filter does not run"));
            Ok(None)
        }
        kind => Err(cx.invalid(format_args!("network filter {kind} is not supported"))),
    }
}

fn terminal(cx: &mut Cx, any: &Any) -> Result<NetworkFilter, Invalid> {
    if type_name(any) == TCP {
        return tcp_proxy::convert(cx, any).map(NetworkFilter::Tcp);
    }
    hcm::convert(cx, any).map(NetworkFilter::Http)
}
