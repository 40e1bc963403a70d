//! Everything that connections can carry, under way while whatever serves them is replaced.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use bytes::Bytes;
use millrace_e2e::load::Load;
use millrace_e2e::{CLIENTS, Scene, Service};
use millrace_testkit::http::{Client, Request, Response, Server};
use millrace_testkit::mesh::MeshPod;
use millrace_testkit::{Pod, h2, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long bytes may take that went into a stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers are held back at this port until their gate opens.
pub(crate) const HELD: u16 = 8081;
/// The port at which connections change to the `WebSocket` protocol.
pub(crate) const WEB_SOCKET: u16 = 8082;

/// The service of [`Special`].
pub(crate) fn special() -> Service {
    Service::new("special", 9)
        .port("http-held", HELD)
        .port("http-ws", WEB_SOCKET)
}

/// A server that answers late, and one that speaks something else after an upgrade.
pub(crate) struct Special {
    gate: Gate,
    _servers: [Server; 2],
}

impl Special {
    pub(crate) fn serve(pod: &Pod) -> anyhow::Result<Self> {
        let gate = Gate::default();
        let listen = |port| pod.listen((Ipv6Addr::UNSPECIFIED, port).into());
        let passing = gate.clone();
        let held = Server::http(listen(HELD)?, move |request, _| {
            let number = request.path.trim_start_matches('/').parse();
            let passed = passing.pass(number.unwrap_or_default());
            Response::new(passed.map_or(504, |()| 200), request.path.clone())
        })?;
        let web_socket = Server::start(listen(WEB_SOCKET)?, web_socket)?;
        Ok(Self {
            gate,
            _servers: [held, web_socket],
        })
    }
}

/// Where a client finds an echo of requests, one of bytes, and the ports of [`Special`].
pub(crate) struct Ways {
    pub(crate) client: Arc<MeshPod>,
    pub(crate) http: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) held: SocketAddr,
    pub(crate) web_socket: SocketAddr,
}

/// What is under way.
pub(crate) struct Traffic {
    ways: Ways,
    streams: [Echoed; 3],
    asking: Echoed,
    idle: Vec<Client>,
    load: Load,
    totals: Totals,
    rounds: u32,
}

impl Traffic {
    /// Begins it, for so many upgrades.
    pub(crate) fn start(ways: Ways, rounds: u32) -> anyhow::Result<Self> {
        let client = &ways.client;
        let web_socket = until(SOON, || web_socket_client(client, ways.web_socket))?;
        let tcp = || client.connect(ways.tcp);
        let pause = Duration::from_millis(2);
        let streams = [
            Echoed::start("small blocks", tcp()?, 100, pause),
            Echoed::start("large blocks", tcp()?, 1 << 20, 25 * pause),
            Echoed::start("web socket", web_socket, 5000, pause),
        ];
        let mut idle = Vec::new();
        for _ in 0..=rounds {
            let mut client = Client::connect(client, ways.http)?;
            ensure!(client.send(&Request::get(Scene::HOST, "/first"))?.status == 200);
            idle.push(client);
        }
        Ok(Self {
            streams,
            idle,
            asking: Echoed::asking("requests", client.connect(ways.http)?),
            load: Load::start(client, ways.http, Scene::HOST, &CLIENTS)?,
            ways,
            totals: Totals::default(),
            rounds: 0,
        })
    }

    /// Goes on across an upgrade; `pages` are what the newest epochs say of their hand-overs after it.
    pub(crate) fn across(
        &mut self,
        special: &Special,
        upgrade: impl FnOnce() -> anyhow::Result<()>,
        pages: impl FnOnce() -> anyhow::Result<Vec<Value>>,
    ) -> anyhow::Result<()> {
        self.rounds += 1;
        let number = self.rounds;
        let late = Late::begin(&self.ways, number)?;
        upgrade().with_context(|| format!("upgrade {number}"))?;
        late.end(special)?;
        let client = self
            .idle
            .get_mut(number as usize)
            .context("no connection")?;
        let answer = client.send(&Request::get(Scene::HOST, "/later"));
        let answer = answer.with_context(|| format!("idle until upgrade {number}"))?;
        ensure!(
            answer.status == 200 && !client.closed(),
            "{}",
            answer.status
        );
        self.load.more(20)?;
        pages()?.iter().for_each(|page| self.totals.add(page));
        Ok(())
    }

