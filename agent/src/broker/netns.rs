//! A pod's network namespace: opened by path, known by its cookie, entered by throw-away threads.
//!
//! No thread of the runtime ever changes its namespace: a thread that enters a pod does one piece
//! of work there and ends.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

/// The network namespace of the node's first process.
const FIRST_PROCESS: &str = "/proc/1/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("network namespace {path} cannot be opened")]
    Open {
        /// The path, as described.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not let this process in, or the descriptor is of something else.
    #[error("network namespace cannot be entered (CAP_SYS_ADMIN is needed)")]
    Enter(#[source] io::Error),
    /// The kernel does not tell cookies (it is older than 5.14).
    #[error("network namespace has no cookie")]
    Cookie(#[source] io::Error),
    /// It is this process's own, or that of the node's first process.
    #[error("pod runs in the node's own network namespace, which cannot be captured")]
    Own,
    /// The thread could not be started or died.
    #[error("no thread to enter the network namespace")]
    Thread(#[source] io::Error),
}

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    cookie: u64,
}

impl Namespace {
    /// Opens the namespace at `path`; that of this process is refused, and so is that of the node's first
    /// process, which another one is where the broker runs in a container.
    ///
    /// # Errors
    /// When the path is no network namespace, may not be entered, or is the node's own.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        Self::open_beside(path, Path::new(FIRST_PROCESS))
    }

    fn open_beside(path: &Path, node: &Path) -> Result<Self, NetnsError> {
        let opened = |source| NetnsError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(opened)?;
        let found = identity(&file.metadata().map_err(opened)?);
        if fs::metadata(node).is_ok_and(|node| identity(&node) == found) {
            return Err(NetnsError::Own);
        }
        let fd = OwnedFd::from(file);
        let cookie = enter(fd.as_fd(), own_cookie)?.map_err(NetnsError::Cookie)?;
        if cookie == own_cookie().map_err(NetnsError::Cookie)? {
            return Err(NetnsError::Own);
        }
        Ok(Self { fd, cookie })
    }

    /// `SO_NETNS_COOKIE` of the namespace: unique for the life of the kernel.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` inside and waits for it, blocking the calling thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        enter(self.fd.as_fd(), work)
    }

    /// Runs `work` inside without blocking the runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub async fn run_async<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let fd = self.fd.try_clone().map_err(NetnsError::Enter)?;
        let (done, result) = oneshot::channel();
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let outcome = enter_here(fd.as_fd()).map(|()| work());
                // The receiver is gone only when its task was cancelled.
                drop(done.send(outcome));
            })
            .map_err(NetnsError::Thread)?;
        result
            .await
            .map_err(|_| NetnsError::Thread(io::Error::other("it died")))?
    }
}

fn identity(namespace: &Metadata) -> (u64, u64) {
    (namespace.dev(), namespace.ino())
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn enter<T: Send>(fd: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || enter_here(fd).map(|()| work()))
            .map_err(NetnsError::Thread)?
            .join()
            .unwrap_or_else(|_| Err(NetnsError::Thread(io::Error::other("it died"))))
    })
}

fn enter_here(fd: BorrowedFd<'_>) -> Result<(), NetnsError> {
    setns(fd, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter(errno.into()))
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// When no socket can be made or the kernel does not know the option.
pub fn own_cookie() -> io::Result<u64> {
    cookie_of(Socket::new(Domain::UNIX, Type::DGRAM, None)?.as_fd())
}

/// The cookie of the network namespace that `socket` lives in.
///
/// # Errors
/// When `socket` is no socket or the kernel does not know the option.
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "no safe wrapper offers SO_NETNS_COOKIE")]
    // SAFETY: the pointers are to a live u64 and to its length; the kernel writes at most that
    // many bytes (net/core/sock.c, SO_NETNS_COOKIE).
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use millrace_testkit::{Cluster, require};

    use super::*;

    #[test]
    fn the_namespace_of_the_nodes_first_process_is_no_pods() -> anyhow::Result<()> {
        require!(cluster);
        let cluster = Cluster::new()?;
        let node = cluster.node("n1")?;
        let (pod, other) = (node.pod("pod")?, node.pod("other")?);
        let path = other.netns().path();
        // As from a container, whose namespace is another one than the node's.
        pod.run(|| {
            let node = Namespace::open_beside(&path, &path);
            assert!(matches!(node, Err(NetnsError::Own)), "{node:?}");
            let pod = Namespace::open_beside(&path, Path::new(FIRST_PROCESS))?;
            assert_ne!(pod.cookie(), own_cookie()?);
            Ok(())
        })
    }
}
