//! HTTP/1.1 requests and responses with tagged bodies, from either end.
//!
//! A request's target says everything: the number of its tag, how long the response's body is and how
//! it is to be sent, so that the server needs no plan.

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::counts::Counts;
use super::half::{Half, Read, WAITS, Wait, Write, halves};
use super::tag::{Checker, Tag, Way};

/// Longest head.
const HEAD: usize = 16 * 1024;
/// Pauses in a streamed body.
const PAUSE: Duration = Duration::from_millis(3);
const READS: [Read; 4] = [Read::Plain, Read::Plain, Read::Vectored, Read::PeekFirst];
const WRITES: [Write; 3] = [Write::Plain, Write::Plain, Write::Vectored];

/// How a body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// With the head, in one write.
    Whole,
    /// After the head, in writes of its own.
    Apart,
    /// In chunks, with pauses.
    Chunked,
}

impl Style {
    const ALL: [Self; 3] = [Self::Whole, Self::Apart, Self::Chunked];

    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..10) {
            0..7 => Self::Whole,
            7..9 => Self::Apart,
            _ => Self::Chunked,
        }
    }

    fn code(self) -> usize {
        Self::ALL
            .iter()
            .position(|style| *style == self)
            .unwrap_or_default()
    }
}

/// One request and what is to be answered.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    up: usize,
    up_style: Style,
    expect: bool,
    down: usize,
    down_style: Style,
    /// Whether the server closes the connection after its answer.
    close: bool,
}

impl Call {
    fn draw(rng: &mut fastrand::Rng, mood: Mood, number: u32) -> Self {
        let up = if rng.u8(..3) == 0 {
            0
        } else {
            length(rng, mood)
        };
        Self {
            number,
            up,
            up_style: Style::draw(rng),
            expect: up > 0 && rng.u8(..20) == 0,
            down: length(rng, mood),
            down_style: Style::draw(rng),
            close: rng.u8(..60) == 0 && !mood.is_small(rng),
        }
    }

    fn path(&self) -> String {
        let style = self.down_style.code();
        let close = u8::from(self.close);
        format!("/{}/{}/{}/{style}/{close}", self.number, self.up, self.down)
    }

    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/').map(str::parse::<u64>);
        let mut next = || parts.next()?.ok();
        Some(Self {
            number: u32::try_from(next()?).ok()?,
            up: usize::try_from(next()?).ok()?,
            up_style: Style::Whole,
            expect: false,
            down: usize::try_from(next()?).ok()?,
            down_style: *Style::ALL.get(usize::try_from(next()?).ok()?)?,
            close: next()? == 1,
        })
    }
}

/// Lengths of bodies: mostly of small messages, now and then of large ones.
pub(super) fn length(rng: &mut fastrand::Rng, mood: Mood) -> usize {
    if mood.is_small(rng) {
        return rng.usize(0..SMALL);
    }
    match rng.u8(..20) {
        0 => 0,
        1..10 => rng.usize(1..600),
        10..16 => rng.usize(600..6000),
        16..19 => rng.usize(6000..40_000),
        _ => rng.usize(40_000..600_000),
    }
}

/// Exchanges smaller than this earn acceleration.
pub(super) const SMALL: usize = 9001;

/// What a connection carries: anything, or for the most part what earns acceleration, so that it is promoted,
/// leaves the map with the next large message, and is promoted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Anything,
    MostlySmall,
}

impl Mood {
    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        if rng.u8(..3) == 0 {
            Self::Anything
        } else {
            Self::MostlySmall
        }
    }

    /// Whether the next message is a small one, whatever else is drawn.
    pub(super) fn is_small(self, rng: &mut fastrand::Rng) -> bool {
        self == Self::MostlySmall && rng.u8(..40) > 0
    }
}

/// How a client's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Closed when every answer has come.
    Close,
    /// Closed when some of the last answer has come.
    CloseUnread,
    /// Reset while the last answer comes.
    Reset,
}

/// What a client does.
pub(super) struct Client<'a> {
    pub(super) run: u32,
    /// The service's name, for `host`.
    pub(super) host: &'a str,
    pub(super) seed: u64,
    /// Numbers of the requests: this one and those that follow.
    pub(super) first: u32,
    /// How many requests there may be.
    pub(super) most: u32,
}

