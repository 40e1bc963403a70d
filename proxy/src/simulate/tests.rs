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
    listener_filters: [{name: envoy.listener.http_inspector}]
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

fn decide(destination: &str, request: Option<(&str, &str)>, random: Option<u64>) -> Decision {
    decide_by(FILE, destination, request, random)
}

fn decide_by(
    file: &str,
    destination: &str,
    request: Option<(&str, &str)>,
    random: Option<u64>,
) -> Decision {
    let bootstrap = bootstrap::parse(file, "b", &Node::default()).unwrap();
    let snapshot = Store::new().publish(&bootstrap.resources, &Manager::new());
    let call = Call {
        side: Side::Outbound(None),
        destination: destination.parse().unwrap(),
        source: "10.0.0.9:1".parse().unwrap(),
        says: match request {
            Some((authority, path)) => Says::Http(Request {
                method: Method::GET,
                authority: HeaderValue::from_str(authority).unwrap(),
                path: PathAndQuery::try_from(path).unwrap(),
                headers: HeaderMap::new(),
                http2: false,
            }),
            None => Says::Bytes,
        },
        random,
    };
    simulate(&snapshot, &LocalPods::default(), &call)
}

#[test]
fn every_step_is_named() {
    let decision = decide("10.96.0.1:80", Some(("reviews", "/api/1")), Some(0));
    assert_eq!(decision.listener.as_deref(), Some("web"));
    let chain = decision.filter_chain.unwrap();
    assert_eq!((&*chain.name, &*chain.matches), ("http", "app http/1.1"));
    assert_eq!(decision.route_config.as_deref(), Some("r"));
    assert_eq!(decision.virtual_host.unwrap().domains, ["reviews"]);
    let route = decision.route.unwrap();
    assert_eq!((&*route.matches, route.timeout_ms), ("/api*", Some(15_000)));
    let [v1] = &decision.clusters[..] else {
        panic!("one was chosen: {:?}", decision.clusters);
    };
    assert_eq!((&*v1.name, v1.share), ("v1", 1.0));
    let endpoint = &v1.endpoints[0];
    assert_eq!(
        (endpoint.address.to_string().as_str(), endpoint.share),
        ("10.0.0.1:80", 100.0)
    );
    assert_eq!(decision.answer.outcome, Outcome::Forwarded);
}

#[test]
fn without_a_random_number_every_cluster_is_told() {
    let decision = decide("10.96.0.1:80", Some(("reviews", "/api/1")), None);
    let told = decision.clusters.iter();
    let told: Vec<_> = told
        .map(|c| (&*c.name, c.share, c.answer.outcome))
        .collect();
    let (forwarded, none) = (Outcome::Forwarded, Outcome::NoEndpoint);
    assert_eq!(told, [("v1", 1.0, forwarded), ("v2", 99.0, none)]);
}

#[test]
fn it_ends_where_the_data_path_would() {
    let web = "10.96.0.1:80";
    let (none, unhealthy) = (None, Some("UH"));
    let cases = [
        (
            "10.96.0.2:80",
            Some(("reviews", "/api")),
            0,
            Outcome::NoListener,
            None,
            none,
        ),
        (
            web,
            Some(("nosuch", "/api")),
            0,
            Outcome::NoVirtualHost,
            Some(404),
            Some("NR"),
        ),
        (
            web,
            Some(("reviews", "/nosuch")),
            0,
            Outcome::NoRoute,
            Some(404),
            Some("NR"),
        ),
        (
            web,
            Some(("reviews", "/old")),
            0,
            Outcome::Redirected,
            Some(301),
            none,
        ),
        (
            web,
            Some(("reviews", "/api")),
            1,
            Outcome::NoEndpoint,
            Some(503),
            unhealthy,
        ),
        (
            web,
            Some(("not a host", "/api")),
            0,
            Outcome::Refused,
            Some(400),
            Some("DPE"),
        ),
        (web, None, 0, Outcome::NoEndpoint, None, unhealthy),
    ];
    for (destination, request, random, outcome, status, flags) in cases {
        let answer = decide(destination, request, Some(random)).answer;
        let got = (answer.outcome, answer.status, answer.flags.as_deref());
        assert_eq!(got, (outcome, status, flags), "{request:?}");
    }
}

/// The data path looks at a client's bytes only where a chain asks for them and an inspector runs.
#[test]
fn a_chain_by_protocol_is_taken_only_where_an_inspector_tells_the_protocol() {
    let inspector = "    listener_filters: [{name: envoy.listener.http_inspector}]\n";
    let uninspected = FILE.replace(inspector, "");
    for (file, chain) in [(FILE, "http"), (&*uninspected, "default")] {
        let decision = decide_by(file, "10.96.0.1:80", Some(("reviews", "/api")), None);
        assert_eq!(decision.filter_chain.unwrap().name, chain);
    }
}
