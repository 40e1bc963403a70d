//! What Envoy 1.6 took for a document of its REST v1 API: the fields of each object, their types, which must be there.
//! Like its own schemas these know every field, so that one too many is an error.

use serde_json::Value;

/// The fields of an object.
pub(super) struct Shape(&'static [Field]);

type Field = (&'static str, Need, Type);

#[derive(PartialEq)]
pub(super) enum Need {
    Must,
    May,
}

pub(super) enum Type {
    Text,
    Flag,
    Any,
    /// A number from here on.
    From(u64),
    OneOf(&'static [&'static str]),
    Of(&'static Shape),
    Texts,
    /// A list with at least so many.
    List(usize, &'static Shape),
    /// A network filter's configuration, by the filter's name.
    ByName,
}

use Need::{May, Must};
use Type::{Any, ByName, Flag, From, List, Of, OneOf, Text, Texts};

pub(super) const LISTENERS: Shape = Shape(&[("listeners", Must, List(0, &LISTENER))]);

const LISTENER: Shape = Shape(&[
    ("name", May, Text),
    ("address", Must, Text),
    ("filters", Must, List(0, &NETWORK_FILTER)),
    ("drain_type", May, OneOf(&["default", "modify_only"])),
    ("bind_to_port", May, Flag),
    ("use_proxy_proto", May, Flag),
    ("use_original_dst", May, Flag),
    ("per_connection_buffer_limit_bytes", May, From(1)),
]);

const NETWORK_FILTER: Shape = Shape(&[
    ("type", May, OneOf(&["read", "write", "both"])),
    ("name", Must, Text),
    ("config", Must, ByName),
]);

const HTTP_CONNECTION_MANAGER: Shape = Shape(&[
    ("codec_type", Must, OneOf(&["http1", "http2", "auto"])),
    ("stat_prefix", Must, Text),
    ("rds", May, Of(&RDS)),
    ("route_config", May, Of(&ROUTE_CONFIG)),
    ("filters", Must, List(1, &HTTP_FILTER)),
    ("add_user_agent", May, Flag),
    ("tracing", May, Of(&TRACING)),
    ("access_log", May, List(0, &ACCESS_LOG)),
    ("use_remote_address", May, Flag),
    ("generate_request_id", May, Flag),
]);

const RDS: Shape = Shape(&[
    ("cluster", Must, Text),
    ("route_config_name", Must, Text),
    ("refresh_delay_ms", May, From(1)),
]);

const TRACING: Shape = Shape(&[
    ("operation_name", Must, OneOf(&["ingress", "egress"])),
    ("request_headers_for_tags", May, Texts),
]);

const HTTP_FILTER: Shape = Shape(&[
    ("type", May, OneOf(&["encoder", "decoder", "both"])),
    ("name", Must, Text),
    ("config", Must, Any),
]);

const ACCESS_LOG: Shape = Shape(&[("path", Must, Text), ("format", May, Text)]);

const TCP_PROXY: Shape = Shape(&[
    ("stat_prefix", Must, Text),
    ("route_config", Must, Of(&TCP_ROUTES)),
    ("access_log", May, List(0, &ACCESS_LOG)),
]);

const TCP_ROUTES: Shape = Shape(&[("routes", May, List(0, &TCP_ROUTE))]);

const TCP_ROUTE: Shape = Shape(&[
    ("cluster", Must, Text),
    ("source_ip_list", May, Texts),
    ("source_ports", May, Text),
    ("destination_ip_list", May, Texts),
    ("destination_ports", May, Text),
]);

pub(super) const ROUTE_CONFIG: Shape = Shape(&[
    ("validate_clusters", May, Flag),
    ("virtual_hosts", Must, List(0, &VIRTUAL_HOST)),
    ("request_headers_to_add", May, List(1, &HEADER_TO_ADD)),
]);

const VIRTUAL_HOST: Shape = Shape(&[
    ("name", Must, Text),
    ("domains", Must, Texts),
    ("routes", Must, List(0, &ROUTE)),
    ("request_headers_to_add", May, List(1, &HEADER_TO_ADD)),
]);

const ROUTE: Shape = Shape(&[
    ("prefix", May, Text),
    ("path", May, Text),
    ("regex", May, Text),
    ("cluster", May, Text),
    ("weighted_clusters", May, Of(&WEIGHTED_CLUSTERS)),
    ("host_redirect", May, Text),
    ("path_redirect", May, Text),
    ("prefix_rewrite", May, Text),
    ("host_rewrite", May, Text),
    ("auto_host_rewrite", May, Flag),
    ("use_websocket", May, Flag),
    ("case_sensitive", May, Flag),
    ("timeout_ms", May, From(0)),
    ("retry_policy", May, Of(&RETRY_POLICY)),
    ("headers", May, List(1, &VALUE_MATCH)),
    ("query_parameters", May, List(1, &VALUE_MATCH)),
    ("request_headers_to_add", May, List(1, &HEADER_TO_ADD)),
    ("decorator", May, Of(&DECORATOR)),
]);

const WEIGHTED_CLUSTERS: Shape = Shape(&[
    ("clusters", May, List(0, &WEIGHTED_CLUSTER)),
    ("runtime_key_prefix", May, Text),
]);

const WEIGHTED_CLUSTER: Shape = Shape(&[("name", Must, Text), ("weight", Must, From(0))]);

const RETRY_POLICY: Shape = Shape(&[
    ("per_try_timeout_ms", May, From(1)),
    ("num_retries", May, From(0)),
    ("retry_on", Must, Text),
]);

const VALUE_MATCH: Shape = Shape(&[
    ("name", Must, Text),
    ("value", May, Text),
    ("regex", May, Flag),
]);

const HEADER_TO_ADD: Shape = Shape(&[("key", Must, Text), ("value", Must, Text)]);

const DECORATOR: Shape = Shape(&[("operation", Must, Text)]);

pub(super) const CLUSTERS: Shape = Shape(&[("clusters", Must, List(0, &CLUSTER))]);

const CLUSTER: Shape = Shape(&[
    ("name", Must, Text),
    (
        "type",
        Must,
        OneOf(&["static", "strict_dns", "logical_dns", "sds", "original_dst"]),
    ),
    ("connect_timeout_ms", Must, From(1)),
    (
        "lb_type",
        Must,
        OneOf(&[
            "round_robin",
            "least_request",
            "random",
            "ring_hash",
            "original_dst_lb",
        ]),
    ),
    ("hosts", May, List(1, &HOST_URL)),
    ("service_name", May, Text),
    ("max_requests_per_connection", May, From(1)),
    ("circuit_breakers", May, Of(&CIRCUIT_BREAKERS)),
    ("features", May, OneOf(&["http2"])),
    ("outlier_detection", May, Of(&OUTLIER_DETECTION)),
]);

const OUTLIER_DETECTION: Shape = Shape(&[
    ("consecutive_5xx", May, From(1)),
    ("consecutive_gateway_failure", May, From(1)),
    ("interval_ms", May, From(1)),
    ("base_ejection_time_ms", May, From(1)),
    ("max_ejection_percent", May, From(0)),
    ("enforcing_consecutive_5xx", May, From(0)),
]);

const HOST_URL: Shape = Shape(&[("url", Must, Text)]);

const CIRCUIT_BREAKERS: Shape = Shape(&[("default", May, Of(&LIMITS)), ("high", May, Of(&LIMITS))]);

const LIMITS: Shape = Shape(&[
    ("max_connections", May, From(0)),
    ("max_pending_requests", May, From(0)),
    ("max_requests", May, From(0)),
    ("max_retries", May, From(0)),
]);

pub(super) const HOSTS: Shape = Shape(&[("hosts", Must, List(0, &HOST))]);

const HOST: Shape = Shape(&[
    ("ip_address", Must, Text),
    ("port", Must, From(0)),
    ("tags", May, Of(&TAGS)),
]);

const TAGS: Shape = Shape(&[
    ("az", May, Text),
    ("canary", May, Flag),
    ("load_balancing_weight", May, From(1)),
]);

/// What Envoy would have refused a document for.
pub(super) fn check(shape: &Shape, document: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    object(shape, document, "", &mut wrong);
    wrong
}

fn object(shape: &Shape, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let Some(fields) = value.as_object() else {
        wrong.push(format!("{at}: is no object"));
        return;
    };
    for (name, need, _) in shape.0 {
        if *need == Must && !fields.contains_key(*name) {
            wrong.push(format!("{at}: has no {name}"));
        }
    }
    for (name, value) in fields {
        let at = format!("{at}.{name}");
        match shape.0.iter().find(|(known, ..)| known == name) {
            None => wrong.push(format!("{at}: is no field")),
            Some((.., ByName)) => {
                let shape = match fields.get("name").and_then(Value::as_str) {
                    Some("http_connection_manager") => &HTTP_CONNECTION_MANAGER,
                    Some("tcp_proxy") => &TCP_PROXY,
                    other => return wrong.push(format!("{at}: of the filter {other:?}")),
                };
                object(shape, value, &at, wrong);
            }
            Some((.., kind)) => typed(kind, value, &at, wrong),
        }
    }
}

fn typed(kind: &Type, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let fits = match kind {
        Text => value.is_string(),
        Flag => value.is_boolean(),
        Any | ByName => value.is_object(),
        From(least) => value.as_u64().is_some_and(|number| number >= *least),
        OneOf(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
        Of(shape) => return object(shape, value, at, wrong),
        Texts => value
            .as_array()
            .is_some_and(|items| items.iter().all(Value::is_string)),
        List(least, shape) => {
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            for (number, item) in items.iter().enumerate() {
                object(shape, item, &format!("{at}[{number}]"), wrong);
            }
            value.is_array() && items.len() >= *least
        }
    };
    if !fits {
        wrong.push(format!("{at}: {value}"));
    }
}

#[test]
fn a_document_of_another_schema_is_noticed() {
    let wrong = |shape: &Shape, document: Value| check(shape, &document).join("; ");
    let host = serde_json::json!({ "hosts": [{ "ip_address": 1, "zone": "a" }] });
    let found = wrong(&HOSTS, host);
    for expected in [
        ".hosts[0]: has no port",
        ".hosts[0].ip_address: 1",
        ".hosts[0].zone: is no field",
    ] {
        assert!(found.contains(expected), "{found}");
    }
    let cluster = serde_json::json!({ "clusters": [{
        "name": "a", "type": "eds", "connect_timeout_ms": 0, "lb_type": "random", "hosts": [],
    }] });
    let found = wrong(&CLUSTERS, cluster);
    for expected in [".type: \"eds\"", ".connect_timeout_ms: 0", ".hosts: []"] {
        assert!(found.contains(expected), "{found}");
    }
}
