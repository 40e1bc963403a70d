//! A socket that hyper reads and writes while the proxy keeps a handle on it.
//!
//! hyper owns the stream of a connection for as long as the connection lives. [`SharedIo`] lets
//! `connection` and the upstream pools ask the kernel about the same socket: whether the peer has
//! closed it, how much of what was written it has acknowledged. A connection stays on its worker,
//! so the lock inside is never contended; it is there because hyper wants upgradeable streams to
//! be `Send`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use nix::sys::socket::GetSockOpt;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::HeadScan;
use super::header_block::BlockScan;
use crate::acceleration::Returned;
use crate::socket::Stream;

/// A handle on a socket; clones are the same socket.
#[derive(Clone, Debug)]
pub struct SharedIo(Arc<Inner>);

/// A handle that does not keep the socket open.
#[derive(Clone, Debug)]
pub struct WeakIo(Weak<Inner>);

impl WeakIo {
    /// The socket, while somebody uses it.
    pub fn upgrade(&self) -> Option<SharedIo> {
        self.0.upgrade().map(SharedIo)
    }
}

#[derive(Debug)]
struct Inner {
    /// Taken out when the connection goes on elsewhere.
    stream: Mutex<Option<Stream>>,
    /// Only on the server's side of HTTP/1.
    scan: Option<Mutex<HeadScan>>,
    /// Only on the server's side of HTTP/2.
    blocks: Option<Mutex<BlockScan>>,
    read: AtomicU64,
    written: AtomicU64,
    /// Bytes of both directions when the last exchange was over.
    carried: AtomicU64,
    message: AtomicU64,
    /// The peer reset the connection without closing it first.
    reset: AtomicBool,
    /// Nothing that was to be written is held back.
    flushed: AtomicBool,
    /// The end of HTTP is not the end of the connection.
    stays_open: AtomicBool,
}

/// How large the next message is, known before its first byte is written: small ones may take another
/// path than large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageSize {
    /// The body has this many bytes and is at hand.
    Known(u64),
    /// Large, streamed or interim.
    Streamed,
}

/// What the kernel knows of an idle connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleState {
    /// Open and quiet.
    Alive,
    /// Closed or reset by the peer, or the peer sent something nobody asked for.
    Dead,
}

/// The part of `struct tcp_info` up to `tcpi_bytes_acked` (Linux 4.1 and later).
#[derive(Clone, Copy, Debug)]
struct TcpInfo;

nix::getsockopt_impl!(
    TcpInfo,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u8; TCP_INFO_LEN],
    nix::sys::socket::sockopt::GetStruct<[u8; TCP_INFO_LEN]>
);

const TCP_INFO_LEN: usize = 128;
/// Offset of `tcpi_bytes_acked` (include/uapi/linux/tcp.h).
const BYTES_ACKED: usize = 120;

impl SharedIo {
    /// Takes a stream over.
    pub fn new(stream: Stream) -> Self {
        Self::build(Some(stream), None, None)
    }

    /// A handle on nothing: the socket is used elsewhere.
    pub fn elsewhere() -> Self {
        Self::build(None, None, None)
    }

    /// Takes a stream over on which HTTP/1 requests come.
    pub fn for_requests(stream: Stream) -> Self {
        Self::build(Some(stream), Some(Mutex::default()), None)
    }

    /// Takes a stream over on which HTTP/2 requests come.
    pub fn for_streams(stream: Stream) -> Self {
        Self::build(Some(stream), None, Some(Mutex::default()))
    }

    fn build(
        stream: Option<Stream>,
        scan: Option<Mutex<HeadScan>>,
        blocks: Option<Mutex<BlockScan>>,
    ) -> Self {
        Self(Arc::new(Inner {
            stream: Mutex::new(stream),
            scan,
            blocks,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            message: AtomicU64::new(u64::MAX),
            reset: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            stays_open: AtomicBool::new(false),
        }))
    }

    /// A handle that does not keep the socket open.
    pub fn downgrade(&self) -> WeakIo {
        WeakIo(Arc::downgrade(&self.0))
    }

