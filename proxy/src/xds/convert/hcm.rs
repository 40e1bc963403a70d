//! The `http_connection_manager` network filter and its HTTP filters.

use std::sync::Arc;
use std::time::Duration;

use millrace_xds::proto::envoy::config::core::v3::HttpProtocolOptions;
use millrace_xds::proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use millrace_xds::proto::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use millrace_xds::proto::google::protobuf::Any;
use millrace_xds::proto::unpack;
use pb::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation, StripPortMode, UpgradeConfig,
};
use pb::http_filter::ConfigType;

use super::value::{bool_or, duration, enumeration, type_name, u32_or};
use super::{Cx, Invalid, access_log, route};
use crate::resource::{Codec, HttpConnectionManager, RouteSource};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// HTTP filters that observe or add, so that a request may pass without them. Others decide
/// whether a request may pass: a configuration with one of those is refused, unless it calls
/// the filter optional.
const SKIPPED_FILTERS: [&str; 10] = [
    "envoy.extensions.filters.http.alternate_protocols_cache.v3.FilterConfig",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "stats.PluginConfig",
    "udpa.type.v1.TypedStruct",
];

const STREAM_IDLE: Duration = Duration::from_mins(5);
const REQUEST_HEADERS: Duration = Duration::from_secs(10);
const CONNECTION_IDLE: Duration = Duration::from_hours(1);
const HEADERS_KB: u32 = 60;
const HEADERS_COUNT: u32 = 100;
const CONCURRENT_STREAMS: u32 = 1024;
/// Largest value of HTTP/2's `SETTINGS_MAX_CONCURRENT_STREAMS` that Envoy takes.
const MAX_CONCURRENT_STREAMS: u32 = 2_147_483_647;

/// Converts the filter's configuration.
pub(super) fn convert(cx: &mut Cx, any: &Any) -> Result<Arc<HttpConnectionManager>, Invalid> {
    let m: pb::HttpConnectionManager = cx.unpacked(unpack(any))?;
    if m.stat_prefix.is_empty() {
        return Err(cx.bad("stat_prefix", "is required"));
    }
    http_filters(cx, &m.http_filters)?;
    note_enums(cx, &m)?;
    let common = m.common_http_protocol_options.unwrap_or_default();
    note_common(cx, &common);
    let headers_kb = u32_or(m.max_request_headers_kb.as_ref(), HEADERS_KB);
    if !(1..=8192).contains(&headers_kb) {
        return Err(cx.bad("max_request_headers_kb", "must be between 1 and 8192"));
    }
    Ok(Arc::new(HttpConnectionManager {
        codec: codec(cx, &m)?,
        routes: routes(cx, &m)?,
        server_name: server_name(cx, &m)?,
        use_remote_address: bool_or(m.use_remote_address.as_ref(), false),
        xff_num_trusted_hops: m.xff_num_trusted_hops,
        generate_request_id: bool_or(m.generate_request_id.as_ref(), true),
        preserve_external_request_id: m.preserve_external_request_id,
        upgrades: upgrades(cx, &m.upgrade_configs)?,
        stream_idle_timeout: duration(
            cx,
            "stream_idle_timeout",
            m.stream_idle_timeout.as_ref(),
            STREAM_IDLE,
        )?,
        request_headers_timeout: duration(
            cx,
            "request_headers_timeout",
            m.request_headers_timeout.as_ref(),
            REQUEST_HEADERS,
        )?,
        request_timeout: duration(
            cx,
            "request_timeout",
            m.request_timeout.as_ref(),
            Duration::ZERO,
        )?,
        idle_timeout: idle_timeout(cx, &common)?,
        max_request_headers_kb: headers_kb,
        max_request_headers_count: headers_count(cx, &common)?,
        max_concurrent_streams: concurrent_streams(cx, &m)?,
        normalize_path: bool_or(m.normalize_path.as_ref(), false),
        merge_slashes: m.merge_slashes,
        strip_any_host_port: strip_any_host_port(cx, &m),
        access_log: access_log::convert(cx, "access_log", &m.access_log)?,
    }))
}

fn http_filters(cx: &mut Cx, filters: &[pb::HttpFilter]) -> Result<(), Invalid> {
    let Some(last) = filters.len().checked_sub(1) else {
        return Err(cx.bad("http_filters", "the router filter is required"));
    };
    let mut index = 0;
    cx.each("http_filters", filters, |cx, filter| {
        let is_last = index == last;
        index += 1;
        http_filter(cx, filter, is_last)
    })?;
    Ok(())
}

fn http_filter(cx: &mut Cx, filter: &pb::HttpFilter, is_last: bool) -> Result<(), Invalid> {
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(cx.bad("config_discovery", "is not supported"));
        }
        None => return Err(cx.bad("typed_config", "is required")),
    };
    let kind = type_name(any);
    match (kind == ROUTER, is_last) {
        (true, true) if filter.disabled => Err(cx.bad("disabled", "the router must be enabled")),
        (true, true) => Ok(()),
        (true, false) => Err(cx.invalid("the router filter must stand last")),
        (false, true) => Err(cx.invalid("the last filter must be the router")),
        (false, false) if filter.disabled => {
            cx.key(kind, |cx| cx.note("", "the filter does not run"));
            Ok(())
        }
        (false, false) if filter.is_optional || SKIPPED_FILTERS.contains(&kind) => {
            cx.key(kind, |cx| cx.note("", "the filter does not run"));
            Ok(())
        }
        (false, false) => Err(cx.invalid(format_args!("HTTP filter {kind} is not supported"))),
    }
}

