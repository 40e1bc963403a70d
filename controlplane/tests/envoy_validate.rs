//! Everything in the goldens is acceptable to stock Envoy (`envoy --mode validate`).
//!
//! Needs `MILLRACE_ENVOY`, the path of an Envoy binary, or an `envoy` on the path.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MILLRACE_ENVOY") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|directory| directory.join("envoy"))
        .find(|path| path.is_file())
}

fn goldens() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate");
    let cases = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut goldens: Vec<PathBuf> = cases
        .flat_map(|case| {
            [
                case.join("node.golden.json"),
                case.join("sidecar.golden.json"),
                case.join("node-envoy.golden.json"),
                case.join("router.golden.json"),
            ]
        })
        .filter(|golden| golden.exists())
        .collect();
    goldens.sort();
    goldens
}

/// A bootstrap that holds every resource of a golden statically, as validation reads nothing else.
fn bootstrap(golden: &Value) -> Value {
    let list = |kind: &str| {
        let mut resources = golden[kind].as_array().cloned().unwrap_or_default();
        for resource in &mut resources {
            resource.as_object_mut().unwrap().remove("@type");
        }
        resources
    };
    let xds = json!({
        "name": "xds",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": { "cluster_name": "xds" },
    });
    let assignments = list("EDS")
        .into_iter()
        .enumerate()
        .map(|(index, mut assignment)| {
            let name = format!("assignment-{index}");
            assignment["cluster_name"] = name.clone().into();
            json!({ "name": name, "type": "STATIC", "load_assignment": assignment })
        });
    let clusters: Vec<Value> = std::iter::once(xds)
        .chain(list("CDS"))
        .chain(assignments)
        .collect();

    let routes = list("RDS").into_iter().enumerate().map(|(index, routes)| {
        json!({
            "name": format!("routes-{index}"),
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": 1 } },
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "routes",
                    "route_config": routes,
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                    }],
                },
            }] }],
        })
    });
    let mut listeners: Vec<Value> = list("LDS").into_iter().chain(routes).collect();
    for (index, listener) in listeners.iter_mut().enumerate() {
        // The listeners of several pods and namespaces share ports, each in its own network namespace.
        let address = listener["address"]["socket_address"]
            .as_object_mut()
            .unwrap();
        address.insert("port_value".to_owned(), json!(20_000 + index));
        // Pods that are not here.
        address.remove("network_namespace_filepath");
        for more in listener["additional_addresses"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            let address = more["address"]["socket_address"].as_object_mut().unwrap();
            address.remove("network_namespace_filepath");
        }
    }
    json!({
        "node": { "id": "test", "cluster": "test" },
        "dynamic_resources": { "ads_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
        } },
        "static_resources": { "clusters": clusters, "listeners": listeners },
    })
}

/// Lets Envoy judge; an error is what it says.
fn validate(envoy: &Path, golden: &Value) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bootstrap.json");
    fs::write(&file, serde_json::to_vec(&bootstrap(golden)).unwrap()).unwrap();
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--log-level", "error", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout))
}

#[test]
fn stock_envoy_accepts_every_golden() {
    let Some(envoy) = envoy() else {
        println!("SKIP: no stock Envoy: MILLRACE_ENVOY is unset and no envoy is on the path");
        assert_ne!(
            std::env::var("MILLRACE_REQUIRE_ALL").as_deref(),
            Ok("1"),
            "nothing may be skipped"
        );
        return;
    };
    let mut refused = Vec::new();
    for golden in goldens() {
        let mut content: Value =
            serde_json::from_str(&fs::read_to_string(&golden).unwrap()).unwrap();
        if let Err(said) = validate(&envoy, &content) {
            refused.push(format!("{}:\n{said}", golden.display()));
        }
        // A check that nothing can fail would prove nothing.
        let hosts = content
            .pointer_mut("/RDS/0/virtual_hosts")
            .and_then(Value::as_array_mut);
        if let Some(hosts) = hosts {
            hosts.push(hosts[0].clone());
            assert!(
                validate(&envoy, &content).is_err(),
                "a repeated virtual host is accepted"
            );
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
