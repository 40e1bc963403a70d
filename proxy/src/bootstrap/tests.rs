use super::*;
use crate::resource::{LbPolicy, NetworkFilter, RouteSource, UpstreamProtocol};

fn node() -> Node {
    Node {
        id: "alone".into(),
        ..Node::default()
    }
}

fn read(text: &str) -> Result<Bootstrap, BootstrapError> {
    parse(text, "b.yaml", &node())
}

/// R43, as the slide has it.
pub(crate) const STATIC: &str = r#"
admin:
  access_log_path: /tmp/admin_access.log
  address:
    socket_address: { address: 127.0.0.1, port_value: 9901 }
static_resources:
  listeners:
  - name: listener_0
    address:
      socket_address: { address: 127.0.0.1, port_value: 10000 }
    filter_chains:
    - filters:
      - name: envoy.http_connection_manager
        config:
          stat_prefix: ingress_http
          codec_type: AUTO
          route_config:
            name: local_route
            virtual_hosts:
            - name: local_service
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route: { cluster: some_service }
          http_filters:
          - name: envoy.router
  clusters:
  - name: some_service
    connect_timeout: 0.25s
    type: STATIC
    lb_policy: ROUND_ROBIN
    hosts: [{ socket_address: { address: 127.0.0.2, port_value: 1234 }}]
"#;

/// R44.
const DYNAMIC: &str = r"
admin:
  access_log_path: /tmp/admin_access.log
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
dynamic_resources:
  lds_config: {api_config_source: {api_type: GRPC, cluster_names: [xds_cluster]}}
  cds_config: {api_config_source: {api_type: GRPC, cluster_names: [xds_cluster]}}
static_resources:
  clusters:
  - name: xds_cluster
    connect_timeout: 0.25s
    type: STATIC
    lb_policy: ROUND_ROBIN
    http2_protocol_options: {}
    hosts: [{socket_address: {address: 127.0.0.3, port_value: 5678}}]
";

#[test]
fn the_static_example_is_read_in_its_old_form() {
    let bootstrap = read(STATIC).unwrap();
    let admin = bootstrap.admin.unwrap();
    assert_eq!(admin.address.to_string(), "127.0.0.1:9901");
    let log = admin.access_log_path.unwrap();
    assert_eq!(log, Path::new("/tmp/admin_access.log"));
    assert!(bootstrap.server.is_none());
    assert!(
        bootstrap.unsupported.is_empty(),
        "{:?}",
        bootstrap.unsupported
    );
    let listener = &bootstrap.resources.listeners["listener_0"];
    assert_eq!(listener.address.to_string(), "127.0.0.1:10000");
    let NetworkFilter::Http(hcm) = &listener.filter_chains[0].filter else {
        panic!("not HTTP");
    };
    let RouteSource::Inline(routes) = &hcm.routes else {
        panic!("not inline");
    };
    assert_eq!(routes.virtual_hosts[0].domains, ["*"]);
    let cluster = &bootstrap.resources.clusters["some_service"];
    assert_eq!(cluster.connect_timeout.as_millis(), 250);
    assert_eq!(cluster.lb_policy, LbPolicy::RoundRobin);
    assert!(!cluster.added_via_api);
    assert_eq!(address_of(cluster).as_deref(), Some("127.0.0.2:1234"));
}

#[test]
fn the_dynamic_example_follows_its_control_plane() {
    let bootstrap = read(DYNAMIC).unwrap();
    let server = bootstrap.server.unwrap();
    assert_eq!(server.server, "http://127.0.0.3:5678");
    assert_eq!(server.node.id, "alone");
    assert_eq!(
        bootstrap.mode,
        Mode::Wildcard {
            listeners: true,
            clusters: true,
            names: false
        }
    );
    let cluster = &bootstrap.resources.clusters["xds_cluster"];
    assert_eq!(cluster.protocol, UpstreamProtocol::Http2);
    let (resource, fields) = &bootstrap.unsupported[0];
    assert_eq!(resource, "bootstrap");
    assert!(fields[0].field.contains("api_type"), "{fields:?}");
}

#[test]
fn ads_and_grpc_services_name_the_control_plane_too() {
    let ads = DYNAMIC
        .replace(
            "{api_config_source: {api_type: GRPC, cluster_names: [xds_cluster]}}",
            "{ads: {}}",
        )
        .replace(
            "dynamic_resources:",
            "node: {id: me, cluster: we, metadata: {A: b}}\ndynamic_resources:\n  ads_config: \
             {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: xds_cluster}}]}",
        );
    let server = read(&ads).unwrap().server.unwrap();
    assert_eq!(
        (server.node.id.as_str(), server.node.cluster.as_str()),
        ("me", "we")
    );
    assert_eq!(server.node.text("A"), Some("b"));
    let missing = ads.replace("cluster_name: xds_cluster", "cluster_name: nosuch");
    let error = read(&missing).unwrap_err().to_string();
    assert!(error.contains("\"nosuch\" does not exist"), "{error}");
}

