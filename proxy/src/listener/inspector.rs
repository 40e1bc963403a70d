//! Tells HTTP/1, HTTP/2 and TLS from the first bytes of a connection, as Envoy's
//! `http_inspector` and `tls_inspector` do.
//!
//! [`inspect`] is a pure function over the bytes so far; [`Inspector`] reads until it has
//! decided and puts everything back, so the chosen filter sees the stream from its first byte.

mod tls;

use std::borrow::Cow;
use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::DownstreamStream;

#[cfg(test)]
mod tests;

/// More bytes than this are not looked at (Envoy's limit for a `ClientHello`).
pub const MAX_INSPECTED: usize = 16 * 1024;
/// No registered method is longer than this, with room for private ones.
const MAX_METHOD: usize = 32;
/// RFC 9113 section 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a filter chain wants to know of the first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whether a `ClientHello` begins, its SNI and ALPN.
    pub tls: bool,
    /// Whether HTTP begins, and which version.
    pub http: bool,
}

/// What the first bytes say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detected {
    /// A `ClientHello` begins.
    pub tls: bool,
    /// Its server name, lower case.
    pub server_name: Option<String>,
    /// ALPN's protocols, or what the HTTP inspector found: `http/1.0`, `http/1.1`, `h2c`.
    pub application_protocols: Vec<Cow<'static, str>>,
}

/// Outcome of a look at the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes may change the outcome.
    More,
    /// No further byte changes it.
    Done(Detected),
}

impl Needs {
    /// Whether anything is to be found out.
    pub fn any(self) -> bool {
        self.tls || self.http
    }
}

impl Detected {
    fn http(protocol: &'static str) -> Self {
        Self {
            application_protocols: vec![Cow::Borrowed(protocol)],
            ..Self::default()
        }
    }
}

/// Looks at the first bytes of a connection.
pub fn inspect(bytes: &[u8], needs: Needs) -> Progress {
    let Some(&first) = bytes.first() else {
        return Progress::More;
    };
    if needs.tls && first == tls::HANDSHAKE {
        return tls::inspect(bytes);
    }
    if needs.http {
        return inspect_http(bytes);
    }
    Progress::Done(Detected::default())
}

fn inspect_http(bytes: &[u8]) -> Progress {
    let n = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..n] == HTTP2_PREFACE[..n] {
        return if n == HTTP2_PREFACE.len() {
            Progress::Done(Detected::http("h2c"))
        } else {
            Progress::More
        };
    }
    let raw = Progress::Done(Detected::default());
    // RFC 9112 section 2.2: a server should ignore at least one empty line before the request.
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    if bytes.is_empty() || bytes == b"\r" {
        return Progress::More;
    }
    let Some(space) = bytes.iter().take(MAX_METHOD + 1).position(|&b| b == b' ') else {
        let method = bytes.len() <= MAX_METHOD && bytes.iter().all(|&b| is_token(b));
        return if method { Progress::More } else { raw };
    };
    let (method, rest) = (&bytes[..space], &bytes[space + 1..]);
    if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return raw;
    }
    let end = rest.iter().position(|&b| b == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Also once the line is complete: what is decided must not depend on how its bytes came.
    if line.iter().any(u8::is_ascii_control) {
        return raw;
    }
    match end {
        Some(_) if line.ends_with(b" HTTP/1.1") => Progress::Done(Detected::http("http/1.1")),
        Some(_) if line.ends_with(b" HTTP/1.0") => Progress::Done(Detected::http("http/1.0")),
        Some(_) => raw,
        // A request line this long is left to the codec, which answers 431 rather than closing.
        None if bytes.len() >= MAX_INSPECTED - 2 => Progress::Done(Detected::http("http/1.1")),
        None => Progress::More,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads a connection's first bytes until they are told apart. [`Inspector::run`] may be
/// cancelled and called again.
#[derive(Debug)]
pub struct Inspector {
    needs: Needs,
    bytes: BytesMut,
    ended: bool,
}

impl Inspector {
    /// An inspector that has read nothing.
    pub fn new(needs: Needs) -> Self {
        Self {
            needs,
            bytes: BytesMut::new(),
            ended: false,
        }
    }

    /// Reads until the bytes are told apart. A client that closes or has sent
    /// [`MAX_INSPECTED`] bytes first has spoken something else.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn run(&mut self, stream: &mut DownstreamStream) -> io::Result<Detected> {
        loop {
            if let Progress::Done(detected) = inspect(&self.bytes, self.needs) {
                return Ok(detected);
            }
            let room = MAX_INSPECTED.saturating_sub(self.bytes.len());
            if room == 0 || self.ended {
                return Ok(Detected {
                    tls: self.needs.tls && self.bytes.first() == Some(&tls::HANDSHAKE),
                    ..Detected::default()
                });
            }
            self.bytes.reserve(room.min(2048));
            let mut limited = (&mut *stream).take(room as u64);
            self.ended = limited.read_buf(&mut self.bytes).await? == 0;
        }
    }

    /// Whether the client has sent anything, its end included.
    pub fn has_spoken(&self) -> bool {
        self.ended || !self.bytes.is_empty()
    }

    /// Puts everything that was read back into the stream.
    pub fn finish(self, stream: &mut DownstreamStream) {
        if !self.bytes.is_empty() {
            stream.unread(self.bytes.freeze());
        }
    }
}
