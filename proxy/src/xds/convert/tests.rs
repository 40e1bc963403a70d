use millrace_xds::json::from_yaml;
use millrace_xds::proto::{self, pack};
use proptest::prelude::*;

use super::*;
use crate::resource::{
    Action, ClusterKind, ClusterSpecifier, HealthStatus, LbPolicy, NetworkFilter, PathMatcher,
    RouteSource, UpstreamProtocol,
};

mod refused;
mod unsupported;

fn packed<M: Default>(message: Result<M, millrace_xds::json::JsonError>, yaml: &str) -> M {
    message.unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn listener_bytes(yaml: &str) -> Vec<u8> {
    pack::<proto::Listener>(&packed(from_yaml(yaml), yaml)).value
}

fn listener_of(yaml: &str) -> Result<Converted<Listener>, Invalid> {
    listener(&listener_bytes(yaml))
}

fn routes_of(yaml: &str) -> Result<Converted<RouteConfiguration>, Invalid> {
    let message = packed(from_yaml(yaml), yaml);
    route_configuration(&pack::<proto::RouteConfiguration>(&message).value)
}

fn cluster_of(yaml: &str) -> Result<Converted<Cluster>, Invalid> {
    let message = packed(from_yaml(yaml), yaml);
    cluster(&pack::<proto::Cluster>(&message).value, true)
}

fn endpoints_of(yaml: &str) -> Result<Converted<Endpoints>, Invalid> {
    let message = packed(from_yaml(yaml), yaml);
    endpoints(&pack::<proto::ClusterLoadAssignment>(&message).value)
}

const LISTENER: &str = r#"
name: default/0.0.0.0_9080
address: {socket_address: {address: 0.0.0.0, port_value: 9080}}
bind_to_port: false
traffic_direction: OUTBOUND
listener_filters:
- name: envoy.filters.listener.http_inspector
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector
filter_chains:
- name: http
  filter_chain_match: {application_protocols: [http/1.1, h2c]}
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: outbound_0.0.0.0_9080
      rds: {config_source: {ads: {}}, route_config_name: default/9080}
      upgrade_configs: [{upgrade_type: websocket}]
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
default_filter_chain:
  name: tcp
  filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: t
      cluster: PassthroughCluster
"#;

#[test]
fn a_listener_keeps_its_chains_and_defaults() {
    let converted = listener_of(LISTENER).unwrap();
    assert_eq!(converted.unsupported, []);
    let listener = converted.value;
    assert!(listener.http_inspector && !listener.tls_inspector && !listener.bind_to_port);
    let NetworkFilter::Http(hcm) = &listener.filter_chains[0].filter else {
        panic!("not HTTP");
    };
    assert!(matches!(&hcm.routes, RouteSource::Rds(name) if name.as_str() == "default/9080"));
    assert_eq!(hcm.upgrades, ["websocket"]);
    assert_eq!(hcm.server_name.as_deref(), Some("envoy"));
    assert_eq!(
        (hcm.max_request_headers_kb, hcm.max_request_headers_count),
        (60, 100)
    );
    let chain = listener.default_filter_chain.unwrap();
    assert!(matches!(&chain.filter, NetworkFilter::Tcp(_)));
}

#[test]
fn routes_keep_conditions_weights_and_rewrites() {
    let converted = routes_of(
        r#"
name: "9080"
virtual_hosts:
- name: reviews|http
  domains: ["Reviews:9080", reviews]
  routes:
  - match: {prefix: /api, headers: [{name: end-user, string_match: {exact: jason}}]}
    route:
      weighted_clusters: {clusters: [{name: a, weight: 50}, {name: b, weight: 50}]}
      timeout: 0s
      regex_rewrite: {pattern: {regex: "^/api/(.*)$"}, substitution: '/\1$'}
      retry_policy: {retry_on: "5xx,connect-failure", num_retries: 2}
  - match: {safe_regex: {regex: "/[a-z]+"}}
    direct_response: {status: 404, body: {inline_string: none}}
"#,
    )
    .unwrap();
    let host = &converted.value.virtual_hosts[0];
    assert_eq!(host.domains, ["reviews:9080", "reviews"]);
    let Action::Forward(action) = &host.routes[0].action else {
        panic!("no forward");
    };
    assert!(matches!(&action.cluster, ClusterSpecifier::Weighted(w) if w.total == 100));
    assert!(action.timeout.is_zero());
    let retry = action.retry_policy.as_ref().unwrap();
    assert_eq!(
        (retry.num_retries, retry.retriable_status_codes.len()),
        (2, 0)
    );
    let rewrite = format!("{:?}", action.path_rewrite);
    assert!(rewrite.contains("/${1}$$"), "{rewrite}");
    let PathMatcher::Regex(regex) = &host.routes[1].matches.path else {
        panic!("no regex");
    };
    assert!(regex.is_match("/abc") && !regex.is_match("/abc/1"));
}

#[test]
fn clusters_speak_the_protocol_they_say_in_either_form() {
    let eds = "eds_cluster_config: {eds_config: {ads: {}}}";
    let cases = [
        ("", UpstreamProtocol::Http1),
        ("http2_protocol_options: {}", UpstreamProtocol::Http2),
        (
            "protocol_selection: USE_DOWNSTREAM_PROTOCOL",
            UpstreamProtocol::UseDownstream,
        ),
        (
            r#"
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 7}}"#,
            UpstreamProtocol::Http2,
        ),
    ];
    for (options, expected) in cases {
        let yaml = format!("name: c\ntype: EDS\n{eds}\n{options}\n");
        let converted = cluster_of(&yaml).unwrap();
        assert_eq!(converted.value.protocol, expected, "{options}");
        assert_eq!(converted.unsupported, [], "{options}");
        assert!(matches!(&converted.value.kind, ClusterKind::Eds(n) if n == "c"));
    }
}

