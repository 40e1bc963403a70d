//! `/clusters`: limits and hosts of every cluster, as text (R71) or JSON.

use std::sync::Arc;

use millrace_runtime::admin::{Reply, Request, Response, Routes};
use serde_json::{Value, json};

use super::Context;
use crate::cluster::{ClusterEntry, Host};
use crate::resource::{ClusterKind, HealthStatus, Thresholds};
use crate::snapshot::Snapshot;

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    let context = context.clone();
    table.get(
        "/clusters",
        "clusters with limits and hosts (?format=json, ?filter=part of a name)",
        move |request| {
            let response = show(&context.admin.store.load(), &request);
            async move { response }
        },
    )
}

fn show(snapshot: &Snapshot, request: &Request) -> Response {
    let part = request.query("filter").unwrap_or_default();
    let clusters = sorted(snapshot);
    let clusters = clusters.iter().filter(|c| c.name().as_str().contains(part));
    if request.query("format") == Some("json") {
        let statuses: Vec<_> = clusters.map(|c| cluster_json(c)).collect();
        return Reply::json(200, &json!({ "cluster_statuses": statuses }));
    }
    let mut lines = Vec::new();
    clusters.for_each(|c| cluster_text(c, &mut lines));
    Reply::text(200, lines.concat())
}

/// All clusters by name.
pub(super) fn sorted(snapshot: &Snapshot) -> Vec<Arc<ClusterEntry>> {
    let mut clusters: Vec<_> = snapshot.clusters().cloned().collect();
    clusters.sort_by(|a, b| a.name().cmp(b.name()));
    clusters
}

/// The hosts of a cluster, those made for original destinations included.
pub(super) fn hosts(cluster: &ClusterEntry) -> Vec<Arc<Host>> {
    match cluster.config.kind {
        ClusterKind::OriginalDst => {
            let mut hosts = cluster.original_dst_hosts();
            hosts.sort_by_key(|h| h.address());
            hosts
        }
        _ => cluster.hosts.clone(),
    }
}

/// The exact form of R71.
fn cluster_text(cluster: &ClusterEntry, lines: &mut Vec<String>) {
    let name = cluster.name();
    let mut line = |rest: std::fmt::Arguments<'_>| {
        lines.push(format!("{name}::{rest}\n"));
    };
    let priorities = [
        ("default_priority", &cluster.config.default_thresholds),
        ("high_priority", &cluster.config.high_thresholds),
    ];
    for (priority, limits) in priorities {
        for (limit, value) in named(limits) {
            line(format_args!("{priority}::{limit}::{value}"));
        }
    }
    line(format_args!(
        "added_via_api::{}",
        cluster.config.added_via_api
    ));
    for host in hosts(cluster) {
        let address = host.address();
        for (stat, value) in counters(&host) {
            line(format_args!("{address}::{stat}::{value}"));
        }
        let locality = &host.locality;
        line(format_args!(
            "{address}::health_flags::{}",
            health_flags(&host)
        ));
        line(format_args!("{address}::weight::{}", host.endpoint.weight));
        line(format_args!("{address}::region::{}", locality.region));
        line(format_args!("{address}::zone::{}", locality.zone));
        line(format_args!("{address}::sub_zone::{}", locality.sub_zone));
        line(format_args!("{address}::canary::{}", host.endpoint.canary));
        line(format_args!("{address}::success_rate::-1"));
    }
}

fn named(limits: &Thresholds) -> [(&'static str, u32); 4] {
    [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending_requests),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ]
}

/// Counters of a host, in the order of R71.
fn counters(host: &Host) -> [(&'static str, u64); 8] {
    let stats = &host.stats;
    [
        ("cx_active", stats.cx_active.get()),
        ("cx_connect_fail", stats.cx_connect_fail.get()),
        ("cx_total", stats.cx_total.get()),
        ("rq_active", stats.rq_active.get()),
        ("rq_error", stats.rq_error.get()),
        ("rq_success", stats.rq_success.get()),
        ("rq_timeout", stats.rq_timeout.get()),
        ("rq_total", stats.rq_total.get()),
    ]
}

fn health_flags(host: &Host) -> &'static str {
    match host.endpoint.health {
        HealthStatus::Unknown | HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "/failed_eds_health",
        HealthStatus::Draining => "/eds_status_draining",
        HealthStatus::Degraded => "/degraded_eds_health",
    }
}

fn cluster_json(cluster: &ClusterEntry) -> Value {
    let thresholds = [
        ("DEFAULT", &cluster.config.default_thresholds),
        ("HIGH", &cluster.config.high_thresholds),
    ];
    let thresholds = thresholds.map(|(priority, limits)| {
        let mut item = json!({"priority": priority});
        for (limit, value) in named(limits) {
            item[limit] = json!(value);
        }
        item
    });
    json!({
        "name": cluster.name().as_str(),
        "added_via_api": cluster.config.added_via_api,
        "circuit_breakers": {"thresholds": thresholds},
        "host_statuses": hosts(cluster).iter().map(|h| host_json(h)).collect::<Vec<_>>(),
    })
}

fn host_json(host: &Host) -> Value {
    let stats = counters(host).map(|(name, value)| {
        let kind = if name.ends_with("active") {
            "GAUGE"
        } else {
            "COUNTER"
        };
        json!({"name": name, "value": value, "type": kind})
    });
    let address = host.address();
    json!({
        "address": {"socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
        }},
        "stats": stats,
        "health_status": {"eds_health_status": match host.endpoint.health {
            HealthStatus::Unknown => "UNKNOWN",
            HealthStatus::Healthy => "HEALTHY",
            HealthStatus::Unhealthy => "UNHEALTHY",
            HealthStatus::Draining => "DRAINING",
            HealthStatus::Degraded => "DEGRADED",
        }},
        "weight": host.endpoint.weight,
        "priority": host.priority,
        "hostname": host.endpoint.hostname.as_deref().unwrap_or_default(),
        "canary": host.endpoint.canary,
        "locality": {
            "region": &*host.locality.region,
            "zone": &*host.locality.zone,
            "sub_zone": &*host.locality.sub_zone,
        },
    })
}
