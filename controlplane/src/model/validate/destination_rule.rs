//! `DestinationRule`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::fields::Judge;
use super::{Validated, hash, outlier};
use crate::kube::crd;
use crate::model::Object;
use crate::model::names::ObjectName;
use crate::model::policy::{
    ConnectionPool, DestinationRule, Keepalive, LoadBalancer, OutlierDetection, Subset,
    TrafficPolicy,
};
use crate::model::problem::Finding;

/// Judges a `DestinationRule`.
pub fn destination_rule(object: &crd::DestinationRule, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    if spec.workload_selector.is_some() {
        let message = "no proxy of this release tells pods of a namespace apart, so the whole rule is left out";
        judge
            .findings
            .push(Finding::not_executed("spec.workloadSelector", message));
    }
    let host = judge.host(&spec.host, "spec.host");
    let (policy, port_policies) = traffic_policy(
        &mut judge,
        spec.traffic_policy.as_ref(),
        "spec.trafficPolicy",
    );
    let mut names = BTreeSet::new();
    let mut subsets = Vec::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        judge.subset_name(&subset.name, &format!("{field}.name"));
        if !names.insert(subset.name.as_str()) {
            judge.error(
                format!("{field}.name"),
                format!("the subset {:?} is there twice", subset.name),
            );
        }
        let field = format!("{field}.trafficPolicy");
        let (policy, port_policies) =
            traffic_policy(&mut judge, subset.traffic_policy.as_ref(), &field);
        subsets.push(Subset {
            name: subset.name.clone(),
            labels: subset.labels.clone(),
            policy,
            port_policies,
        });
    }
    let model = DestinationRule {
        name: ObjectName::new(namespace, &object.metadata.name),
        created: object.metadata.creation_timestamp.clone(),
        host,
        export_to: judge.export_to(&spec.export_to),
        policy,
        port_policies,
        subsets,
    };
    if spec.workload_selector.is_some() {
        return Validated {
            object: None,
            findings: judge.findings,
        };
    }
    Validated::judged(Object::DestinationRule(Arc::new(model)), judge.findings)
}

fn traffic_policy(
    judge: &mut Judge<'_>,
    policy: Option<&crd::TrafficPolicy>,
    field: &str,
) -> (TrafficPolicy, Vec<(u16, TrafficPolicy)>) {
    let Some(policy) = policy else {
        return Default::default();
    };
    judge.not_executed(policy.tunnel.as_ref(), format!("{field}.tunnel"));
    judge.not_executed(
        policy.proxy_protocol.as_ref(),
        format!("{field}.proxyProtocol"),
    );
    judge.not_executed(policy.retry_budget.as_ref(), format!("{field}.retryBudget"));
    tls(judge, policy.tls.as_ref(), &format!("{field}.tls"));
    let whole = TrafficPolicy {
        load_balancer: load_balancer(
            judge,
            policy.load_balancer.as_ref(),
            &format!("{field}.loadBalancer"),
        ),
        pool: connection_pool(
            judge,
            policy.connection_pool.as_ref(),
            &format!("{field}.connectionPool"),
        ),
        outlier: outlier(judge, policy.outlier_detection.as_ref(), field),
    };
    let mut ports = Vec::new();
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        tls(judge, port.tls.as_ref(), &format!("{field}.tls"));
        let policy = TrafficPolicy {
            load_balancer: load_balancer(
                judge,
                port.load_balancer.as_ref(),
                &format!("{field}.loadBalancer"),
            ),
            pool: connection_pool(
                judge,
                port.connection_pool.as_ref(),
                &format!("{field}.connectionPool"),
            ),
            outlier: outlier(judge, port.outlier_detection.as_ref(), &field),
        };
        ports.push((port.port.number, policy));
    }
    (whole, ports)
}

fn outlier(
    judge: &mut Judge<'_>,
    outlier: Option<&crd::OutlierDetection>,
    field: &str,
) -> Option<OutlierDetection> {
    let field = format!("{field}.outlierDetection");
    outlier.map(|outlier| outlier::outlier_detection(judge, outlier, &field))
}

fn tls(judge: &mut Judge<'_>, tls: Option<&crd::ClientTls>, field: &str) {
    let Some(tls) = tls else { return };
    match tls.mode.as_deref().unwrap_or("DISABLE") {
        "DISABLE" => {}
        "ISTIO_MUTUAL" => judge.findings.push(Finding::not_executed(
            format!("{field}.mode"),
            "no proxy of this release has an identity yet, so connections are plain",
        )),
        // Plain bytes where somebody asked for TLS would be worse than nothing.
        mode @ ("SIMPLE" | "MUTUAL") => {
            judge.error(
                format!("{field}.mode"),
                format!("no proxy of this release starts TLS, which {mode} asks for"),
            );
        }
        other => judge.error(
            format!("{field}.mode"),
            format!("{other:?} is not one of DISABLE, SIMPLE, MUTUAL and ISTIO_MUTUAL"),
        ),
    }
}

