//! Stock Envoy that asks for virtual hosts when requests come for them.
//!
//! Needs `MILLRACE_ENVOY`, or an `envoy` on the path.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_testkit::envoy::bootstrap;
use millrace_testkit::skip::skip;
use serde_json::{Value, json};

use crate::envoy::{NODE, XDS, envoy};
use crate::namespace::{Namespace, Process};
use crate::{PATIENCE, pilot};

const ENTRY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10000);
const REVIEWS: &str = "10.244.1.12";

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  clusterIP: 10.96.0.1\n  \
                       selector: {app: reviews}\n  ports: [{name: http, port: 9080}]\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: reviews, labels: {app: reviews}}\n\
                   spec: {containers: [{name: c}]}\nstatus: {phase: Running, podIP: 10.244.1.12}\n";
const OTHER: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec:\n  clusterIP: 10.96.0.2\n  \
                     selector: {app: other}\n  ports: [{name: http, port: 9080}]\n";
const TEAPOT: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  \
                      hosts: [reviews]\n  http: [{directResponse: {status: 418}}]\n";

fn listener(name: &str, at: SocketAddr, filters: &[&str], routes: (&str, Value)) -> Value {
    let types = "type.googleapis.com/envoy.extensions.filters";
    let filter = |name: &&str| {
        let message = if *name == "router" {
            "Router"
        } else {
            "OnDemand"
        };
        json!({ "name": name, "typed_config": { "@type": format!("{types}.http.{name}.v3.{message}") } })
    };
    let mut manager = json!({
        "@type": format!("{types}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "http_filters": filters.iter().map(filter).collect::<Vec<_>>(),
    });
    manager[routes.0] = routes.1;
    json!({
        "name": name,
        "address": { "socket_address": { "address": at.ip(), "port_value": at.port() } },
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
    })
}

/// A listener that has its routes from pilot, and the application behind the service.
fn file() -> Value {
    let mut file = bootstrap(NODE, "DELTA_GRPC", XDS);
    file["node"]["metadata"] = json!({ "VHDS": "xds" });
    let rds = json!({
        "route_config_name": "9080",
        "config_source": { "ads": {}, "resource_api_version": "V3" },
    });
    let answer = json!({ "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{
        "match": { "prefix": "/" },
        "direct_response": { "status": 200, "body": { "inline_string": "reviews" } },
    }] }] });
    let application = format!("{REVIEWS}:9080").parse().unwrap();
    file["static_resources"]["listeners"] = json!([
        listener("entry", ENTRY, &["on_demand", "router"], ("rds", rds)),
        listener(
            "application",
            application,
            &["router"],
            ("route_config", answer)
        ),
    ]);
    file
}

/// Asks until the answer is as wanted: another program's progress has no event to wait for.
fn until(namespace: &Namespace, host: &str, wanted: impl Fn(u16) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while !last.is_some_and(&wanted) {
        let sync = || namespace.page("/debug/syncz").unwrap_or_default();
        assert!(Instant::now() < deadline, "{host}: {last:?}: {:#}", sync());
        std::thread::park_timeout(Duration::from_millis(50));
        last = namespace.status(ENTRY, host);
    }
}

#[test]
fn stock_envoy_asks_for_a_virtual_host_when_a_request_comes_for_it() {
    let Some(envoy) = envoy() else {
        return skip("no stock Envoy: MILLRACE_ENVOY is unset and no envoy is on the path");
    };
    if !Namespace::possible() {
        return skip("no network namespace can be made here");
    }
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    fs::create_dir(&config).unwrap();
    let write = |name: &str, text: &str| fs::write(config.join(name), text).unwrap();
    for (name, text) in [
        ("service.yaml", SERVICE),
        ("pod.yaml", POD),
        ("other.yaml", OTHER),
    ] {
        write(name, text);
    }
    let bootstrap_file = directory.path().join("bootstrap.json");
    fs::write(&bootstrap_file, file().to_string()).unwrap();
    let namespace = Namespace::with(&[REVIEWS]);
    let _pilot = pilot(&namespace, &config);
    let mut command = namespace.run(Path::new(&envoy));
    command.args(["--log-level", "critical", "--concurrency", "1"]);
    command.args([
        "--base-id",
        &(std::process::id() * 2 + 1_000_003).to_string(),
        "-c",
    ]);
    command.arg(&bootstrap_file);
    let _envoy = Process::start(&mut command);

    until(&namespace, "reviews:9080", |status| status == 200);
    until(&namespace, "reviews", |status| status == 200);
    // Nobody has asked for the other one, so Envoy does not know it.
    let sync = namespace.page("/debug/syncz").unwrap();
    let streams = sync.as_array().unwrap().iter();
    let mut types = streams.flat_map(|stream| stream["types"].as_array().unwrap().clone());
    let hosts = types.find(|kind| kind["short_name"] == "VHDS").unwrap();
    assert_eq!(hosts["resources"], 1, "{sync:#}");
    // What it has is kept up to date.
    write("rule.yaml", TEAPOT);
    until(&namespace, "reviews", |status| status == 418);
    fs::remove_file(config.join("rule.yaml")).unwrap();
    until(&namespace, "reviews", |status| status == 200);
    fs::remove_file(config.join("service.yaml")).unwrap();
    until(&namespace, "reviews", |status| status != 200);
}
