//! Requests and responses on their way through.

use std::io::{Read, Write};

use crate::support::*;

#[test]
fn a_request_goes_through_and_is_logged() {
    let upstream = responder(|head, _| ok(head));
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    for _ in 0..3 {
        client
            .write_all(b"GET /a?b=c HTTP/1.1\r\nHost: reviews\r\nKeep-Alive: 3\r\nConnection: x-hop\r\nX-Hop: 1\r\nx-envoy-max-retries: 9\r\n\r\n")
            .unwrap();
        let (head, body) = read_message(&mut client);
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert_eq!(header(&head, "server"), Some("istio-envoy"));
        assert!(header(&head, "x-envoy-upstream-service-time").is_some());
        let seen = String::from_utf8(body).unwrap();
        assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
        assert_eq!(header(&seen, "host"), Some("reviews"));
        assert_eq!(header(&seen, "x-forwarded-proto"), Some("http"));
        assert_eq!(header(&seen, "x-request-id").unwrap().len(), 36);
        for gone in ["x-hop", "keep-alive", "connection", "x-envoy-max-retries"] {
            assert_eq!(header(&seen, gone), None, "{gone}");
        }
    }
    drop(client);
    let metrics = proxy.metrics();
    assert!(metrics.contains("istio_requests_total{"), "{metrics}");
    let log = proxy.log();
    assert_eq!(log.len(), 3, "{log:?}");
    assert!(
        log[0].starts_with("GET /a?b=c HTTP/1.1 200 - via_upstream 0 "),
        "{log:?}"
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = responder(|head, _| ok(head.split(' ').nth(1).unwrap()));
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    let requests: Vec<u8> = (0..20)
        .flat_map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes())
        .collect();
    client.write_all(&requests).unwrap();
    for n in 0..20 {
        let (_, body) = read_message(&mut client);
        assert_eq!(String::from_utf8(body).unwrap(), format!("/{n}"));
    }
}

#[test]
fn an_upstream_that_dies_mid_body_truncates_the_response() {
    let upstream = server(|mut stream| {
        read_head(&mut stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            .unwrap();
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let head = read_head(&mut client);
    assert_eq!(header(&head, "content-length"), Some("100"));
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).ok();
    assert_eq!(rest, b"only this");
    let log = proxy.log();
    assert!(
        log[0]
            .contains(" 200 UC upstream_reset_after_response_started{connection_termination} 0 9 "),
        "{log:?}"
    );
}

#[test]
fn a_client_that_leaves_is_logged() {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let upstream = server(move |mut stream| {
        read_head(&mut stream);
        tell.send(()).unwrap();
        // The proxy gives the connection up when the client does.
        assert!(read_head(&mut stream).is_empty());
        tell.send(()).unwrap();
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    told.recv().unwrap();
    drop(client);
    told.recv().unwrap();
    let log = proxy.log();
    assert!(
        log[0].starts_with("GET / HTTP/1.1 0 DC downstream_remote_disconnect 0 0 main"),
        "{log:?}"
    );
}

#[test]
fn nothing_to_route_to_is_said_with_its_flag() {
    let upstream = responder(|_, _| ok(""));
    let mut setup = Setup::new(&[upstream]);
    let vhost = std::sync::Arc::make_mut(&mut setup.routes.virtual_hosts[0]);
    let gone = millrace_proxy::resource::ClusterSpecifier::Cluster("nobody".into());
    vhost.routes = vec![
        std::sync::Arc::new(route("/gone", forward(gone))),
        std::sync::Arc::new(route(
            "/empty",
            forward(millrace_proxy::resource::ClusterSpecifier::Cluster(
                "empty".into(),
            )),
        )),
    ];
    setup.clusters.push(cluster("empty", &[]));
    let proxy = setup.start();
    for (path, status) in [("/gone", "503"), ("/empty", "503"), ("/other", "404")] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = exchange(proxy.address, request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    let log = proxy.log();
    assert!(log[0].contains(" 503 NC cluster_not_found"), "{log:?}");
    assert!(log[1].contains(" 503 UH no_healthy_upstream"), "{log:?}");
    assert!(log[2].contains(" 404 NR route_not_found"), "{log:?}");
}

#[test]
fn a_head_request_keeps_its_length_and_the_connection() {
    let upstream = server(|mut stream| {
        while !read_head(&mut stream).is_empty() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n")
                .unwrap();
        }
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        client
            .write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let head = read_head(&mut client);
        assert_eq!(header(&head, "content-length"), Some("7"));
    }
    drop(client);
    let log = proxy.log();
    assert!(
        log.iter().all(|l| l.contains(" 200 - via_upstream")),
        "{log:?}"
    );
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let upstream = responder(|head, body| {
        assert_eq!(header(head, "expect"), None);
        ok(std::str::from_utf8(body).unwrap())
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    client
        .write_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
        )
        .unwrap();
    assert_eq!(read_head(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").unwrap();
    assert_eq!(read_message(&mut client).1, b"body");
}

#[test]
fn http_1_0_is_served_and_closed() {
    let upstream = server(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.starts_with("GET / HTTP/1.1"), "{head}");
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            )
            .unwrap();
    });
    let proxy = Setup::new(&[upstream]).start();
    let answer = exchange(proxy.address, b"GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");
}

#[test]
fn an_early_response_does_not_stop_the_upload() {
    const SIZE: usize = 8 << 20;
    let upstream = server(|mut stream| {
        read_head(&mut stream);
        // Larger than what sockets buffer, so that it blocks until the client reads.
        let response = vec![b'x'; SIZE];
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(head.as_bytes()).unwrap();
            writer.write_all(&response).unwrap();
        });
        let mut upload = vec![0; SIZE];
        stream.read_exact(&mut upload).unwrap();
        writing.join().unwrap();
    });
    let proxy = Setup::new(&[upstream]).start();
    let mut client = proxy.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    // The client reads nothing until it has sent everything.
    client.write_all(&vec![b'y'; SIZE]).unwrap();
    let (_, body) = read_message(&mut client);
    assert_eq!(body.len(), SIZE);
}
