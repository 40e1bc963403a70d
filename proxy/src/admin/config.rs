//! `/config_dump`, `/listeners`, `/routes`, `/names`, `/server_info`: what is served and since
//! when.

use std::net::SocketAddr;
use std::sync::Arc;

use millrace_runtime::admin::{Reply, Request, Response, Routes};
use serde_json::{Value, json};

use super::Context;
use crate::resource::{
    Action, ClusterSpecifier, FilterChain, Listener, NetworkFilter, RouteConfiguration,
    RouteSource, text,
};
use crate::snapshot::Snapshot;
use crate::xds::status::{self, Filter};

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    type Show = fn(&Context, &Request) -> Response;
    let pages: [(&str, &str, Show); 5] = [
        (
            "/config_dump",
            "everything that is served, waits or was refused (?resource=field, ?name_regex=part)",
            config_dump,
        ),
        ("/listeners", "listeners (?format=json)", listeners),
        ("/routes", "routes (?format=json)", route_list),
        ("/names", "mesh names of DNS", names),
        ("/server_info", "state, version, node", server_info),
    ];
    pages.into_iter().fold(table, |table, (path, help, show)| {
        let context = context.clone();
        table.get(path, help, move |request| {
            let response = show(&context, &request);
            async move { response }
        })
    })
}

fn config_dump(context: &Context, request: &Request) -> Response {
    let admin = &context.admin;
    let filter = Filter {
        resource: request.query("resource").map(str::to_owned),
        name: request.query("name_regex").map(str::to_owned),
    };
    let mut configs = Vec::new();
    let mut unsupported = admin.configuration.unsupported();
    if let Some(bootstrap) = &admin.bootstrap {
        if filter.resource.is_none() {
            configs.push(json!({
                "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
                "bootstrap": bootstrap.dump,
            }));
        }
        let found = bootstrap.unsupported.iter();
        unsupported.extend(found.map(|(resource, fields)| status::unsupported(resource, fields)));
    }
    configs.extend(admin.configuration.dump(&filter));
    Reply::json(
        200,
        &json!({
            "configs": configs,
            "unsupported": unsupported,
            "rejected": admin.configuration.rejected(),
            "freshness": admin.configuration.freshness(),
            "generation": admin.store.load().generation(),
        }),
    )
}

fn listeners(context: &Context, request: &Request) -> Response {
    let snapshot = context.admin.store.load();
    let mut all: Vec<_> = snapshot.listeners().cloned().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if request.query("format") == Some("json") {
        let statuses: Vec<_> = all.iter().map(|l| listener_json(l)).collect();
        return Reply::json(200, &json!({ "listener_statuses": statuses }));
    }
    let lines = all.iter().map(|l| format!("{}::{}\n", l.name, l.address));
    Reply::text(200, lines.collect::<Vec<_>>().concat())
}

fn listener_json(listener: &Listener) -> Value {
    let default = listener.default_filter_chain.iter().map(|c| chain(c, true));
    let chains = listener.filter_chains.iter().map(|c| chain(c, false));
    json!({
        "name": listener.name.as_str(),
        "local_address": socket_address(listener.address),
        "bind_to_port": listener.bind_to_port,
        "use_original_dst": listener.use_original_dst,
        "traffic_direction": format!("{:?}", listener.direction).to_uppercase(),
        "filter_chains": chains.chain(default).collect::<Vec<_>>(),
    })
}

fn chain(chain: &FilterChain, default: bool) -> Value {
    let target = match &chain.filter {
        NetworkFilter::Http(hcm) => json!({
            "filter": "http",
            "route": match &hcm.routes {
                RouteSource::Rds(name) => name.as_str(),
                RouteSource::Inline(config) => config.name.as_str(),
            },
        }),
        NetworkFilter::Tcp(tcp) => json!({"filter": "tcp", "cluster": cluster_text(&tcp.cluster)}),
    };
    json!({
        "name": chain.name,
        "default": default,
        "match": text::chain_match(&chain.matches),
        "target": target,
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }})
}

fn route_list(context: &Context, request: &Request) -> Response {
    let rows = rows(&context.admin.store.load());
    if request.query("format") == Some("json") {
        return Reply::json(200, &json!({ "routes": rows }));
    }
    let lines = rows.iter().map(|row| {
        let field = |key: &str| row[key].as_str().unwrap_or_default();
        format!(
            "{}::{} ({} domains)::{}::{}\n",
            field("route_config"),
            field("virtual_host"),
            row["domains"].as_array().map_or(0, Vec::len),
            field("match"),
            field("action")
        )
    });
    Reply::text(200, lines.collect::<Vec<_>>().concat())
}

/// One row per route.
fn rows(snapshot: &Snapshot) -> Vec<Value> {
    let mut configs: Vec<_> = snapshot.route_configs().collect();
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    configs.into_iter().flat_map(|c| config_rows(c)).collect()
}

fn config_rows(config: &RouteConfiguration) -> Vec<Value> {
    let hosts = config.virtual_hosts.iter();
    let rows = hosts.flat_map(|host| host.routes.iter().map(move |route| (host, route)));
    rows.map(|(host, route)| {
        json!({
            "route_config": config.name.as_str(),
            "virtual_host": host.name,
            "domains": host.domains,
            "name": route.name,
            "match": text::route_match(&route.matches),
            "action": action(&route.action),
        })
    })
    .collect()
}

fn action(action: &Action) -> String {
    match action {
        Action::Forward(forward) => cluster_text(&forward.cluster),
        Action::Redirect(redirect) => format!("redirect {}", redirect.status.as_u16()),
        Action::Direct { status, .. } => format!("answer {}", status.as_u16()),
    }
}

fn cluster_text(cluster: &ClusterSpecifier) -> String {
    match cluster {
        ClusterSpecifier::Cluster(name) => name.to_string(),
        ClusterSpecifier::Header(name) => format!("cluster named by header {name}"),
        ClusterSpecifier::Weighted(weighted) => {
            let parts = weighted.clusters.iter();
            let parts: Vec<_> = parts
                .map(|c| format!("{} {}/{}", c.name, c.weight, weighted.total))
                .collect();
            parts.join(", ")
        }
    }
}

fn names(context: &Context, _: &Request) -> Response {
    let snapshot = context.admin.store.load();
    let table: std::collections::BTreeMap<_, Vec<_>> = snapshot
        .names()
        .iter()
        .map(|(name, a)| {
            let v4 = a.v4.iter().map(ToString::to_string);
            let v6 = a.v6.iter().map(ToString::to_string);
            (name, v4.chain(v6).collect())
        })
        .collect();
    Reply::json(200, &table)
}

fn server_info(context: &Context, _: &Request) -> Response {
    let admin = &context.admin;
    let state = if admin.quit.is_cancelled() || admin.drain_listeners.is_cancelled() {
        "DRAINING"
    } else if admin.ready.is_ready() {
        "LIVE"
    } else {
        "INITIALIZING"
    };
    Reply::json(
        200,
        &json!({
            "version": admin.build.to_string(),
            "build": admin.build,
            "state": state,
            "waiting_for": admin.ready.pending(),
            "uptime_seconds": context.started.elapsed().as_secs(),
            "node": {"id": admin.node_id},
            "freshness": admin.configuration.freshness(),
            "handover": admin.handover.json(),
        }),
    )
}
