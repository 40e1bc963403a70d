//! Stock Envoy against our server, in both variants of the protocol: a whole configuration is
//! accepted, changed make before break, rejected by name where it is bad, and resumed after the
//! server restarted. Needs `MILLRACE_ENVOY`, the path of Envoy's binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod support;
#[path = "support/server.rs"]
mod support_server;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millrace_xds::push::{SyncState, TypeStatus};
use millrace_xds::server::{ConnectionStatus, Connections};
use millrace_xds::{EncodedResource, TypeUrl, json, proto};
use serde_json::{Value, json};
use support::World;
use support_server::{Running, Source};

struct Envoy {
    process: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed by then.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Envoy {
    fn start(binary: &PathBuf, api_type: &str, port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ads = json!({ "ads": {}, "resource_api_version": "V3" });
        let bootstrap = json!({
            "node": { "id": "envoy", "cluster": "test" },
            "dynamic_resources": {
                "lds_config": ads, "cds_config": ads,
                "ads_config": {
                    "api_type": api_type, "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "ads" } }],
                },
            },
            "static_resources": { "clusters": [{
                "name": "ads", "type": "STATIC", "connect_timeout": "1s",
                "load_assignment": cla("ads", port),
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                },
            }] },
        });
        let path = dir.path().join("bootstrap.json");
        std::fs::write(&path, bootstrap.to_string()).unwrap();
        let process = Command::new(binary)
            .arg("-c")
            .arg(&path)
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, _dir: dir }
    }
}

/// Envoy's binary, or none after saying so.
fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MILLRACE_ENVOY") {
        return Some(path.into());
    }
    assert_ne!(
        std::env::var("MILLRACE_REQUIRE_ALL").as_deref(),
        Ok("1"),
        "MILLRACE_ENVOY is not set"
    );
    println!("SKIP: MILLRACE_ENVOY is not set");
    None
}

fn cla(cluster: &str, port: u16) -> Value {
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    json!({
        "cluster_name": cluster,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn encode<M: millrace_xds::WireResource + prost::Name>(value: &Value) -> EncodedResource {
    EncodedResource::encode(&json::from_value::<M>(value).unwrap())
}

fn cluster(name: &str) -> EncodedResource {
    encode::<proto::Cluster>(&json!({
        "name": name, "type": "EDS", "connect_timeout": "1s",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
    }))
}

fn listener(name: &str) -> EncodedResource {
    encode::<proto::Listener>(&json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "test",
                "rds": {
                    "route_config_name": "9080",
                    "config_source": { "ads": {}, "resource_api_version": "V3" },
                },
                "http_filters": [{ "name": "router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                } }],
            },
        }] }],
    }))
}

fn route(cluster: &str) -> EncodedResource {
    encode::<proto::RouteConfiguration>(&json!({
        "name": "9080",
        "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": cluster } },
        ] }],
    }))
}

/// A cluster with its endpoint, and the route to it.
fn serve_by(world: &mut World, name: &str) {
    world.put(cluster(name));
    world.put(encode::<proto::ClusterLoadAssignment>(&cla(name, 9)));
    world.put(route(name));
}

/// Waits until every type of the one stream satisfies the condition.
async fn until(connections: &Connections, condition: impl Fn(&ConnectionStatus) -> bool) {
    let start = tokio::time::Instant::now();
    loop {
        let status = connections.status();
        let started = |status: &&ConnectionStatus| !status.types.is_empty();
        if status.first().filter(started).is_some_and(&condition) {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "Envoy does not get there: {status:#?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn in_sync(status: &ConnectionStatus, resources: &[(TypeUrl, usize)]) -> bool {
    resources.iter().all(|(type_url, count)| {
        status.types.iter().any(|state| {
            state.type_url == *type_url
                && state.state == SyncState::Synced
                && state.resources == *count
        })
    })
}

async fn whole_life(api_type: &str, resumes: bool) {
    let Some(binary) = envoy() else {
        return;
    };
    let source = Source::new();
    source.change(|world| {
        serve_by(world, "v1");
        world.put(listener("l"));
    });
    let server = Running::on_port(source.clone(), 0).await;
    let port = server.addr.unwrap().port();
    let _envoy = Envoy::start(&binary, api_type, port);
    let all = |count| {
        [
            (TypeUrl::CLUSTER, count),
            (TypeUrl::ENDPOINT, count),
            (TypeUrl::LISTENER, 1),
            (TypeUrl::ROUTE, 1),
        ]
    };
    until(&server.connections, |status| in_sync(status, &all(1))).await;

    // Traffic moves to another cluster: the new one comes first, the old one goes last.
    source.change(|world| {
        serve_by(world, "v2");
        world.remove(&TypeUrl::CLUSTER, "v1");
        world.remove(&TypeUrl::ENDPOINT, "v1");
    });
    until(&server.connections, |status| {
        let acked = of_type(status, &TypeUrl::CLUSTER).counts.acked;
        acked == 3 && in_sync(status, &all(1))
    })
    .await;
    let told = source.events.borrow().join("\n");
    assert!(!told.contains("nacked"), "{told}");

    bad_cluster_is_named(&source).await;

    server.stop().await;
    let server = Running::on_port(source, port).await;
    until(&server.connections, |status| {
        let route = status
            .types
            .iter()
            .find(|state| state.type_url == TypeUrl::ROUTE);
        route.is_some_and(|state| state.subscribed == 1 && state.state != SyncState::Stale)
            && in_sync(status, &[(TypeUrl::CLUSTER, 1), (TypeUrl::LISTENER, 1)])
    })
    .await;
    let status = server.connections.status().remove(0);
    let sent = of_type(&status, &TypeUrl::ROUTE).counts.sent;
    assert_eq!(
        sent,
        u64::from(!resumes),
        "responses with an unchanged route"
    );
}

fn of_type<'a>(status: &'a ConnectionStatus, type_url: &TypeUrl) -> &'a TypeStatus {
    let state = status
        .types
        .iter()
        .find(|state| state.type_url == *type_url);
    state.expect("subscribed")
}

async fn bad_cluster_is_named(source: &Arc<Source>) {
    source.change(|world| {
        world.put(encode::<proto::Cluster>(&json!({
            "name": "bad", "type": "EDS", "connect_timeout": "-1s",
        })));
    });
    let report = source.told("nacked envoy CDS").await;
    assert!(report.contains("bad"), "{report}");
    source.change(|world| world.remove(&TypeUrl::CLUSTER, "bad"));
}

#[tokio::test]
async fn envoy_takes_its_configuration_by_delta() {
    tokio::time::timeout(Duration::from_mins(1), whole_life("DELTA_GRPC", true))
        .await
        .expect("the test does not end");
}

#[tokio::test]
async fn envoy_takes_its_configuration_by_state_of_the_world() {
    tokio::time::timeout(Duration::from_mins(1), whole_life("GRPC", false))
        .await
        .expect("the test does not end");
}
