//! One direction of a socket as a program uses it: blocking or not, waiting by poll or by epoll, with
//! each of the calls that move bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags, setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// Without progress for this long a connection is stalled.
pub(super) const STALLED: Duration = Duration::from_mins(1);
/// Most bytes that go through a pipe at once; its capacity is 64 KiB.
const PIPE: usize = 32 * 1024;
/// How long a reader waits for as much as it asked for.
const LOW_WATER_MILLIS: u16 = 100;
/// `SO_EE_ORIGIN_ZEROCOPY` (include/uapi/linux/errqueue.h).
const BY_ZERO_COPY: u8 = 5;
/// How long completions of zero-copy sends are waited for; without them the memory is kept.
const COMPLETIONS: Duration = Duration::from_secs(2);

/// How a program waits for its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// In the call itself.
    Blocking,
    /// With poll(2), before every call.
    Poll,
    /// With epoll, level-triggered, after EAGAIN.
    Level,
    /// With epoll, edge-triggered, after EAGAIN.
    Edge,
    /// With epoll, edge-triggered, after EAGAIN or a short read, which many libraries take for it.
    EdgeShort,
}

/// All of them.
pub(super) const WAITS: [Wait; 5] = [
    Wait::Blocking,
    Wait::Poll,
    Wait::Level,
    Wait::Edge,
    Wait::EdgeShort,
];

/// A call that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Plain,
    Vectored,
    PeekFirst,
    WaitAll,
    LowWater,
    Splice,
}

/// A call that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    Plain,
    Vectored,
    SendFile,
    Splice,
    ZeroCopy,
}

impl Read {
    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "recv",
            Self::Vectored => "readv",
            Self::PeekFirst => "recv after MSG_PEEK",
            Self::WaitAll => "recv MSG_WAITALL",
            Self::LowWater => "recv with SO_RCVLOWAT",
            Self::Splice => "splice from",
        }
    }
}

impl Write {
    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "send",
            Self::Vectored => "writev",
            Self::SendFile => "sendfile",
            Self::Splice => "splice to",
            Self::ZeroCopy => "send MSG_ZEROCOPY",
        }
    }
}

/// `SO_RCVLOWAT`.
#[derive(Clone, Copy, Debug)]
struct LowWater;
nix::setsockopt_impl!(
    LowWater,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    i32,
    sockopt::SetStruct<'_, i32>
);

/// `SO_ZEROCOPY`.
#[derive(Clone, Copy, Debug)]
struct AllowZeroCopy;
nix::setsockopt_impl!(
    AllowZeroCopy,
    libc::SOL_SOCKET,
    libc::SO_ZEROCOPY,
    i32,
    sockopt::SetStruct<'_, i32>
);

/// The reading or the writing side of a socket.
pub(super) struct Half {
    stream: Arc<TcpStream>,
    wait: Wait,
    interest: PollFlags,
    epoll: Option<Epoll>,
    ready: bool,
    /// The other side has said that no more comes: a short read does not mean that there is nothing left.
    ending: bool,
    /// Memory of zero-copy sends that the kernel may still read.
    pinned: VecDeque<Vec<u8>>,
    completed: u32,
    sent_zero_copy: u32,
    /// The kernel programs refused `SO_ZEROCOPY`.
    zero_copy_refused: bool,
}

/// Both sides of a socket that waits in this way.
pub(super) fn halves(stream: TcpStream, wait: Wait) -> io::Result<(Half, Half)> {
    stream.set_nonblocking(wait != Wait::Blocking)?;
    if wait == Wait::Blocking {
        let bound = TimeVal::new(STALLED.as_secs().cast_signed(), 0);
        setsockopt(&stream, sockopt::ReceiveTimeout, &bound)?;
        setsockopt(&stream, sockopt::SendTimeout, &bound)?;
    }
    let stream = Arc::new(stream);
    Ok((
        Half::new(stream.clone(), wait, PollFlags::POLLIN)?,
        Half::new(stream, wait, PollFlags::POLLOUT)?,
    ))
}

impl Half {
    fn new(stream: Arc<TcpStream>, wait: Wait, interest: PollFlags) -> io::Result<Self> {
        let trigger = match wait {
            Wait::Blocking | Wait::Poll => None,
            Wait::Level => Some(EpollFlags::empty()),
            Wait::Edge | Wait::EdgeShort => Some(EpollFlags::EPOLLET),
        };
        let epoll = match trigger {
            None => None,
            Some(trigger) => {
                let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
                let events = if interest == PollFlags::POLLIN {
                    EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP
                } else {
                    EpollFlags::EPOLLOUT
                };
                epoll.add(&*stream, EpollEvent::new(events | trigger, 0))?;
                Some(epoll)
            }
        };
        Ok(Self {
            stream,
            wait,
            interest,
            epoll,
            ready: true,
            ending: false,
            pinned: VecDeque::new(),
            completed: 0,
            sent_zero_copy: 0,
            zero_copy_refused: false,
        })
    }

