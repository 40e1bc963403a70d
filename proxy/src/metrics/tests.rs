use std::time::Duration;

use millrace_runtime::handoff::PodSpec;
use prometheus_client::registry::Registry;

use super::labels::*;
use super::*;
use crate::flags::ResponseFlags;

fn key() -> TcpKey {
    TcpKey {
        reporter: Reporter::Source,
        pod: 1,
        peer: 0,
        cluster: None,
        host: None,
        flags: ResponseFlags::NONE,
    }
}

fn peers() -> Peers {
    Peers {
        reporter: Reporter::Source,
        source: Some(Workload {
            name: "productpage-v1".into(),
            namespace: "default".into(),
            service: "productpage".into(),
            revision: "v1".into(),
        }),
        destination: None,
        service: None,
    }
}

fn encode(telemetry: &Arc<Telemetry>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(TelemetryCollector(telemetry.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn series_of_all_workers_add_up_and_outlive_them() {
    let telemetry = Telemetry::new();
    for worker in 0..2 {
        let worker = telemetry.worker(worker);
        let key = HttpKey {
            peers: key(),
            status: 200,
            grpc_status: None,
            grpc: false,
        };
        let labels = || HttpLabels {
            peers: peers(),
            protocol: Protocol::Http,
            status: 200,
            grpc_status: None,
            flags: "-".into(),
        };
        worker
            .http(key, labels)
            .record(Duration::from_micros(700), 10, 100);
        worker
            .http(key, labels)
            .record(Duration::from_millis(7), 10, 100);
        let tcp = worker.tcp(self::key(), || TcpLabels {
            peers: peers(),
            flags: "-".into(),
        });
        tcp.opened();
        tcp.sent(5);
    }
    for _ in 0..2 {
        let text = encode(&telemetry);
        let line = |name: &str, has: &str| {
            text.lines()
                .find(|l| l.starts_with(name) && l.contains(has))
                .unwrap_or_else(|| panic!("{name} {has} in {text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            line(
                "istio_requests_total{",
                "source_workload=\"productpage-v1\""
            ),
            "4"
        );
        assert_eq!(line("istio_request_duration_milliseconds_count{", ""), "4");
        assert_eq!(
            line("istio_request_duration_milliseconds_bucket{", "le=\"1.0\""),
            "2"
        );
        assert_eq!(
            line("istio_request_duration_milliseconds_bucket{", "le=\"+Inf\""),
            "4"
        );
        assert_eq!(line("istio_response_bytes_sum{", ""), "400.0");
        assert_eq!(line("istio_tcp_connections_opened_total{", ""), "2");
        assert_eq!(
            line("istio_tcp_sent_bytes_total{", "response_flags=\"-\""),
            "10"
        );
    }
}

#[test]
fn a_workload_is_named_as_istio_names_it() {
    for (pod, expected) in [
        ("reviews-v1-545db77b95-2zq5p", "reviews-v1"),
        ("mysql-0", "mysql"),
        ("agent-x7k2p", "agent"),
        ("plain", "plain"),
        ("my-reviews", "my-reviews"),
    ] {
        let spec = PodSpec {
            name: pod.into(),
            namespace: "default".into(),
            labels: [("app".to_owned(), "reviews".to_owned())].into(),
            ..PodSpec::default()
        };
        let workload = Workload::from(&spec);
        assert_eq!(&*workload.name, expected);
        assert_eq!(&*workload.service, "reviews");
        assert_eq!(&*workload.revision, "latest");
    }
}

fn labels(n: usize) -> TcpLabels {
    let mut peers = peers();
    if let Some(source) = &mut peers.source {
        source.name = n.to_string().into();
    }
    TcpLabels {
        peers,
        flags: "-".into(),
    }
}

#[test]
fn memory_is_bounded_without_a_scrape() {
    let telemetry = Telemetry::new();
    let worker = telemetry.worker(0);
    let (handles, all) = (3 * MAX_HANDLES, 3 * MAX_HANDLES as u64);
    for n in 0..handles {
        let key = TcpKey {
            pod: n as u64 + 1,
            ..key()
        };
        worker.tcp(key, || labels(n)).opened();
    }
    let (live, known) = telemetry.tcp.lock().sizes();
    assert!(live <= 2 * MAX_HANDLES, "{live}");
    assert!(known <= series::MAX_SERIES + 1, "{known}");
    let (_, totals, _, overflowed) = telemetry.totals();
    assert_eq!(totals.values().map(TcpSum::opened).sum::<u64>(), all);
    assert_eq!(overflowed, all - series::MAX_SERIES as u64);
    assert!(encode(&telemetry).contains("source_workload=\"overflow\""));
}

#[test]
fn what_is_not_written_is_forgotten_and_what_is_stays() {
    let telemetry = Telemetry::new();
    let worker = telemetry.worker(0);
    let other = TcpKey { pod: 2, ..key() };
    worker.tcp(other, || labels(2)).opened();
    for _ in 0..series::KEPT_AGES + 3 {
        worker.tcp(key(), || labels(1)).opened();
        telemetry.age();
    }
    let (_, totals, expired, _) = telemetry.totals();
    assert_eq!(expired, 1);
    let left: Vec<_> = totals.values().map(TcpSum::opened).collect();
    assert_eq!(left, [u64::from(series::KEPT_AGES) + 3]);
}
