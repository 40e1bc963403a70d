//! HTTP/1.1 messages: what both ends write and read.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};

use anyhow::{Context as _, bail, ensure};

/// The longest line and the most lines that a peer may send before the test calls it broken.
const MAX_LINE: u64 = 1 << 20;
const MAX_HEADERS: usize = 1000;

/// Header names and values in the order of the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a header, by any spelling of its name.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Adds a header at the end.
    pub fn add(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    fn says(&self, name: &str, word: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    }

    fn length(&self) -> anyhow::Result<Option<u64>> {
        self.first("content-length")
            .map(|value| {
                value
                    .trim()
                    .parse()
                    .with_context(|| format!("content-length: {value}"))
            })
            .transpose()
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The request target as it stands in the request line.
    pub path: String,
    /// Every header that is sent or was received.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A GET of `path` at `host`.
    pub fn get(host: &str, path: &str) -> Self {
        Self::new("GET", host, path)
    }

    /// A request without a body.
    pub fn new(method: &str, host: &str, path: &str) -> Self {
        let headers = Headers(vec![("host".to_owned(), host.to_owned())]);
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: Vec::new(),
        }
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.add(name, value);
        self
    }

    /// With a body, and a content-length unless a transfer-encoding is set.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let first = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        let bodyless = self.body.is_empty();
        write_message(to, first, &self.headers, &self.body, bodyless)
    }

    /// Reads a request; `None` when the peer closed the connection before its first byte.
    pub(super) fn read(from: &mut impl BufRead) -> anyhow::Result<Option<Self>> {
        let Some(first) = line(from)? else {
            return Ok(None);
        };
        let mut words = first.split(' ');
        let (Some(method), Some(path), Some(_)) = (words.next(), words.next(), words.next()) else {
            bail!("not a request line: {first:?}");
        };
        let headers = headers(from)?;
        let body = if headers.says("transfer-encoding", "chunked") {
            chunked(from)?.0
        } else {
            exactly(from, headers.length()?.unwrap_or(0))?
        };
        Ok(Some(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body,
        }))
    }

    pub(super) fn wants_close(&self) -> bool {
        self.headers.says("connection", "close")
    }
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Every header.
    pub headers: Headers,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    /// The trailers of a chunked body.
    pub trailers: Headers,
}

impl Response {
    /// A response with this status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.add(name, value);
        self
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let first = format!("HTTP/1.1 {} -\r\n", self.status);
        let bodyless = self.status < 200 || self.status == 204 || self.status == 304;
        write_message(to, first, &self.headers, &self.body, bodyless)
    }

    pub(super) fn read(from: &mut impl BufRead, method: &str) -> anyhow::Result<Self> {
        loop {
            let first = line(from)?.context("closed before the response's first byte")?;
            let status = first
                .strip_prefix("HTTP/1.")
                .and_then(|rest| rest.get(2..5))
                .and_then(|code| code.parse().ok())
                .with_context(|| format!("not a status line: {first:?}"))?;
            let headers = headers(from)?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let (body, trailers) = Self::read_body(from, method, status, &headers)?;
            return Ok(Self {
                status,
                headers,
                body,
                trailers,
            });
        }
    }

    fn read_body(
        from: &mut impl BufRead,
        method: &str,
        status: u16,
        headers: &Headers,
    ) -> anyhow::Result<(Vec<u8>, Headers)> {
        let tunnel = status == 101 || (method == "CONNECT" && status == 200);
        if method == "HEAD" || tunnel || status == 204 || status == 304 {
            return Ok(Default::default());
        }
        if headers.says("transfer-encoding", "chunked") {
            return chunked(from);
        }
        if let Some(length) = headers.length()? {
            return Ok((exactly(from, length)?, Headers::default()));
        }
        let mut body = Vec::new();
        from.read_to_end(&mut body)
            .context("reading a body that ends with the connection")?;
        Ok((body, Headers::default()))
    }

    pub(super) fn closes(&self) -> bool {
        self.headers.says("connection", "close")
    }
}

fn write_message(
    to: &mut impl Write,
    mut head: String,
    headers: &Headers,
    body: &[u8],
    bodyless: bool,
) -> io::Result<()> {
    for (name, value) in &headers.0 {
        write!(head, "{name}: {value}\r\n").map_err(io::Error::other)?;
    }
    let chunked = headers.says("transfer-encoding", "chunked");
    if !bodyless && !chunked && headers.first("content-length").is_none() {
        write!(head, "content-length: {}\r\n", body.len()).map_err(io::Error::other)?;
    }
    head.push_str("\r\n");
    // One write, so that a message is one segment where it fits.
    let mut bytes = head.into_bytes();
    if chunked {
        if !body.is_empty() {
            bytes.extend(format!("{:x}\r\n", body.len()).bytes());
            bytes.extend(body);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
    } else if !bodyless {
        bytes.extend(body);
    }
    to.write_all(&bytes)
}

fn line(from: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    from.take(MAX_LINE)
        .read_until(b'\n', &mut bytes)
        .context("reading a line")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    ensure!(
        bytes.ends_with(b"\r\n"),
        "cut off after {:?}",
        String::from_utf8_lossy(&bytes)
    );
    bytes.truncate(bytes.len() - 2);
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn headers(from: &mut impl BufRead) -> anyhow::Result<Headers> {
    let mut headers = Headers::default();
    while headers.0.len() < MAX_HEADERS {
        let line = line(from)?.context("closed within the headers")?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("not a header: {line:?}"))?;
        headers.add(name, value.trim());
    }
    bail!("more than {MAX_HEADERS} headers")
}

fn exactly(from: &mut impl Read, length: u64) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    from.take(length)
        .read_to_end(&mut body)
        .context("reading a body")?;
    ensure!(
        body.len() as u64 == length,
        "body cut off after {} of {length} bytes",
        body.len()
    );
    Ok(body)
}

fn chunked(from: &mut impl BufRead) -> anyhow::Result<(Vec<u8>, Headers)> {
    let mut body = Vec::new();
    loop {
        let size = line(from)?.context("closed within a chunked body")?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let length =
            u64::from_str_radix(digits, 16).with_context(|| format!("chunk size {size:?}"))?;
        if length == 0 {
            return Ok((body, headers(from)?));
        }
        body.extend(exactly(from, length)?);
        let end = line(from)?;
        ensure!(
            end.as_deref() == Some(""),
            "a chunk is longer than its size"
        );
    }
}
