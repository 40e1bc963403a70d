//! What clients, logs and metrics see of raw TCP connections, by outcome.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use crate::fixture::{Fixture, cluster, listener, tcp_chain};
use crate::metrics::TelemetryCollector;
use crate::resource::listener::AccessLogFormat;
use crate::resource::{AccessLog, Cluster, FilterChain, NetworkFilter};

/// A fixture whose connections are logged.
struct Logged {
    fixture: Fixture,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Logged {
    fn new(format: &str, clusters: impl IntoIterator<Item = Cluster>, attempts: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog {
            path: path.to_str().unwrap().to_owned(),
            format: Some(AccessLogFormat::Text(format!("{format}\n"))),
        };
        let fixture = Fixture::new();
        let mut listener = listener("l", [logged(tcp_chain("tcp", "c"), &log, attempts)]);
        listener.access_log = vec![log];
        fixture.publish([listener], clusters);
        Self {
            fixture,
            path,
            _dir: dir,
        }
    }

    /// Connects, talks as `talk` says, and returns the connection's record.
    async fn record<F: Future<Output = ()>>(
        &self,
        talk: impl FnOnce(tokio::net::TcpStream) -> F,
    ) -> String {
        let writer = self.fixture.parts.telemetry.sinks().start().unwrap();
        let local = LocalSet::new();
        let run = async {
            let serving = self.fixture.listen("l").await;
            talk(serving.connect().await).await;
            serving.worker.drain.cancel();
            serving.worker.tasks.close();
            serving.worker.tasks.wait().await;
        };
        local.run_until(run).await;
        drop(writer);
        std::fs::read_to_string(&self.path)
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

fn logged(mut chain: FilterChain, log: &AccessLog, attempts: u32) -> FilterChain {
    if let NetworkFilter::Tcp(proxy) = &mut chain.filter {
        let proxy = std::sync::Arc::get_mut(proxy).unwrap();
        proxy.access_log = vec![log.clone()];
        proxy.max_connect_attempts = attempts;
    }
    chain
}

async fn refused_address() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    socket.local_addr().unwrap()
}

async fn expect_reset(mut client: tokio::net::TcpStream) {
    let error = client.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_without_upstream_is_reset_and_its_record_says_why() {
    let refused = refused_address().await;
    let broken = || {
        let mut cluster = cluster("c", &[refused]);
        cluster.default_thresholds.max_connections = 0;
        cluster
    };
    let format =
        "%RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %UPSTREAM_REQUEST_ATTEMPT_COUNT%";
    let tried = format!("UF c {refused} 1");
    let retried = format!("UF,URX c {refused} 3");
    for (clusters, attempts, expected) in [
        (vec![], 1, "NC - - 0"),
        (vec![cluster("c", &[])], 1, "UH c - 0"),
        (vec![broken()], 1, "UO c - 0"),
        (vec![cluster("c", &[refused])], 1, &*tried),
        (vec![cluster("c", &[refused])], 3, &*retried),
    ] {
        let logged = Logged::new(format, clusters, attempts);
        assert_eq!(logged.record(expect_reset).await, expected);
    }
}

#[tokio::test]
async fn a_finished_connection_is_logged_with_its_bytes_and_counted() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let format =
        "%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_HOST%";
    let logged = Logged::new(format, [cluster("c", &[address])], 1);
    let record = logged
        .record(|mut client| async move {
            client.write_all(b"four").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut server, _) = server.accept().await.unwrap();
            server.read_to_end(&mut Vec::new()).await.unwrap();
            server.write_all(b"seven..").await.unwrap();
            drop(server);
            client.read_to_end(&mut Vec::new()).await.unwrap();
        })
        .await;
    assert_eq!(record, format!("- 4 7 c {address}"));

    let mut registry = prometheus_client::registry::Registry::default();
    let collector = TelemetryCollector(logged.fixture.parts.telemetry.clone());
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for (metric, value) in [
        ("istio_tcp_connections_opened_total", "1"),
        ("istio_tcp_connections_closed_total", "1"),
        ("istio_tcp_received_bytes_total", "4"),
        ("istio_tcp_sent_bytes_total", "7"),
    ] {
        let line = text.lines().find(|line| line.starts_with(metric)).unwrap();
        assert!(line.contains("reporter=\"source\""), "{line}");
        assert!(line.ends_with(value), "{line}");
    }
}

#[tokio::test]
async fn the_breaker_counts_connections_for_as_long_as_they_are_open() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut only = cluster("c", &[server.local_addr().unwrap()]);
    only.default_thresholds.max_connections = 1;
    let fixture = Fixture::new();
    fixture.publish([listener("l", [tcp_chain("tcp", "c")])], [only]);
    LocalSet::new()
        .run_until(async {
            let serving = fixture.listen("l").await;
            let first = serving.connect().await;
            let (_accepted, _) = server.accept().await.unwrap();
            expect_reset(serving.connect().await).await;
            first.set_zero_linger().unwrap();
            drop(first);
            let next = async {
                loop {
                    let mut client = serving.connect().await;
                    if client.read(&mut [0; 1]).await.is_ok() {
                        return;
                    }
                }
            };
            // The slot is free as soon as the first connection has ended.
            let greet = async {
                let (mut accepted, _) = server.accept().await.unwrap();
                accepted.write_all(b"x").await.unwrap();
            };
            let both = async { tokio::join!(next, greet) };
            tokio::time::timeout(Duration::from_secs(10), both)
                .await
                .unwrap();
        })
        .await;
}

#[tokio::test]
async fn a_connection_that_no_chain_takes_is_logged_by_its_listener() {
    let mut logged = Logged::new("%RESPONSE_FLAGS%", [], 1);
    let mut chain = tcp_chain("tcp", "c");
    chain.matches.destination_port = Some(1);
    let mut unmatched = listener("l", [chain]);
    unmatched.access_log = vec![AccessLog {
        path: logged.path.to_str().unwrap().to_owned(),
        format: Some(AccessLogFormat::Text("%RESPONSE_FLAGS%\n".to_owned())),
    }];
    logged.fixture = Fixture::new();
    logged.fixture.publish([unmatched], []);
    assert_eq!(logged.record(expect_reset).await, "NR");
}
