//! TCP sockets as the proxy uses them: the stream type of both sides, original destinations
//! and canonical addresses.
//!
//! Input: sockets that `listener::accept` accepted or `upstream::connect` connected. Output:
//! [`Stream`], which `http` and `tcp` read and write. No option set here needs a capability:
//! marks and transparency come with the sockets that the broker makes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::acceleration::{Carries, Lane};
use crate::http::io::MessageSize;
use crate::resource::cluster::TcpKeepalive;

#[cfg(test)]
mod tests;

/// A TCP connection with the bytes that an inspector has already taken from it.
///
/// A short read normally counts as "drained", which saves one `recv` per message. A socket in a
/// sockmap has two queues and one `recv` empties only the first, so such a stream is switched to
/// [`Stream::read_until_would_block`] before it is promoted (DESIGN.md section 5, rule 5).
#[derive(Debug)]
pub struct Stream {
    io: TcpStream,
    prefix: Bytes,
    until_would_block: bool,
    lane: Option<Box<Lane>>,
}

impl Stream {
    /// Wraps a connected socket; small writes are sent at once (`TCP_NODELAY`).
    pub fn new(io: TcpStream) -> Self {
        if let Err(error) = io.set_nodelay(true) {
            // The peer may have reset the connection already; the first read says so.
            tracing::trace!(%error, "cannot set TCP_NODELAY");
        }
        Self {
            io,
            prefix: Bytes::new(),
            until_would_block: false,
            lane: None,
        }
    }

    /// Puts bytes back that were read from the socket: they are read before all others.
    pub fn unread(&mut self, bytes: Bytes) {
        self.prefix = if self.prefix.is_empty() {
            bytes
        } else {
            [bytes, self.prefix.split_off(0)].concat().into()
        };
    }

    /// Whether bytes that were put back wait to be read.
    pub fn has_unread(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Bytes that were put back and not yet read.
    pub fn put_back(&self) -> &[u8] {
        &self.prefix
    }

    /// The connection is another process's now: this descriptor is closed, the connection is not.
    pub fn let_go(mut self) {
        if let Some(lane) = self.lane.take() {
            lane.forget();
        }
    }

    /// From now on only `EAGAIN` counts as "drained".
    pub fn read_until_would_block(&mut self) {
        self.until_would_block = true;
    }

    /// Gives the connection a way to be accelerated.
    pub fn set_lane(&mut self, lane: Option<Box<Lane>>) {
        self.lane = lane;
    }

    /// Its way to be accelerated, where there is one.
    pub fn lane(&self) -> Option<(&Lane, &TcpStream)> {
        self.lane.as_deref().map(|lane| (lane, &self.io))
    }

    /// Says what the connection carries, which decides whether it may be accelerated.
    pub fn carry(&self, carries: Carries) {
        if let Some(lane) = &self.lane {
            lane.carry(carries);
        }
    }

    fn reads_until_would_block(&self) -> bool {
        self.until_would_block || self.lane.as_ref().is_some_and(|lane| lane.reads_all())
    }

    /// Makes closing send a reset instead of a FIN, so that the peer sees what this side saw.
    pub fn reset_on_close(&self) {
        if let Err(error) = self.io.set_zero_linger() {
            tracing::trace!(%error, "cannot set SO_LINGER");
        }
    }

    /// Completes when the kernel reports an error on the socket (a reset, a keep-alive timeout).
    /// Works after the read side has ended, when no read would notice.
    pub async fn failed(&self) -> io::Error {
        loop {
            match self.io.ready(Interest::ERROR).await {
                Ok(ready) if ready.is_error() => match self.io.take_error() {
                    Ok(None) => return io::ErrorKind::ConnectionReset.into(),
                    Ok(Some(error)) | Err(error) => return error,
                },
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Waits until there is something to read: bytes, the end, or an error.
    pub async fn readable(&self) -> io::Result<()> {
        if self.has_unread() {
            return Ok(());
        }
        self.io.readable().await
    }

    /// Writes by shared reference, so that one side can be written while it is watched for
    /// failure.
    pub fn poll_write_shared(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let most = match &self.lane {
            Some(lane) => ready!(lane.poll_way(cx, &self.io, MessageSize::Streamed, buf.len()))?,
            None => buf.len(),
        };
        let buf = &buf[..buf.len().min(most)];
        loop {
            ready!(self.io.poll_write_ready(cx))?;
            match self.io.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    if let (Some(lane), Ok(count)) = (&self.lane, &result) {
                        lane.wrote(&self.io, *count);
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }

    /// Sends FIN.
    pub fn end_writing(&self) -> io::Result<()> {
        if self.ends_later() {
            return Ok(());
        }
        SockRef::from(&self.io).shutdown(std::net::Shutdown::Write)
    }

    fn ends_later(&self) -> bool {
        let lane = self.lane.as_ref();
        lane.is_some_and(|lane| lane.ends_later(&self.io))
    }

    /// The socket itself.
    pub fn tcp(&self) -> &TcpStream {
        &self.io
    }

    /// The kernel's `SO_COOKIE`.
    pub fn cookie(&self) -> io::Result<u64> {
        SockRef::from(&self.io).cookie()
    }

    /// Sends keep-alive probes.
    pub fn set_keepalive(&self, keepalive: TcpKeepalive) -> io::Result<()> {
        let params = socket2::TcpKeepalive::new()
            .with_time(keepalive.time)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes);
        SockRef::from(&self.io).set_tcp_keepalive(&params)
    }

    /// The address of the other end, canonical.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.peer_addr().map(canonical)
    }

    /// The address of this end, canonical.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr().map(canonical)
    }

    fn poll_read_all(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ended = false;
        loop {
            ready!(self.io.poll_read_ready(cx))?;
            // Into uninitialised memory: a read that finds nothing must not cost a cleared buffer.
            match self.io.try_read_buf(buf) {
                // Of data and FIN that arrive while a recv begins, the first one may see the FIN
                // alone: it is the end only if it is seen twice.
                Ok(0) if !ended && buf.remaining() > 0 => ended = true,
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.close(&self.io);
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            return Poll::Ready(Ok(()));
        }
        if self.reads_until_would_block() {
            return self.poll_read_all(cx, buf);
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ends_later() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The address without IPv4-in-IPv6 mapping, flow label and scope of a global address.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None if v6.ip().is_unicast_link_local() => address,
            None => SocketAddr::new(IpAddr::V6(*v6.ip()), v6.port()),
        },
    }
}

/// Where an accepted connection was going before it was redirected (`SO_ORIGINAL_DST` and
/// `IP6T_SO_ORIGINAL_DST`; conntrack answers it on the iptables path, the getsockopt program on
/// the eBPF path). `None` when it was not redirected.
pub fn orig_dst(stream: &Stream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(&stream.io);
    let found = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    match found {
        Ok(address) => address.as_socket().map(canonical),
        Err(error) => {
            tracing::trace!(%error, %local, "no original destination");
            None
        }
    }
}
