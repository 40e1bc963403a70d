//! Packs a connection for another process, and unpacks what came.
//!
//! Sockets travel as descriptors. Bytes that were read and not yet written travel in a memory file,
//! one part after the other as [`Parcel::lengths`] says, so that a message stays small whatever they are.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::sys::memfd::{MFdFlags, memfd_create};
use socket2::{Domain, SockRef, Type};

use super::message::{Carried, MAX_BYTES, Pair, Parcel};
use crate::listener::DownstreamInfo;
use crate::socket::Stream;
use crate::tcp::copy::Progress;
use crate::worker::Worker;

/// What travels beside the description of a connection.
#[derive(Debug)]
pub struct Contents {
    fds: Vec<OwnedFd>,
}

impl Contents {
    /// Duplicates the sockets and writes the bytes down.
    ///
    /// # Errors
    /// When descriptors or memory are short, or there are too many bytes.
    pub fn pack(streams: &[&Stream], parts: [&[u8]; 4]) -> io::Result<Self> {
        let mut fds = streams
            .iter()
            .map(|stream| stream.as_fd().try_clone_to_owned())
            .collect::<io::Result<Vec<_>>>()?;
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if total > 0 {
            let mut file = File::from(memfd_create(c"millrace", MFdFlags::MFD_CLOEXEC)?);
            for part in parts {
                file.write_all(part)?;
            }
            fds.push(file.into());
        }
        Ok(Self { fds })
    }

    /// Of a connection that carries nothing now; none where that is not possible.
    pub fn of_one(stream: &Stream) -> Option<Self> {
        Self::pack(&[stream], [stream.put_back(), b"", b"", b""])
            .inspect_err(|error| tracing::warn!(%error, "a connection cannot be packed"))
            .ok()
    }

    /// Of two connections that are copied into each other; none where that is not possible.
    pub fn of_pair(near: &Stream, far: &Stream, progress: &Progress) -> Option<Self> {
        let [(_, out), (_, back)] = progress.flows();
        Self::pack(&[near, far], [near.put_back(), far.put_back(), out, back])
            .inspect_err(|error| tracing::warn!(%error, "a connection cannot be packed"))
            .ok()
    }

    /// The descriptors, in the order of the message.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// What came beside the description of a connection.
#[derive(Debug)]
pub struct Unpacked {
    /// The downstream connection's socket, then the upstream connection's where there is one.
    pub sockets: Vec<TcpStream>,
    /// The bytes, in the order of [`Parcel::lengths`].
    pub parts: [Bytes; 4],
}

impl Unpacked {
    /// Checks that descriptors are what the description says and reads the bytes.
    ///
    /// # Errors
    /// When they are not: other kinds of descriptors, another number of bytes.
    pub fn open(parcel: &Parcel, mut fds: Vec<OwnedFd>) -> io::Result<Self> {
        let (count, total) = (parcel.sockets(), parcel.bytes());
        if fds.len() != parcel.fds() || total > MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Bytes::new();
        if let Some(file) = fds.drain(count..).next() {
            let file = File::from(file);
            if file.metadata()?.len() != total as u64 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut buffer = vec![0; total];
            file.read_exact_at(&mut buffer, 0)?;
            bytes = buffer.into();
        }
        let sockets = fds.into_iter().map(tcp).collect::<io::Result<_>>()?;
        let parts = parcel.lengths().map(|length| bytes.split_to(length));
        Ok(Self { sockets, parts })
    }
}

/// A descriptor as a TCP socket of this process.
fn tcp(fd: OwnedFd) -> io::Result<TcpStream> {
    let socket = SockRef::from(&fd);
    let inet = [Domain::IPV4, Domain::IPV6].contains(&socket.domain()?);
    if !inet || socket.r#type()? != Type::STREAM {
        return Err(io::ErrorKind::InvalidData.into());
    }
    socket.set_nonblocking(true)?;
    Ok(fd.into())
}

/// The description of a connection that falls silent now.
pub fn describe(
    worker: &Worker,
    info: &DownstreamInfo,
    stream: &Stream,
    carried: Carried,
) -> Parcel {
    Parcel {
        connection: info.id,
        worker: worker.id,
        pod: info.pod.as_ref().map(|pod| pod.spec.uid.clone()),
        direction: info.direction,
        peer: info.peer,
        local: info.local,
        orig_dst: info.orig_dst,
        listener: info.listener.to_string(),
        filter_chain: info.filter_chain.clone(),
        server_name: info.server_name.clone(),
        age_us: micros(info.started.elapsed()),
        parked_ns: now_ns(),
        unread: stream.put_back().len(),
        lane: stream.lane().map(|(lane, tcp)| lane.state(tcp)),
        carried,
    }
}

/// The description of an upstream connection and of what lies before it: its cluster, its host and
/// how many connects it took; the bytes from the client and to it so far.
pub fn pair(
    (cluster, host, attempts): (String, SocketAddr, u32),
    stream: &Stream,
    progress: &Progress,
    (received, sent): (u64, u64),
) -> Pair {
    let [(out, _), (back, _)] = progress.flows();
    Pair {
        cluster,
        host,
        attempts,
        unread: stream.put_back().len(),
        lane: stream.lane().map(|(lane, tcp)| lane.state(tcp)),
        out,
        back,
        received,
        sent,
        idle_us: micros(progress.quiet()),
    }
}

/// Microseconds of a duration.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The time of day, the same in every process.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
