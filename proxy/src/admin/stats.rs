//! `/stats` in Envoy's text form and as JSON, `/stats/prometheus`.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_runtime::admin::{Reply, Request, Response, Routes};
use millrace_runtime::metrics;
use regex::Regex;
use serde_json::json;

use super::Context;
use super::clusters::{hosts, sorted};
use crate::cluster::breaker::Resource;
use crate::cluster::{Breakers, ClusterEntry};
use crate::resource::HealthStatus;

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    let (text, prometheus) = (context.clone(), context.clone());
    table
        .get(
            "/stats",
            "counters as text (?filter=regex, ?format=json|prometheus, ?usedonly)",
            move |request| {
                let response = stats(&text, &request);
                async move { response }
            },
        )
        .get("/stats/prometheus", "metrics for Prometheus", move |_| {
            let response = exposition(&prometheus);
            async move { response }
        })
}

fn exposition(context: &Context) -> Response {
    let text = context.admin.metrics.encode();
    Reply::with_type(200, metrics::CONTENT_TYPE, text)
}

fn stats(context: &Context, request: &Request) -> Response {
    let filter = match request.query("filter").map(Regex::new) {
        None => None,
        Some(Ok(regex)) => Some(regex),
        Some(Err(error)) => return Reply::text(400, format!("bad filter: {error}\n")),
    };
    if request.query("format") == Some("prometheus") {
        return exposition(context);
    }
    let mut all = collect(context);
    let used_only = request.query("usedonly").is_some();
    all.retain(|name, value| {
        filter.as_ref().is_none_or(|f| f.is_match(name)) && !(used_only && *value == 0)
    });
    if request.query("format") == Some("json") {
        let stats = all
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}));
        return Reply::json(200, &json!({ "stats": stats.collect::<Vec<_>>() }));
    }
    let lines = all.iter().map(|(name, value)| format!("{name}: {value}\n"));
    Reply::text(200, lines.collect::<Vec<_>>().concat())
}

fn collect(context: &Context) -> BTreeMap<String, u64> {
    let admin = &context.admin;
    let snapshot = admin.store.load();
    let mut all = BTreeMap::new();
    let mut set = |name: &str, value: u64| {
        all.insert(name.to_owned(), value);
    };
    set("server.live", u64::from(admin.ready.is_ready()));
    set("server.uptime", context.started.elapsed().as_secs());
    set(
        "control_plane.connected_state",
        u64::from(admin.configuration.is_connected()),
    );
    set("server.config_generation", snapshot.generation());
    set(
        "config.rejected",
        admin.configuration.rejected().len() as u64,
    );
    set(
        "cluster_manager.active_clusters",
        snapshot.clusters().count() as u64,
    );
    set(
        "listener_manager.total_listeners_active",
        snapshot.listeners().count() as u64,
    );
    for (name, value) in admin.listener_stats.all() {
        set(&format!("listener_manager.{name}"), value);
    }
    for cluster in sorted(&snapshot) {
        add_cluster(&mut all, &cluster);
    }
    all
}

fn add_cluster(all: &mut BTreeMap<String, u64>, cluster: &ClusterEntry) {
    let name = cluster.config.alt_stat_name.as_deref();
    let name = name.unwrap_or(cluster.name().as_str());
    let mut add = |stat: &str, value: u64| {
        *all.entry(format!("cluster.{name}.{stat}")).or_default() += value;
    };
    let hosts = hosts(cluster);
    add("membership_total", hosts.len() as u64);
    let healthy = hosts.iter().filter(|h| {
        matches!(
            h.endpoint.health,
            HealthStatus::Unknown | HealthStatus::Healthy
        )
    });
    add("membership_healthy", healthy.count() as u64);
    for host in &hosts {
        let stats = &host.stats;
        add("upstream_cx_active", stats.cx_active.get());
        add("upstream_cx_connect_fail", stats.cx_connect_fail.get());
        add("upstream_cx_total", stats.cx_total.get());
        add("upstream_rq_active", stats.rq_active.get());
        add("upstream_rq_error", stats.rq_error.get());
        add("upstream_rq_success", stats.rq_success.get());
        add("upstream_rq_timeout", stats.rq_timeout.get());
        add("upstream_rq_total", stats.rq_total.get());
    }
    for (priority, breakers) in [
        ("default", cluster.breakers()),
        ("high", cluster.high_breakers()),
    ] {
        for (stat, value) in open(breakers) {
            add(&format!("circuit_breakers.{priority}.{stat}"), value);
        }
    }
}

fn open(breakers: &Breakers) -> [(&'static str, u64); 4] {
    [
        ("cx_open", Resource::Connection),
        ("rq_pending_open", Resource::Pending),
        ("rq_open", Resource::Request),
        ("rq_retry_open", Resource::Retry),
    ]
    .map(|(stat, resource)| (stat, u64::from(breakers.is_open(resource))))
}
