//! `cargo xtask stress-peer`: the applications that the stress starts inside pods. They know nothing
//! of a mesh; what they saw goes to stdout, or to whoever connects to the control port, as JSON.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Subcommand;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::half::STALLED;
use super::plan::{Connect, HELLO, Hello, Plan, Side, Spare};
use super::{bytes, programs, web};
use crate::ui;

/// A server that is slow to accept waits up to this long.
const LATE_MILLIS: u64 = 30;
/// Bytes that a server echoes which reads nothing afterwards.
const ECHOES: u32 = 100;
/// Requests on one HTTP connection at most.
const REQUESTS: u32 = 60;
/// Numbers that one thread of a client uses up before it starts over.
const NUMBERS: u32 = 1 << 17;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve until killed.
    Serve(ServeArgs),
    /// Make connections for a time and report.
    Call(CallArgs),
    /// Write to a server that never reads for a time and report.
    Flood(FloodArgs),
    /// Ask a real program for a time and report.
    Ask(programs::AskArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Where HTTP/1.1 is served.
    #[arg(long)]
    http: SocketAddr,
    /// Where connections of bytes are served.
    #[arg(long)]
    bytes: SocketAddr,
    /// The same, accepted late.
    #[arg(long)]
    late: SocketAddr,
    /// Where nothing is ever read.
    #[arg(long)]
    never: SocketAddr,
    /// Where the report is told.
    #[arg(long)]
    control: SocketAddr,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Common {
    /// Seed of the run.
    #[arg(long)]
    seed: u64,
    /// Leave splice(2) from sockets out.
    #[arg(long)]
    no_splice: bool,
}

impl Common {
    fn run(self) -> u32 {
        // Any 32 bits of it do.
        let [a, b, c, d, ..] = (self.seed ^ self.seed >> 32).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn spare(self) -> Spare {
        Spare {
            splice: self.no_splice,
        }
    }
}

#[derive(Debug, clap::Args)]
struct CallArgs {
    /// The service's addresses.
    #[arg(long, required = true)]
    to: Vec<IpAddr>,
    /// The service's name.
    #[arg(long)]
    host: String,
    #[arg(long)]
    http: u16,
    #[arg(long)]
    bytes: u16,
    #[arg(long)]
    late: u16,
    /// Number of this client, another for every client of a run.
    #[arg(long)]
    client: u32,
    #[arg(long)]
    seconds: f64,
    #[arg(long, default_value_t = 4)]
    threads: u32,
    /// Seed of this client's connections.
    #[arg(long)]
    call_seed: u64,
    /// Bind connections to 127.0.0.1 and ports that all pods use, so that tuples of pods are equal.
    #[arg(long)]
    same_tuples: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct FloodArgs {
    #[arg(long)]
    to: SocketAddr,
    /// Length of a write.
    #[arg(long)]
    chunk: usize,
    #[arg(long)]
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.role {
        Role::Serve(args) => serve(args),
        Role::Call(args) => report(&call(args)),
        Role::Flood(args) => report(&flood(args)?),
        Role::Ask(args) => report(&programs::ask(args)?),
    }
}

fn report(value: &impl Serialize) -> anyhow::Result<()> {
    ui::result(serde_json::to_string(value).context("encoding the report")?);
    Ok(())
}

type Sums = Arc<parking_lot::Mutex<Counts>>;

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let sums = Sums::default();
    let listen = |at: SocketAddr| TcpListener::bind(at).with_context(|| format!("binding {at}"));
    let common = args.common;
    let (http, plain, late, never) = (
        listen(args.http)?,
        listen(args.bytes)?,
        listen(args.late)?,
        listen(args.never)?,
    );
    let control = listen(args.control)?;
    let counted = sums.clone();
    thread::spawn(move || {
        let mut rng = fastrand::Rng::with_seed(common.seed ^ 0x5e12);
        accept(&http, None, &counted, move |stream, counts| {
            web::serve(stream, common.run(), rng.fork().u64(..), counts);
        });
    });
    for (listener, wait) in [(plain, None), (late, Some(LATE_MILLIS))] {
        let counted = sums.clone();
        thread::spawn(move || {
            accept(&listener, wait, &counted, move |stream, counts| {
                serve_bytes(stream, common, counts);
            });
        });
    }
    thread::spawn(move || {
        for stream in never.incoming().filter_map(Result::ok) {
            thread::spawn(move || stop_reading(stream));
        }
    });
    for mut stream in control.incoming().filter_map(Result::ok) {
        let text = serde_json::to_string(&*sums.lock()).context("encoding the report")?;
        // Whoever asked may have gone.
        stream.write_all(text.as_bytes()).ok();
    }
    Ok(())
}

/// Echoes some bytes, so that the connection earns whatever it can earn, and then reads no more.
fn stop_reading(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut left = ECHOES;
    let mut byte = [0];
    while left > 0 {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                stream.write_all(&byte)?;
                left -= 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    loop {
        thread::park();
    }
}

/// Accepts for ever, with a thread for every connection.
fn accept(
    listener: &TcpListener,
    late: Option<u64>,
    sums: &Sums,
    serve: impl FnMut(TcpStream, &mut Counts) + Clone + Send + 'static,
) {
    for stream in listener.incoming().filter_map(Result::ok) {
        if let Some(millis) = late {
            thread::sleep(Duration::from_millis(fastrand::u64(..millis)));
        }
        let (sums, mut serve) = (sums.clone(), serve.clone());
        thread::spawn(move || {
            let mut counts = Counts::default();
            serve(stream, &mut counts);
            sums.lock().add(&counts);
        });
    }
}

fn serve_bytes(mut stream: TcpStream, common: Common, counts: &mut Counts) {
    let mut first = [0; HELLO];
    if let Err(error) = stream.set_read_timeout(Some(STALLED)) {
        return counts.failed("error", || error.to_string());
    }
    match stream.read_exact(&mut first) {
        Ok(()) => {}
        // A client that broke off at once.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            return counts.ended("broken off before its first bytes");
        }
        Err(_) => return counts.failed("stalled", || "before the first bytes".to_owned()),
    }
    stream.set_read_timeout(None).ok();
    let Some(hello) = Hello::decode(&first) else {
        counts.faults.corrupt += HELLO as u64;
        return counts.failed("error", || format!("first bytes {first:?}"));
    };
    let plan = Plan::draw(hello.seed, common.spare());
    bytes::converse(stream, Side::Server, common.run(), hello, &plan, counts);
}

fn call(args: &CallArgs) -> Counts {
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let mut sums = Counts::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|thread| scope.spawn(move || Caller::new(args, thread).run(end)))
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(counts) => sums.add(&counts),
                Err(_) => sums.failed("error", || "a client's thread panicked".to_owned()),
            }
        }
    });
    sums
}

