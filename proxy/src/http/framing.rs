//! Finds requests that say twice how long they are, and trailers that end where others see no end.
//!
//! hyper takes `Transfer-Encoding: chunked` alone where there is a `Content-Length` too, drops the
//! latter and closes the connection afterwards, so what is forwarded has one meaning. A client
//! that sends both is broken or hostile all the same, and Envoy answers 400; the proxy can only
//! do so by looking at the bytes itself. [`HeadScan`] does, for every head that begins where a
//! head is due; what follows a chunked one it gives to [`ChunkScan`].

mod chunks;

use chunks::ChunkScan;

const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";
const CONTENT_LENGTH: &[u8] = b"content-length";
const LONGEST: usize = TRANSFER_ENCODING.len() + 1;

/// Scans the heads of a connection's requests as their bytes come.
#[derive(Debug)]
pub struct HeadScan {
    /// How the current line begins.
    line: [u8; LONGEST],
    filled: usize,
    head: Lengths,
    ambiguous: bool,
    /// What follows the last head, if it is not the next.
    body: Option<Body>,
}

/// A request's body.
#[derive(Debug)]
enum Body {
    /// Of a known length: what comes is not looked at.
    Sized,
    /// In chunks.
    Chunked(ChunkScan),
}

/// What a head says of its body's length.
#[derive(Debug, Default)]
struct Lengths {
    coding: bool,
    length: bool,
}

impl Default for HeadScan {
    fn default() -> Self {
        Self {
            line: [0; LONGEST],
            filled: 0,
            head: Lengths::default(),
            ambiguous: false,
            body: None,
        }
    }
}

impl HeadScan {
    /// Looks at bytes that were read, and spoils what hyper would take for trailers and others for more.
    pub fn feed(&mut self, mut bytes: &mut [u8]) {
        while self.body.is_none() && !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let room = part.len().min(LONGEST - self.filled);
            self.line[self.filled..self.filled + room].copy_from_slice(&part[..room]);
            self.filled += room;
            let Some(end) = end else { return };
            self.end_line();
            bytes = &mut bytes[end + 1..];
        }
        if let Some(Body::Chunked(scan)) = &mut self.body {
            scan.feed(bytes);
        }
    }

    /// Whether a head had both lengths since this was last asked.
    pub fn take_ambiguous(&mut self) -> bool {
        std::mem::take(&mut self.ambiguous)
    }

    /// A request has ended: a head is due.
    pub fn next_head(&mut self) {
        if self.body.take().is_some() {
            self.filled = 0;
        }
    }

    fn end_line(&mut self) {
        let line = &self.line[..self.filled];
        self.filled = 0;
        if matches!(line, b"" | b"\r") {
            let Lengths { coding, length } = std::mem::take(&mut self.head);
            self.ambiguous |= coding && length;
            self.body = match (coding, length) {
                (true, _) => Some(Body::Chunked(ChunkScan::default())),
                (false, true) => Some(Body::Sized),
                (false, false) => None,
            };
        } else if is_header(line, TRANSFER_ENCODING) {
            self.head.coding = true;
        } else if is_header(line, CONTENT_LENGTH) {
            self.head.length = true;
        }
    }
}

/// hyper refuses blanks before the colon, so the name ends there.
fn is_header(line: &[u8], name: &[u8]) -> bool {
    line.len() > name.len()
        && line[name.len()] == b':'
        && line[..name.len()].eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(parts: &[&str]) -> bool {
        let mut scan = HeadScan::default();
        for part in parts {
            scan.feed(&mut part.as_bytes().to_vec());
        }
        scan.take_ambiguous()
    }

    #[test]
    fn both_lengths_are_found_in_any_order_case_and_split() {
        let head =
            "POST / HTTP/1.1\r\nContent-LENGTH: 3\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(scan(&[head]));
        for at in 1..head.len() {
            assert!(scan(&[&head[..at], &head[at..]]), "{at}");
        }
        assert!(scan(&[
            "POST / HTTP/1.1\nTransfer-Encoding:x\nContent-Length:1\n\n"
        ]));
    }

    #[test]
    fn one_length_and_bodies_are_left_alone() {
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(!scan(&[chunked, "11\r\ncontent-length: 5\r\n\r\n"]));
        let sized = "POST / HTTP/1.1\r\ncontent-length: 99\r\n\r\n";
        assert!(!scan(&[sized, "\ntransfer-encoding: chunked\r\n\r\n"]));
        assert!(!scan(&[
            "GET / HTTP/1.1\r\nX-Content-Length: 3\r\n\r\n",
            chunked
        ]));
    }

    #[test]
    fn the_next_head_is_scanned_after_a_body() {
        let mut scan = HeadScan::default();
        scan.feed(&mut b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc".to_vec());
        scan.next_head();
        let head = "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: a\r\n\r\n";
        scan.feed(&mut head.as_bytes().to_vec());
        assert!(scan.take_ambiguous());
        assert!(!scan.take_ambiguous());
    }
}
