//! Lists the fields that a resource sets and conversion does not read.
//!
//! Conversion itself refuses or notes what it looks at; everything else that is set would go
//! unseen. So every field of every message that conversion enters is held against the table
//! below, and what is not in it is noted.

use millrace_xds::{FieldVisitor, visit_fields};

use super::{Cx, Segment};

/// Notes the unread fields of an encoded message.
pub(super) fn unread_fields(cx: &mut Cx, type_url: &str, bytes: &[u8]) {
    let full_name = millrace_xds::proto::message_name(type_url);
    visit_fields(full_name, bytes, &mut Audit { cx });
}

struct Audit<'a> {
    cx: &'a mut Cx,
}

impl FieldVisitor for Audit<'_> {
    fn enter(&mut self, message: &str, field: &str, element: bool) -> bool {
        let Some(fields) = fields_of(message) else {
            // A message that is read as a whole.
            return false;
        };
        if !fields.split_ascii_whitespace().any(|known| known == field) {
            self.cx.note(field, "is not supported and has no effect");
            return false;
        }
        self.cx.path.push(Segment::Field(field.to_owned()));
        if element {
            self.cx.path.push(Segment::Index(0));
        }
        true
    }

    fn leave(&mut self) {
        if let Some(Segment::Index(_)) = self.cx.path.pop() {
            self.cx.path.pop();
        }
    }

    fn unknown(&mut self, message: &str, number: u32) {
        if fields_of(message).is_some() {
            let field = format!("(field {number})");
            self.cx.note(&field, "is not known to this version");
        }
    }
}

fn fields_of(message: &str) -> Option<&'static str> {
    let name = message.strip_prefix("envoy.").unwrap_or(message);
    READ.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, fields)| *fields)
}

