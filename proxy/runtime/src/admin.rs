//! A small HTTP/1.1 server for admin routes, on TCP or a Unix socket.
//!
//! Used by the proxy (15000, 15020, 15021), the agent (`agent.sock`) and pilot (15014). A
//! [`Routes`] table maps method and path pattern to a handler; the server bounds connections,
//! header time and body size, so an admin port cannot be used to exhaust its process.

pub mod client;
mod routes;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use routes::{Reply, Request, Response, Routes};

/// Largest request body that is read.
pub const MAX_BODY: usize = 1024 * 1024;
/// Connections served at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 128;
const BACKLOG: i32 = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound admin socket that does not serve yet.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    max_connections: usize,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Server {
    /// Binds a TCP address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::of(Socket::Tcp(TcpListener::bind(address).await?)))
    }

    /// Binds a TCP address that an earlier epoch of this program may hold too (`SO_REUSEPORT`), so
    /// that a new process can start beside the one that it replaces.
    ///
    /// # Errors
    /// When the address cannot be bound, for example because another user holds it.
    pub fn bind_tcp_shared(address: SocketAddr) -> io::Result<Self> {
        Self::over(Self::listen_shared(address)?)
    }

    /// The socket of [`Server::bind_tcp_shared`], for whoever wants a duplicate of it.
    ///
    /// # Errors
    /// As there.
    pub fn listen_shared(address: SocketAddr) -> io::Result<std::net::TcpListener> {
        let domain = socket2::Domain::for_address(address);
        let kind = socket2::Type::STREAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// Over a listening socket that does not block.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn over(listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self::of(Socket::Tcp(TcpListener::from_std(listener)?)))
    }

    /// Binds a Unix socket with file mode `mode`, replacing a socket that lies there.
    ///
    /// # Errors
    /// When the path cannot be bound or its mode cannot be set.
    pub fn bind_unix(path: &Path, mode: u32) -> io::Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        if let Err(error) = std::fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(&beside)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&beside, path)?;
        Ok(Self::of(Socket::Unix(listener, path.to_owned())))
    }

    fn of(socket: Socket) -> Self {
        Self {
            socket,
            max_connections: MAX_CONNECTIONS,
        }
    }

    /// Serves this many connections at a time, for clients that keep theirs.
    #[must_use]
    pub fn max_connections(self, max_connections: usize) -> Self {
        Self {
            max_connections,
            ..self
        }
    }

    /// The TCP address, when it is one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Serves `routes` until `stop` is cancelled; requests under way are finished.
    pub async fn serve(self, routes: impl Into<Arc<Routes>>, stop: CancellationToken) {
        let routes: Arc<Routes> = routes.into();
        let slots = Arc::new(Semaphore::new(self.max_connections));
        let mut connections = JoinSet::new();
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                break;
            };
            // biased: a stop must not lose against a busy listener.
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let (routes, stop) = (Arc::clone(&routes), stop.clone());
                    connections.spawn(async move {
                        serve_connection(stream, routes, stop).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
        if let Socket::Unix(_, path) = &self.socket {
            tracing::debug!(path = %path.display(), "admin socket closed");
        }
        while connections.join_next().await.is_some() {}
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Socket {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

async fn serve_connection(stream: Box<dyn Stream>, routes: Arc<Routes>, stop: CancellationToken) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let routes = Arc::clone(&routes);
        async move { Ok::<_, std::convert::Infallible>(answer(&routes, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "admin connection ended");
            }
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection ended");
            }
        }
    }
}

async fn answer(routes: &Routes, request: hyper::Request<Incoming>) -> Response {
    let (parts, body) = request.into_parts();
    let collect = Limited::new(body, MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, collect).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            return Reply::text(413, format!("request body not read: {error}\n"));
        }
        Err(_) => return Reply::text(408, "request body not received in time\n".to_owned()),
    };
    routes.dispatch(&parts.method, &parts.uri, body).await
}

/// The body of every admin answer.
pub type Body = Full<Bytes>;
