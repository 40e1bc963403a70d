//! A load generator: one thread, some connections, one exchange in flight on each.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

use super::Latencies;
use crate::backend::stream::write;

#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// The server.
    #[arg(long)]
    pub(super) to: SocketAddr,
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    pub(super) seconds: f64,
    /// On how many connections.
    #[arg(long, default_value_t = 1)]
    pub(super) connections: usize,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) latencies: Latencies,
}

/// One protocol's side of a connection.
pub(super) trait Conversation {
    /// What the client sends when the connection is made; its first exchange included.
    fn open(&mut self) -> Vec<u8>;
    /// What the client sends to begin another exchange.
    fn next(&mut self) -> Vec<u8>;
    /// Takes received bytes; may add bytes to be sent at once.
    fn receive(&mut self, bytes: &[u8], reply: &mut Vec<u8>) -> Progress;
    /// How much one write sends at most.
    fn write_length(&self) -> usize {
        usize::MAX
    }
}

/// Where an exchange is after some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Pending,
    Done,
    /// The answer is not what it should be.
    Wrong,
}

struct Connection<C> {
    stream: TcpStream,
    conversation: C,
    sent: Instant,
    unsent: Vec<u8>,
}

/// Failed connections are made anew this often in one run before the server counts as broken.
const MAX_ERRORS: u64 = 1000;
const CONNECT: Duration = Duration::from_secs(5);

pub(super) fn run<C: Conversation>(
    args: &LoadArgs,
    converse: impl Fn() -> C,
) -> anyhow::Result<Measured> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    let open = |index: usize| connect(&epoll, index, args.to, converse());
    let mut connections = (0..args.connections)
        .map(open)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(args.seconds);
    let mut measured = Measured::default();
    let mut samples = Vec::new();
    let mut events = vec![EpollEvent::empty(); args.connections];
    let mut buffer = vec![0; 256 * 1024];
    while Instant::now() < end && measured.errors < MAX_ERRORS {
        let ready = epoll
            .wait(&mut events, EpollTimeout::from(50_u8))
            .context("epoll_wait")?;
        for event in &events[..ready] {
            let index = usize::try_from(event.data()).unwrap_or_default();
            if connections[index]
                .progress(&mut buffer, &mut samples)
                .is_err()
            {
                measured.errors += 1;
                connections[index] = open(index)?;
            }
        }
    }
    measured.seconds = started.elapsed().as_secs_f64();
    measured.requests = samples.len() as u64;
    measured.latencies = Latencies::of(&mut samples);
    Ok(measured)
}

fn connect<C: Conversation>(
    epoll: &Epoll,
    index: usize,
    to: SocketAddr,
    mut conversation: C,
) -> anyhow::Result<Connection<C>> {
    let stream =
        TcpStream::connect_timeout(&to, CONNECT).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_nonblocking(true).context("non-blocking")?;
    let flags = EpollFlags::EPOLLIN;
    epoll
        .add(&stream, EpollEvent::new(flags, index as u64))
        .context("adding to epoll")?;
    let unsent = conversation.open();
    let mut connection = Connection {
        stream,
        conversation,
        sent: Instant::now(),
        unsent,
    };
    connection.flush().context("sending")?;
    Ok(connection)
}

impl<C: Conversation> Connection<C> {
    fn progress(&mut self, buffer: &mut [u8], samples: &mut Vec<Duration>) -> std::io::Result<()> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            match self
                .conversation
                .receive(&buffer[..length], &mut self.unsent)
            {
                Progress::Pending => {}
                Progress::Done => {
                    samples.push(self.sent.elapsed());
                    let next = self.conversation.next();
                    self.unsent.extend(next);
                    self.sent = Instant::now();
                }
                Progress::Wrong => return Err(ErrorKind::InvalidData.into()),
            }
            self.flush()?;
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// What is sent is smaller than a socket buffer, with one exchange in flight; where it is not all
    /// the same, the rest waits for room.
    fn flush(&mut self) -> std::io::Result<()> {
        let length = self
            .conversation
            .write_length()
            .clamp(1, self.unsent.len().max(1));
        for part in self.unsent.chunks(length) {
            write(&mut self.stream, part)?;
        }
        self.unsent.clear();
        Ok(())
    }
}