/// Fields that conversion reads or notes by itself, and those whose absence cannot be noticed:
/// names of statistics, metadata, hints to Envoy's memory and socket management.
const READ: &[(&str, &str)] = &[
    (
        "config.listener.v3.Listener",
        "name address stat_prefix filter_chains use_original_dst default_filter_chain metadata \
         deprecated_v1 drain_type listener_filters listener_filters_timeout \
         continue_on_listener_filters_timeout transparent freebind traffic_direction \
         connection_balance_config reuse_port enable_reuse_port access_log tcp_backlog_size \
         bind_to_port max_connections_to_accept_per_socket_event ignore_global_conn_limit \
         bypass_overload_manager",
    ),
    (
        "config.listener.v3.FilterChain",
        "filter_chain_match filters use_proxy_proto metadata transport_socket \
         transport_socket_connect_timeout name",
    ),
    ("config.listener.v3.Filter", "name typed_config"),
    (
        "config.listener.v3.ListenerFilter",
        "name typed_config filter_disabled",
    ),
    (
        "extensions.filters.listener.tls_inspector.v3.TlsInspector",
        "",
    ),
    (
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type stat_prefix rds route_config http_filters common_http_protocol_options \
         http_protocol_options http2_protocol_options server_name server_header_transformation \
         max_request_headers_kb stream_idle_timeout request_timeout request_headers_timeout \
         access_log use_remote_address xff_num_trusted_hops generate_request_id \
         preserve_external_request_id forward_client_cert_details upgrade_configs normalize_path \
         merge_slashes path_with_escaped_slashes_action strip_matching_host_port \
         strip_any_host_port",
    ),
    (
        "extensions.filters.network.http_connection_manager.v3.Rds",
        "config_source route_config_name",
    ),
    (
        "extensions.filters.network.http_connection_manager.v3.HttpFilter",
        "name typed_config is_optional disabled",
    ),
    (
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        "upgrade_type filters enabled",
    ),
    ("extensions.filters.http.router.v3.Router", ""),
    (
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts",
    ),
    (
        "extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        "name weight",
    ),
    (
        "config.core.v3.HttpProtocolOptions",
        "idle_timeout max_connection_duration max_headers_count max_requests_per_connection",
    ),
    (
        "config.core.v3.Http1ProtocolOptions",
        "allow_absolute_url use_balsa_parser",
    ),
    (
        "config.core.v3.Http2ProtocolOptions",
        "max_concurrent_streams",
    ),
    ("config.accesslog.v3.AccessLog", "name filter typed_config"),
    (
        "extensions.access_loggers.file.v3.FileAccessLog",
        "path format json_format typed_json_format log_format",
    ),
    (
        "extensions.access_loggers.stream.v3.StdoutAccessLog",
        "log_format",
    ),
    (
        "extensions.access_loggers.stream.v3.StderrAccessLog",
        "log_format",
    ),
    (
        "config.core.v3.SubstitutionFormatString",
        "text_format json_format text_format_source content_type",
    ),
    (
        "config.route.v3.RouteConfiguration",
        "name virtual_hosts request_headers_to_add request_headers_to_remove \
         response_headers_to_add response_headers_to_remove validate_clusters \
         max_direct_response_body_size_bytes ignore_port_in_host_matching metadata",
    ),
    (
        "config.route.v3.VirtualHost",
        "name domains routes require_tls request_headers_to_add request_headers_to_remove \
         response_headers_to_add response_headers_to_remove include_request_attempt_count \
         retry_policy metadata",
    ),
    (
        "config.route.v3.Route",
        "name match route redirect direct_response metadata decorator request_headers_to_add \
         request_headers_to_remove response_headers_to_add response_headers_to_remove stat_prefix",
    ),
    (
        "config.route.v3.RouteMatch",
        "prefix path safe_regex connect_matcher path_separated_prefix case_sensitive \
         runtime_fraction headers query_parameters grpc tls_context",
    ),
    ("config.route.v3.RouteMatch.ConnectMatcher", ""),
    ("config.route.v3.Decorator", "operation"),
    (
        "config.route.v3.RouteAction",
        "cluster cluster_header weighted_clusters cluster_not_found_response_code prefix_rewrite \
         regex_rewrite host_rewrite_literal auto_host_rewrite host_rewrite_header timeout \
         idle_timeout retry_policy priority upgrade_configs max_stream_duration",
    ),
    (
        "config.route.v3.RouteAction.UpgradeConfig",
        "upgrade_type enabled",
    ),
    (
        "config.route.v3.WeightedCluster",
        "clusters total_weight runtime_key_prefix header_name use_hash_policy",
    ),
    (
        "config.route.v3.WeightedCluster.ClusterWeight",
        "name weight request_headers_to_add request_headers_to_remove response_headers_to_add \
         response_headers_to_remove",
    ),
    (
        "config.route.v3.RetryPolicy",
        "retry_on num_retries per_try_timeout retry_host_predicate \
         host_selection_retry_max_attempts retriable_status_codes retry_back_off",
    ),
    (
        "config.route.v3.RedirectAction",
        "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite \
         response_code strip_query",
    ),
    ("config.route.v3.DirectResponseAction", "status body"),
    (
        "config.cluster.v3.Cluster",
        "transport_socket_matches name alt_stat_name type eds_cluster_config connect_timeout \
         lb_policy load_assignment max_requests_per_connection circuit_breakers \
         common_http_protocol_options http_protocol_options http2_protocol_options \
         typed_extension_protocol_options dns_refresh_rate respect_dns_ttl dns_lookup_family \
         wait_for_warm_on_init upstream_bind_config least_request_lb_config common_lb_config \
         transport_socket metadata protocol_selection upstream_connection_options \
         load_balancing_policy cleanup_interval",
    ),
    (
        "config.cluster.v3.Cluster.EdsClusterConfig",
        "eds_config service_name",
    ),
    (
        "config.cluster.v3.Cluster.LeastRequestLbConfig",
        "choice_count",
    ),
    (
        "config.cluster.v3.Cluster.CommonLbConfig",
        "healthy_panic_threshold locality_weighted_lb_config update_merge_window",
    ),
    ("config.cluster.v3.CircuitBreakers", "thresholds"),
    (
        "config.cluster.v3.CircuitBreakers.Thresholds",
        "priority max_connections max_pending_requests max_requests max_retries track_remaining",
    ),
    (
        "config.cluster.v3.UpstreamConnectionOptions",
        "tcp_keepalive",
    ),
    (
        "config.core.v3.BindConfig",
        "source_address extra_source_addresses",
    ),
    ("config.core.v3.ExtraSourceAddress", "address"),
    ("config.cluster.v3.LoadBalancingPolicy", "policies"),
    (
        "config.cluster.v3.LoadBalancingPolicy.Policy",
        "typed_extension_config",
    ),
    ("config.core.v3.TypedExtensionConfig", "name typed_config"),
    (
        "extensions.load_balancing_policies.least_request.v3.LeastRequest",
        "choice_count",
    ),
    (
        "extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        "",
    ),
    (
        "extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
        "endpoint_picking_policy",
    ),
    (
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options explicit_http_config use_downstream_protocol_config \
         auto_config",
    ),
    (
        "extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        "http_protocol_options http2_protocol_options",
    ),
    (
        "extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        "http_protocol_options http2_protocol_options",
    ),
    (
        "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name endpoints policy",
    ),
    (
        "config.endpoint.v3.ClusterLoadAssignment.Policy",
        "overprovisioning_factor",
    ),
    (
        "config.endpoint.v3.LocalityLbEndpoints",
        "locality metadata lb_endpoints load_balancing_weight priority",
    ),
    (
        "config.endpoint.v3.LbEndpoint",
        "endpoint health_status metadata load_balancing_weight",
    ),
    (
        "config.endpoint.v3.Endpoint",
        "address hostname observability_name",
    ),
];
