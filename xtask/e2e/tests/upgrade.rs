//! The proxy, or the whole node, is replaced again and again while everything that connections can carry is under way: no
//! request fails, no connection is reset, no byte is wrong, and connections outlive the process that
//! accepted them.

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
use millrace_e2e::{CAPTURE, Scene, Service};
use millrace_testkit::http::{Client, Request, Response, Server};
use millrace_testkit::mesh::{MeshNode, MeshPod, Role};
use millrace_testkit::{PodOptions, h2, require, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// How long bytes may take that went into a stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers are held back at this port until their gate opens.
const HELD: u16 = 8081;
/// The port at which connections change to the `WebSocket` protocol.
const WEB_SOCKET: u16 = 8082;
const ACCELERATION: &str = "millrace.io/acceleration";

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

/// A service that answers late, and one that speaks something else after an upgrade.
struct Special {
    service: Service,
    gate: Gate,
    _servers: [Server; 2],
    _pod: MeshPod,
}

impl Special {
    fn start(node: &MeshNode, capture: &str) -> anyhow::Result<Self> {
        let service = Service::new("special", 9)
            .port("http-held", HELD)
            .port("http-ws", WEB_SOCKET);
        service.apply(node.mesh())?;
        let gate = Gate::default();
        let options = PodOptions::named("special")
            .label("app", "special")
            .annotation(CAPTURE, capture);
        let (pod, servers) = node.serving_pod(options, |pod| {
            let listen = |port| pod.listen((Ipv6Addr::UNSPECIFIED, port).into());
            let passing = gate.clone();
            let held = Server::http(listen(HELD)?, move |request, _| {
                let number = request.path.trim_start_matches('/').parse();
                let passed = passing.pass(number.unwrap_or_default());
                Response::new(passed.map_or(504, |()| 200), request.path.clone())
            })?;
            Ok([held, Server::start(listen(WEB_SOCKET)?, web_socket)?])
        })?;
        Ok(Self {
            service,
            gate,
            _servers: servers,
            _pod: pod,
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
struct Eager(TcpStream);

impl Eager {
    fn new(stream: TcpStream) -> anyhow::Result<Self> {
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
fn request(client: &mut Eager, number: u64) -> anyhow::Result<()> {
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

/// The newest proxy's page about hand-overs.
fn page(node: &MeshNode) -> anyhow::Result<Value> {
    let socket = node.run_dir().join("proxy/admin.sock");
    Client::unix(&socket)?
        .send(&Request::get("admin", "/handover"))?
        .json()
}

/// Fails unless a new connection of the client's is accelerated.
fn promotes(scene: &Scene) -> anyhow::Result<()> {
    let mut client = Eager::new(scene.client.connect(scene.http())?)?;
    for number in 0..16 {
        request(&mut client, number)?;
    }
    promoted(&scene.near)
}

/// Fails unless some connection is accelerated, where the kernel can do that.
fn promoted(node: &MeshNode) -> anyhow::Result<()> {
    let socket = node.run_dir().join("proxy/admin.sock");
    let page = Client::unix(&socket)?.send(&Request::get("admin", "/acceleration"))?;
    let page = page.json()?;
    if page["agent"]["state"] == "unavailable" {
        return Ok(());
    }
    let connections = page["connections"].as_array().context("no connections")?;
    let mut states = connections.iter().map(|connection| &connection["state"]);
    ensure!(states.any(|state| state == "promoted"), "{page}");
    Ok(())
}

/// What is replaced, and how.
#[derive(Clone, Copy, Debug)]
enum Replaced {
    /// The proxy alone.
    Proxy,
    /// Agent, broker and proxy, one after the other.
    InTurn,
    /// All three in the same instant.
    AtOnce,
}

/// The processes that the launcher starts again when they have ended.
const OTHERS: [Role; 2] = [Role::Broker, Role::Agent];

/// Ends these processes, and waits until others do their work.
fn replace(
    scene: &Scene,
    roles: &[Role],
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let node = &scene.near;
    let ended = roles.iter().map(|role| node.signal(*role, Signal::SIGTERM));
    let ended = ended.collect::<anyhow::Result<Vec<_>>>()?;
    meanwhile()?;
    for (role, ended) in roles.iter().zip(ended) {
        until(SOON, || {
            let now = node.pid(*role).context("none runs")?;
            ensure!(now != ended, "{role:?} {ended} still runs");
            let status = node.agent("/status")?.json()?;
            ensure!(status["broker_connected"] == true, "{status}");
            anyhow::Ok(())
        })?;
    }
    node.captured(&scene.client)?;
    node.captured(&scene.backends[0].pod).map(drop)
}

/// Replaces the proxy, which the launcher does beside the one that runs, and others with it; waits until
/// the old one is told to end.
fn upgrade(scene: &Scene, replaced: Replaced) -> anyhow::Result<()> {
    let node = &scene.near;
    let old = page(node)?["pid"].clone();
    let proxy = || node.signal(Role::Launcher, Signal::SIGHUP).map(drop);
    match replaced {
        Replaced::Proxy => proxy()?,
        Replaced::InTurn => {
            for role in OTHERS.iter().rev() {
                replace(scene, &[*role], || Ok(()))?;
            }
            proxy()?;
        }
        Replaced::AtOnce => replace(scene, &OTHERS, proxy)?,
    }
    until(SOON, || {
        let status = node.agent("/status")?.json()?;
        let proxies = status["proxies"].as_array().context("no proxies")?;
        let serves = |proxy: &&Value| proxy["draining"] == false;
        let serving: Vec<_> = proxies.iter().filter(serves).collect();
        ensure!(
            serving.len() == 1 && serving[0]["pid"] != old,
            "{proxies:?}"
        );
        ensure!(page(node)?["pid"] == serving[0]["pid"], "another answers");
        ensure!(status["broker_connected"] == true, "no broker");
        Ok(())
    })
    .context("upgrading")
}

/// Sums over the epochs of a test.
#[derive(Default)]
struct Totals {
    adopted: u64,
    kept: u64,
    longest: Duration,
}

impl Totals {
    fn add(&mut self, page: &Value) {
        let sum = |counts: &Value| {
            let counts = counts.as_object().into_iter().flatten();
            counts.filter_map(|(_, count)| count.as_u64()).sum::<u64>()
        };
        self.adopted += sum(&page["adopted"]);
        self.kept += sum(&page["kept"]);
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
    fn begin(scene: &Scene, special: &Special, number: u32) -> anyhow::Result<Self> {
        let at = special.service.at(HELD);
        let mut h2 = h2::Client::connect(&scene.client, at)?;
        let request = http::Request::get(format!("http://special:8081/{number}"));
        let request = request.body(Bytes::new())?;
        let mut h1 = Client::connect(&scene.client, at)?;
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

/// Upgrades so many times while everything that a connection can carry is under way.
fn many_upgrades(capture: &str, rounds: u32, replaced: Replaced) -> anyhow::Result<()> {
    let scene = Scene::start(capture)?;
    let special = Special::start(&scene.near, capture)?;
    // Connections that are in the kernel's map move as well as plain ones.
    scene.client.annotate(ACCELERATION, "on")?;
    if capture == "ebpf" {
        until(SOON, || promotes(&scene)).context("connections in the kernel's map")?;
    }
    let web_socket = until(SOON, || {
        web_socket_client(&scene.client, special.service.at(WEB_SOCKET))
    })?;
    let tcp = || scene.client.connect(scene.service.at(Scene::TCP));
    let pause = Duration::from_millis(2);
    let streams = [
        Echoed::start("small blocks", tcp()?, 100, pause),
        Echoed::start("large blocks", tcp()?, 1 << 20, 25 * pause),
        Echoed::start("web socket", web_socket, 5000, pause),
    ];
    let mut idle = Vec::new();
    for _ in 0..=rounds {
        let mut client = scene.connect()?;
        ensure!(client.send(&Request::get(Scene::HOST, "/first"))?.status == 200);
        idle.push(client);
    }
    let asking = Echoed::asking("requests", scene.client.connect(scene.http())?);
    let load = scene.load()?;
    let mut totals = Totals::default();
    for (number, client) in (1..=rounds).zip(&mut idle) {
        let late = Late::begin(&scene, &special, number)?;
        upgrade(&scene, replaced).with_context(|| format!("upgrade {number}"))?;
        late.end(&special)?;
        let answer = client.send(&Request::get(Scene::HOST, "/later"));
        let answer = answer.with_context(|| format!("idle until upgrade {number}"))?;
        ensure!(
            answer.status == 200 && !client.closed(),
            "{}",
            answer.status
        );
        load.more(20)?;
        totals.add(&page(&scene.near)?);
    }
    // One connection said nothing from the first epoch to the last.
    let last = idle.last_mut().context("no connection")?;
    let answer = last.send(&Request::get(Scene::HOST, "/last"))?;
    ensure!(answer.status == 200, "{}", answer.status);
    let outcome = load.stop()?;
    let flawless = outcome.ensure_flawless();
    flawless.with_context(|| scene.near.log())?;
    if capture == "ebpf" {
        // They moved with their connections.
        until(SOON, || promoted(&scene.near))?;
    }
    let (asked, longest) = asking.finish()?;
    let mut bytes = 0;
    let mut slowest = Duration::ZERO;
    for stream in streams {
        let (passed, took) = stream.finish()?;
        bytes += passed;
        slowest = slowest.max(took);
    }
    eprintln!(
        "{capture}: {rounds} upgrades ({replaced:?}), {} requests (slowest {:?}), {asked} on one connection \
         (slowest {longest:?}), {bytes} bytes echoed (slowest \
         block {slowest:?}), {} connections adopted, {} kept, resets 0, longest pause {:?}",
        outcome.answered, outcome.slowest, totals.adopted, totals.kept, totals.longest
    );
    // At least the streams, the load's kept connections and the silent one moved every time.
    ensure!(
        totals.adopted >= u64::from(rounds) * 4,
        "{} connections moved\n{}",
        totals.adopted,
        scene.near.log()
    );
    Ok(())
}

#[test]
fn twenty_upgrades_in_a_row_lose_nothing() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("ebpf", 20, Replaced::Proxy)
}

#[test]
fn upgrades_of_a_whole_node_lose_nothing() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("ebpf", 3, Replaced::InTurn)
}

#[test]
fn a_node_replaced_in_one_instant_loses_nothing() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("ebpf", 4, Replaced::AtOnce)
}

#[test]
fn upgrades_lose_nothing_where_iptables_capture() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("iptables", 5, Replaced::Proxy)
}
