use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Uri};
use http_body_util::BodyExt;
use serde_json::Value;

use super::*;
use crate::bootstrap;
use crate::cluster::Manager;
use crate::cluster::dns::SystemLookup;
use crate::xds::{self, Interest};
use millrace_xds::node::Node;

const FILE: &str = r#"
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
stats_flush_interval: 5s
static_resources:
  listeners:
  - name: listener_0
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    filter_chains:
    - filters:
      - name: envoy.http_connection_manager
        config:
          stat_prefix: ingress_http
          route_config:
            name: local_route
            virtual_hosts:
            - name: local_service
              domains: ["*"]
              routes:
              - match: {prefix: "/"}
                route: {weighted_clusters: {clusters: [{name: some_service, weight: 99}, {name: b, weight: 1}]}}
          http_filters: [{name: envoy.router}]
  clusters:
  - name: some_service
    connect_timeout: 0.25s
    load_assignment:
      endpoints:
      - locality: {region: r, zone: z, sub_zone: s}
        lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.2, port_value: 1234}}}
        - endpoint: {address: {socket_address: {address: "::1", port_value: 1234}}}
          health_status: UNHEALTHY
          load_balancing_weight: 7
          metadata: {filter_metadata: {envoy.lb: {canary: true}}}
  - name: b
    connect_timeout: 1s
    load_assignment: {}
    circuit_breakers: {thresholds: [{max_connections: 5}]}
"#;

/// R71, in its order.
const CLUSTERS: &str = "\
b::default_priority::max_connections::5
b::default_priority::max_pending_requests::1024
b::default_priority::max_requests::1024
b::default_priority::max_retries::3
b::high_priority::max_connections::1024
b::high_priority::max_pending_requests::1024
b::high_priority::max_requests::1024
b::high_priority::max_retries::3
b::added_via_api::false
some_service::default_priority::max_connections::1024
some_service::default_priority::max_pending_requests::1024
some_service::default_priority::max_requests::1024
some_service::default_priority::max_retries::3
some_service::high_priority::max_connections::1024
some_service::high_priority::max_pending_requests::1024
some_service::high_priority::max_requests::1024
some_service::high_priority::max_retries::3
some_service::added_via_api::false
some_service::127.0.0.2:1234::cx_active::1
some_service::127.0.0.2:1234::cx_connect_fail::0
some_service::127.0.0.2:1234::cx_total::1
some_service::127.0.0.2:1234::rq_active::1
some_service::127.0.0.2:1234::rq_error::0
some_service::127.0.0.2:1234::rq_success::0
some_service::127.0.0.2:1234::rq_timeout::0
some_service::127.0.0.2:1234::rq_total::1
some_service::127.0.0.2:1234::health_flags::healthy
some_service::127.0.0.2:1234::weight::1
some_service::127.0.0.2:1234::region::r
some_service::127.0.0.2:1234::zone::z
some_service::127.0.0.2:1234::sub_zone::s
some_service::127.0.0.2:1234::canary::false
some_service::127.0.0.2:1234::success_rate::-1
some_service::[::1]:1234::cx_active::0
some_service::[::1]:1234::cx_connect_fail::0
some_service::[::1]:1234::cx_total::0
some_service::[::1]:1234::rq_active::0
some_service::[::1]:1234::rq_error::0
some_service::[::1]:1234::rq_success::0
some_service::[::1]:1234::rq_timeout::0
some_service::[::1]:1234::rq_total::0
some_service::[::1]:1234::health_flags::/failed_eds_health
some_service::[::1]:1234::weight::7
some_service::[::1]:1234::region::r
some_service::[::1]:1234::zone::z
some_service::[::1]:1234::sub_zone::s
some_service::[::1]:1234::canary::true
some_service::[::1]:1234::success_rate::-1
";

struct Fixture {
    table: Routes,
    store: Arc<Store>,
    ready: Ready,
    quit: CancellationToken,
}

fn fixture() -> Fixture {
    let bootstrap = bootstrap::parse(FILE, "b.yaml", &Node::default()).unwrap();
    let store = Arc::new(Store::new());
    let manager = Arc::new(Manager::new());
    store.publish(&bootstrap.resources, &manager);
    let (_control, configuration) = xds::Config {
        mode: bootstrap.mode,
        fixed: bootstrap.resources.clone(),
        server: None,
        state_file: None,
        interest: Interest::new(),
        lookup: Arc::new(SystemLookup::default()),
        store: store.clone(),
        manager,
        ready: None,
    }
    .start()
    .unwrap();
    let (ready, quit) = (Ready::new(), CancellationToken::new());
    let build = BuildInfo::of("millrace-proxy");
    let table = routes(Admin {
        store: store.clone(),
        configuration,
        pods: Arc::new(LocalPods::default()),
        domain: "cluster.local".into(),
        bootstrap: Some(bootstrap),
        node_id: "n".into(),
        ready: ready.clone(),
        level: None,
        metrics: Metrics::new(&build),
        listener_stats: ListenerStats::default(),
        accelerator: Accelerator::none(),
        handover: Handover::none(),
        build,
        drain_listeners: CancellationToken::new(),
        quit: quit.clone(),
    });
    Fixture {
        table,
        store,
        ready,
        quit,
    }
}

