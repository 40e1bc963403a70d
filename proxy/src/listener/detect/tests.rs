//! Who speaks first decides, and nobody waits for somebody who will not speak.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;
use crate::fixture::{Fixture, Serving, cluster, http_chain, listener, tcp_chain};

/// A listener of an unnamed port: HTTP by inspection, else raw TCP to `server`.
fn unnamed_port(fixture: &Fixture, server: SocketAddr) {
    let http = http_chain("http", &["http/1.0", "http/1.1", "h2c"]);
    let mut listener = listener("l", [http, tcp_chain("tcp", "c")]);
    listener.http_inspector = true;
    listener.tls_inspector = true;
    fixture.publish([listener], [cluster("c", &[server])]);
}

struct Test {
    fixture: Fixture,
    server: TcpListener,
}

impl Test {
    async fn new() -> Self {
        let fixture = Fixture::new();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        unnamed_port(&fixture, server.local_addr().unwrap());
        Self { fixture, server }
    }

    async fn serve(&self) -> Serving {
        self.fixture.listen("l").await
    }

    /// One connection to a server that greets; says how long the greeting took.
    async fn greeted(&self, serving: &Serving) -> Duration {
        let began = Instant::now();
        let mut client = serving.connect().await;
        let (mut server, _) = self.server.accept().await.unwrap();
        server.write_all(b"220 hello").await.unwrap();
        let mut greeting = [0; 9];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 hello");
        client.write_all(b"QUIT").await.unwrap();
        let mut quit = [0; 4];
        server.read_exact(&mut quit).await.unwrap();
        began.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_first_is_waited_for_once_and_then_never() {
    let test = Test::new().await;
    LocalSet::new()
        .run_until(async {
            let serving = test.serve().await;
            // The clock is paused, so what has passed is what was waited for.
            assert!(test.greeted(&serving).await >= QUIET_WINDOW);
            assert_eq!(test.greeted(&serving).await, Duration::ZERO);
        })
        .await;
}

#[tokio::test]
async fn a_client_that_speaks_first_is_not_made_to_wait() {
    let test = Test::new().await;
    LocalSet::new()
        .run_until(async {
            let serving = test.serve().await;
            let mut client = serving.connect().await;
            client.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
            let (mut server, _) = test.server.accept().await.unwrap();
            let mut ping = [0; 14];
            server.read_exact(&mut ping).await.unwrap();
            assert_eq!(&ping, b"*1\r\n$4\r\nPING\r\n");
            let orig_dst = serving.address;
            assert!(!serving.worker.server_first.knows(orig_dst));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_gets_the_connection_that_was_opened_meanwhile() {
    let test = Test::new().await;
    LocalSet::new()
        .run_until(async {
            let serving = test.serve().await;
            let mut client = serving.connect().await;
            let (mut server, _) = test.server.accept().await.unwrap();
            client.write_all(b"\x00late").await.unwrap();
            let mut late = [0; 5];
            server.read_exact(&mut late).await.unwrap();
            assert_eq!(&late, b"\x00late");
            let again = tokio::time::timeout(Duration::from_secs(1), test.server.accept());
            assert!(again.await.is_err(), "a second connection was opened");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_http_client_is_told_from_raw_tcp_and_its_destination_is_not_learned() {
    let test = Test::new().await;
    LocalSet::new()
        .run_until(async {
            let serving = test.serve().await;
            let mut client = serving.connect().await;
            let (mut server, _) = test.server.accept().await.unwrap();
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            // The connection that raced ends unused.
            assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
            assert!(!serving.worker.server_first.knows(serving.address));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_at_once_closes_the_client() {
    let test = Test::new().await;
    LocalSet::new()
        .run_until(async {
            let serving = test.serve().await;
            let mut client = serving.connect().await;
            let (server, _) = test.server.accept().await.unwrap();
            drop(server);
            client.shutdown().await.unwrap();
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            assert!(!serving.worker.server_first.knows(serving.address));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_is_forgotten_when_its_client_speaks_first_after_all() {
    let test = Test::new().await;
    LocalSet::new()
        .run_until(async {
            let serving = test.serve().await;
            test.greeted(&serving).await;
            assert!(serving.worker.server_first.knows(serving.address));
            let mut client = serving.connect().await;
            client.write_all(b"\x01").await.unwrap();
            let (mut server, _) = test.server.accept().await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
            assert!(!serving.worker.server_first.knows(serving.address));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_of_an_unreachable_server_is_closed_after_a_while() {
    let fixture = Fixture::new();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    unnamed_port(&fixture, server.local_addr().unwrap());
    drop(server);
    LocalSet::new()
        .run_until(async {
            let serving = fixture.listen("l").await;
            let mut client = serving.connect().await;
            let began = Instant::now();
            assert!(client.read(&mut [0; 8]).await.is_err());
            assert!(began.elapsed() >= UNREACHABLE_LIMIT);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_listeners_own_limit_closes_or_goes_on() {
    for (goes_on, closed) in [(true, false), (false, true)] {
        let fixture = Fixture::new();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Without a chain for raw TCP there is nobody to race.
        let mut listener = listener("l", [http_chain("http", &["http/1.1"])]);
        listener.http_inspector = true;
        listener.listener_filters_timeout = Duration::from_secs(3);
        listener.continue_on_listener_filters_timeout = goes_on;
        listener.default_filter_chain = None;
        fixture.publish([listener], [cluster("c", &[server.local_addr().unwrap()])]);
        LocalSet::new()
            .run_until(async {
                let serving = fixture.listen("l").await;
                let mut client = serving.connect().await;
                let began = Instant::now();
                assert!(client.read(&mut [0; 8]).await.is_err());
                assert!(began.elapsed() >= Duration::from_secs(3));
                let count = |r| fixture.parts.stats.refusals(r) == 1;
                assert_eq!(count(Refusal::InspectionTimeout), closed);
                assert_eq!(count(Refusal::NoFilterChain), goes_on);
            })
            .await;
    }
}
