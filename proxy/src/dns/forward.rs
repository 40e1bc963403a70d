//! Asking a resolver on a client's behalf.
//!
//! Each question gets a socket and an id of its own, so that answers cannot be guessed. The
//! socket is the pod's: the resolver and every network policy see who asks. A resolver on
//! loopback is the node's own and is asked from here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use millrace_runtime::handoff::{Family, SocketKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message;
use crate::pods::LocalPod;

/// Time for one resolver to answer.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for all of them; clients ask again after 5 s.
const TOTAL_TIMEOUT: Duration = Duration::from_millis(4500);
/// Rounds over all resolvers.
const ROUNDS: usize = 2;

/// How a resolver is asked: as the client asked, so that it gets truncated answers itself and
/// may ask again by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("no resolver is configured")]
    NoUpstream,
    #[error("no resolver answered in time")]
    Timeout,
    #[error("the pod is gone or its sockets are used up")]
    NoSocket,
    #[error("asking {0} failed")]
    Io(SocketAddr, #[source] io::Error),
}

/// Asks the resolvers in turn; the answer bears the client's id.
pub(super) async fn ask(
    query: &[u8],
    pod: Option<&LocalPod>,
    upstreams: &[SocketAddr],
    transport: Transport,
) -> Result<Vec<u8>, ForwardError> {
    let tries = timeout(TOTAL_TIMEOUT, rounds(query, pod, upstreams, transport));
    let mut answer = tries.await.unwrap_or(Err(ForwardError::Timeout))?;
    if let Some(id) = message::id(query) {
        message::set_id(&mut answer, id);
    }
    Ok(answer)
}

async fn rounds(
    query: &[u8],
    pod: Option<&LocalPod>,
    upstreams: &[SocketAddr],
    transport: Transport,
) -> Result<Vec<u8>, ForwardError> {
    let mut last = ForwardError::NoUpstream;
    for _ in 0..ROUNDS {
        for upstream in upstreams {
            let one = async {
                let mut question = query.to_vec();
                message::set_id(&mut question, fastrand::u16(..));
                match transport {
                    Transport::Udp => by_udp(&question, pod, *upstream).await,
                    Transport::Tcp => by_tcp(&question, pod, *upstream).await,
                }
            };
            match timeout(TRY_TIMEOUT, one).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = ForwardError::Timeout,
            }
        }
    }
    Err(last)
}

async fn by_udp(
    question: &[u8],
    pod: Option<&LocalPod>,
    upstream: SocketAddr,
) -> Result<Vec<u8>, ForwardError> {
    let failed = |error| ForwardError::Io(upstream, error);
    let socket = match take(pod, SocketKind::Datagram, upstream).await? {
        Some(fd) => {
            let socket = std::net::UdpSocket::from(fd);
            socket.set_nonblocking(true).map_err(failed)?;
            UdpSocket::from_std(socket).map_err(failed)?
        }
        None => UdpSocket::bind(any(upstream)).await.map_err(failed)?,
    };
    socket.connect(upstream).await.map_err(failed)?;
    socket.send(question).await.map_err(failed)?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(failed)?;
        if message::answers(&buffer[..length], question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(
    question: &[u8],
    pod: Option<&LocalPod>,
    upstream: SocketAddr,
) -> Result<Vec<u8>, ForwardError> {
    let failed = |error| ForwardError::Io(upstream, error);
    let socket = match take(pod, SocketKind::Outbound, upstream).await? {
        Some(fd) => {
            let socket = std::net::TcpStream::from(fd);
            socket.set_nonblocking(true).map_err(failed)?;
            TcpSocket::from_std_stream(socket)
        }
        None if upstream.is_ipv4() => TcpSocket::new_v4().map_err(failed)?,
        None => TcpSocket::new_v6().map_err(failed)?,
    };
    let mut stream = socket.connect(upstream).await.map_err(failed)?;
    write_message(&mut stream, question).await.map_err(failed)?;
    loop {
        let answer = read_message(&mut stream).await.map_err(failed)?;
        let Some(answer) = answer else {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        };
        if message::answers(&answer, question) {
            return Ok(answer);
        }
    }
}

/// A socket of the pod; `None` where the question is asked from here.
async fn take(
    pod: Option<&LocalPod>,
    kind: SocketKind,
    upstream: SocketAddr,
) -> Result<Option<OwnedFd>, ForwardError> {
    let Some(pod) = pod.filter(|_| !upstream.ip().is_loopback()) else {
        return Ok(None);
    };
    let family = if upstream.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let socket = pod.pool(kind, family).take().await;
    socket.map(Some).ok_or(ForwardError::NoSocket)
}

fn any(upstream: SocketAddr) -> SocketAddr {
    let ip = match upstream.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

/// Reads one message with its length before it (RFC 1035 section 4.2.2); `None` at the end.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message with its length before it.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "message exceeds 65535 bytes"))?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}
