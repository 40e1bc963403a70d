use super::*;
use crate::proto::envoy::config::core::v3::{Metadata, address, socket_address};
use crate::proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use crate::proto::google::protobuf::{BoolValue, Struct};
use crate::proto::nds::NameInfo;
use crate::proto::{Bootstrap, Cluster, Listener, NameTable, RouteConfiguration};
use serde_json::json;

const BOOTSTRAP: &str = r#"
admin:
  address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }
node: { id: test, metadata: { A: [1, two, null] } }
static_resources:
  listeners:
  - name: listener_0
    address: { socket_address: { address: 0.0.0.0, port_value: 10000 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress_http
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: local_route
            virtual_hosts:
            - name: local_service
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route: { host_rewrite_literal: www.example.com, cluster: service, timeout: 1.5s }
  clusters:
  - name: service
    connect_timeout: 0.25s
    type: STATIC
    load_assignment:
      cluster_name: service
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.3, port_value: 80 } } }
"#;

fn error_of<M: Message + Name + Default + std::fmt::Debug>(value: &Value) -> String {
    from_value::<M>(value).unwrap_err().to_string()
}

#[test]
fn static_bootstrap_is_read_and_written_back() {
    let bootstrap: Bootstrap = from_yaml(BOOTSTRAP).unwrap();
    let listener = &bootstrap.static_resources.as_ref().unwrap().listeners[0];
    let Some(address::Address::SocketAddress(socket)) =
        listener.address.as_ref().and_then(|a| a.address.as_ref())
    else {
        panic!("no socket address");
    };
    assert_eq!(socket.address, "0.0.0.0");
    assert_eq!(
        socket.port_specifier,
        Some(socket_address::PortSpecifier::PortValue(10000))
    );

    let value = to_value(&bootstrap).unwrap();
    let hcm = &value["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(
        hcm["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"],
        "1.500s"
    );
    assert_eq!(from_value::<Bootstrap>(&value).unwrap(), bootstrap);
}

#[test]
fn json_is_canonical() {
    let route = RouteConfiguration {
        name: "9080".into(),
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    };
    let text = to_value(&route).unwrap().to_string();
    assert_eq!(text, r#"{"name":"9080","validate_clusters":false}"#);
}

#[test]
fn maps_are_sorted_and_name_tables_have_json() {
    let mut table = NameTable::default();
    for host in ["b", "a"] {
        let info = NameInfo {
            ips: vec!["10.0.0.1".into()],
            ..Default::default()
        };
        table.table.insert(host.into(), info);
    }
    let any = proto::pack(&table);
    assert_eq!(
        any_to_value(&any).unwrap().to_string(),
        r#"{"@type":"type.googleapis.com/istio.networking.nds.v1.NameTable","table":{"a":{"ips":["10.0.0.1"]},"b":{"ips":["10.0.0.1"]}}}"#
    );
    // The order of a map's entries on the wire is not defined, so the messages are compared.
    let back = any_from_value(&any_to_value(&any).unwrap()).unwrap();
    assert_eq!(proto::unpack::<NameTable>(&back).unwrap(), table);
}

#[test]
fn unknown_field_is_named_by_its_path() {
    let value = json!({"static_resources": {"listeners": [{"name": "a"}, {"nam": "b"}]}});
    assert_eq!(
        error_of::<Bootstrap>(&value),
        "static_resources.listeners[1].nam: envoy.config.listener.v3.Listener has no field of this name"
    );
}

#[test]
fn unknown_field_inside_any_is_named_by_its_path() {
    let value = json!({"filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "x", "weighted_clusters": {"clusters": [{"name": "a", "wait": 1}]}
    }}]}]});
    assert_eq!(
        error_of::<Listener>(&value),
        "filter_chains[0].filters[0].typed_config.weighted_clusters.clusters[0].wait: \
         envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight \
         has no field of this name"
    );
}

#[test]
fn bad_values_are_named_by_their_path() {
    let any = |value: Value| json!({"filter_chains": [{"filters": [{"typed_config": value}]}]});
    let in_any = "filter_chains[0].filters[0].typed_config";
    for (value, path) in [
        (json!({"name": 5}), "name"),
        (json!({"address": []}), "address"),
        (json!({"filter_chains": {}}), "filter_chains"),
        (
            json!({"address": {"socket_address": {"port_value": -1}}}),
            "address.socket_address.port_value",
        ),
        (
            json!({"metadata": {"filter_metadata": {"istio": 3}}}),
            "metadata.filter_metadata[\"istio\"]",
        ),
        (
            json!({"traffic_direction": "SIDEWAYS"}),
            "traffic_direction",
        ),
        (
            json!({"listener_filters_timeout": "soon"}),
            "listener_filters_timeout",
        ),
        (
            json!({"address": {"socket_address": {}, "pipe": {}}}),
            "address.socket_address",
        ),
        (any(json!({"x": 1})), in_any),
        (
            any(json!({"@type": "example.com/No"})),
            &format!("{in_any}.@type"),
        ),
    ] {
        let error = error_of::<Listener>(&value);
        assert!(error.starts_with(&format!("{path}: ")), "{value}: {error}");
    }
}

#[test]
fn malformed_yaml_says_where() {
    let error = from_yaml::<Bootstrap>("admin: {\n  x: [").unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("line"), "{cause}");
}

#[test]
fn any_of_an_unknown_type_is_an_error_not_a_panic() {
    let any = Any {
        type_url: "type.googleapis.com/example.No".into(),
        value: vec![1, 2, 3],
    };
    let error = any_to_value(&any).unwrap_err().to_string();
    assert!(error.contains("example.No"), "{error}");
}

#[test]
fn both_spellings_of_field_names_are_read() {
    let snake: Cluster = from_value(&json!({"connect_timeout": "1s"})).unwrap();
    let camel: Cluster = from_value(&json!({"connectTimeout": "1s"})).unwrap();
    assert_eq!(snake, camel);
}

#[test]
fn tcp_proxy_and_metadata_round_trip() {
    let metadata = Metadata {
        filter_metadata: [("istio".to_owned(), Struct::default())].into(),
        ..Default::default()
    };
    let value = to_value(&metadata).unwrap();
    assert_eq!(from_value::<Metadata>(&value).unwrap(), metadata);
    let tcp = TcpProxy {
        stat_prefix: "PassthroughCluster".into(),
        ..Default::default()
    };
    assert_eq!(
        from_value::<TcpProxy>(&to_value(&tcp).unwrap()).unwrap(),
        tcp
    );
}
