//! The broker's side of a hand-off socket: binds the path, accepts, and knows who connected.
//!
//! The socket is bound beside its path and renamed onto it, so a new broker takes over from an
//! old one without a moment in which the path does not exist. A path that begins with `@` is a name in the
//! abstract namespace: it belongs to a network namespace, so that the containers of a pod share it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Message;
use super::connection::{Connection, HandoffError, register};

const BACKLOG: i32 = 64;

/// Who may reach a socket's path.
#[derive(Clone, Copy, Debug)]
pub struct BindOptions {
    /// File mode of the socket.
    pub mode: u32,
    /// Owner and group, where they shall not be the creator's.
    pub owner: Option<(u32, u32)>,
}

/// A connecting process, as the kernel recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id, 0 when it is not visible from here.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Which peers a socket accepts.
#[derive(Clone, Debug)]
pub struct PeerPolicy {
    /// Users that may connect.
    pub uids: Vec<u32>,
}

impl PeerPolicy {
    /// Accepts root and the user of this process: the agent's side.
    pub fn privileged() -> Self {
        Self {
            uids: vec![0, rustix::process::geteuid().as_raw()],
        }
    }

    /// Accepts exactly these users.
    pub fn users(uids: &[u32]) -> Self {
        Self {
            uids: uids.to_vec(),
        }
    }

    /// Whether `peer` may speak.
    pub fn allows(&self, peer: PeerCred) -> bool {
        self.uids.contains(&peer.uid)
    }
}

/// A listening hand-off socket.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`, replacing a socket that lies there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the path cannot be bound, its mode or owner cannot be set, or something that is no
    /// socket lies there.
    pub fn bind(path: &Path, options: BindOptions) -> Result<Self, HandoffError> {
        refuse_other_files(path)?;
        let socket = socket()?;
        let beside = beside(path);
        if let Err(error) = std::fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let address = SocketAddrUnix::new(&beside).map_err(io::Error::from)?;
        rustix::net::bind(&socket, &address).map_err(io::Error::from)?;
        let mode = Mode::from_raw_mode(options.mode);
        rustix::fs::chmod(&beside, mode).map_err(io::Error::from)?;
        if let Some((uid, gid)) = options.owner {
            rustix::fs::chown(&beside, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(io::Error::from)?;
        }
        rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
        std::fs::rename(&beside, path)?;
        Self::from_socket(socket, path)
    }

    /// Binds a name that begins with `@`; it is free again once the last duplicate of the socket is closed.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When somebody has the name.
    pub fn bind_name(name: &Path) -> Result<Self, HandoffError> {
        let socket = socket()?;
        rustix::net::bind(&socket, &address(name)?).map_err(io::Error::from)?;
        rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
        Self::from_socket(socket, name)
    }

    /// Accepts from a listening socket of somebody else's, which is bound at `path`.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn from_socket(socket: OwnedFd, path: &Path) -> Result<Self, HandoffError> {
        Ok(Self {
            socket: register(socket, Interest::READABLE)?,
            path: path.to_owned(),
        })
    }

    /// Where the socket is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next peer; the caller asks its [`PeerPolicy`] before it listens to it.
    ///
    /// # Errors
    /// When the socket fails; a peer that vanished at once is not an error of the listener.
    pub async fn accept<R: Message, S: Message>(
        &self,
    ) -> Result<(Connection<R, S>, PeerCred), HandoffError> {
        let socket = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                Ok(rustix::net::accept_with(
                    socket,
                    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                )?)
            })
            .await?;
        let peer = peer_cred(socket.as_fd())?;
        Ok((Connection::from_socket(socket)?, peer))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(socket)
}

/// The address of a path, or of a name that begins with `@`.
pub(super) fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let address = match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(path),
    };
    Ok(address?)
}

/// Credentials of the process at the other end of a connected Unix socket.
pub(super) fn peer_cred(socket: BorrowedFd<'_>) -> Result<PeerCred, HandoffError> {
    let cred = rustix::net::sockopt::socket_peercred(socket).map_err(io::Error::from)?;
    Ok(PeerCred {
        pid: rustix::process::Pid::as_raw(Some(cred.pid)),
        uid: cred.uid.as_raw(),
        gid: cred.gid.as_raw(),
    })
}

fn refuse_other_files(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} exists and is not a socket", path.display()),
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}
