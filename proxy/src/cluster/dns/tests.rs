use std::collections::HashMap;

use parking_lot::Mutex;

use super::*;
use crate::resource::{BindSource, LbPolicy, Thresholds, UpstreamProtocol};

/// Answers from a table that a test may change.
#[derive(Default)]
struct Table(Mutex<HashMap<String, Answer>>);

impl Table {
    fn set(&self, host: &str, ips: &[&str], ttl: u64) {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let ttl = Duration::from_secs(ttl);
        self.0.lock().insert(host.into(), Answer { ips, ttl });
    }
}

impl Lookup for Table {
    fn lookup<'a>(&'a self, host: &'a str, _: DnsFamily) -> LookupFuture<'a> {
        let answer = self.0.lock().get(host).cloned();
        Box::pin(async move { answer.ok_or_else(|| "no such name".to_owned()) })
    }
}

fn cluster(logical: bool, respect_ttl: bool, hosts: &[&str]) -> Arc<Cluster> {
    let hosts = DnsHosts {
        hosts: hosts.iter().map(|h| ((*h).to_owned(), 80)).collect(),
        refresh_rate: Duration::from_secs(5),
        respect_ttl,
        family: DnsFamily::Auto,
    };
    Arc::new(Cluster {
        name: "c".into(),
        alt_stat_name: None,
        kind: if logical {
            ClusterKind::LogicalDns(hosts)
        } else {
            ClusterKind::StrictDns(hosts)
        },
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
        bind_source: BindSource::default(),
        panic_threshold: 50,
        added_via_api: false,
        service: None,
        subset: None,
        origin: None,
    })
}

fn seen(resolution: &Resolution) -> Vec<String> {
    let endpoints = resolution.endpoints.iter();
    endpoints.map(|(_, e)| e.address.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn strict_dns_follows_and_keeps_what_no_longer_resolves() {
    let table = Arc::new(Table::default());
    table.set("a", &["10.0.0.2", "10.0.0.1"], 60);
    let (mut clusters, mut news) = DnsClusters::new(table.clone());
    clusters.set(&[cluster(false, false, &["a", "b", "10.9.9.9"])]);
    let first = news.recv().await.unwrap();
    assert_eq!(seen(&first), ["10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:80"]);
    table.0.lock().remove("a");
    table.set("b", &["10.0.1.1"], 60);
    let second = news.recv().await.unwrap();
    let expected = ["10.0.0.1:80", "10.0.0.2:80", "10.0.1.1:80", "10.9.9.9:80"];
    assert_eq!(seen(&second), expected);
}

#[tokio::test(start_paused = true)]
async fn a_first_failure_is_told_too() {
    let (mut clusters, mut news) = DnsClusters::new(Arc::new(Table::default()));
    clusters.set(&[cluster(false, false, &["nowhere"])]);
    assert!(seen(&news.recv().await.unwrap()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn logical_dns_uses_one_address_and_stays_with_it() {
    let table = Arc::new(Table::default());
    table.set("a", &["10.0.0.2"], 60);
    let (mut clusters, mut news) = DnsClusters::new(table.clone());
    clusters.set(&[cluster(true, false, &["a"])]);
    assert_eq!(seen(&news.recv().await.unwrap()), ["10.0.0.2:80"]);
    table.set("a", &["10.0.0.1", "10.0.0.2"], 60);
    let silence = tokio::time::timeout(Duration::from_secs(11), news.recv()).await;
    assert!(silence.is_err(), "the address is still good");
    table.set("a", &["10.0.0.3"], 60);
    assert_eq!(seen(&news.recv().await.unwrap()), ["10.0.0.3:80"]);
}

#[tokio::test(start_paused = true)]
async fn time_to_live_is_followed_where_asked_for() {
    let table = Arc::new(Table::default());
    table.set("a", &["10.0.0.1"], 2);
    let (mut clusters, mut news) = DnsClusters::new(table.clone());
    clusters.set(&[cluster(false, true, &["a"])]);
    drop(news.recv().await.unwrap());
    let begin = Instant::now();
    table.set("a", &["10.0.0.2"], 2);
    assert_eq!(seen(&news.recv().await.unwrap()), ["10.0.0.2:80"]);
    assert!(begin.elapsed() <= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_gone_is_not_resolved() {
    let table = Arc::new(Table::default());
    table.set("a", &["10.0.0.1"], 60);
    let (mut clusters, mut news) = DnsClusters::new(table.clone());
    clusters.set(&[cluster(false, false, &["a"])]);
    drop(news.recv().await.unwrap());
    clusters.set(&[]);
    table.set("a", &["10.0.0.2"], 60);
    let silence = tokio::time::timeout(Duration::from_mins(1), news.recv()).await;
    assert!(silence.is_err());
}

#[tokio::test]
async fn the_system_knows_localhost() {
    let found = SystemLookup::default()
        .lookup("localhost", DnsFamily::V4Only)
        .await
        .unwrap();
    assert!(found.ips.iter().all(IpAddr::is_loopback));
}