impl Client<'_> {
    /// Sends requests one after the other, or a few at a time, and checks the answers.
    pub(super) fn converse(&self, stream: TcpStream, counts: &mut Counts) {
        let rng = &mut fastrand::Rng::with_seed(self.seed);
        let wait = WAITS[rng.usize(..WAITS.len())];
        let ending = match rng.u8(..20) {
            0 => Ending::Reset,
            1 => Ending::CloseUnread,
            _ => Ending::Close,
        };
        let requests = rng.u32(1..=self.most);
        let mood = Mood::draw(rng);
        let depth = if rng.u8(..12) == 0 { 3 } else { 1 };
        let what = || {
            format!(
                "client {} with seed {}, {wait:?}, {ending:?}, {depth} at a time",
                self.first, self.seed
            )
        };
        let connection = match Connection::new(stream, wait, self.seed) {
            Ok(connection) => connection,
            Err(error) => return counts.failed("error", || format!("{error} at {}", what())),
        };
        let mut session = Session {
            client: self,
            connection,
            sent: 0,
            requests,
            mood,
            counts: Counts::default(),
        };
        let result = session.run(depth, ending, rng);
        counts.add(&session.counts);
        counts.add(&session.connection.counts);
        let planned = ending != Ending::Close;
        match result {
            Ok(()) if planned => counts.ended("broken off as planned"),
            Ok(()) => counts.ended("completed"),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => counts.failed("stalled", what),
            Err(error) => counts.failed("error", || format!("{error} at {}", what())),
        }
    }
}

struct Session<'a> {
    client: &'a Client<'a>,
    connection: Connection,
    sent: u32,
    requests: u32,
    mood: Mood,
    counts: Counts,
}