fn load_balancer(
    judge: &mut Judge<'_>,
    balancer: Option<&crd::LoadBalancer>,
    field: &str,
) -> Option<LoadBalancer> {
    let balancer = balancer?;
    judge.not_executed(
        balancer.locality_lb_setting.as_ref(),
        format!("{field}.localityLbSetting"),
    );
    judge.not_executed(
        balancer.warmup_duration_secs.as_ref(),
        format!("{field}.warmupDurationSecs"),
    );
    judge.not_executed(balancer.warmup.as_ref(), format!("{field}.warmup"));
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            judge.error(field, "only one of simple and consistentHash may be set");
        }
        let hash = hash::consistent_hash(judge, hash, &format!("{field}.consistentHash"));
        return hash.map(LoadBalancer::Hash);
    }
    match balancer.simple.as_deref()? {
        "UNSPECIFIED" => None,
        "ROUND_ROBIN" => Some(LoadBalancer::RoundRobin),
        "LEAST_REQUEST" | "LEAST_CONN" => Some(LoadBalancer::LeastRequest),
        "RANDOM" => Some(LoadBalancer::Random),
        "PASSTHROUGH" => Some(LoadBalancer::Passthrough),
        other => {
            let message = format!(
                "{other:?} is not one of ROUND_ROBIN, LEAST_REQUEST, LEAST_CONN, RANDOM and PASSTHROUGH"
            );
            judge.error(format!("{field}.simple"), message);
            None
        }
    }
}

fn connection_pool(
    judge: &mut Judge<'_>,
    pool: Option<&crd::ConnectionPool>,
    field: &str,
) -> ConnectionPool {
    let mut result = ConnectionPool::default();
    let Some(pool) = pool else { return result };
    if let Some(tcp) = &pool.tcp {
        let field = format!("{field}.tcp");
        result.max_connections = limit(
            judge,
            tcp.max_connections,
            format!("{field}.maxConnections"),
        );
        result.connect_timeout = judge.duration(
            tcp.connect_timeout.as_deref(),
            &format!("{field}.connectTimeout"),
        );
        result.tcp_idle_timeout =
            judge.duration(tcp.idle_timeout.as_deref(), &format!("{field}.idleTimeout"));
        let duration = tcp.max_connection_duration.as_deref();
        result.max_connection_duration =
            judge.duration(duration, &format!("{field}.maxConnectionDuration"));
        result.keepalive = tcp.tcp_keepalive.as_ref().map(|keepalive| Keepalive {
            probes: keepalive.probes,
            time: judge.duration(
                keepalive.time.as_deref(),
                &format!("{field}.tcpKeepalive.time"),
            ),
            interval: judge.duration(
                keepalive.interval.as_deref(),
                &format!("{field}.tcpKeepalive.interval"),
            ),
        });
    }
    if let Some(http) = &pool.http {
        http_pool(judge, http, &format!("{field}.http"), &mut result);
    }
    result
}

fn http_pool(
    judge: &mut Judge<'_>,
    http: &crd::HttpSettings,
    field: &str,
    result: &mut ConnectionPool,
) {
    let pending = http.http1_max_pending_requests;
    result.max_pending_requests = limit(judge, pending, format!("{field}.http1MaxPendingRequests"));
    result.max_requests = limit(
        judge,
        http.http2_max_requests,
        format!("{field}.http2MaxRequests"),
    );
    let per_connection = http.max_requests_per_connection;
    result.max_requests_per_connection = limit(
        judge,
        per_connection,
        format!("{field}.maxRequestsPerConnection"),
    );
    // Here 0 means none, as Istio says, where for the other limits it means unset.
    result.max_retries = http.max_retries.and_then(|retries| {
        if retries < 0 {
            judge.error(
                format!("{field}.maxRetries"),
                format!("{retries} is negative"),
            );
        }
        u32::try_from(retries).ok()
    });
    result.http_idle_timeout = judge.duration(
        http.idle_timeout.as_deref(),
        &format!("{field}.idleTimeout"),
    );
    result.max_concurrent_streams = limit(
        judge,
        http.max_concurrent_streams,
        format!("{field}.maxConcurrentStreams"),
    );
    result.use_client_protocol = http.use_client_protocol;
    result.upgrade_to_http2 = match http.h2_upgrade_policy.as_deref() {
        None | Some("DEFAULT") => None,
        Some("UPGRADE") => Some(true),
        Some("DO_NOT_UPGRADE") => Some(false),
        Some(other) => {
            let message = format!("{other:?} is not one of DEFAULT, DO_NOT_UPGRADE and UPGRADE");
            judge.error(format!("{field}.h2UpgradePolicy"), message);
            None
        }
    };
}

/// A limit, where 0 means unset as in Istio.
fn limit(judge: &mut Judge<'_>, value: Option<i64>, field: String) -> Option<u32> {
    let value = value.filter(|value| *value != 0)?;
    u32::try_from(value)
        .map_err(|_| judge.error(field, format!("{value} is not a limit")))
        .ok()
}