    /// Ends it; fails unless everything was flawless and connections moved every time.
    pub(crate) fn finish(mut self, what: &str) -> anyhow::Result<()> {
        // One connection said nothing from the first epoch to the last.
        let last = self.idle.first_mut().context("no connection")?;
        let answer = last.send(&Request::get(Scene::HOST, "/last"))?;
        ensure!(answer.status == 200, "{}", answer.status);
        let outcome = self.load.stop()?;
        outcome.ensure_flawless()?;
        let (asked, longest) = self.asking.finish()?;
        let mut bytes = 0;
        let mut slowest = Duration::ZERO;
        for stream in self.streams {
            let (passed, took) = stream.finish()?;
            bytes += passed;
            slowest = slowest.max(took);
        }
        let (rounds, totals) = (self.rounds, self.totals);
        eprintln!(
            "{what}: {rounds} upgrades, {} requests (slowest {:?}), {asked} on one connection \
             (slowest {longest:?}), {bytes} bytes echoed (slowest \
             block {slowest:?}), {} connections adopted, resets 0, longest pause {:?}",
            outcome.answered, outcome.slowest, totals.adopted, totals.longest
        );
        // At least the streams, the load's kept connections and the silent one moved every time.
        let adopted = totals.adopted;
        ensure!(
            adopted >= u64::from(rounds) * 4,
            "{adopted} connections moved"
        );
        Ok(())
    }
}

/// Opens for one number after the other.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicU32>);

impl Gate {
    fn open(&self, number: u32) {
        self.0.store(number, Ordering::Release);
    }

    fn pass(&self, number: u32) -> anyhow::Result<()> {
        until(2 * SOON, || {
            ensure!(self.0.load(Ordering::Acquire) >= number, "{number} is shut");
            Ok(())
        })
    }
}

/// Agrees to whatever upgrade is asked for, then sends every byte back.
fn web_socket(mut stream: TcpStream, _: millrace_testkit::http::Peer) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        head.push(byte[0]);
    }
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    if stream.write_all(agreed).is_err() {
        return;
    }
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    stream.shutdown(Shutdown::Write).ok();
}

/// A socket as programs with an event loop have it: it does not block. Only such are accelerated.
pub(crate) struct Eager(TcpStream);

impl Eager {
    pub(crate) fn new(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    fn until_ready<T>(
        &self,
        flags: PollFlags,
        mut attempt: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match attempt(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let mut fds = [PollFd::new(self.0.as_fd(), flags)];
            let patience = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
            if poll(&mut fds, patience)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl io::Read for Eager {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_ready(PollFlags::POLLIN, |mut stream| stream.read(buffer))
    }
}

impl io::Write for Eager {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_ready(PollFlags::POLLOUT, |mut stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends one request after the other on one connection until told to stop; how many were answered, and
/// the longest that one took.
fn ask(mut client: Eager, stopped: &Receiver<()>) -> anyhow::Result<(u64, Duration)> {
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    while stopped.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
        let begun = Instant::now();
        request(&mut client, answered)?;
        slowest = slowest.max(begun.elapsed());
        answered += 1;
    }
    Ok((answered, slowest))
}

/// A request that no other is like, and the answer that says so.
pub(crate) fn request(client: &mut Eager, number: u64) -> anyhow::Result<()> {
    let request = format!("GET /{number} HTTP/1.1\r\nhost: {}\r\n\r\n", Scene::HOST);
    client.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).context("reading a head")?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    ensure!(!head.contains("connection: close"), "{head}");
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.context("no length")?.trim().parse()?];
    client.read_exact(&mut body).context("reading a body")?;
    let seen: Value = serde_json::from_slice(&body)?;
    ensure!(seen["path"] == format!("/{number}"), "{seen}");
    Ok(())
}

/// A connection whose bytes come back, and whose bytes tell where they belong.
struct Echoed {
    what: String,
    stop: Sender<()>,
    thread: JoinHandle<anyhow::Result<(u64, Duration)>>,
}

impl Echoed {
    /// Sends `block` bytes, waits until they are back, and again after `pause`.
    fn start(what: &str, stream: TcpStream, block: usize, pause: Duration) -> Self {
        let (stop, stopped) = channel();
        Self {
            what: what.to_owned(),
            stop,
            thread: thread::spawn(move || echo(Eager::new(stream)?, block, pause, &stopped)),
        }
    }

    /// Requests on one connection.
    fn asking(what: &str, stream: TcpStream) -> Self {
        let (stop, stopped) = channel();
        Self {
            what: what.to_owned(),
            stop,
            thread: thread::spawn(move || ask(Eager::new(stream)?, &stopped)),
        }
    }

    /// Ends the connection in order; how many bytes came back, and the longest that a block took.
    fn finish(self) -> anyhow::Result<(u64, Duration)> {
        // A thread that has failed listens no more.
        self.stop.send(()).ok();
        let joined = self.thread.join();
        joined
            .map_err(|_| anyhow!("the stream panicked"))?
            .with_context(|| self.what)
    }
}

/// The byte at a position of a stream.
fn byte(at: u64) -> u8 {
    let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

fn echo(
    mut stream: Eager,
    block: usize,
    pause: Duration,
    stopped: &Receiver<()>,
) -> anyhow::Result<(u64, Duration)> {
    let (mut at, mut slowest) = (0, Duration::ZERO);
    let mut back = vec![0; block];
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let sent: Vec<u8> = (at..at + block as u64).map(byte).collect();
        let begun = Instant::now();
        let mut writer = Eager(stream.0.try_clone()?);
        // Beside the reading: more than the buffers hold would block both.
        let shared = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&shared));
        let read = stream.read_exact(&mut back);
        read.with_context(|| format!("reading at {at}"))?;
        let written = writing.join().map_err(|_| anyhow!("the writer panicked"))?;
        written.with_context(|| format!("writing at {at}"))?;
        ensure!(back == sent, "other bytes at {at}");
        slowest = slowest.max(begun.elapsed());
        at += block as u64;
    }
    let write = Shutdown::Write;
    stream.0.shutdown(write).context("half-closing")?;
    let rest = stream.read(&mut back).context("the end")?;
    ensure!(rest == 0, "{rest} bytes too many");
    Ok((at, slowest))
}