    /// Ends the connection in both directions; whoever reads it sees its end.
    pub fn end(&self) {
        if let Some(stream) = &*self.0.stream.lock()
            && let Err(error) = SockRef::from(stream.tcp()).shutdown(Shutdown::Both)
        {
            tracing::trace!(%error, "the connection has ended already");
        }
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed)
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Whether the head of a request said twice how long it is, since this was last asked.
    pub fn take_ambiguous(&self) -> bool {
        let scan = self.0.scan.as_ref();
        scan.is_some_and(|scan| scan.lock().take_ambiguous())
    }

    /// The number of the HTTP/2 header block that has begun and not ended.
    pub fn unfinished_block(&self) -> Option<u64> {
        self.0.blocks.as_ref()?.lock().unfinished()
    }

    /// A request has ended.
    pub fn next_head(&self) {
        if let Some(scan) = &self.0.scan {
            scan.lock().next_head();
        }
    }

    /// Says how large the message is that is written next.
    pub fn announce(&self, size: MessageSize) {
        let value = match size {
            MessageSize::Known(bytes) => bytes.min(u64::MAX - 1),
            MessageSize::Streamed => u64::MAX,
        };
        self.0.message.store(value, Ordering::Relaxed);
    }

    /// What was announced last.
    pub fn announced(&self) -> MessageSize {
        match self.0.message.load(Ordering::Relaxed) {
            u64::MAX => MessageSize::Streamed,
            bytes => MessageSize::Known(bytes),
        }
    }

    /// A request and its response are over; `pipelined` where the request had come before the
    /// response before it was over.
    pub fn exchanged(&self, pipelined: bool) {
        if let Some((lane, tcp)) = self.0.stream.lock().as_ref().and_then(Stream::lane) {
            let carried = self.bytes_read() + self.bytes_written();
            let before = self.0.carried.swap(carried, Ordering::Relaxed);
            lane.exchanged(tcp, carried - before, pipelined);
        }
    }

    /// The connection changes to another protocol: everything goes by TCP from here on.
    pub fn upgraded(&self) {
        if let Some((lane, _)) = self.0.stream.lock().as_ref().and_then(Stream::lane) {
            lane.give_up(Returned::Upgrade);
        }
    }

    /// Whether the peer's program has read everything that it was sent, as far as is known of a
    /// connection that is accelerated; true of any other.
    pub fn is_settled(&self) -> bool {
        let stream = self.0.stream.lock();
        let lane = stream.as_ref().and_then(Stream::lane);
        lane.is_none_or(|(lane, tcp)| lane.is_settled(tcp))
    }

