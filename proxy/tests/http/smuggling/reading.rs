//! Readers of HTTP/1.1 requests as upstreams have them: a strict one, which refuses whatever could be read in
//! two ways, and lax ones, each of which makes the most of it in a way of its own.

/// A request as somebody read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(found, _)| found == name);
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// What is at the beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A request, and how long it is.
    Request(Box<Request>, usize),
    /// Not yet all of one.
    More,
    /// Nothing that this reader takes, and why.
    Refused(&'static str),
}

/// How somebody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Strict,
    Lax(Lax),
}

/// A lax reader's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lax {
    /// Of length and coding, the coding counts.
    pub(crate) coding_counts: bool,
    /// Of several lengths, the last counts.
    pub(crate) last_length: bool,
    /// A CR ends a line, too.
    pub(crate) cr_ends_lines: bool,
}

/// Everybody whose readings must agree.
pub(crate) const READERS: [Reader; 5] = [
    Reader::Strict,
    lax(true, false, false),
    lax(false, true, false),
    lax(true, true, true),
    lax(false, false, true),
];

/// The lax reader that serves as an upstream.
pub(crate) const LAX: Reader = READERS[1];

const fn lax(coding_counts: bool, last_length: bool, cr_ends_lines: bool) -> Reader {
    Reader::Lax(Lax {
        coding_counts,
        last_length,
        cr_ends_lines,
    })
}

impl Reader {
    pub(crate) fn next(self, bytes: &[u8]) -> Next {
        match self {
            Self::Strict => strict(bytes).unwrap_or_else(|stop| stop),
            Self::Lax(way) => way.next(bytes).unwrap_or(Next::More),
        }
    }

    /// Every request of a connection, and what its rest is.
    pub(crate) fn all(self, mut bytes: &[u8]) -> (Vec<Request>, Next) {
        let mut requests = Vec::new();
        loop {
            match self.next(bytes) {
                Next::Request(request, length) => {
                    requests.push(*request);
                    bytes = &bytes[length..];
                }
                rest => return (requests, rest),
            }
        }
    }
}

/// What is left to be read.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    /// The next line, which only CRLF ends; no other CR or LF may be in it (RFC 9112 section 2.2).
    fn strict_line(&mut self) -> Result<&'a [u8], Next> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..end.unwrap_or(rest.len())];
        match (line.iter().position(|byte| *byte == b'\r'), end) {
            (Some(cr), Some(end)) if cr + 1 == end => {
                self.at += end + 1;
                Ok(&line[..cr])
            }
            (None, Some(_)) => Err(Next::Refused("bare LF")),
            (None, None) => Err(Next::More),
            (Some(cr), None) if cr + 1 == line.len() => Err(Next::More),
            (Some(_), _) => Err(Next::Refused("bare CR")),
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn is_token(text: &str) -> bool {
    let is = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(is)
}

fn strict(bytes: &[u8]) -> Result<Next, Next> {
    let mut rest = Rest { bytes, at: 0 };
    let line = text(rest.strict_line()?);
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else {
        return Err(Next::Refused("request line"));
    };
    if !is_token(method) || target.is_empty() || !target.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Next::Refused("method or target"));
    }
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: strict_fields(&mut rest)?,
        ..Request::default()
    };
    let (lengths, codings) = (
        request.all("content-length"),
        request.all("transfer-encoding"),
    );
    match (&request.all("host")[..], &lengths[..], &codings[..]) {
        ([host], [], []) if is_host(host) => {}
        ([host], [length], []) if is_host(host) => {
            let length = digits(length, 10).ok_or(Next::Refused("length"))?;
            request.body = rest.take(length).ok_or(Next::More)?.to_vec();
        }
        ([host], [], [coding]) if is_host(host) && coding.eq_ignore_ascii_case("chunked") => {
            request.body = strict_chunks(&mut rest)?;
            request.trailers = strict_fields(&mut rest)?;
        }
        _ => return Err(Next::Refused("host or framing")),
    }
    let framing = ["host", "content-length", "transfer-encoding"];
    let named = request.all("connection").join(",").to_ascii_lowercase();
    if request
        .trailers
        .iter()
        .any(|(name, _)| framing.contains(&name.as_str()))
        || named.split(',').any(|name| framing.contains(&name.trim()))
    {
        return Err(Next::Refused("framing where it does not belong"));
    }
    Ok(Next::Request(Box::new(request), rest.at))
}

fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c))
}

fn digits(text: &str, radix: u32) -> Option<usize> {
    let all = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    all.then(|| usize::from_str_radix(text, radix).ok())?
}

