//! Messages that two parsers could read in two ways (RFC 9112 section 6.3 and 11.2): each is
//! refused and the connection closed, or reaches the upstream in one unambiguous form.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::support::*;

/// A server that notes every byte it gets and answers each message with 200.
fn recorder() -> (std::net::SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let noted = seen.clone();
    let address = server(move |mut stream| {
        loop {
            let head = read_head(&mut stream);
            if head.is_empty() {
                return;
            }
            noted.lock().extend_from_slice(head.as_bytes());
            if header(&head, "transfer-encoding").is_some() {
                let body = read_head(&mut stream);
                noted.lock().extend_from_slice(body.as_bytes());
            } else if let Some(length) = header(&head, "content-length") {
                let mut body = vec![0; length.parse().unwrap()];
                std::io::Read::read_exact(&mut stream, &mut body).unwrap();
                noted.lock().extend_from_slice(&body);
            }
            stream.write_all(&ok("")).unwrap();
        }
    });
    (address, seen)
}

/// What is wrong with each, and the request.
const AMBIGUOUS: &[(&str, &str)] = &[
    (
        "coding that is not chunked at its end",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    ),
    (
        "unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding before chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "differing lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    ),
    (
        "list of lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\nabcde",
    ),
    (
        "signed length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
    ),
    (
        "negative length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd",
    ),
    (
        "hexadecimal length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
    ),
    (
        "length beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ),
    (
        "folded header",
        "POST / HTTP/1.1\r\nHost: a\r\nX: 1\r\n Content-Length: 4\r\n\r\nabcd",
    ),
    (
        "folded coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "blank before colon",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd",
    ),
    (
        "blank before first header",
        "POST / HTTP/1.1\r\n Host: a\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    (
        "vertical tab in the coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "nul in a header",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    ),
    (
        "bare cr in a header",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    ),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nX: a\r\n\r\n"),
    (
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunk size that is no number",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "signed chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk size with prefix",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk size beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "bare lf after a chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk longer than it says",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ),
    (
        "coding named by connection",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\nabcd",
    ),
];

#[test]
fn ambiguous_requests_are_refused_and_the_connection_closed() {
    for (what, request) in AMBIGUOUS {
        let (upstream, seen) = recorder();
        let proxy = Setup::new(&[upstream]).start();
        let smuggled = format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = exchange(proxy.address, smuggled.as_bytes());
        assert!(
            answer.is_empty()
                || answer.starts_with("HTTP/1.1 400")
                || answer.starts_with("HTTP/1.0 400")
                || answer.starts_with("HTTP/1.1 501"),
            "{what}: {answer}"
        );
        assert!(!answer.is_empty(), "{what}: closed without an answer");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{what}: {answer}");
        let seen = String::from_utf8_lossy(&seen.lock()).into_owned();
        assert!(!seen.contains("smuggled"), "{what}: {seen}");
    }
}

#[test]
fn what_is_accepted_reaches_the_upstream_in_one_form() {
    let cases: &[(&str, &str, Option<&str>)] = &[
        (
            "length and coding",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            None,
        ),
        (
            "coding and length",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            None,
        ),
        (
            "equal lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            Some("3"),
        ),
        (
            "bare lf",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc",
            Some("3"),
        ),
    ];
    for (what, request, length) in cases {
        let (upstream, seen) = recorder();
        let proxy = Setup::new(&[upstream]).start();
        let answer = exchange(
            proxy.address,
            format!("{request}GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        );
        let seen = String::from_utf8_lossy(&seen.lock()).into_owned();
        if answer.starts_with("HTTP/1.1 400") {
            assert!(!seen.contains("/next"), "{what}: {seen}");
            continue;
        }
        let first = seen.split("\r\n\r\n").next().unwrap();
        assert_eq!(header(first, "content-length"), *length, "{what}: {seen}");
        assert_eq!(
            header(first, "transfer-encoding").is_some(),
            length.is_none(),
            "{what}: {seen}"
        );
        if length.is_none() {
            // Both framings: the connection ends with this request.
            assert!(!seen.contains("/next"), "{what}: {seen}");
        }
    }
}