    /// Another handle that reads the same socket.
    pub(super) fn again(&self) -> io::Result<Self> {
        Self::new(self.stream.clone(), self.wait, self.interest)
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads some bytes; 0 is the end.
    pub(super) fn read(&mut self, how: Read, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len();
        let count = match how {
            Read::Plain => self.attempt(|half| half.receive(buffer, MsgFlags::empty()))?,
            Read::Vectored => {
                let (first, second) = buffer.split_at_mut(length / 3);
                self.attempt(|half| {
                    let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
                    io::Read::read_vectored(&mut &*half.stream, &mut parts)
                })?
            }
            Read::PeekFirst => self.read_after_peek(buffer)?,
            // Asked of a socket that does not block, it waits for nothing.
            Read::WaitAll => self.attempt(|half| half.receive(buffer, MsgFlags::MSG_WAITALL))?,
            Read::LowWater => {
                let mark = i32::try_from(length).unwrap_or(1);
                setsockopt(&*self.stream, LowWater, &mark)?;
                // Nothing wakes a reader when the rest of what it waits for stays below the mark, or does
                // not fit into the receive buffer (tcp_data_ready, Linux 6.18): so not for ever.
                let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, LOW_WATER_MILLIS)?;
                setsockopt(&*self.stream, LowWater, &1)?;
                self.attempt(|half| half.receive(buffer, MsgFlags::empty()))?
            }
            Read::Splice => self.read_by_splice(buffer)?,
        };
        // A pipe is full before its bytes are, so nobody takes a short splice for "drained".
        let short = count < length && count > 0 && how != Read::Splice;
        if self.wait == Wait::EdgeShort && short && !self.ending {
            self.ready = false;
        }
        Ok(count)
    }

    fn receive(&self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        Ok(socket::recv(self.stream.as_raw_fd(), buffer, flags)?)
    }