/// Sums over the epochs of a test.
#[derive(Default)]
struct Totals {
    adopted: u64,
    longest: Duration,
}

impl Totals {
    fn add(&mut self, page: &Value) {
        let sum = |counts: &Value| {
            let counts = counts.as_object().into_iter().flatten();
            counts.filter_map(|(_, count)| count.as_u64()).sum::<u64>()
        };
        self.adopted += sum(&page["adopted"]);
        let longest = page["longest_pause_us"].as_u64().unwrap_or_default();
        self.longest = self.longest.max(Duration::from_micros(longest));
    }
}

/// A request over HTTP/2 and one over HTTP/1.1 that begin before an upgrade and are answered after it.
struct Late {
    number: u32,
    h2: JoinHandle<anyhow::Result<()>>,
    h1: JoinHandle<anyhow::Result<()>>,
}

impl Late {
    fn begin(ways: &Ways, number: u32) -> anyhow::Result<Self> {
        let (client, at) = (&*ways.client, ways.held);
        let mut h2 = h2::Client::connect(client, at)?;
        let request = http::Request::get(format!("http://special:8081/{number}"));
        let request = request.body(Bytes::new())?;
        let mut h1 = Client::connect(client, at)?;
        let path = format!("/{number}");
        let path2 = path.clone();
        // So that the connections are in use before the upgrade begins.
        ensure!(h1.send(&Request::get("special:8081", "/0"))?.status == 200);
        Ok(Self {
            number,
            h2: thread::spawn(move || {
                let answer = h2.send(request)?;
                ensure!(answer.head.status == 200, "{:?}", answer.head);
                ensure!(answer.body == path2.as_bytes(), "{:?}", answer.body);
                Ok(())
            }),
            h1: thread::spawn(move || {
                let answer = h1.send(&Request::get("special:8081", &path))?;
                ensure!(answer.status == 200, "{}", answer.status);
                ensure!(!h1.closed(), "the connection is not kept");
                // The connection goes on, by now with another process.
                let answer = h1.send(&Request::get("special:8081", "/0"))?;
                ensure!(answer.status == 200, "{}", answer.status);
                Ok(())
            }),
        })
    }

    fn end(self, special: &Special) -> anyhow::Result<()> {
        special.gate.open(self.number);
        for (what, thread) in [("HTTP/2", self.h2), ("HTTP/1.1", self.h1)] {
            let joined = thread.join().map_err(|_| anyhow!("a request panicked"))?;
            joined.with_context(|| format!("{what} across upgrade {}", self.number))?;
        }
        Ok(())
    }
}

fn web_socket_client(pod: &MeshPod, at: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut client = Client::connect(pod, at)?;
    let request = Request::get("special:8082", "/chat")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let answer = client.send(&request)?;
    ensure!(answer.status == 101, "{}: {}", answer.status, answer.text());
    let (stream, ahead) = client.into_inner();
    ensure!(ahead.is_empty(), "bytes before any were sent");
    Ok(stream)
}
