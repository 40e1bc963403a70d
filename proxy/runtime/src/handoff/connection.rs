//! One end of a hand-off socket: whole messages out, whole messages in, descriptors attached.
//!
//! `send` and `recv` take `&self` and are cancel-safe: a message is sent or received by one
//! system call or not at all. Received descriptors are close-on-exec and owned from the first
//! moment, so an error path closes them.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{
    AccelCall, AccelReply, AgentCall, DecodeError, MAX_FDS, MAX_MESSAGE, Message, ProxyRequest,
    ToAgent, ToProxy, decode,
};

/// A message with the descriptors that belong to it.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Exactly [`Message::fd_count`] descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The socket failed.
    #[error("hand-off socket")]
    Io(#[from] io::Error),
    /// The other side sent something that is no message; the connection should be closed.
    #[error("message from the other side")]
    Decode(#[from] DecodeError),
    /// A message of ours does not fit.
    #[error("message of {0} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// A message of ours came with other descriptors than it announces.
    #[error("message announces {announced} descriptors, {given} were given (limit {MAX_FDS})")]
    Fds {
        /// What the message says.
        announced: usize,
        /// What the caller passed.
        given: usize,
    },
    /// The kernel had no room for all descriptors (`RLIMIT_NOFILE`); those that came are closed.
    #[error("descriptors were lost on receipt, raise the open file limit")]
    FdsLost,
}

impl HandoffError {
    /// Whether a message was not sent because it breaks a limit; the connection is as it was.
    pub fn is_unsendable(&self) -> bool {
        matches!(self, Self::TooLong(_) | Self::Fds { .. })
    }
}

/// A connected hand-off socket that receives `R` and sends `S`.
#[derive(Debug)]
pub struct Connection<R, S> {
    socket: AsyncFd<OwnedFd>,
    messages: PhantomData<fn(S) -> R>,
}

/// The proxy's end of `proxy.sock`.
pub type BrokerConnection = Connection<ToProxy, ProxyRequest>;
/// The agent's end of `broker.sock`.
pub type AgentConnection = Connection<ToAgent, AgentCall>;
/// The proxy's end of `accel.sock`.
pub type AccelConnection = Connection<AccelReply, AccelCall>;

impl<R: Message, S: Message> Connection<R, S> {
    /// Connects to the socket at `path`, or of this name where it begins with `@`. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// When nobody listens there, or the path may not be used.
    pub fn connect(path: &Path) -> Result<Self, HandoffError> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(io::Error::from)?;
        let address = super::listener::address(path)?;
        rustix::net::connect(&socket, &address).map_err(io::Error::from)?;
        Self::from_socket(socket)
    }

    /// Wraps a connected, non-blocking `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn from_socket(socket: OwnedFd) -> Result<Self, HandoffError> {
        Ok(Self {
            socket: register(socket, Interest::READABLE | Interest::WRITABLE)?,
            messages: PhantomData,
        })
    }

    /// Two connected ends in one process; `R` and `S` of the second are swapped.
    ///
    /// # Errors
    /// When the kernel gives no socket pair.
    pub fn pair() -> Result<(Self, Connection<S, R>), HandoffError> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(io::Error::from)?;
        Ok((Self::from_socket(a)?, Connection::from_socket(b)?))
    }

    /// Sends one message with its descriptors, waiting for room.
    ///
    /// # Errors
    /// When the message breaks a limit (nothing is sent) or the other side is gone.
    pub async fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<(), HandoffError> {
        let announced = message.fd_count();
        if announced != fds.len() || fds.len() > MAX_FDS {
            return Err(HandoffError::Fds {
                announced,
                given: fds.len(),
            });
        }
        let bytes = serde_json::to_vec(message).map_err(DecodeError::from)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(HandoffError::TooLong(bytes.len()));
        }
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                send_once(socket.as_fd(), &bytes, fds)
            })
            .await?;
        Ok(())
    }

    /// Receives one message; `None` when the other side has closed.
    ///
    /// # Errors
    /// When the socket fails or what arrived is no message; its descriptors are closed.
    pub async fn recv(&self) -> Result<Option<Received<R>>, HandoffError> {
        let packet = self
            .socket
            .async_io(Interest::READABLE, |socket| recv_once(socket.as_fd()))
            .await?;
        match packet {
            Packet::End => Ok(None),
            Packet::FdsLost => Err(HandoffError::FdsLost),
            Packet::TooLong => Err(DecodeError::TooLong(MAX_MESSAGE + 1).into()),
            Packet::Data { bytes, fds } => Ok(Some(Received {
                message: decode(&bytes, fds.len())?,
                fds,
            })),
        }
    }

    /// Credentials of the process at the other end, as the kernel recorded them at connect time.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer_cred(&self) -> Result<super::PeerCred, HandoffError> {
        super::listener::peer_cred(self.socket.get_ref().as_fd())
    }
}

impl<R, S> AsFd for Connection<R, S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// Registers a socket with the runtime of the caller.
#[expect(
    deprecated,
    reason = "the replacement is unsafe because a type may change its descriptor; OwnedFd cannot"
)]
pub(super) fn register(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, interest)
}

enum Packet {
    End,
    TooLong,
    FdsLost,
    Data { bytes: Vec<u8>, fds: Vec<OwnedFd> },
}

fn send_once(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

fn recv_once(socket: BorrowedFd<'_>) -> io::Result<Packet> {
    // One byte more than a legal message, and room for every descriptor that the kernel lets a
    // sender attach: what is too much is then seen here, owned, and closed.
    const KERNEL_FDS: usize = 253;
    let mut bytes = vec![0_u8; MAX_MESSAGE + 1];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Packet::FdsLost);
    }
    if received.flags.contains(ReturnFlags::TRUNC) || received.bytes > MAX_MESSAGE {
        return Ok(Packet::TooLong);
    }
    if received.bytes == 0 {
        return Ok(Packet::End);
    }
    bytes.truncate(received.bytes);
    Ok(Packet::Data { bytes, fds })
}