/// One thread of a client, one connection at a time.
struct Caller<'a> {
    args: &'a CallArgs,
    rng: fastrand::Rng,
    /// Where this thread's numbers begin, and how many are used up.
    base: u32,
    used: u32,
    counts: Counts,
}

impl<'a> Caller<'a> {
    fn new(args: &'a CallArgs, thread: u32) -> Self {
        let place = args.client * args.threads + thread;
        Self {
            args,
            rng: fastrand::Rng::with_seed(args.call_seed ^ u64::from(place) << 20),
            base: place.wrapping_mul(NUMBERS),
            used: 0,
            counts: Counts::default(),
        }
    }

    fn run(mut self, end: Instant) -> Counts {
        while Instant::now() < end {
            match self.rng.u8(..10) {
                0..5 => self.http(),
                5..9 => self.bytes(self.args.bytes),
                _ => self.bytes(self.args.late),
            }
        }
        self.counts
    }

    /// The first of so many numbers that no other stream has.
    fn numbers(&mut self, count: u32) -> u32 {
        if self.used + count > NUMBERS {
            self.used = 0;
        }
        self.used += count;
        self.base.wrapping_add(self.used - count)
    }

    fn http(&mut self) {
        let seed = self.rng.u64(..);
        let first = self.numbers(REQUESTS);
        let stream = match self.connect(self.args.http, Connect::Plain, &[]) {
            Ok(stream) => stream,
            Err(error) => return self.unconnected(self.args.http, &error),
        };
        let client = web::Client {
            run: self.args.common.run(),
            host: &self.args.host,
            seed,
            first,
            most: REQUESTS,
        };
        client.converse(stream, &mut self.counts);
    }