#[test]
fn breakers_have_envoys_defaults_by_priority() {
    let cluster = cluster_of(
        "
name: c
type: ORIGINAL_DST
lb_policy: CLUSTER_PROVIDED
circuit_breakers:
  thresholds:
  - {max_connections: 7}
  - {priority: HIGH, max_retries: 9}
",
    )
    .unwrap()
    .value;
    assert_eq!(cluster.default_thresholds.max_connections, 7);
    assert_eq!(cluster.default_thresholds.max_retries, 3);
    assert_eq!(cluster.high_thresholds.max_connections, 1024);
    assert_eq!(cluster.high_thresholds.max_retries, 9);
    assert_eq!(cluster.lb_policy, LbPolicy::ClusterProvided);
}

#[test]
fn endpoints_keep_health_metadata_and_order_of_priority() {
    let converted = endpoints_of(
        r#"
cluster_name: c
endpoints:
- priority: 1
  lb_endpoints:
  - endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}
    health_status: DRAINING
- locality: {region: r, zone: z}
  lb_endpoints:
  - endpoint: {address: {socket_address: {address: "::ffff:10.0.0.1", port_value: 80}}}
    load_balancing_weight: 3
    metadata:
      filter_metadata:
        envoy.lb: {canary: true}
        istio: {workload: "reviews-v1;default;reviews;v1;Kubernetes"}
"#,
    )
    .unwrap();
    assert_eq!(converted.unsupported, []);
    let found: Vec<_> = converted.value.iter().collect();
    let (locality, endpoint) = found[0];
    assert_eq!((locality.weight, endpoint.weight), (3, 3));
    assert_eq!(endpoint.address.to_string(), "10.0.0.1:80");
    assert!(endpoint.canary);
    let workload = endpoint.workload.as_ref().unwrap();
    assert_eq!(&*workload.canonical_revision, "v1");
    assert_eq!(found[1].1.health, HealthStatus::Draining);
}

#[test]
fn a_cluster_keeps_one_source_address_of_each_family() {
    let converted = cluster_of(
        r#"
name: inbound|9080||
type: ORIGINAL_DST
lb_policy: CLUSTER_PROVIDED
upstream_bind_config:
  source_address: {address: 127.0.0.6, port_value: 0}
  extra_source_addresses:
  - address: {address: "::6", port_value: 0}
  - address: {address: "::7", port_value: 0}
"#,
    )
    .unwrap();
    assert_eq!(converted.unsupported, []);
    let towards = |ip: &str| {
        let source = converted.value.bind_source.towards(ip.parse().unwrap());
        source.map(|s| s.to_string())
    };
    assert_eq!(towards("10.1.0.7").as_deref(), Some("127.0.0.6:0"));
    assert_eq!(towards("fd00::7").as_deref(), Some("[::6]:0"));
}

proptest! {
    #[test]
    fn any_bytes_convert_or_are_refused(bytes: Vec<u8>) {
        convert_all(&bytes);
    }

    #[test]
    fn damaged_messages_convert_or_are_refused(
        at: prop::sample::Index,
        byte: u8,
        cut: prop::sample::Index,
    ) {
        let mut message = listener_bytes(LISTENER);
        let at = at.index(message.len());
        message[at] = byte;
        convert_all(&message);
        message.truncate(cut.index(message.len()));
        convert_all(&message);
    }
}

fn convert_all(bytes: &[u8]) {
    drop(listener(bytes));
    drop(route_configuration(bytes));
    drop(cluster(bytes, true));
    drop(endpoints(bytes));
    drop(name_table(bytes));
}