fn codec(cx: &mut Cx, m: &pb::HttpConnectionManager) -> Result<Codec, Invalid> {
    match enumeration(cx, "codec_type", m.codec_type)? {
        CodecType::Auto => Ok(Codec::Auto),
        CodecType::Http1 => Ok(Codec::Http1),
        CodecType::Http2 => Ok(Codec::Http2),
        CodecType::Http3 => Err(cx.bad("codec_type", "HTTP/3 is not supported")),
    }
}

fn routes(cx: &mut Cx, m: &pb::HttpConnectionManager) -> Result<RouteSource, Invalid> {
    match &m.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => cx.at("rds", |cx| {
            if rds.route_config_name.is_empty() {
                return Err(cx.bad("route_config_name", "is required"));
            }
            let source = rds.config_source.as_ref();
            match source.and_then(|s| s.config_source_specifier.as_ref()) {
                Some(
                    ConfigSourceSpecifier::Ads(_)
                    | ConfigSourceSpecifier::Self_(_)
                    | ConfigSourceSpecifier::ApiConfigSource(_),
                ) => Ok(RouteSource::Rds(rds.route_config_name.as_str().into())),
                _ => Err(cx.bad("config_source", "must be ads, self or api_config_source")),
            }
        }),
        Some(RouteSpecifier::RouteConfig(config)) => cx.at("route_config", |cx| {
            route::convert(cx, config).map(|c| RouteSource::Inline(Arc::new(c)))
        }),
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            Err(cx.bad("scoped_routes", "scoped routes are not supported"))
        }
        None => Err(cx.invalid("rds or route_config is required")),
    }
}

fn server_name(cx: &mut Cx, m: &pb::HttpConnectionManager) -> Result<Option<String>, Invalid> {
    let transformation = enumeration(
        cx,
        "server_header_transformation",
        m.server_header_transformation,
    )?;
    match transformation {
        ServerHeaderTransformation::PassThrough => return Ok(None),
        ServerHeaderTransformation::AppendIfAbsent => cx.note(
            "server_header_transformation",
            "the upstream's header is replaced",
        ),
        ServerHeaderTransformation::Overwrite => {}
    }
    let name = if m.server_name.is_empty() {
        "envoy"
    } else {
        &m.server_name
    };
    if http::HeaderValue::from_str(name).is_err() {
        return Err(cx.bad("server_name", "is not a valid header value"));
    }
    Ok(Some(name.to_owned()))
}

fn upgrades(cx: &mut Cx, configs: &[UpgradeConfig]) -> Result<Vec<String>, Invalid> {
    let enabled = cx.each("upgrade_configs", configs, |cx, config| {
        if config.upgrade_type.is_empty() {
            return Err(cx.bad("upgrade_type", "is required"));
        }
        if !config.filters.is_empty() {
            cx.note("filters", "the connection manager's filters run");
        }
        let enabled = bool_or(config.enabled.as_ref(), true);
        Ok(enabled.then(|| config.upgrade_type.to_ascii_lowercase()))
    })?;
    Ok(enabled.into_iter().flatten().collect())
}

fn idle_timeout(cx: &mut Cx, common: &HttpProtocolOptions) -> Result<Duration, Invalid> {
    cx.at("common_http_protocol_options", |cx| {
        duration(
            cx,
            "idle_timeout",
            common.idle_timeout.as_ref(),
            CONNECTION_IDLE,
        )
    })
}

/// What only clusters execute.
fn note_common(cx: &mut Cx, common: &HttpProtocolOptions) {
    cx.at("common_http_protocol_options", |cx| {
        if common.max_connection_duration.is_some() {
            cx.note("max_connection_duration", "connections live on");
        }
        if common.max_requests_per_connection.is_some() {
            cx.note("max_requests_per_connection", "connections live on");
        }
    });
}

fn headers_count(cx: &mut Cx, common: &HttpProtocolOptions) -> Result<u32, Invalid> {
    let count = u32_or(common.max_headers_count.as_ref(), HEADERS_COUNT);
    if count == 0 {
        return Err(cx.bad(
            "common_http_protocol_options.max_headers_count",
            "must be at least 1",
        ));
    }
    Ok(count)
}

fn concurrent_streams(cx: &mut Cx, m: &pb::HttpConnectionManager) -> Result<u32, Invalid> {
    let options = m.http2_protocol_options.as_ref();
    let value = options.and_then(|o| o.max_concurrent_streams.as_ref());
    let value = u32_or(value, CONCURRENT_STREAMS);
    if !(1..=MAX_CONCURRENT_STREAMS).contains(&value) {
        return Err(cx.bad(
            "http2_protocol_options.max_concurrent_streams",
            "must be between 1 and 2147483647",
        ));
    }
    Ok(value)
}

fn strip_any_host_port(cx: &mut Cx, m: &pb::HttpConnectionManager) -> bool {
    if m.strip_matching_host_port {
        cx.note("strip_matching_host_port", "the port stays");
    }
    matches!(
        m.strip_port_mode,
        Some(StripPortMode::StripAnyHostPort(true))
    )
}

/// Enums whose default is what this proxy does and whose other values it does not execute.
fn note_enums(cx: &mut Cx, m: &pb::HttpConnectionManager) -> Result<(), Invalid> {
    let field = "forward_client_cert_details";
    let details: ForwardClientCertDetails = enumeration(cx, field, m.forward_client_cert_details)?;
    if details != ForwardClientCertDetails::Sanitize {
        cx.note(field, "x-forwarded-client-cert is removed");
    }
    let field = "path_with_escaped_slashes_action";
    let action: PathWithEscapedSlashesAction =
        enumeration(cx, field, m.path_with_escaped_slashes_action)?;
    match action {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault
        | PathWithEscapedSlashesAction::KeepUnchanged => Ok(()),
        _ => Err(cx.bad(field, "escaped slashes can only be kept unchanged")),
    }
}
