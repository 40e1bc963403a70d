//! Bytes over a connection, for what is not a well-formed message.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How a peer ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It closed its side.
    Closed,
    /// It reset the connection.
    Reset,
    /// It had not ended it when the time was up.
    Open,
}

/// Sends `bytes` and reads for at most `limit`, until the peer ends the connection.
pub fn exchange(
    stream: &mut TcpStream,
    bytes: &[u8],
    limit: Duration,
) -> anyhow::Result<(Vec<u8>, End)> {
    match stream.write_all(bytes) {
        Err(error) if is_reset(error.kind()) => {}
        other => other.context("sending")?,
    }
    read_to_end(stream, limit)
}

/// Half-closes the connection after sending `bytes`, then reads as [`exchange`] does.
pub fn exchange_half_closed(
    stream: &mut TcpStream,
    bytes: &[u8],
    limit: Duration,
) -> anyhow::Result<(Vec<u8>, End)> {
    stream.write_all(bytes).context("sending")?;
    stream.shutdown(Shutdown::Write).context("half-closing")?;
    read_to_end(stream, limit)
}

/// Reads for at most `limit`, until the peer ends the connection.
pub fn read_to_end(stream: &mut TcpStream, limit: Duration) -> anyhow::Result<(Vec<u8>, End)> {
    let end = Instant::now() + limit;
    let mut received = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok((received, End::Open));
        }
        stream
            .set_read_timeout(Some(left))
            .context("bounding reads")?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((received, End::Closed)),
            Ok(length) => received.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Ok((received, End::Open));
            }
            Err(error) if is_reset(error.kind()) => return Ok((received, End::Reset)),
            Err(error) => return Err(error).context("reading"),
        }
    }
}

fn is_reset(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}
