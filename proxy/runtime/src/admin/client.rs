//! The other side of an admin socket: one request, one answer.
//!
//! Used by `millctl`, by the launcher that drains a proxy, and by tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Largest answer that is read.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// Where an admin server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens there.
    #[error("{target} cannot be reached")]
    Connect {
        /// Whom we called.
        target: Target,
        /// Why.
        source: std::io::Error,
    },
    /// The exchange failed.
    #[error("exchange with {target} failed")]
    Exchange {
        /// Whom we called.
        target: Target,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{target} did not answer within {limit:?}")]
    Timeout {
        /// Whom we called.
        target: Target,
        /// How long we waited.
        limit: Duration,
    },
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text, lossy.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request and reads the whole answer within `limit`.
///
/// # Errors
/// When there is no answer; an answer with an error status is an answer.
pub async fn call(
    target: &Target,
    method: Method,
    path: &str,
    body: Bytes,
    limit: Duration,
) -> Result<Answer, CallError> {
    let exchange = async {
        let stream: Box<dyn Stream> = match target {
            Target::Tcp(address) => Box::new(
                TcpStream::connect(address)
                    .await
                    .map_err(|source| connect_error(target, source))?,
            ),
            Target::Unix(path) => Box::new(
                UnixStream::connect(path)
                    .await
                    .map_err(|source| connect_error(target, source))?,
            ),
        };
        exchange(stream, method, path, body)
            .await
            .map_err(|source| CallError::Exchange {
                target: target.clone(),
                source,
            })
    };
    tokio::time::timeout(limit, exchange)
        .await
        .map_err(|_| CallError::Timeout {
            target: target.clone(),
            limit,
        })?
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn connect_error(target: &Target, source: std::io::Error) -> CallError {
    CallError::Connect {
        target: target.clone(),
        source,
    }
}

async fn exchange(
    stream: Box<dyn Stream>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .body(Full::new(body))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await?
            .to_bytes();
        Ok(Answer { status, body })
    };
    // The connection must be driven while the answer is read, and ends with it.
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
