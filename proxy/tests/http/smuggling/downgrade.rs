//! HTTP/2 requests whose headers would be more than that in HTTP/1.1: written byte by byte, since no library
//! sends them.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::Fate::{self, Refused, Served};
use super::reading::{LAX, Reader};
use super::upstream::Upstream;
use crate::support::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// What a peer takes that has not said otherwise.
const LARGEST_FRAME: usize = 16_384;

type Header<'a> = (&'a str, &'a str);

/// `:method`, `:scheme`, `:authority`, `:path`.
const POST: [Header<'static>; 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/x"),
];

/// A request: what is wrong with it, its pseudo-headers by place where they differ from [`POST`], what comes
/// after them, its body, its trailers.
struct Case {
    what: &'static str,
    headers: Vec<Header<'static>>,
    body: &'static str,
    trailers: &'static [Header<'static>],
    fate: Fate,
}

/// [`POST`] with more headers.
fn with(what: &'static str, more: &[Header<'static>], fate: Fate) -> Case {
    Case {
        what,
        headers: [&POST[..], more].concat(),
        body: "abc",
        trailers: &[],
        fate,
    }
}

/// [`POST`] with another value of a pseudo-header.
fn instead(what: &'static str, (name, value): Header<'static>, fate: Fate) -> Case {
    let mut case = with(what, &[], fate);
    for header in &mut case.headers {
        if header.0 == name {
            header.1 = value;
        }
    }
    case
}

/// [`POST`] without a pseudo-header, and with others.
fn without(what: &'static str, name: &str, more: &[Header<'static>], fate: Fate) -> Case {
    let mut case = with(what, more, fate);
    case.headers.retain(|header| header.0 != name);
    case
}

fn ends_with(what: &'static str, trailers: &'static [Header<'static>], fate: Fate) -> Case {
    Case {
        trailers,
        ..with(what, &[], fate)
    }
}

/// An integer of HPACK with a prefix of seven bits, and that many bytes (RFC 7541 section 5).
fn string(block: &mut Vec<u8>, text: &str) {
    let mut rest = text.len();
    if rest < 127 {
        block.push(u8::try_from(rest).unwrap());
    } else {
        block.push(127);
        rest -= 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        block.push(u8::try_from(rest).unwrap());
    }
    // Each character is a byte.
    block.extend(text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()));
}

/// A frame of a type, with flags, on a stream.
fn frame(to: &mut Vec<u8>, (kind, flags): (u8, u8), stream: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    to.extend(&length[1..]);
    to.extend([kind, flags, 0, 0, 0, stream]);
    to.extend(payload);
}

/// A header block, each header a literal that nobody is to index.
fn headers(to: &mut Vec<u8>, stream: u8, headers: &[Header<'_>], end: bool) {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0x10);
        string(&mut block, name);
        string(&mut block, value);
    }
    let parts: Vec<&[u8]> = block.chunks(LARGEST_FRAME).collect();
    for (index, part) in parts.iter().enumerate() {
        let kind = if index == 0 { HEADERS } else { CONTINUATION };
        let mut flags = 0;
        if index == 0 && end {
            flags |= END_STREAM;
        }
        if index + 1 == parts.len() {
            flags |= END_HEADERS;
        }
        frame(to, (kind, flags), stream, part);
    }
}

/// The status of each stream: `None` where it was reset; streams that are not there were never answered.
fn answers(address: SocketAddr, case: &Case) -> BTreeMap<u8, Option<u8>> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, (SETTINGS, 0), 0, &[]);
    headers(&mut bytes, 1, &case.headers, false);
    let last = case.trailers.is_empty();
    let flags = if last { END_STREAM } else { 0 };
    frame(&mut bytes, (DATA, flags), 1, case.body.as_bytes());
    if !last {
        headers(&mut bytes, 1, case.trailers, true);
    }
    let next = [POST[1], POST[2], (":method", "GET"), (":path", "/next")];
    headers(&mut bytes, 3, &next, true);
    frame(&mut bytes, (SETTINGS, ACK), 0, &[]);
    let mut stream = connect(address);
    // Whoever was refused may be gone before the last byte.
    stream.write_all(&bytes).ok();
    let mut answers = BTreeMap::new();
    while answers.len() < 2 {
        let Some((kind, id, payload)) = read_frame(&mut stream) else {
            break;
        };
        match kind {
            HEADERS => drop(answers.entry(id).or_insert(Some(payload[0]))),
            RST_STREAM => drop(answers.insert(id, None)),
            GOAWAY => break,
            _ => {}
        }
    }
    answers
}

fn read_frame(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).ok()?;
    Some((head[3], head[8], payload))
}

/// `:status: 200` in HPACK's static table (RFC 7541 appendix A).
const OK: u8 = 0x88;

fn judge(cases: &[Case]) {
    for reader in [Reader::Strict, LAX] {
        for case in cases {
            let what = case.what;
            let upstream = Upstream::new(reader);
            let proxy = Setup::new(&[upstream.address]).start();
            let answers = answers(proxy.address, case);
            drop(proxy);
            let mut read = upstream.read_by_all(what);
            read.retain(|request| request.target != "/next");
            let served = answers.get(&1) == Some(&Some(OK));
            assert_eq!(served, case.fate != Refused, "{what}: {answers:x?}");
            assert_eq!(read.len(), usize::from(served), "{what}: {read:?}");
            let Some(request) = read.first() else {
                continue;
            };
            assert_eq!(request.target, "/x", "{what}");
            assert_eq!(request.all("host"), ["a"], "{what}");
            assert_eq!(request.body, case.body.as_bytes(), "{what}");
            assert_eq!(answers.get(&3), Some(&Some(OK)), "{what}");
        }
    }
}