impl Fixture {
    async fn call(&self, method: Method, path: &str) -> (u16, String) {
        let uri: Uri = path.parse().unwrap();
        let response = self.table.dispatch(&method, &uri, Bytes::new()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> String {
        let (status, body) = self.call(Method::GET, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await).unwrap()
    }
}

#[tokio::test]
async fn clusters_are_shown_in_the_exact_form() {
    let fixture = fixture();
    let snapshot = fixture.store.load();
    let host = snapshot.cluster("some_service").unwrap().hosts[0].clone();
    let (_cx, _rq) = (host.connection(), host.request());
    assert_eq!(fixture.get("/clusters").await, CLUSTERS);
    assert!(!fixture.get("/clusters?filter=some").await.contains("b::"));
    let json = fixture.json("/clusters?format=json").await;
    let host = &json["cluster_statuses"][1]["host_statuses"][1];
    assert_eq!(host["address"]["socket_address"]["address"], "::1");
    assert_eq!(host["health_status"]["eds_health_status"], "UNHEALTHY");
}

#[tokio::test]
async fn listeners_and_routes_are_listed() {
    let fixture = fixture();
    assert_eq!(
        fixture.get("/listeners").await,
        "listener_0::127.0.0.1:10000\n"
    );
    let json = fixture.json("/listeners?format=json").await;
    let chain = &json["listener_statuses"][0]["filter_chains"][0];
    assert_eq!(chain["target"]["route"], "local_route");
    assert_eq!(chain["match"], "all");
    let routes = fixture.json("/routes?format=json").await;
    assert_eq!(
        routes["routes"][0]["action"],
        "some_service 99/100, b 1/100"
    );
}

#[tokio::test]
async fn the_dump_holds_the_file_and_what_it_asks_for_in_vain() {
    let dump = fixture().json("/config_dump").await;
    let first = &dump["configs"][0];
    assert!(
        first["@type"]
            .as_str()
            .unwrap()
            .ends_with("BootstrapConfigDump")
    );
    assert_eq!(
        dump["unsupported"][0]["fields"][0]["field"],
        "stats_flush_interval"
    );
    assert_eq!(dump["freshness"]["serving"], "static");
}

#[tokio::test]
async fn readiness_and_switches() {
    let fixture = fixture();
    assert_eq!(fixture.get("/ready").await, "LIVE\n");
    fixture.call(Method::POST, "/healthcheck/fail").await;
    let (status, body) = fixture.call(Method::GET, "/ready").await;
    assert_eq!(
        (status, body.as_str()),
        (503, "INITIALIZING: waiting for healthcheck/fail\n")
    );
    fixture.call(Method::POST, "/healthcheck/ok").await;
    assert!(fixture.ready.is_ready());
    assert_eq!(fixture.call(Method::GET, "/quitquitquit").await.0, 405);
    fixture.call(Method::POST, "/quitquitquit").await;
    assert!(fixture.quit.is_cancelled());
    let info = fixture.json("/server_info").await;
    assert_eq!(info["state"], "DRAINING");
}

#[tokio::test]
async fn stats_are_text_json_and_prometheus() {
    let fixture = fixture();
    let text = fixture.get("/stats").await;
    assert!(
        text.contains("cluster.some_service.membership_healthy: 1\n"),
        "{text}"
    );
    let used = fixture.get("/stats?usedonly&filter=some_service").await;
    assert_eq!(
        used,
        "cluster.some_service.membership_healthy: 1\ncluster.some_service.membership_total: 2\n"
    );
    assert!(
        fixture
            .get("/stats/prometheus")
            .await
            .contains("millrace_build_info")
    );
    assert_eq!(fixture.call(Method::GET, "/stats?filter=(").await.0, 400);
}

#[tokio::test]
async fn calls_are_simulated() {
    let fixture = fixture();
    let call = "/simulate?to=127.0.0.1:10000&host=any&path=/x&header=a:b&random=0";
    let decision = fixture.json(call).await;
    assert_eq!(decision["listener"], "listener_0");
    let cluster = &decision["clusters"][0];
    assert_eq!(cluster["name"], "some_service");
    assert_eq!(cluster["share"], 99.0);
    assert_eq!(decision["answer"]["outcome"], "forwarded");
    assert_eq!(cluster["endpoints"][0]["address"], "127.0.0.2:1234");
    for bad in [
        "/simulate",
        "/simulate?to=x:y",
        "/simulate?to=x&protocol=udp",
        "/simulate?to=1.1.1.1:1&host=a&method=(",
        "/simulate?to=1.1.1.1:1&host=a&header=b",
    ] {
        assert_eq!(fixture.call(Method::GET, bad).await.0, 400, "{bad}");
    }
}
