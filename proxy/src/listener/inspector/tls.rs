//! Reads SNI and ALPN out of a `ClientHello` (RFC 8446 section 4.1.2), which may span records.
//!
//! Everything is bounds-checked by [`Reader`]; whatever is malformed counts as TLS without a
//! name, so that the chain for TLS answers with a proper alert.

use std::borrow::Cow;

use super::{Detected, Progress};

/// `ContentType.handshake`.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
/// RFC 8446 section 5.1: a record's fragment is at most this long.
const MAX_FRAGMENT: usize = 1 << 14;

/// Looks at a connection that begins with [`HANDSHAKE`].
pub(super) fn inspect(bytes: &[u8]) -> Progress {
    let message = match handshake_message(bytes) {
        Ok(message) => message,
        Err(progress) => return progress,
    };
    let mut detected = Detected {
        tls: true,
        ..Detected::default()
    };
    // Fields that were read before the malformed one are kept.
    client_hello(&message, &mut detected).unwrap_or_default();
    Progress::Done(detected)
}

/// The body of the first handshake message, put together from its records.
fn handshake_message(bytes: &[u8]) -> Result<Vec<u8>, Progress> {
    let mut reader = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let [CLIENT_HELLO, a, b, c, body @ ..] = message.as_slice() {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if body.len() >= length {
                return Ok(body[..length].to_vec());
            }
        } else if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Err(not_tls());
        }
        let Some(header) = reader.take(5) else {
            let plausible = [HANDSHAKE, 3];
            let n = reader.0.len().min(plausible.len());
            let more = reader.0[..n] == plausible[..n];
            return Err(if more { Progress::More } else { not_tls() });
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[..2] != [HANDSHAKE, 3] || length == 0 || length > MAX_FRAGMENT {
            return Err(not_tls());
        }
        let fragment = reader.0.get(..length).unwrap_or(reader.0);
        message.extend_from_slice(fragment);
        if reader.take(length).is_none() {
            if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
                return Err(not_tls());
            }
            return Err(Progress::More);
        }
    }
}

fn not_tls() -> Progress {
    Progress::Done(Detected::default())
}

fn client_hello(body: &[u8], detected: &mut Detected) -> Option<()> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    let mut extensions = body.vector16()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        match kind {
            SERVER_NAME => detected.server_name = server_name(data),
            ALPN => detected.application_protocols = alpn(data),
            _ => {}
        }
    }
    Some(())
}

/// RFC 6066 section 3; the only name type is `host_name`.
fn server_name(mut data: Reader<'_>) -> Option<String> {
    let mut list = data.vector16()?;
    while !list.0.is_empty() {
        let kind = list.take(1)?;
        let name = list.vector16()?;
        if kind == [0] {
            let name = std::str::from_utf8(name.0).ok()?;
            return Some(name.trim_end_matches('.').to_ascii_lowercase());
        }
    }
    None
}

/// RFC 7301 section 3.1; names that are not text match no chain and are left out.
fn alpn(mut data: Reader<'_>) -> Vec<Cow<'static, str>> {
    let mut protocols = Vec::new();
    let mut list = data.vector16().unwrap_or(Reader(&[]));
    while let Some(name) = list.vector8() {
        if let Ok(name) = std::str::from_utf8(name.0) {
            protocols.push(Cow::Owned(name.to_owned()));
        }
    }
    protocols
}

/// Takes lengths and bytes from the front; `None` where there are not enough.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<Self> {
        let n = self.take(1)?[0];
        self.take(usize::from(n)).map(Reader)
    }

    fn vector16(&mut self) -> Option<Self> {
        let n = self.u16()?;
        self.take(usize::from(n)).map(Reader)
    }
}