#[test]
fn values_and_names_are_not_more_than_that() {
    judge(&[
        with("nothing", &[], Served),
        with("line end in a value", &[("x", "a\r\ny: b")], Refused),
        with("lf in a value", &[("x", "a\ny: b")], Refused),
        with("cr in a value", &[("x", "a\ry: b")], Refused),
        with("nul in a value", &[("x", "a\0b")], Refused),
        with("control character in a value", &[("x", "a\x01b")], Refused),
        with("line end in a name", &[("x: a\r\ny", "b")], Refused),
        with("colon in a name", &[("x: y", "b")], Refused),
        with("blank in a name", &[("x y", "b")], Refused),
        with("capital in a name", &[("X", "b")], Refused),
        with("empty name", &[("", "b")], Refused),
        with("nul in a name", &[("x\0", "b")], Refused),
    ]);
}

#[test]
fn pseudo_headers_are_one_of_each_and_of_their_kind() {
    let oversized: &'static str = Box::leak(format!("/{}", "x".repeat(70_000)).into_boxed_str());
    judge(&[
        instead(
            "request in the path",
            (":path", "/x HTTP/1.1\r\nHost: b\r\n\r\nGET /y"),
            Refused,
        ),
        instead("blank in the path", (":path", "/x y"), Refused),
        instead("lf in the path", (":path", "/x\ny"), Refused),
        instead("nul in the path", (":path", "/x\0y"), Refused),
        instead("path without a slash", (":path", "x"), Refused),
        instead("empty path", (":path", ""), Refused),
        instead("oversized path", (":path", oversized), Refused),
        instead(
            "request in the method",
            (":method", "GET /y HTTP/1.1\r\nX: y\r\n\r\nGET"),
            Refused,
        ),
        instead("blank in the method", (":method", "GET /y"), Refused),
        instead("empty method", (":method", ""), Refused),
        instead(
            "line end in the authority",
            (":authority", "a\r\nx: y"),
            Refused,
        ),
        instead("blank in the authority", (":authority", "a b"), Refused),
        instead("user in the authority", (":authority", "b@a"), Refused),
        instead("path in the authority", (":authority", "a/b"), Refused),
        instead("list in the authority", (":authority", "a,b"), Refused),
        instead("empty authority", (":authority", ""), Refused),
        instead(
            "line end in the scheme",
            (":scheme", "http\r\nx: y"),
            Refused,
        ),
        instead("address in the scheme", (":scheme", "http://b/?"), Refused),
        without("no method", ":method", &[], Refused),
        without("no path", ":path", &[], Refused),
        without("no scheme", ":scheme", &[], Refused),
        without("no authority", ":authority", &[], Refused),
        without(
            "host in place of the authority",
            ":authority",
            &[("host", "a")],
            Served,
        ),
        without(
            "two hosts",
            ":authority",
            &[("host", "a"), ("host", "b")],
            Refused,
        ),
        without(
            "blank in the host",
            ":authority",
            &[("host", "a b")],
            Refused,
        ),
        with(
            "another host beside the authority",
            &[("host", "b")],
            Served,
        ),
        with("two methods", &[(":method", "GET")], Refused),
        with("two paths", &[(":path", "/y")], Refused),
        with("two authorities", &[(":authority", "b")], Refused),
        with("two schemes", &[(":scheme", "https")], Refused),
        with("unknown pseudo-header", &[(":x", "y")], Refused),
        with("status", &[(":status", "200")], Refused),
        with(
            "protocol without CONNECT",
            &[(":protocol", "websocket")],
            Refused,
        ),
        without(
            "path after a header",
            ":path",
            &[("x", "y"), (":path", "/x")],
            Refused,
        ),
    ]);
}

#[test]
fn bodies_are_as_long_as_their_frames_say() {
    judge(&[
        with("length", &[("content-length", "3")], Served),
        with("length too small", &[("content-length", "2")], Refused),
        with("length too large", &[("content-length", "4")], Refused),
        with("length of nothing", &[("content-length", "0")], Refused),
        with("signed length", &[("content-length", "+3")], Refused),
        with(
            "differing lengths",
            &[("content-length", "3"), ("content-length", "4")],
            Refused,
        ),
        with("list of lengths", &[("content-length", "3, 3")], Refused),
        with("length that is none", &[("content-length", "x")], Refused),
        with("coding", &[("transfer-encoding", "chunked")], Refused),
        with(
            "coding identity",
            &[("transfer-encoding", "identity")],
            Refused,
        ),
        with("connection", &[("connection", "x"), ("x", "y")], Refused),
        with("connection that is kept", &[("keep-alive", "1")], Refused),
        with(
            "connection of a proxy",
            &[("proxy-connection", "keep-alive")],
            Refused,
        ),
        with("upgrade", &[("upgrade", "websocket")], Refused),
        with("te", &[("te", "gzip")], Refused),
        with("te of gRPC", &[("te", "trailers")], Served),
        ends_with("trailers", &[("x", "y")], Served),
        ends_with("pseudo-header in the trailers", &[(":path", "/y")], Served),
        ends_with(
            "line end in the trailers",
            &[("x", "a\r\n\r\nGET /y HTTP/1.1")],
            Refused,
        ),
        ends_with("length in the trailers", &[("content-length", "9")], Served),
        ends_with("host in the trailers", &[("host", "b")], Served),
        ends_with(
            "coding in the trailers",
            &[("transfer-encoding", "chunked")],
            Refused,
        ),
    ]);
}
