//! Messages that two parsers could read in two ways (RFC 9112 sections 6.3 and 11.2): each is refused and
//! the connection closed, or reaches the upstream in a form that a strict and several lax readers read alike.

mod cases;
mod downgrade;
mod heads;
mod reading;
mod upstream;

use cases::{CHUNKS, FRAMING};
use heads::HEADS;
use reading::{LAX, Reader, Request};
use upstream::Upstream;

use crate::support::*;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Answered 400 or 501; nothing that anybody reads as a request goes upstream, and nothing after it.
    Refused,
    /// Goes upstream as one request; what follows it on the connection is the next.
    Served,
    /// Goes upstream as one request, and the connection ends with it.
    ServedLast,
}

/// Ends every attack: whoever takes it for a part of what came before has been smuggled past.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Headers that a hop keeps to itself.
const OF_ONE_HOP: [&str; 6] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
];

/// Sends a request and [`NEXT`] to a proxy in front of an upstream that reads so; what it answered, and what
/// reached the upstream.
fn attack(what: &str, request: &str, reader: Reader) -> (String, Vec<Request>) {
    let upstream = Upstream::new(reader);
    let proxy = Setup::new(&[upstream.address]).start();
    let answer = exchange(proxy.address, format!("{request}{NEXT}").as_bytes());
    drop(proxy);
    (answer, upstream.read_by_all(what))
}

fn judge(cases: &[(&str, &str, Fate)]) {
    for reader in [Reader::Strict, LAX] {
        for (what, request, fate) in cases {
            let (answer, read) = attack(what, request, reader);
            let statuses: Vec<&str> = answer
                .split("HTTP/1.")
                .skip(1)
                .map(|rest| &rest[2..5])
                .collect();
            let next = read.iter().position(|request| request.target == "/next");
            let expected: (&[&[&str]], usize, Option<usize>) = match fate {
                Fate::Refused => (&[&["400"], &["501"]], 0, None),
                Fate::Served => (&[&["200", "200"]], 2, Some(1)),
                Fate::ServedLast => (&[&["200"]], 1, None),
            };
            assert!(expected.0.contains(&&statuses[..]), "{what}: {answer}");
            assert_eq!(
                (read.len(), next),
                (expected.1, expected.2),
                "{what}: {read:?}"
            );
            for name in OF_ONE_HOP {
                let kept = read.iter().all(|request| request.all(name).is_empty());
                assert!(kept, "{what}: {name} in {read:?}");
            }
        }
    }
}

#[test]
fn nobody_mistakes_the_length_of_a_body() {
    judge(FRAMING);
}

#[test]
fn nobody_mistakes_the_end_of_a_chunk() {
    judge(CHUNKS);
}

#[test]
fn nobody_mistakes_the_head_of_a_request() {
    judge(HEADS);
}