impl Session<'_> {
    fn run(&mut self, depth: u32, ending: Ending, rng: &mut fastrand::Rng) -> io::Result<()> {
        while self.sent < self.requests {
            let batch = depth.min(self.requests - self.sent);
            let calls: Vec<Call> = (0..batch)
                .map(|at| Call::draw(rng, self.mood, self.client.first + self.sent + at))
                .collect();
            self.sent += batch;
            for call in &calls {
                self.ask(call)?;
            }
            let last = self.sent == self.requests;
            for call in &calls {
                if last && ending != Ending::Close {
                    return self.break_off(ending, rng);
                }
                if !self.answer(call)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn tag(&self, call: &Call, way: Way) -> Tag {
        Tag {
            run: self.client.run,
            number: call.number,
            way,
        }
    }

    fn ask(&mut self, call: &Call) -> io::Result<()> {
        let body = self.tag(call, Way::Up).bytes(0, call.up);
        let mut head = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\n",
            call.path(),
            self.client.host
        );
        if call.expect {
            head += "expect: 100-continue\r\n";
        }
        self.connection.send(head, &body, call.up_style)
    }

    /// Reads an answer; false where the connection ends with it.
    fn answer(&mut self, call: &Call) -> io::Result<bool> {
        let head = loop {
            let head = self.connection.head()?;
            let head = head.ok_or_else(|| io::Error::other("closed before the answer"))?;
            if head.status() != Some(100) {
                break head;
            }
        };
        if head.status() != Some(200) {
            return Err(io::Error::other(format!("status {:?}", head.status())));
        }
        let mut body = Checker::new(self.tag(call, Way::Down));
        self.connection.body(&head, &mut body)?;
        let checked = body.finish(Some(call.down as u64));
        self.counts.stream(&checked, || {
            format!("the answer to {call:?}, client seed {}", self.client.seed)
        });
        self.counts.requests += 1;
        Ok(!head.has("connection", "close"))
    }

    fn break_off(&mut self, ending: Ending, rng: &mut fastrand::Rng) -> io::Result<()> {
        if rng.bool() {
            self.connection.fill()?;
        }
        if ending == Ending::Reset {
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(self.connection.writer.stream(), sockopt::Linger, &linger)?;
        }
        Ok(())
    }
}

/// Serves requests until the connection ends.
pub(super) fn serve(stream: TcpStream, run: u32, seed: u64, counts: &mut Counts) {
    let rng = &mut fastrand::Rng::with_seed(seed);
    let wait = WAITS[rng.usize(..WAITS.len())];
    let what = || format!("server with seed {seed}, {wait:?}");
    let mut connection = match Connection::new(stream, wait, seed) {
        Ok(connection) => connection,
        Err(error) => return counts.failed("error", || format!("{error} at {}", what())),
    };
    let mut served = Counts::default();
    let result = serve_requests(&mut connection, run, rng, &mut served);
    counts.add(&served);
    counts.add(&connection.counts);
    match result {
        Ok(()) => counts.ended("served"),
        // The client broke off, and the proxy with it, or an idle connection was closed.
        Err(error) if error.kind() != io::ErrorKind::Other => {
            counts.ended("served until broken off");
        }
        Err(error) => counts.failed("error", || format!("{error} at {}", what())),
    }
}

fn serve_requests(
    connection: &mut Connection,
    run: u32,
    rng: &mut fastrand::Rng,
    counts: &mut Counts,
) -> io::Result<()> {
    loop {
        let Some(head) = connection.head()? else {
            return Ok(());
        };
        let call = head.path().and_then(Call::parse);
        let call =
            call.ok_or_else(|| io::Error::other(format!("not a request of ours: {}", head.text)))?;
        let tag = |way| Tag {
            run,
            number: call.number,
            way,
        };
        let mut body = Checker::new(tag(Way::Up));
        let read = connection.body(&head, &mut body);
        let whole = read.is_ok().then_some(call.up as u64);
        let checked = body.finish(whole);
        counts.stream(&checked, || format!("the body of {call:?}"));
        read?;
        if rng.u8(..50) == 0 {
            thread::sleep(Duration::from_millis(rng.u64(..20)));
        }
        let mut answer = "HTTP/1.1 200 OK\r\n".to_owned();
        if call.close {
            answer += "connection: close\r\n";
        }
        let body = tag(Way::Down).bytes(0, call.down);
        connection.send(answer, &body, call.down_style)?;
        counts.requests += 1;
        if call.close {
            return Ok(());
        }
    }
}

/// The head of a message.
pub(super) struct Head {
    text: String,
}

impl Head {
    pub(super) fn status(&self) -> Option<u16> {
        self.text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    fn path(&self) -> Option<&str> {
        self.text.split(' ').nth(1)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.text.lines().skip(1);
        lines.find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.header(name)
            .is_some_and(|found| found.eq_ignore_ascii_case(value))
    }
}

/// A socket with what has been read from it and not been used.
pub(super) struct Connection {
    reader: Half,
    writer: Half,
    inbox: Vec<u8>,
    rng: fastrand::Rng,
    /// Largest read.
    read: usize,
    counts: Counts,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, wait: Wait, seed: u64) -> io::Result<Self> {
        let (reader, writer) = halves(stream, wait)?;
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x4774);
        let read = 1 << rng.u32(6..17);
        Ok(Self {
            reader,
            writer,
            inbox: Vec::new(),
            rng,
            read,
            counts: Counts::default(),
        })
    }

    /// Reads once; 0 is the end.
    fn fill(&mut self) -> io::Result<usize> {
        let how = READS[self.rng.usize(..READS.len())];
        self.counts.call(how.name());
        let mut buffer = vec![0; self.read];
        let count = self.reader.read(how, &mut buffer)?;
        self.inbox.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    fn more(&mut self) -> io::Result<()> {
        match self.fill()? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Everything up to and with this mark.
    fn until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            let mut windows = self.inbox.windows(mark.len());
            if let Some(at) = windows.position(|window| window == mark) {
                return Ok(self.inbox.drain(..at + mark.len()).collect());
            }
            if self.inbox.len() > HEAD {
                return Err(io::Error::other("an endless head"));
            }
            self.more()?;
        }
    }

    /// The head of the next message; none where the stream ends before it.
    pub(super) fn head(&mut self) -> io::Result<Option<Head>> {
        if self.inbox.is_empty() && self.fill()? == 0 {
            return Ok(None);
        }
        let bytes = self.until(b"\r\n\r\n")?;
        let text = String::from_utf8(bytes).map_err(|error| {
            io::Error::other(format!("a head that is no text: {:?}", error.into_bytes()))
        })?;
        Ok(Some(Head { text }))
    }

    pub(super) fn body(&mut self, head: &Head, checker: &mut Checker) -> io::Result<()> {
        if !head.has("transfer-encoding", "chunked") {
            let length = head.header("content-length").unwrap_or("0");
            let length = length.parse().map_err(io::Error::other)?;
            return self.part(length, checker);
        }
        loop {
            let line = self.until(b"\r\n")?;
            let text = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(text.trim(), 16)
                .map_err(|error| io::Error::other(format!("chunk size {text:?}: {error}")))?;
            self.part(size, checker)?;
            if self.until(b"\r\n")? != b"\r\n" {
                return Err(io::Error::other("bytes after a chunk"));
            }
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn part(&mut self, length: usize, checker: &mut Checker) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.inbox.is_empty() {
                self.more()?;
            }
            let take = left.min(self.inbox.len());
            checker.take(&self.inbox[..take]);
            self.inbox.drain(..take);
            left -= take;
        }
        Ok(())
    }

    pub(super) fn send(&mut self, mut head: String, body: &[u8], style: Style) -> io::Result<()> {
        if style == Style::Chunked {
            head += "transfer-encoding: chunked\r\n\r\n";
            self.write(head.as_bytes())?;
            let mut rest = body;
            while !rest.is_empty() {
                let size = self.rng.usize(1..=rest.len());
                let (now, later) = rest.split_at(size);
                let chunk = [format!("{size:x}\r\n").as_bytes(), now, b"\r\n"].concat();
                self.write(&chunk)?;
                rest = later;
                if self.rng.u8(..4) == 0 {
                    thread::sleep(PAUSE);
                }
            }
            return self.write(b"0\r\n\r\n");
        }
        head += "content-length: ";
        head += &body.len().to_string();
        head += "\r\n\r\n";
        if style == Style::Whole {
            return self.write(&[head.as_bytes(), body].concat());
        }
        self.write(head.as_bytes())?;
        for part in body.chunks(self.read) {
            self.write(part)?;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let how = WRITES[self.rng.usize(..WRITES.len())];
        self.counts.call(how.name());
        let mut calls = 0;
        self.writer.write_all(how, bytes, |_| calls += 1)?;
        self.counts.messages += calls;
        Ok(())
    }
}
