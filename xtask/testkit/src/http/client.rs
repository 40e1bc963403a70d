//! One client connection.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::{Request, Response};
use crate::host::Host;

/// A response that takes longer than this is a failure of the test, not of patience.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that carries one request after another.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    stream: BufReader<S>,
    closed: bool,
}

impl Client<UnixStream> {
    /// Connects to a Unix socket.
    pub fn unix(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("connecting to {}", path.display()))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("bounding reads")?;
        Ok(Self {
            stream: BufReader::new(stream),
            closed: false,
        })
    }
}

impl Client<TcpStream> {
    /// Connects from a node or pod.
    pub fn connect(from: &Host, to: SocketAddr) -> anyhow::Result<Self> {
        Self::over(from.connect(to)?)
    }

    /// Uses a connection that exists.
    pub fn over(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("bounding reads")?;
        Ok(Self {
            stream: BufReader::new(stream),
            closed: false,
        })
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends the request as it is and reads the final response.
    pub fn send(&mut self, request: &Request) -> anyhow::Result<Response> {
        let shown = format!("{} {}", request.method, request.path);
        request
            .write(self.stream.get_mut())
            .with_context(|| format!("sending {shown}"))?;
        self.receive(&request.method)
            .with_context(|| format!("answer to {shown}"))
    }

    /// Sends bytes that need not be HTTP.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(bytes).context("writing")
    }

    /// Reads the final response to a request of this method.
    pub fn receive(&mut self, method: &str) -> anyhow::Result<Response> {
        let response = Response::read(&mut self.stream, method)?;
        self.closed |= response.closes();
        Ok(response)
    }

    /// Whether the server announced that it closes the connection.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The connection, with what was read ahead of its last response.
    pub fn into_inner(self) -> (S, Vec<u8>) {
        let ahead = self.stream.buffer().to_vec();
        (self.stream.into_inner(), ahead)
    }
}

/// One GET on a connection of its own.
impl Host {
    /// Gets `http://<host><path>` from the server at `to`.
    pub fn get(&self, to: SocketAddr, host: &str, path: &str) -> anyhow::Result<Response> {
        Client::connect(self, to)?.send(&Request::get(host, path).header("connection", "close"))
    }
}
