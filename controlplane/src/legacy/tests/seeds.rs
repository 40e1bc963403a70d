//! The seeds' own values, one by one: what their slides show of virtual hosts, routes, weights and the bootstrap.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::bootstrap::{Flags, render};
use super::{NODE, documents, root, snapshot_of};

/// R29's arguments of a sidecar.
pub(super) fn flags() -> Flags {
    Flags {
        discovery: "istio-pilot.istio-system:8080".parse().unwrap(),
        refresh_delay: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(10),
        admin_port: 15000,
        zipkin: Some("zipkin.istio-system:9411".parse().unwrap()),
        statsd: Some("istio-mixer.istio-system:9125".parse().unwrap()),
    }
}

/// The virtual host of reviews on port 9080.
fn reviews(case: &str) -> Value {
    let documents = documents(&snapshot_of(&root().join(case)), NODE);
    let routes = &documents["/v1/routes/9080/<cluster>/<node>"];
    let hosts = routes["virtual_hosts"].as_array().unwrap();
    let found = hosts
        .iter()
        .find(|host| host["name"] == "reviews.default.svc.cluster.local|http");
    found.cloned().unwrap()
}

#[test]
fn the_virtual_host_has_the_seeds_name_and_twelve_domains() {
    let domains = json!([
        "reviews:9080",
        "reviews",
        "reviews.default:9080",
        "reviews.default",
        "reviews.default.svc:9080",
        "reviews.default.svc",
        "reviews.default.svc.cluster:9080",
        "reviews.default.svc.cluster",
        "reviews.default.svc.cluster.local:9080",
        "reviews.default.svc.cluster.local",
        "10.104.14.93:9080",
        "10.104.14.93",
    ]);
    for case in ["bookinfo-v1", "bookinfo-split", "bookinfo-virtual-service"] {
        assert_eq!(reviews(case)["domains"], domains, "{case}");
    }
}

#[test]
fn everything_to_v1_is_the_seeds_one_route() {
    let route = json!([{
        "prefix": "/",
        "cluster": "out.reviews.default.svc.cluster.local|http|version=v1",
        "timeout_ms": 0,
        "decorator": { "operation": "reviews-default" },
    }]);
    assert_eq!(reviews("bookinfo-v1")["routes"], route);
}

#[test]
fn a_split_is_the_seeds_weighted_clusters_by_either_kind_of_rule() {
    let weighted = json!([
        { "name": "out.reviews.default.svc.cluster.local|http|version=v1", "weight": 50 },
        { "name": "out.reviews.default.svc.cluster.local|http|version=v3", "weight": 50 },
    ]);
    let rule_route = json!([{
        "prefix": "/",
        "weighted_clusters": { "clusters": weighted },
        "timeout_ms": 0,
        "decorator": { "operation": "reviews-default" },
    }]);
    assert_eq!(reviews("bookinfo-split")["routes"], rule_route);
    let routes = reviews("bookinfo-virtual-service")["routes"].clone();
    assert_eq!(routes[1]["weighted_clusters"]["clusters"], weighted);
    assert_eq!(routes[1]["decorator"]["operation"], "reviews-by-user");
}

#[test]
fn a_cluster_asks_for_the_endpoints_of_its_version() {
    let documents = documents(&snapshot_of(&root().join("bookinfo-split")), NODE);
    let clusters = documents["/v1/clusters/<cluster>/<node>"]["clusters"].as_array();
    let name = "out.reviews.default.svc.cluster.local|http|version=v3";
    let cluster = clusters.unwrap().iter().find(|it| it["name"] == name);
    let key = cluster.unwrap()["service_name"].as_str().unwrap();
    assert_eq!(key, "reviews.default.svc.cluster.local|http|version=v3");
    let hosts = &documents[&format!("/v1/registration/{key}")];
    let expected = json!({ "hosts": [{ "ip_address": "10.244.2.13", "port": 9080 }] });
    assert_eq!(*hosts, expected);
}

#[test]
fn the_pods_own_port_leads_to_its_application() {
    let documents = documents(&snapshot_of(&root().join("bookinfo-v1")), NODE);
    let listeners = documents["/v1/listeners/<cluster>/<node>"]["listeners"]
        .as_array()
        .unwrap()
        .clone();
    let named = |name: &str| listeners.iter().find(|it| it["name"] == name).unwrap();
    let inbound = named("http_10.244.1.10_9080");
    assert_eq!(inbound["address"], "tcp://10.244.1.10:9080");
    assert_eq!(inbound["bind_to_port"], false);
    let host = &inbound["filters"][0]["config"]["route_config"]["virtual_hosts"][0];
    assert_eq!(host["name"], "inbound|9080");
    assert_eq!(host["routes"][0]["cluster"], "in.9080");
    let capture = named("virtual");
    assert_eq!(capture["address"], "tcp://0.0.0.0:15001");
    assert_eq!(capture["use_original_dst"], true);
    let outbound = &named("http_0.0.0.0_9080")["filters"][0]["config"]["rds"];
    let rds = json!({ "cluster": "rds", "route_config_name": "9080", "refresh_delay_ms": 1000 });
    assert_eq!(*outbound, rds);
}

#[test]
fn the_bootstrap_is_the_seeds() {
    let file = render(&flags());
    let admin = json!({
        "access_log_path": "/dev/stdout",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 15000 } },
    });
    assert_eq!(file["admin"], admin);
    for discovery in ["lds_config", "cds_config"] {
        let source = &file["dynamic_resources"][discovery]["api_config_source"];
        let expected =
            json!({ "api_type": "REST_LEGACY", "refresh_delay": "1s", "cluster_names": ["rds"] });
        assert_eq!(*source, expected, "{discovery}");
    }
    let pilot = json!({
        "name": "rds",
        "type": "STRICT_DNS",
        "connect_timeout": "10s",
        "lb_policy": "ROUND_ROBIN",
        "hosts": [{ "socket_address": { "address": "istio-pilot.istio-system", "port_value": 8080 } }],
    });
    assert_eq!(file["static_resources"]["clusters"][0], pilot);
}
