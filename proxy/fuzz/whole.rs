//! What is fuzzed of the proxy as a whole: a client that sends anything, and an upstream of which strict and
//! lax readers must read alike whatever arrives. Needs the peers of `tests/http` beside it as `support`,
//! `reading` and `upstream`.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use crate::reading::{LAX, Reader};
use crate::support::{Setup, connect};
use crate::upstream::Upstream;

/// Follows the input, so that a request that ends before it is seen to have ended.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// How long the proxy waits for what an input leaves out.
const PATIENCE: Duration = Duration::from_millis(20);

/// A connection's bytes.
pub(crate) fn http(data: &[u8]) {
    let reader = if data.len().is_multiple_of(2) {
        Reader::Strict
    } else {
        LAX
    };
    let upstream = Upstream::new(reader);
    let proxy = Setup::new(&[upstream.address])
        .hcm(|hcm| {
            hcm.request_headers_timeout = PATIENCE;
            hcm.stream_idle_timeout = PATIENCE;
            hcm.idle_timeout = PATIENCE;
        })
        .start();
    let mut stream = connect(proxy.address);
    // Whoever refuses may be gone before the last byte.
    stream.write_all(data).ok();
    stream.write_all(NEXT).ok();
    stream.read_to_end(&mut Vec::new()).ok();
    drop(proxy);
    upstream.read_by_all("fuzz");
}
