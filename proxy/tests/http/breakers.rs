//! Circuit breakers at their limits, each by the flag that tells which way it was open.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_proxy::cluster::breaker::Resource;

use crate::support::*;

/// Waits until so much of a limit is taken.
fn taken(proxy: &Proxy, resource: Resource, count: u32) {
    let entry = proxy.store.load().cluster("main").unwrap().clone();
    while entry.breakers().taken(resource) != count {
        std::thread::yield_now();
    }
}

#[test]
fn no_more_requests_wait_for_a_connection_than_may() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = Arc::new(parking_lot::Mutex::new(gone));
    let upstream = responder(move |head, _| {
        if head.starts_with("GET /held") {
            gone.lock().recv().unwrap();
        }
        ok("served")
    });
    let proxy = Setup::new(&[upstream])
        .cluster(|cluster| {
            cluster.default_thresholds.max_connections = 1;
            cluster.default_thresholds.max_pending_requests = 1;
        })
        .start();
    let ask = |path: &str| {
        let mut client = proxy.connect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        client
    };
    // One has the connection, one waits for it, and there is no room for a third.
    let mut held = ask("/held");
    taken(&proxy, Resource::Connection, 1);
    taken(&proxy, Resource::Pending, 0);
    let mut waiting = ask("/waiting");
    taken(&proxy, Resource::Pending, 1);
    let (answer, _) = read_message(&mut ask("/refused"));
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(header(&answer, "x-envoy-overloaded"), Some("true"));

    go.send(()).unwrap();
    assert_eq!(read_message(&mut held).1, b"served");
    assert_eq!(read_message(&mut waiting).1, b"served");
    taken(&proxy, Resource::Pending, 0);
    drop((held, waiting));
    let log = proxy.log();
    let refused: Vec<_> = log.iter().filter(|l| l.contains("/refused")).collect();
    assert!(refused[0].contains(" 503 UO "), "{log:?}");
}

#[test]
fn no_more_tries_are_repeated_at_a_time_than_may() {
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    let upstream = responder(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy".to_vec()
    });
    let proxy = Setup::new(&[upstream])
        .action(|action| action.retry_policy = Some(istio_retries()))
        .cluster(|cluster| cluster.default_thresholds.max_retries = 0)
        .start();
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.ends_with("busy"), "{answer}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let log = proxy.log();
    assert!(log[0].contains(" 503 UO via_upstream"), "{log:?}");
}
