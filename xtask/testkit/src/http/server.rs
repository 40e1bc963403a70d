//! A server whose answers are a function of the test's.

use std::io::BufReader;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;

use super::{Request, Response};

/// The two addresses of a connection, as the server sees them.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The client's.
    pub remote: SocketAddr,
    /// The server's own.
    pub local: SocketAddr,
}

/// A server on threads of its own; it ends with its connections on drop.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    connections: Arc<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    accepted: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Server {
    /// Serves HTTP/1.1 with keep-alive.
    pub fn http(
        listener: TcpListener,
        handler: impl Fn(&Request, Peer) -> Response + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::start(listener, move |stream, peer| {
            let mut stream = BufReader::new(stream);
            while let Ok(Some(request)) = Request::read(&mut stream) {
                let response = handler(&request, peer);
                let written = response.write(stream.get_mut());
                if written.is_err() || request.wants_close() || response.closes() {
                    return;
                }
            }
        })
    }

    /// Runs `handler` on a thread for every connection, and closes it when that returns.
    pub fn start(
        listener: TcpListener,
        handler: impl Fn(TcpStream, Peer) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("the listener's address")?;
        let listener = Arc::new(listener);
        let connections = Arc::new(Connections::default());
        let (accepting, known) = (Arc::clone(&listener), Arc::clone(&connections));
        let handler = Arc::new(handler);
        thread::spawn(move || {
            while let Ok((stream, remote)) = accepting.accept() {
                let Some(peer) = known.add(&stream, remote) else {
                    continue;
                };
                let (handler, known) = (Arc::clone(&handler), Arc::clone(&known));
                thread::spawn(move || {
                    handler(stream, peer);
                    known.forget(peer);
                });
            }
        });
        Ok(Self {
            address,
            listener,
            connections,
        })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.connections.accepted.load(Ordering::Relaxed)
    }

    /// Closes every connection, and keeps listening.
    pub fn close_connections(&self) {
        for stream in self.connections.open.lock().drain(..) {
            // The peer may have closed it already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Resets every connection, as the kernel does for a crashed server with unread data.
    pub fn reset_connections(&self) {
        for stream in self.connections.open.lock().drain(..) {
            Self::abort(&stream);
        }
    }

    /// Disconnects the socket, which resets the connection whoever else holds a descriptor of it.
    pub fn abort(stream: &TcpStream) {
        use std::os::fd::AsRawFd as _;
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(stream, sockopt::Linger, &linger).ok();
        let unspecified = libc::sockaddr {
            sa_family: libc::AF_UNSPEC
                .unsigned_abs()
                .try_into()
                .unwrap_or_default(),
            sa_data: [0; 14],
        };
        let length = u32::try_from(size_of::<libc::sockaddr>()).unwrap_or_default();
        // SAFETY: the address lives through the call, and the length is its size.
        unsafe { libc::connect(stream.as_raw_fd(), &raw const unspecified, length) };
    }
}

impl Connections {
    fn add(&self, stream: &TcpStream, remote: SocketAddr) -> Option<Peer> {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        stream.set_nodelay(true).ok();
        let local = stream.local_addr().ok()?;
        let mut open = self.open.lock();
        open.retain(|stream| stream.peer_addr().is_ok());
        open.push(stream.try_clone().ok()?);
        Some(Peer { remote, local })
    }

    /// Closes the duplicate of a connection that its handler is done with, which ends the connection.
    fn forget(&self, peer: Peer) {
        self.open.lock().retain(|stream| {
            let is = stream.peer_addr().ok().zip(stream.local_addr().ok());
            is.is_some_and(|addresses| addresses != (peer.remote, peer.local))
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd as _;
        // SAFETY: a system call on a descriptor that is open; it makes the pending accept fail.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        self.close_connections();
    }
}