fn strict_fields(rest: &mut Rest<'_>) -> Result<Vec<(String, String)>, Next> {
    let mut fields = Vec::new();
    loop {
        let line = text(rest.strict_line()?);
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').ok_or(Next::Refused("no colon"))?;
        if !is_token(name) {
            return Err(Next::Refused("name"));
        }
        if value.chars().any(|c| c.is_ascii_control() && c != '\t') {
            return Err(Next::Refused("value"));
        }
        let value = value.trim_matches([' ', '\t']);
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
}

/// No extensions: who forwards a body has no use for them.
fn strict_chunks(rest: &mut Rest<'_>) -> Result<Vec<u8>, Next> {
    let mut body = Vec::new();
    loop {
        let size = digits(&text(rest.strict_line()?), 16).ok_or(Next::Refused("chunk size"))?;
        if size == 0 {
            return Ok(body);
        }
        body.extend(rest.take(size).ok_or(Next::More)?);
        if rest.take(2).ok_or(Next::More)? != b"\r\n" {
            return Err(Next::Refused("end of chunk"));
        }
    }
}

impl Lax {
    /// None where more must come.
    fn next(self, bytes: &[u8]) -> Option<Next> {
        let mut rest = Rest { bytes, at: 0 };
        let mut line = self.line(&mut rest)?;
        while line.trim().is_empty() {
            line = self.line(&mut rest)?;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut request = Request {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            headers: self.fields(&mut rest)?,
            ..Request::default()
        };
        let coded = request.all("transfer-encoding").concat();
        let coded = coded.to_ascii_lowercase().contains("chunked");
        let lengths = request.all("content-length").join(",");
        let mut lengths = lengths.split(',').filter_map(|text| number(text, 10));
        let length = if self.last_length {
            lengths.next_back()
        } else {
            lengths.next()
        };
        if coded && (self.coding_counts || length.is_none()) {
            request.body = self.chunks(&mut rest)?;
            request.trailers = self.fields(&mut rest)?;
        } else if let Some(length) = length {
            request.body = rest.take(length)?.to_vec();
        }
        Some(Next::Request(Box::new(request), rest.at))
    }

    fn line(self, rest: &mut Rest<'_>) -> Option<String> {
        let bytes = &rest.bytes[rest.at..];
        let ends = |byte: &u8| *byte == b'\n' || (self.cr_ends_lines && *byte == b'\r');
        let end = bytes.iter().position(ends)?;
        if bytes[end] == b'\r' && end + 1 == bytes.len() {
            // Whether LF follows is not known yet.
            return None;
        }
        rest.at += end + 1;
        if bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n') {
            rest.at += 1;
        }
        Some(text(&bytes[..end]).trim_end_matches('\r').to_owned())
    }

    /// Blanks around a name are nothing, a line that begins with one goes on with the last, one without a
    /// colon is passed over.
    fn fields(self, rest: &mut Rest<'_>) -> Option<Vec<(String, String)>> {
        let mut fields: Vec<(String, String)> = Vec::new();
        loop {
            let line = self.line(rest)?;
            if line.is_empty() {
                return Some(fields);
            }
            if let (true, Some((_, value))) = (line.starts_with([' ', '\t']), fields.last_mut()) {
                *value = format!("{value} {}", line.trim());
            } else if let Some((name, value)) = line.split_once(':') {
                let value = value.trim().to_owned();
                fields.push((name.trim().to_ascii_lowercase(), value));
            }
        }
    }

    fn chunks(self, rest: &mut Rest<'_>) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = number(&self.line(rest)?, 16).unwrap_or(0);
            if size == 0 {
                return Some(body);
            }
            body.extend(rest.take(size)?);
            self.line(rest)?;
        }
    }
}

/// As `strtol()` reads one: blanks, a sign, `0x`, then as many digits as there are.
fn number(text: &str, radix: u32) -> Option<usize> {
    let text = text.trim().trim_start_matches('+');
    let (text, radix) = text
        .strip_prefix("0x")
        .map_or((text, radix), |hex| (hex, 16));
    let end = text.find(|c: char| !c.is_digit(radix));
    usize::from_str_radix(&text[..end.unwrap_or(text.len())], radix).ok()
}

#[test]
fn readers_differ_where_requests_are_ambiguous() {
    let ambiguous = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;\nabc\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\r\n y\r\n\r\n",
    ];
    for request in ambiguous {
        let read = READERS.map(|reader| reader.all(request.as_bytes()));
        assert!(
            matches!(read[0].1, Next::Refused(_)),
            "{request:?}: {read:?}"
        );
    }
    let plain = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n";
    let read = READERS.map(|reader| reader.all(plain.as_bytes()));
    for other in &read[1..] {
        assert_eq!(other, &read[0]);
    }
    assert_eq!(read[0].0[0].body, b"abc");
    assert_eq!(read[0].1, Next::More, "nothing is left");
}
