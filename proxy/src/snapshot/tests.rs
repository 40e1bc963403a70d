use std::time::Duration;

use super::*;
use crate::resource::{
    ClusterKind, FilterChain, FilterChainMatch, LbPolicy, NetworkFilter, TcpProxy, Thresholds,
    TrafficDirection, UpstreamProtocol,
};

pub(crate) fn listener(name: &str, address: &str, use_original_dst: bool) -> Arc<Listener> {
    let filter = NetworkFilter::Tcp(Arc::new(TcpProxy {
        cluster: crate::resource::ClusterSpecifier::Cluster("c".into()),
        idle_timeout: Duration::ZERO,
        max_connect_attempts: 1,
        access_log: Vec::new(),
    }));
    Arc::new(Listener {
        name: name.into(),
        address: address.parse().unwrap(),
        bind_to_port: false,
        use_original_dst,
        direction: TrafficDirection::Outbound,
        workload: None,
        http_inspector: false,
        tls_inspector: false,
        listener_filters_timeout: Duration::ZERO,
        continue_on_listener_filters_timeout: true,
        filter_chains: vec![Arc::new(FilterChain {
            name: String::new(),
            matches: FilterChainMatch::default(),
            filter,
            origin: None,
        })],
        default_filter_chain: None,
        access_log: Vec::new(),
    })
}

#[test]
fn a_proxy_of_one_workload_knows_it_from_its_inbound_listener() {
    let workload = WorkloadRef {
        name: "near".into(),
        namespace: "default".into(),
        canonical_name: "echo".into(),
        canonical_revision: "v1".into(),
    };
    let of = |direction, naming| {
        let mut listener = (*listener("virtualInbound", "0.0.0.0:15006", true)).clone();
        listener.direction = direction;
        listener.workload = Some(workload.clone());
        let resources = resources(naming, &[Arc::new(listener)]);
        let snapshot = Snapshot::default().next(&resources, &Manager::new());
        snapshot.own_workload().cloned()
    };
    let inbound = TrafficDirection::Inbound;
    assert_eq!(of(inbound, Naming::Plain), Some(workload.clone()));
    assert_eq!(of(inbound, Naming::Node), None);
    assert_eq!(of(TrafficDirection::Outbound, Naming::Plain), None);
}

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
        max_concurrent_streams: 100,
        tcp_keepalive: None,
        bind_source: crate::resource::BindSource::default(),
        panic_threshold: 50,
        added_via_api: true,
        service: None,
        subset: None,
        origin: None,
    })
}

fn resources(naming: Naming, listeners: &[Arc<Listener>]) -> Resources {
    Resources {
        naming,
        listeners: listeners
            .iter()
            .map(|l| (l.name.clone(), l.clone()))
            .collect(),
        ..Resources::default()
    }
}

fn outbound(snapshot: &Snapshot, namespace: Option<&str>, to: &str) -> Option<String> {
    let found = snapshot.outbound(namespace, to.parse().unwrap())?;
    Some(found.name.to_string())
}

#[test]
fn original_destination_leads_to_the_most_specific_listener() {
    let listeners = [
        listener("default/virtualOutbound", "0.0.0.0:15001", true),
        listener("default/0.0.0.0_9080", "0.0.0.0:9080", false),
        listener("default/10.96.0.5_3306", "10.96.0.5:3306", false),
        listener("default/6", "[::]:7000", false),
        listener("other/virtualOutbound", "0.0.0.0:15001", true),
        listener("pod/default/a", "0.0.0.0:15006", false),
    ];
    let store = Store::new();
    let snapshot = store.publish(&resources(Naming::Node, &listeners), &Manager::new());
    let cases = [
        (Some("default"), "10.1.1.1:9080", "default/0.0.0.0_9080"),
        (Some("default"), "[fd00::1]:9080", "default/0.0.0.0_9080"),
        (Some("default"), "10.1.1.1:7000", "default/6"),
        (Some("default"), "10.96.0.5:3306", "default/10.96.0.5_3306"),
        (Some("default"), "10.96.0.6:3306", "default/virtualOutbound"),
        (Some("default"), "10.1.1.1:15001", "default/virtualOutbound"),
        (Some("other"), "10.1.1.1:9080", "other/virtualOutbound"),
    ];
    for (namespace, to, expected) in cases {
        let found = outbound(&snapshot, namespace, to);
        assert_eq!(found.as_deref(), Some(expected), "{namespace:?} {to}");
    }
    assert_eq!(outbound(&snapshot, Some("nosuch"), "10.1.1.1:9080"), None);
    assert_eq!(outbound(&snapshot, None, "10.1.1.1:9080"), None);
    let inbound = snapshot.inbound("default", "a").unwrap();
    assert_eq!(inbound.name.as_str(), "pod/default/a");
}

#[test]
fn a_proxy_of_one_workload_takes_names_as_they_are() {
    let listeners = [
        listener("virtualOutbound", "0.0.0.0:15001", true),
        listener("a/b", "10.0.0.1:80", false),
    ];
    let store = Store::new();
    let snapshot = store.publish(&resources(Naming::Plain, &listeners), &Manager::new());
    assert_eq!(
        outbound(&snapshot, None, "10.0.0.1:80").as_deref(),
        Some("a/b")
    );
}

#[test]
fn readers_see_a_swap_as_one_and_keep_what_they_pinned() {
    let store = Store::new();
    let reader = store.reader();
    let mut generations = store.subscribe();
    let before = reader.load();
    assert_eq!(before.generation(), 0);
    let listeners = [listener("a", "10.0.0.1:80", false)];
    store.publish(&resources(Naming::Plain, &listeners), &Manager::new());
    assert!(before.listener("a").is_none());
    assert!(reader.load().listener("a").is_some());
    assert!(generations.has_changed().unwrap());
    assert_eq!(*generations.borrow_and_update(), 1);
}

#[test]
fn what_did_not_change_is_taken_over() {
    let (store, manager) = (Store::new(), Manager::new());
    let mut all = resources(Naming::Plain, &[]);
    for name in ["a", "b"] {
        all.clusters.insert(name.into(), cluster(name));
    }
    let config = Arc::new(RouteConfiguration {
        name: "r".into(),
        virtual_hosts: Vec::new(),
        ignore_port_in_host_matching: false,
        request_headers: crate::resource::HeaderMutation::default(),
        response_headers: crate::resource::HeaderMutation::default(),
    });
    all.routes.insert("r".into(), config);
    let first = store.publish(&all, &manager);
    all.endpoints.insert("a".into(), Arc::default());
    let second = store.publish(&all, &manager);
    let entry = |s: &Snapshot, name| Arc::clone(s.cluster(name).unwrap());
    assert!(!Arc::ptr_eq(&entry(&first, "a"), &entry(&second, "a")));
    assert!(Arc::ptr_eq(&entry(&first, "b"), &entry(&second, "b")));
    let table = |s: &Snapshot| Arc::clone(s.route_table("r").unwrap());
    assert!(Arc::ptr_eq(&table(&first), &table(&second)));
}
