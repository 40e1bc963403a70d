//! Header limits, timeouts, breakers and retries.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::*;

#[test]
fn large_headers_get_431_and_the_connection_is_closed() {
    let upstream = responder(|_, _| ok(""));
    let proxy = Setup::new(&[upstream]).start();
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(61 << 10)
    );
    let huge = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let many: Vec<String> = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many.concat());
    for request in [large, huge, many] {
        let answer = exchange(proxy.address, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let fits = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: {}\r\n\r\n",
        "x".repeat(59 << 10)
    );
    let answer = exchange(proxy.address, fits.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let log = proxy.log();
    assert!(
        log[0].contains(" 431 DPE request_headers_too_large"),
        "{log:?}"
    );
}

/// The status of a GET with these headers over HTTP/2; `None` where the stream was reset.
fn h2_status(address: std::net::SocketAddr, headers: &[(String, String)]) -> Option<u16> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut send, conn) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .unwrap();
        tokio::spawn(conn);
        let mut request = http::Request::get("http://a/");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let response = send.send_request(request.body(body).unwrap()).await;
        response.ok().map(|response| response.status().as_u16())
    })
}

#[test]
fn large_headers_get_431_over_http2_too() {
    let upstream = responder(|_, _| ok(""));
    let proxy = Setup::new(&[upstream]).start();
    let many = |n| -> Vec<_> { (0..n).map(|n| (format!("x-{n}"), "1".into())).collect() };
    let large = |kb: usize| vec![("x".to_owned(), "x".repeat(kb << 10))];
    assert_eq!(h2_status(proxy.address, &many(100)), Some(200));
    assert_eq!(h2_status(proxy.address, &many(101)), Some(431));
    assert_eq!(h2_status(proxy.address, &large(59)), Some(200));
    assert_eq!(h2_status(proxy.address, &large(61)), Some(431));
    let log = proxy.log();
    assert!(
        log[1].contains("HTTP/2 431 DPE request_headers_too_large"),
        "{log:?}"
    );
}

#[test]
fn headers_that_do_not_end_close_an_http2_connection() {
    let upstream = responder(|_, _| ok(""));
    let proxy = Setup::new(&[upstream])
        .hcm(|hcm| hcm.request_headers_timeout = Duration::from_millis(200))
        .start();
    let mut client = proxy.connect();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // HEADERS of stream 1 without END_HEADERS: `:method: GET` alone.
    bytes.extend([0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82]);
    client.write_all(&bytes).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    let log = proxy.log();
    assert!(
        log[0].contains("HTTP/2 408 DPE request_header_timeout"),
        "{log:?}"
    );
}

#[test]
fn a_request_that_does_not_end_gets_408() {
    let upstream = server(|mut stream| {
        read_head(&mut stream);
        wait_for_end(stream);
    });
    let proxy = Setup::new(&[upstream])
        .hcm(|hcm| hcm.request_timeout = Duration::from_millis(200))
        .start();
    let mut client = proxy.connect();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhi")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.ends_with("request timeout"), "{answer}");
    let log = proxy.log();
    assert!(log[0].contains(" 408 - request_overall_timeout"), "{log:?}");
}

#[test]
fn a_slow_loris_gets_408() {
    let upstream = responder(|_, _| ok(""));
    let proxy = Setup::new(&[upstream])
        .hcm(|hcm| hcm.request_headers_timeout = Duration::from_millis(200))
        .start();
    // At the first request, and at a later one of a connection that was idle for longer.
    for first in [true, false] {
        let mut client = proxy.connect();
        if !first {
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            read_message(&mut client);
            // Another client's timeout passes meanwhile.
            let mut other = proxy.connect();
            other.write_all(b"GET").unwrap();
            other.read_to_end(&mut Vec::new()).unwrap();
        }
        client.write_all(b"GET / HTTP/1.1\r\nHost").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{first}: {answer}");
    }
}

#[test]
fn a_route_timeout_gives_504() {
    let upstream = server(|mut stream| {
        read_head(&mut stream);
        wait_for_end(stream);
    });
    let proxy = Setup::new(&[upstream])
        .action(|action| action.timeout = Duration::from_millis(100))
        .start();
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.ends_with("upstream request timeout"), "{answer}");
    let log = proxy.log();
    assert!(log[0].contains(" 504 UT response_timeout"), "{log:?}");
}

