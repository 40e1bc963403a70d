//! Streams in one direction, by the length of a write: a request is a write that went through whole.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;

use super::load::{LoadArgs, Measured};
use crate::backend::stream::{read, write};

const CONNECT: Duration = Duration::from_secs(5);

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Direction {
    /// This client, to a sink.
    Up,
    /// The server, a source.
    Down,
}

pub(super) fn run(args: &LoadArgs, direction: Direction, bytes: usize) -> Measured {
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(args.seconds);
    let one = || match direction {
        Direction::Up => up(args.to, bytes, end),
        Direction::Down => down(args.to, bytes, end),
    };
    let shares: Vec<anyhow::Result<u64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections).map(|_| scope.spawn(one)).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let mut measured = Measured::default();
    for share in shares {
        match share {
            Ok(count) => measured.requests += count,
            Err(error) => {
                eprintln!("{error:#}");
                measured.errors += 1;
            }
        }
    }
    measured.seconds = started.elapsed().as_secs_f64();
    measured
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&to, CONNECT).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    Ok(stream)
}

/// Writes until the time is over and waits until the server has read all.
fn up(to: SocketAddr, bytes: usize, end: Instant) -> anyhow::Result<u64> {
    let mut stream = connect(to)?;
    stream.set_nonblocking(true).context("non-blocking")?;
    let message = vec![b'x'; bytes];
    let mut count = 0;
    while Instant::now() < end {
        write(&mut stream, &message).context("sending")?;
        count += 1;
    }
    stream.shutdown(Shutdown::Write).context("ending")?;
    read(&mut stream, &mut [0; 1]).context("waiting for the server's end")?;
    Ok(count)
}

/// Tells the server how long its writes shall be and reads until the time is over.
fn down(to: SocketAddr, bytes: usize, end: Instant) -> anyhow::Result<u64> {
    let mut stream = connect(to)?;
    let length = u32::try_from(bytes).context("a write of more than 4 GiB")?;
    stream.write_all(&length.to_be_bytes()).context("asking")?;
    stream.set_nonblocking(true).context("non-blocking")?;
    let mut buffer = vec![0; 64 * 1024];
    let mut received = 0;
    while Instant::now() < end {
        let got = read(&mut stream, &mut buffer).context("reading")?;
        anyhow::ensure!(got > 0, "the server ended the stream");
        received += got;
    }
    Ok((received / bytes.max(1)) as u64)
}
