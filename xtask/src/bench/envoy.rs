//! A sidecar's static configuration, for stock Envoy and for Millrace's proxy alike: the listeners that
//! a mesh gives a sidecar, an access log, and one route table.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use millrace_testkit::{Cluster, Pod};
use serde_json::{Value, json};

use super::ports::{self, HTTP2};
use super::setting::Setting;
use crate::setup;

/// What a sidecar's outbound side routes to.
pub(super) struct Upstream<'a> {
    pub(super) host: &'a str,
    pub(super) address: IpAddr,
}

/// Stock Envoy with this configuration.
pub(super) fn command(cluster: &Cluster, config: &Path, workers: &str) -> anyhow::Result<Command> {
    let envoy = setup::find_envoy().context("stock Envoy is not installed: `cargo xtask setup`")?;
    let mut command = Command::new(cluster.executable(&envoy)?);
    command
        .args([
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--concurrency",
            workers,
        ])
        .arg("--config-path")
        .arg(config);
    Ok(command)
}

/// Writes the configuration of the proxy of `pod`; with an `upstream` it can also be a client's.
pub(super) fn config_file(
    pod: &Pod,
    upstream: Option<&Upstream<'_>>,
    setting: &Setting,
) -> anyhow::Result<PathBuf> {
    let path = pod.log_dir().join("proxy.json");
    let text = serde_json::to_string_pretty(&config(upstream, setting))?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn config(upstream: Option<&Upstream<'_>>, setting: &Setting) -> Value {
    let mut listeners = vec![
        json!({
            "name": "virtualOutbound",
            "address": socket("0.0.0.0", 15001),
            "use_original_dst": true,
            "filter_chains": [{ "filters": [tcp_proxy("PassthroughCluster")] }],
        }),
        inbound(setting),
    ];
    let mut clusters = vec![json!({
        "name": "PassthroughCluster",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
    })];
    for (_, port) in ports::ALL {
        clusters.push(cluster(&inbound_name(port), "127.0.0.1", port));
    }
    if let Some(upstream) = upstream {
        let address = upstream.address.to_string();
        for (_, port) in ports::ALL {
            let name = format!("outbound|{port}||{}", upstream.host);
            clusters.push(cluster(&name, &address, port));
            let filter = if ports::is_http(port) {
                http_manager("outbound", &[upstream.host], &name, setting)
            } else {
                tcp_proxy(&name)
            };
            listeners.push(json!({
                "name": format!("0.0.0.0_{port}"),
                "address": socket("0.0.0.0", port),
                "bind_to_port": false,
                "filter_chains": [{ "filters": [filter] }],
            }));
        }
    }
    json!({
        "admin": { "address": socket("127.0.0.1", 15000) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn inbound(setting: &Setting) -> Value {
    let chain = |port: u16| {
        let name = inbound_name(port);
        let filter = if ports::is_http(port) {
            http_manager("inbound", &["*"], &name, setting)
        } else {
            tcp_proxy(&name)
        };
        json!({ "filter_chain_match": { "destination_port": port }, "filters": [filter] })
    };
    json!({
        "name": "virtualInbound",
        "address": socket("0.0.0.0", 15006),
        "listener_filters": [{
            "name": "envoy.filters.listener.original_dst",
            "typed_config": typed("filters.listener.original_dst.v3.OriginalDst", json!({})),
        }],
        "filter_chains": ports::ALL.map(|(_, port)| chain(port)),
    })
}

fn inbound_name(port: u16) -> String {
    format!("inbound|{port}||")
}

fn http_manager(prefix: &str, domains: &[&str], cluster: &str, setting: &Setting) -> Value {
    let config = json!({
        "stat_prefix": format!("{prefix}_{cluster}"),
        "codec_type": "AUTO",
        // A port in the authority does not matter for the match, as in a mesh.
        "strip_any_host_port": true,
        "use_remote_address": false,
        "generate_request_id": true,
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": typed("access_loggers.file.v3.FileAccessLog", json!({
                "path": setting.access_log,
            })),
        }],
        "route_config": {
            "name": cluster,
            "virtual_hosts": [{
                "name": "backend",
                "domains": domains,
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } }],
            }],
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": typed("filters.http.router.v3.Router", json!({})),
        }],
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config":
            typed("filters.network.http_connection_manager.v3.HttpConnectionManager", config),
    })
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", json!({
            "stat_prefix": cluster,
            "cluster": cluster,
        })),
    })
}

fn cluster(name: &str, address: &str, port: u16) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(address, port) } }] }],
        },
    });
    if port == HTTP2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                typed("upstreams.http.v3.HttpProtocolOptions", json!({
                    "explicit_http_config": { "http2_protocol_options": {} },
                })),
        });
    }
    cluster
}

fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{name}"));
    config
}
