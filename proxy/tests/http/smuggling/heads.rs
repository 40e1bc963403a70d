//! Heads of requests that somebody could read in another way, and what becomes of each.

use super::Fate::{self, Refused, Served, ServedLast};

/// Where does a header end, and what is asked of whom?
pub(super) const HEADS: &[(&str, &str, Fate)] = &[
    (
        "bare lf throughout",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc",
        Served,
    ),
    (
        "bare lf after the request line",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        Served,
    ),
    (
        "bare lf at the end of the head",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        Served,
    ),
    (
        "bare cr in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        Refused,
    ),
    (
        "bare cr at the end of a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
        Refused,
    ),
    ("bare cr throughout", "GET / HTTP/1.1\rHost: a\r\r", Refused),
    ("lf before cr", "GET / HTTP/1.1\n\rHost: a\n\r\n\r", Refused),
    (
        "nul in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        Refused,
    ),
    (
        "control character in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
        Refused,
    ),
    (
        "folded value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n Content-Length: 4\r\n\r\n",
        Refused,
    ),
    (
        "folded by a tab",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\tContent-Length: 4\r\n\r\n",
        Refused,
    ),
    (
        "blank before the first header",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        Refused,
    ),
    (
        "blank before a colon",
        "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        Refused,
    ),
    (
        "blank in a name",
        "GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n",
        Refused,
    ),
    (
        "nul in a name",
        "GET / HTTP/1.1\r\nHost: a\r\nX\0Y: z\r\n\r\n",
        Refused,
    ),
    (
        "empty name",
        "GET / HTTP/1.1\r\nHost: a\r\n: z\r\n\r\n",
        Refused,
    ),
    (
        "no colon",
        "GET / HTTP/1.1\r\nHost: a\r\nXY\r\n\r\n",
        Refused,
    ),
    (
        "quote in a name",
        "GET / HTTP/1.1\r\nHost: a\r\n\"X\": z\r\n\r\n",
        Refused,
    ),
    ("no host", "GET / HTTP/1.1\r\nX: a\r\n\r\n", Refused),
    (
        "two hosts",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        Refused,
    ),
    (
        "two equal hosts",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        Refused,
    ),
    ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", Refused),
    (
        "list of hosts",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        Refused,
    ),
    (
        "blank in the host",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        Refused,
    ),
    (
        "path in the host",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        Refused,
    ),
    (
        "user in the host",
        "GET / HTTP/1.1\r\nHost: b@a\r\n\r\n",
        Refused,
    ),
    (
        "folded host",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        Refused,
    ),
    (
        "target of another host",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        Served,
    ),
    (
        "target with a user",
        "GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "target with a blank",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "target with a tab",
        "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "target with a nul",
        "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "target with a bare cr",
        "GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "target with a fragment",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        Served,
    ),
    (
        "target without a slash",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "encoded line end in the target",
        "GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: a\r\n\r\n",
        Served,
    ),
    (
        "two blanks after the method",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "two blanks after the target",
        "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "blank after the version",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "tab after the method",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "blank before the method",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "empty lines before the method",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        Served,
    ),
    (
        "method that is no token",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    ("no version", "GET /\r\nHost: a\r\n\r\n", Refused),
    ("version 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refused),
    ("version 2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refused),
    (
        "version in small letters",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "version 01.1",
        "GET / HTTP/01.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    (
        "upgrade to h2c",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        Served,
    ),
    (
        "upgrade without connection",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        Served,
    ),
    (
        "connection that is kept in HTTP/1.0",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        Served,
    ),
    (
        "two connections",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n",
        ServedLast,
    ),
];