    /// What was seen is what is read.
    fn read_after_peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let seen = self.attempt(|half| half.receive(buffer, MsgFlags::MSG_PEEK))?;
        if seen == 0 {
            return Ok(0);
        }
        let seen = buffer[..seen].to_vec();
        let count = self.attempt(|half| half.receive(buffer, MsgFlags::empty()))?;
        let both = count.min(seen.len());
        if buffer[..both] != seen[..both] {
            return Err(io::Error::other("MSG_PEEK showed other bytes than came"));
        }
        Ok(count)
    }

    fn read_by_splice(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (from, to) = io::pipe()?;
        let want = buffer.len().min(PIPE);
        let count = self.attempt(|half| {
            let flags = rustix::pipe::SpliceFlags::MOVE;
            Ok(rustix::pipe::splice(
                &*half.stream,
                None,
                &to,
                None,
                want,
                flags,
            )?)
        })?;
        io::Read::read_exact(&mut &from, &mut buffer[..count])?;
        Ok(count)
    }

    /// Writes some of the bytes.
    pub(super) fn write(&mut self, how: Write, bytes: &[u8]) -> io::Result<usize> {
        match how {
            Write::Plain => self.attempt(|half| half.send(bytes, MsgFlags::empty())),
            Write::Vectored => {
                let (first, second) = bytes.split_at(bytes.len() / 3);
                self.attempt(|half| {
                    let parts = [IoSlice::new(first), IoSlice::new(second)];
                    io::Write::write_vectored(&mut &*half.stream, &parts)
                })
            }
            Write::SendFile => {
                let file = file_of(bytes)?;
                self.attempt(|half| {
                    let mut from = 0;
                    Ok(rustix::fs::sendfile(
                        &*half.stream,
                        &file,
                        Some(&mut from),
                        bytes.len(),
                    )?)
                })
            }
            Write::Splice => self.write_by_splice(bytes),
            Write::ZeroCopy => self.write_without_copy(bytes),
        }
    }

    /// Writes all of the bytes; `each` hears of every call.
    pub(super) fn write_all(
        &mut self,
        how: Write,
        bytes: &[u8],
        mut each: impl FnMut(usize),
    ) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.write(how, rest)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            each(count);
            rest = &rest[count..];
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8], flags: MsgFlags) -> io::Result<usize> {
        Ok(socket::send(
            self.stream.as_raw_fd(),
            bytes,
            flags | MsgFlags::MSG_NOSIGNAL,
        )?)
    }

    fn write_by_splice(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (from, to) = io::pipe()?;
        let length = bytes.len().min(PIPE);
        io::Write::write_all(&mut &to, &bytes[..length])?;
        let mut left = length;
        // What is in the pipe has to go all the way: it would be lost with it.
        while left > 0 {
            left -= self.attempt(|half| {
                let flags = rustix::pipe::SpliceFlags::empty();
                Ok(rustix::pipe::splice(
                    &from,
                    None,
                    &*half.stream,
                    None,
                    left,
                    flags,
                )?)
            })?;
        }
        Ok(length)
    }

    fn write_without_copy(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sent_zero_copy == 0 && !self.zero_copy_refused {
            match setsockopt(&*self.stream, AllowZeroCopy, &1) {
                // What a promoted connection answers, since its completions would never come.
                Err(Errno::EPERM) => self.zero_copy_refused = true,
                other => other?,
            }
        }
        if self.zero_copy_refused {
            return self.attempt(|half| half.send(bytes, MsgFlags::empty()));
        }
        let memory = bytes.to_vec();
        let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
        let sent = self.attempt(|half| match half.send(&memory, flags) {
            // The kernel's budget of notifications is used up; a copy does.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                half.send(&memory, MsgFlags::empty())
            }
            other => other,
        })?;
        self.sent_zero_copy += 1;
        self.pinned.push_back(memory);
        self.collect()?;
        Ok(sent)
    }

    /// Takes completions of zero-copy sends in.
    fn collect(&mut self) -> io::Result<()> {
        let mut space = nix::cmsg_space!([u8; 64]);
        loop {
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message =
                socket::recvmsg::<()>(self.stream.as_raw_fd(), &mut [], Some(&mut space), flags);
            let message = match message {
                Err(Errno::EAGAIN) => return Ok(()),
                other => other?,
            };
            for control in message.cmsgs()? {
                if let ControlMessageOwned::Ipv4RecvErr(error, _)
                | ControlMessageOwned::Ipv6RecvErr(error, _) = control
                    && error.ee_origin == BY_ZERO_COPY
                {
                    self.completed += error.ee_data - error.ee_info + 1;
                }
            }
            if self.completed >= self.sent_zero_copy {
                self.pinned.clear();
            }
        }
    }

    /// Waits until the kernel reads none of this side's memory any more; where it does not say so, the
    /// memory stays.
    pub(super) fn settle(&mut self) {
        let end = Instant::now() + COMPLETIONS;
        while !self.pinned.is_empty() && Instant::now() < end {
            if self.collect().is_err() {
                break;
            }
            if !self.pinned.is_empty() {
                let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
                poll(&mut fds, 10_u8).ok();
            }
        }
        std::mem::forget(std::mem::take(&mut self.pinned));
    }

    /// One call, repeated after waiting for as long as it would block.
    fn attempt(&mut self, mut call: impl FnMut(&Self) -> io::Result<usize>) -> io::Result<usize> {
        let began = Instant::now();
        loop {
            if self.wait == Wait::Poll || !self.ready {
                self.await_ready()?;
            }
            match call(self) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.wait == Wait::Blocking {
                        return Err(blocked(began));
                    }
                    self.ready = false;
                }
                result => return result,
            }
            if began.elapsed() > STALLED {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn await_ready(&mut self) -> io::Result<()> {
        let ready = match &self.epoll {
            None => {
                let mut fds = [PollFd::new(self.stream.as_fd(), self.interest)];
                let limit = PollTimeout::try_from(STALLED).unwrap_or(PollTimeout::MAX);
                poll(&mut fds, limit).map(|ready| ready > 0)
            }
            Some(epoll) => {
                let limit = EpollTimeout::try_from(STALLED).unwrap_or(EpollTimeout::NONE);
                let mut events = [EpollEvent::empty()];
                let ready = epoll.wait(&mut events, limit).map(|ready| ready > 0);
                let last = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                self.ending |= events[0].events().intersects(last);
                ready
            }
        };
        match ready {
            Ok(false) => Err(io::ErrorKind::TimedOut.into()),
            Ok(true) | Err(Errno::EINTR) => {
                self.ready = true;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A blocking call answered EAGAIN: after its timeout, or as no blocking call may.
fn blocked(began: Instant) -> io::Error {
    if began.elapsed() + Duration::from_secs(1) > STALLED {
        io::ErrorKind::TimedOut.into()
    } else {
        io::Error::other("EAGAIN from a socket that blocks")
    }
}

fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("stress", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut writer = std::fs::File::from(file);
    io::Write::write_all(&mut writer, bytes)?;
    Ok(writer.into())
}