    fn bytes(&mut self, port: u16) {
        let hello = Hello {
            number: self.numbers(1),
            seed: self.rng.u64(..),
        };
        let common = self.args.common;
        let plan = Plan::draw(hello.seed, common.spare());
        match self.connect(port, plan.connect, &hello.encode()) {
            Ok(stream) => {
                let run = common.run();
                bytes::converse(stream, Side::Client, run, hello, &plan, &mut self.counts);
            }
            Err(error) => self.unconnected(port, &error),
        }
    }

    fn unconnected(&mut self, port: u16, error: &io::Error) {
        self.counts
            .failed("not connected", || format!("{error} at port {port}"));
    }

    /// Connects and sends the first bytes.
    fn connect(&mut self, port: u16, how: Connect, first: &[u8]) -> io::Result<TcpStream> {
        let to = SocketAddr::new(self.address(), port);
        let bind = self.args.same_tuples && to.is_ipv4() && self.rng.bool();
        let socket = self.socket(to, bind)?;
        match connect_from(socket, to, how, first) {
            // The tuple belongs to a connection of a moment ago.
            Err(error) if bind && error.kind() == io::ErrorKind::AddrNotAvailable => {
                let socket = self.socket(to, false)?;
                connect_from(socket, to, how, first)
            }
            other => other,
        }
    }

    /// One of the service's addresses; an IPv4 one now and then as sockets of both families see it.
    fn address(&mut self) -> IpAddr {
        match self.args.to[self.rng.usize(..self.args.to.len())] {
            IpAddr::V4(address) if self.rng.u8(..5) == 0 => address.to_ipv6_mapped().into(),
            address => address,
        }
    }

    /// A socket of the pod's; where tuples are to be equal, bound as those of other pods are.
    fn socket(&mut self, to: SocketAddr, bind: bool) -> io::Result<OwnedFd> {
        let make = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let family = if to.is_ipv4() {
                AddressFamily::Inet
            } else {
                AddressFamily::Inet6
            };
            let socket = socket::socket(family, SockType::Stream, flags, None)?;
            let bound = TimeVal::new(STALLED.as_secs().cast_signed(), 0);
            setsockopt(&socket, sockopt::SendTimeout, &bound)?;
            Ok::<_, io::Error>(socket)
        };
        if bind {
            for _ in 0..4 {
                let socket = make()?;
                setsockopt(&socket, sockopt::ReuseAddr, &true)?;
                let from =
                    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.rng.u16(20_000..20_400));
                if socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).is_ok() {
                    return Ok(socket);
                }
            }
        }
        make()
    }
}

fn connect_from(
    socket: OwnedFd,
    to: SocketAddr,
    how: Connect,
    first: &[u8],
) -> io::Result<TcpStream> {
    let address = SockaddrStorage::from(to);
    if how == Connect::SendTo && !first.is_empty() {
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN) | MsgFlags::MSG_NOSIGNAL;
        let sent = socket::sendto(socket.as_raw_fd(), first, &address, flags)?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(&first[sent..])?;
        return Ok(stream);
    }
    if how == Connect::FastOpen && !first.is_empty() {
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
    }
    socket::connect(socket.as_raw_fd(), &address)?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(first)?;
    Ok(stream)
}

/// What a sender saw whose receiver never reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Flooded {
    /// Bytes that the kernel took.
    pub(super) bytes: u64,
    /// Whether the sender was held back at the end.
    pub(super) held_back: bool,
    /// What else happened.
    pub(super) error: Option<String>,
}

fn flood(args: &FloodArgs) -> anyhow::Result<Flooded> {
    let mut stream = TcpStream::connect(args.to).context("connecting")?;
    stream.set_nonblocking(true).context("non-blocking")?;
    for _ in 0..ECHOES {
        stream.write_all(b"?").context("asking for an echo")?;
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(STALLED).unwrap_or(PollTimeout::MAX);
        anyhow::ensure!(poll(&mut fds, limit)? > 0, "no echo");
        stream.read_exact(&mut [0]).context("reading an echo")?;
    }
    let chunk = vec![0x55; args.chunk];
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let mut flooded = Flooded {
        bytes: 0,
        held_back: false,
        error: None,
    };
    while Instant::now() < end {
        match stream.write(&chunk) {
            Ok(count) => {
                flooded.bytes += count as u64;
                flooded.held_back = false;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                flooded.held_back = true;
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => {
                flooded.error = Some(error.to_string());
                break;
            }
        }
    }
    Ok(flooded)
}