#[test]
fn an_idle_stream_is_ended() {
    let upstream = server(|mut stream| {
        read_head(&mut stream);
        wait_for_end(stream);
    });
    let proxy = Setup::new(&[upstream])
        .hcm(|hcm| hcm.stream_idle_timeout = Duration::from_millis(100))
        .start();
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let log = proxy.log();
    assert!(log[0].contains(" 408 SI stream_idle_timeout"), "{log:?}");
}

#[test]
fn a_refused_connection_is_retried_on_another_host() {
    let good = responder(|_, _| ok("good"));
    let (refused, _held) = refusing();
    let proxy = Setup::new(&[refused, good])
        .action(|action| action.retry_policy = Some(istio_retries()))
        .start();
    for _ in 0..10 {
        let request =
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        let answer = exchange(proxy.address, request);
        assert!(answer.ends_with("good"), "{answer}");
    }
}

#[test]
fn retries_end_with_the_last_answer_and_its_flag() {
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    let upstream = responder(move |_, body| {
        counted.fetch_add(1, Ordering::Relaxed);
        assert_eq!(body, b"hi", "the body is sent with every try");
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy".to_vec()
    });
    let proxy = Setup::new(&[upstream])
        .action(|action| action.retry_policy = Some(istio_retries()))
        .start();
    let answer = exchange(
        proxy.address,
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("busy"), "{answer}");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    let log = proxy.log();
    assert!(
        log[0].contains(" 503 URX via_upstream 2 4 main 3 "),
        "{log:?}"
    );
}

#[test]
fn connecting_in_vain_gives_503_uf() {
    let (refused, _held) = refusing();
    let proxy = Setup::new(&[refused]).start();
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("reset reason: remote connection failure"),
        "{answer}"
    );
    let log = proxy.log();
    assert!(log[0].contains(" 503 UF "), "{log:?}");
}

#[test]
fn a_full_breaker_gives_503_uo() {
    let upstream = server(|mut stream| {
        read_head(&mut stream);
        wait_for_end(stream);
    });
    let proxy = Setup::new(&[upstream])
        .cluster(|cluster| cluster.default_thresholds.max_requests = 1)
        .start();
    let mut first = proxy.connect();
    first
        .write_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let entry = proxy.store.load().cluster("main").unwrap().clone();
    while entry
        .breakers()
        .taken(millrace_proxy::cluster::breaker::Resource::Request)
        == 0
    {
        std::thread::yield_now();
    }
    let answer = exchange(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(header(&answer, "x-envoy-overloaded"), Some("true"));
    drop(first);
    let log = proxy.log();
    assert!(log.iter().any(|l| l.contains(" 503 UO ")), "{log:?}");
}

#[test]
fn requests_wait_for_a_connection_when_there_may_be_no_more() {
    let upstream = responder(|_, _| ok("x"));
    let proxy = Setup::new(&[upstream])
        .cluster(|cluster| cluster.default_thresholds.max_connections = 1)
        .start();
    let address = proxy.address;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..20 {
                    let answer = exchange(
                        address,
                        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                    );
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let entry = proxy.store.load().cluster("main").unwrap().clone();
    assert_eq!(entry.hosts[0].stats.cx_total.get(), 1);
}

#[test]
fn a_draining_proxy_finishes_and_closes() {
    let upstream = responder(|_, _| ok("x"));
    let proxy = Setup::new(&[upstream]).start();
    let mut idle = proxy.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    read_message(&mut idle);
    proxy.drain();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "an idle connection is just closed");
}

#[test]
fn an_http2_client_that_answers_nothing_is_not_kept() {
    let proxy = Setup::new(&[])
        .hcm(|hcm| {
            hcm.idle_timeout = Duration::from_millis(50);
            hcm.stream_idle_timeout = Duration::from_millis(50);
        })
        .start();
    let mut stream = connect(proxy.address);
    // The frame never ends, so that nothing of the proxy's is answered any more.
    let bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\xba\xfe\0\0\0\0\x01";
    stream.write_all(bytes).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
}
