use super::*;
use crate::bootstrap;
use crate::cluster::Manager;
use crate::snapshot::Store;
use millrace_xds::node::Node;

const FILE: &str = r#"
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 10.96.0.1, port_value: 80}}
    filter_chains:
    - name: http
      filter_chain_match: {application_protocols: [http/1.1]}
      filters:
      - name: envoy.http_connection_manager
        config:
          stat_prefix: h
          route_config:
            name: r
            virtual_hosts:
            - name: reviews
              domains: [reviews]
              routes:
              - match: {prefix: /api}
                route: {weighted_clusters: {clusters: [{name: v1, weight: 1}, {name: v2, weight: 99}]}}
              - match: {prefix: /old}
                redirect: {path_redirect: /new}
          http_filters: [{name: envoy.router}]
    default_filter_chain:
      filters: [{name: envoy.tcp_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: v2}}]
  clusters:
  - name: v1
    connect_timeout: 1s
    hosts: [{socket_address: {address: 10.0.0.1, port_value: 80}}]
  - name: v2
    connect_timeout: 1s
    load_assignment: {}
"#;

fn decide(destination: &str, request: Option<(&str, &str)>, random: u64) -> Decision {
    let bootstrap = bootstrap::parse(FILE, "b", &Node::default()).unwrap();
    let snapshot = Store::new().publish(&bootstrap.resources, &Manager::new());
    let call = Call {
        side: Side::Outbound(None),
        destination: destination.parse().unwrap(),
        source: "10.0.0.9:1".parse().unwrap(),
        request: request.map(|(authority, path)| Request {
            method: Method::GET,
            authority: authority.into(),
            path: path.into(),
            headers: HeaderMap::new(),
        }),
        random,
    };
    simulate(&snapshot, &call)
}

#[test]
fn every_step_is_named() {
    let decision = decide("10.96.0.1:80", Some(("reviews", "/api/1")), 0);
    assert_eq!(
        decision,
        Decision {
            listener: Some("web".into()),
            filter_chain: Some("http".into()),
            route_config: Some("r".into()),
            virtual_host: Some("reviews".into()),
            route: decision.route.clone(),
            cluster: Some("v1".into()),
            endpoints: vec!["10.0.0.1:80".parse().unwrap()],
            outcome: Outcome::Forwarded,
        }
    );
}

#[test]
fn it_ends_where_the_data_path_would() {
    let web = "10.96.0.1:80";
    let cases = [
        (
            "10.96.0.2:80",
            Some(("reviews", "/api")),
            0,
            Outcome::NoListener,
        ),
        (web, Some(("nosuch", "/api")), 0, Outcome::NoVirtualHost),
        (web, Some(("reviews", "/nosuch")), 0, Outcome::NoRoute),
        (web, Some(("reviews", "/old")), 0, Outcome::Answered(301)),
        (web, Some(("reviews", "/api")), 1, Outcome::NoEndpoint),
        (web, None, 0, Outcome::NoEndpoint),
    ];
    for (destination, request, random, expected) in cases {
        let decision = decide(destination, request, random);
        assert_eq!(decision.outcome, expected, "{request:?} {decision:?}");
    }
}
