//! Network filters: the HTTP connection manager, the TCP proxy, and their access logs.

use std::time::Duration;

use millrace_xds::proto::envoy::config::accesslog::v3 as accesslog;
use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3 as listener;
use millrace_xds::proto::envoy::extensions::access_loggers::file::v3 as file;
use millrace_xds::proto::envoy::extensions::filters::http::router::v3::Router;
use millrace_xds::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use millrace_xds::proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use millrace_xds::proto::envoy::r#type::v3::Percent;
use millrace_xds::proto::google::protobuf as google;
use millrace_xds::proto::{Any, RouteConfiguration, pack};

use super::wrap::{ads, duration, text, truth};
use super::{Translator, canonical, hash};
use crate::model::mesh::{AccessLog, AccessLogFormat, MeshConfig};

/// A client has this long for a request's headers.
const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Where an HTTP connection manager's routes come from.
pub(super) enum Routes {
    /// By name, over RDS.
    Rds(String),
    /// Given with the listener.
    Inline(Box<RouteConfiguration>),
}

/// The HTTP connection manager with these filters before the router, as a network filter.
pub(super) fn http(
    translator: &Translator<'_>,
    stat_prefix: &str,
    routes: Routes,
    filters: Vec<hcm::HttpFilter>,
) -> listener::Filter {
    filter(
        "envoy.filters.network.http_connection_manager",
        manager(translator, stat_prefix, routes, filters),
    )
}

/// The HTTP connection manager itself.
pub(super) fn manager(
    translator: &Translator<'_>,
    stat_prefix: &str,
    routes: Routes,
    mut filters: Vec<hcm::HttpFilter>,
) -> Any {
    let mesh = &*translator.snapshot.mesh;
    filters.push(hcm::HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(
            &Router::default(),
        ))),
        ..Default::default()
    });
    let manager = hcm::HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(match routes {
            Routes::Rds(name) => hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
                config_source: ads(),
                route_config_name: name,
            }),
            Routes::Inline(routes) => {
                hcm::http_connection_manager::RouteSpecifier::RouteConfig(*routes)
            }
        }),
        http_filters: filters,
        // Applications and their clients speak to each other as if nothing were between them.
        use_remote_address: truth(false),
        normalize_path: truth(true),
        request_headers_timeout: duration(REQUEST_HEADERS_TIMEOUT),
        upgrade_configs: vec![hcm::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        tracing: mesh.tracing_percent.map(tracing),
        access_log: access_log(mesh),
        ..Default::default()
    };
    pack(&manager)
}

/// A TCP proxy to clusters by weight, as a network filter.
pub(super) fn tcp(
    translator: &Translator<'_>,
    stat_prefix: &str,
    clusters: &[(String, u32)],
    idle_timeout: Option<Duration>,
) -> listener::Filter {
    use tcp::tcp_proxy::weighted_cluster::ClusterWeight;
    use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster};

    let cluster_specifier = match clusters {
        [(only, _)] => ClusterSpecifier::Cluster(only.clone()),
        several => {
            let weights = several.iter().map(|(name, weight)| ClusterWeight {
                name: name.clone(),
                weight: *weight,
                ..Default::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: weights.collect(),
            })
        }
    };
    let proxy = tcp::TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(cluster_specifier),
        idle_timeout: idle_timeout.and_then(duration),
        hash_policy: hash::of_connections(
            translator,
            clusters.iter().map(|(name, _)| name.as_str()),
        ),
        access_log: access_log(&translator.snapshot.mesh),
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", pack(&proxy))
}

/// A filter with its configuration.
fn filter(name: &str, config: Any) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    }
}

fn tracing(sampled: f64) -> hcm::http_connection_manager::Tracing {
    let percent = |value| Some(Percent { value });
    hcm::http_connection_manager::Tracing {
        client_sampling: percent(100.0),
        random_sampling: percent(sampled),
        overall_sampling: percent(100.0),
        ..Default::default()
    }
}

/// Istio's default line.
const TEXT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Istio's default fields.
const JSON_FIELDS: [(&str, &str); 23] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("route_name", "%ROUTE_NAME%"),
];

fn access_log(mesh: &MeshConfig) -> Vec<accesslog::AccessLog> {
    let log = mesh.access_log.as_ref().map(|log| accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(file_log(
            log,
        ))),
        ..Default::default()
    });
    log.into_iter().collect()
}

fn file_log(log: &AccessLog) -> Any {
    let default_fields = || {
        JSON_FIELDS
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    match &log.format {
        AccessLogFormat::DefaultText => text_log(&log.path, TEXT_FORMAT),
        AccessLogFormat::Text(format) => text_log(&log.path, format),
        AccessLogFormat::DefaultJson => json_log(&log.path, default_fields()),
        AccessLogFormat::Json(fields) => json_log(&log.path, fields.clone()),
    }
}

fn text_log(path: &str, format: &str) -> Any {
    use core::substitution_format_string::Format;
    let source = core::data_source::Specifier::InlineString(format.to_owned());
    pack(&file::FileAccessLog {
        path: path.to_owned(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(
            core::SubstitutionFormatString {
                format: Some(Format::TextFormatSource(core::DataSource {
                    specifier: Some(source),
                    ..Default::default()
                })),
                ..Default::default()
            },
        )),
    })
}

/// `FileAccessLog.log_format` and `SubstitutionFormatString.json_format`.
const LOG_FORMAT_TAG: u64 = 5;
const JSON_FORMAT_TAG: u64 = 2;

fn json_log(path: &str, fields: Vec<(String, String)>) -> Any {
    let fields = google::Struct {
        fields: fields
            .into_iter()
            .map(|(key, value)| (key, text(value)))
            .collect(),
    };
    let mut format = Vec::new();
    canonical::append(&mut format, JSON_FORMAT_TAG, &canonical::structure(&fields));
    let mut any = pack(&file::FileAccessLog {
        path: path.to_owned(),
        ..Default::default()
    });
    canonical::append(&mut any.value, LOG_FORMAT_TAG, &format);
    any
}