#[test]
fn a_dns_cluster_is_read_in_its_old_form() {
    let dns = STATIC.replace("type: STATIC", "type: LOGICAL_DNS").replace(
        "address: 127.0.0.2, port_value: 1234",
        "address: simple, port_value: 80",
    );
    let bootstrap = read(&dns).unwrap();
    let ClusterKind::LogicalDns(hosts) = &bootstrap.resources.clusters["some_service"].kind else {
        panic!("not logical DNS");
    };
    assert_eq!(hosts.hosts, [("simple".to_owned(), 80)]);
}

#[test]
fn json_and_todays_form_are_read_alike() {
    let old = read(STATIC).unwrap();
    let json = serde_json::to_string(&old.dump).unwrap();
    let new = read(&json).unwrap();
    assert_eq!(
        format!("{:?}", old.resources),
        format!("{:?}", new.resources)
    );
    assert!(json.contains("typed_config") && json.contains("load_assignment"));
}

#[test]
fn other_old_forms_are_read() {
    let old = STATIC
        .replace(
            "connect_timeout: 0.25s",
            "connect_timeout: {seconds: 1, nanos: 500000000}",
        )
        .replace("prefix: \"/\"", "regex: \"/a.*\"")
        .replace(
            "cluster: some_service }",
            "cluster: some_service, host_rewrite: b, use_websocket: true }",
        )
        .replace(
            "stat_prefix: ingress_http",
            "stat_prefix: h\n          idle_timeout: 7s\n          access_log: \
             [{name: envoy.file_access_log, config: {path: /dev/stdout}}]",
        );
    let resources = read(&old).unwrap().resources;
    assert_eq!(
        resources.clusters["some_service"]
            .connect_timeout
            .as_millis(),
        1500
    );
    let NetworkFilter::Http(hcm) = &resources.listeners["listener_0"].filter_chains[0].filter
    else {
        panic!("not HTTP");
    };
    assert_eq!(hcm.idle_timeout.as_secs(), 7);
    assert_eq!(hcm.access_log[0].path, "/dev/stdout");
    let text = format!("{:?}", hcm.routes);
    assert!(
        text.contains("Literal(\"b\")") && text.contains("websocket"),
        "{text}"
    );
}

#[test]
fn mistakes_are_named_with_file_field_and_line() {
    let cases = [
        (
            "codec_type: AUTO",
            "codec_typ: AUTO",
            "b.yaml:",
            "codec_typ",
        ),
        (
            "codec_type: AUTO",
            "codec_type: FOO",
            "b.yaml:",
            "codec_type",
        ),
        (
            "cluster: some_service }",
            "cluster: other }",
            "b.yaml:",
            "unknown cluster \"other\"",
        ),
        (
            "- name: envoy.router",
            "- {name: my.filter, config: {}}",
            "b.yaml",
            "my.filter",
        ),
        (
            "http_filters:\n          - name: envoy.router",
            "http_filters: []",
            "b.yaml",
            "router",
        ),
        ("admin:", "admin: [", "b.yaml", "malformed YAML"),
        (
            "type: STATIC",
            "type: STATIC\n    tls_context: {}",
            "b.yaml:",
            "TLS is not supported",
        ),
        (
            "- name: some_service",
            "- {name: some_service, load_assignment: {}}\n  - name: some_service",
            "b.yaml:",
            "\"some_service\" occurs twice",
        ),
    ];
    for (from, to, place, reason) in cases {
        let error = match read(&STATIC.replace(from, to)) {
            Ok(_) => panic!("{to:?} is accepted"),
            Err(error) => error.to_string(),
        };
        assert!(
            error.starts_with(place) && error.contains(reason),
            "{to:?}: {error}"
        );
    }
    let error = read(&STATIC.replace("codec_type: AUTO", "codec_typ: AUTO")).unwrap_err();
    assert!(error.to_string().starts_with("b.yaml:16: "), "{error}");
}

#[test]
fn polling_is_refused_by_name() {
    let rest = DYNAMIC.replace("api_type: GRPC", "api_type: REST");
    let error = read(&rest).unwrap_err().to_string();
    assert!(
        error.contains("lds_config.api_config_source.api_type"),
        "{error}"
    );
    assert!(error.contains("use GRPC"), "{error}");
    let legacy = DYNAMIC.replace("api_type: GRPC", "api_type: REST_LEGACY");
    let error = read(&legacy).unwrap_err().to_string();
    assert!(error.contains("REST_LEGACY"), "{error}");
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text: String) {
        drop(read(&text));
    }

    #[test]
    fn a_cut_file_is_read_or_refused(at in 0usize..STATIC.len()) {
        drop(read(&STATIC[..at]));
    }
}