    /// Ready when so many bytes may be written, with the socket told which way they go: how many of them,
    /// at most.
    fn poll_way(
        &self,
        stream: &Stream,
        cx: &mut Context<'_>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match stream.lane() {
            None => Poll::Ready(Ok(length)),
            Some((lane, tcp)) => lane.poll_way(cx, tcp, self.announced(), length),
        }
    }

    /// What was announced has begun: what follows without an announcement is not a message.
    fn begun(&self, stream: &Stream, count: usize) {
        if let Some((lane, tcp)) = stream.lane()
            && count > 0
        {
            lane.wrote(tcp, count);
            self.announce(MessageSize::Streamed);
        }
    }

    /// Looks whether an idle connection can still be used. Reads nothing away.
    pub fn idle_state(&self) -> IdleState {
        let stream = self.0.stream.lock();
        let Some(stream) = &*stream else {
            return IdleState::Dead;
        };
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(stream.tcp()).peek(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => IdleState::Alive,
            _ => IdleState::Dead,
        }
    }

    /// Whether it is certain that the peer's program has read nothing beyond the first `before`
    /// bytes: its kernel acknowledged none of it, and the program had closed its socket before.
    ///
    /// A reset alone proves nothing. Who reads a part and closes with the rest unread resets a
    /// connection of which nothing may be acknowledged yet, as acknowledgements are delayed. It
    /// is told apart by the error: after a FIN the kernel reports EPIPE and the end of the
    /// stream, without one ECONNRESET (`tcp_reset`, Linux 6.18).
    pub fn is_unread_after(&self, before: u64) -> bool {
        // What was redirected is neither acknowledged nor lost with the connection.
        let by_tcp = |stream: &Stream| stream.lane().is_none_or(|(lane, _)| !lane.reads_all());
        !self.0.reset.load(Ordering::Relaxed)
            && self.0.stream.lock().as_ref().is_some_and(by_tcp)
            && self.bytes_acked().is_ok_and(|acked| acked <= before)
    }

    fn bytes_acked(&self) -> io::Result<u64> {
        let stream = self.0.stream.lock();
        let info = TcpInfo.get(stream.as_ref().ok_or_else(taken)?.tcp())?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&info[BYTES_ACKED..]);
        // The SYN counts as one.
        Ok(u64::from_ne_bytes(bytes).saturating_sub(1))
    }

    /// The kernel reports a reset once, to whoever asks first.
    fn note<T>(&self, result: &io::Result<T>) {
        if let Err(error) = result
            && error.kind() == io::ErrorKind::ConnectionReset
        {
            self.0.reset.store(true, Ordering::Relaxed);
        }
    }

    /// This end's address, canonical.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let stream = self.0.stream.lock();
        stream.as_ref().ok_or_else(taken)?.local_addr()
    }

    /// Makes closing send a reset.
    pub fn reset_on_close(&self) {
        if let Some(stream) = &*self.0.stream.lock() {
            stream.reset_on_close();
        }
    }

    /// Whether everything that was to be written has been.
    pub fn is_flushed(&self) -> bool {
        self.0.flushed.load(Ordering::Relaxed)
    }

    /// Whether whoever speaks HTTP on the connection leaves it open when it has ended.
    pub fn stay_open(&self, stays: bool) {
        self.0.stays_open.store(stays, Ordering::Relaxed);
    }

    /// Takes the connection away from HTTP; every other handle on it is of no more use.
    pub fn take_stream(&self) -> Option<Stream> {
        self.0.stream.lock().take()
    }
}

/// What happens to a socket that was taken away is not this handle's matter.
fn taken() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for SharedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut stream = self.0.stream.lock();
        let stream = stream.as_mut().ok_or_else(taken)?;
        let result = ready!(Pin::new(stream).poll_read(cx, buf));
        self.note(&result);
        result?;
        let bytes = &mut buf.filled_mut()[before..];
        if let Some(scan) = &self.0.scan {
            scan.lock().feed(bytes);
        }
        if let Some(blocks) = &self.0.blocks {
            blocks.lock().feed(bytes);
        }
        self.0.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl SharedIo {
    fn wrote(&self, stream: &Stream, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = &result {
            self.note(result);
            if let Ok(count) = result {
                self.0.written.fetch_add(*count as u64, Ordering::Relaxed);
                self.begun(stream, *count);
            }
        }
        result
    }
}

impl AsyncWrite for SharedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.0.stream.lock();
        let stream = stream.as_mut().ok_or_else(taken)?;
        self.0.flushed.store(false, Ordering::Relaxed);
        let most = ready!(self.poll_way(stream, cx, buf.len()))?;
        let result = Pin::new(&mut *stream).poll_write(cx, &buf[..buf.len().min(most)]);
        self.wrote(stream, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.0.stream.lock();
        let stream = stream.as_mut().ok_or_else(taken)?;
        self.0.flushed.store(false, Ordering::Relaxed);
        let length = bufs.iter().map(|buf| buf.len()).sum();
        let most = ready!(self.poll_way(stream, cx, length))?;
        let result = if length <= most {
            Pin::new(&mut *stream).poll_write_vectored(cx, bufs)
        } else {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            let first = first.map_or(&[][..], |buf| &buf[..buf.len().min(most)]);
            Pin::new(&mut *stream).poll_write(cx, first)
        };
        self.wrote(stream, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.0.stream.lock();
        let stream = stream.as_mut().ok_or_else(taken)?;
        // hyper flushes when its own buffer is empty.
        self.0.flushed.store(true, Ordering::Relaxed);
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.stays_open.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut stream = self.0.stream.lock();
        let stream = stream.as_mut().ok_or_else(taken)?;
        Pin::new(stream).poll_shutdown(cx)
    }
}
