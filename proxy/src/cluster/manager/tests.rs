use super::*;
use crate::cluster::breaker::Resource;
use crate::resource::{BindSource, LbPolicy, LocalityEndpoints, Thresholds, UpstreamProtocol};
use std::time::Duration;

fn cluster(name: &str) -> Arc<Cluster> {
    Arc::new(Cluster {
        name: name.into(),
        alt_stat_name: None,
        kind: ClusterKind::Eds(name.into()),
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: Duration::from_secs(1),
        default_thresholds: Thresholds::default(),
        high_thresholds: Thresholds::default(),
        protocol: UpstreamProtocol::Http1,
        idle_timeout: Duration::ZERO,
        max_connection_duration: Duration::ZERO,
        max_requests_per_connection: 0,
        max_concurrent_streams: 0,
        tcp_keepalive: None,
        bind_source: BindSource::default(),
        panic_threshold: 0,
        added_via_api: true,
        service: None,
        subset: None,
        origin: None,
    })
}

fn endpoints(ports: &[u16], weight: u32) -> Arc<Endpoints> {
    let endpoint = |port: &u16| {
        Arc::new(Endpoint {
            address: SocketAddr::from(([10, 0, 0, 1], *port)),
            hostname: None,
            weight,
            health: HealthStatus::Healthy,
            canary: false,
            workload: None,
        })
    };
    Arc::new(Endpoints {
        localities: vec![LocalityEndpoints {
            locality: Locality::default(),
            priority: 0,
            weight: 1,
            endpoints: ports.iter().map(endpoint).collect(),
        }],
        overprovisioning_factor: 140,
    })
}

#[test]
fn counters_and_breakers_survive_an_update() {
    let manager = Manager::new();
    let before = manager.entry(cluster("a"), Some(endpoints(&[1, 2], 1)));
    before.hosts[0].stats.rq_total.add(5);
    let held = before.breakers().acquire(Resource::Request);
    let after = manager.entry(cluster("a"), Some(endpoints(&[1, 2], 7)));
    assert_eq!(after.hosts[0].stats.rq_total.get(), 5);
    assert_eq!(after.hosts[0].id(), before.hosts[0].id());
    assert_eq!(after.hosts[0].endpoint.weight, 7);
    assert_eq!(after.breakers().taken(Resource::Request), 1);
    assert_ne!(after.version, before.version);
    drop(held);
    assert_eq!(after.breakers().taken(Resource::Request), 0);
}

#[test]
fn a_host_that_comes_back_is_another_one() {
    let manager = Manager::new();
    let first = manager.entry(cluster("a"), Some(endpoints(&[1], 1)));
    let host = first.hosts[0].clone();
    manager.entry(cluster("a"), Some(endpoints(&[], 1)));
    assert!(host.is_gone());
    let again = manager.entry(cluster("a"), Some(endpoints(&[1], 1)));
    assert_ne!(again.hosts[0].id(), host.id());
    assert!(!again.hosts[0].is_gone());
}

#[test]
fn hosts_of_a_removed_cluster_are_gone() {
    let manager = Manager::new();
    let entry = manager.entry(cluster("a"), Some(endpoints(&[1], 1)));
    let other = manager.entry(cluster("b"), Some(endpoints(&[1], 1)));
    assert_ne!(entry.hosts[0].id(), other.hosts[0].id());
    manager.retain(|name| name.as_str() == "b");
    assert!(entry.hosts[0].is_gone());
    assert!(!other.hosts[0].is_gone());
}

#[test]
fn an_original_destination_is_one_host() {
    let manager = Manager::new();
    let entry = manager.entry(cluster("a"), None);
    let address = SocketAddr::from(([10, 0, 0, 9], 80));
    let host = entry.original_dst(address);
    assert_eq!(host.id(), entry.original_dst(address).id());
    assert_eq!(entry.original_dst_hosts().len(), 1);
}
