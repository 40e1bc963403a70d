//! Calls to another service by its plain name: resolve, connect, keep the connection for later.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::{HeaderMap, Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Idle connections kept for one service.
const MAX_IDLE: usize = 32;
/// The largest answer that is read.
const MAX_BODY: usize = 4 << 20;

type Sender = SendRequest<Empty<Bytes>>;

/// A service that is called at one address.
#[derive(Debug)]
pub(crate) struct Upstream {
    authority: String,
    idle: Mutex<Vec<Sender>>,
}

/// What the service answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Upstream {
    /// `url` is `http://host:port`; the host is resolved anew for every connection.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        ensure!(
            uri.scheme_str() == Some("http"),
            "{url}: only http:// is spoken here"
        );
        let host = uri.host().with_context(|| format!("{url} names no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        Ok(Self {
            authority,
            idle: Mutex::default(),
        })
    }

    /// Gets `path`, in at most `limit`.
    pub(crate) async fn get(
        &self,
        path: &str,
        headers: &HeaderMap,
        limit: Duration,
    ) -> anyhow::Result<Answer> {
        let call = self.call(path, headers);
        tokio::time::timeout(limit, call)
            .await
            .with_context(|| format!("http://{}{path}: no answer in {limit:?}", self.authority))?
            .with_context(|| format!("http://{}{path}", self.authority))
    }

    async fn call(&self, path: &str, headers: &HeaderMap) -> anyhow::Result<Answer> {
        let mut sender = self.checkout().await?;
        let mut request = Request::get(path).body(Empty::new())?;
        *request.headers_mut() = headers.clone();
        request.headers_mut().insert(HOST, self.authority.parse()?);
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            // The server had closed the idle connection: the request was never seen, send it anew.
            Err(mut unsent) => {
                let request = unsent.take_message().context("the connection broke")?;
                sender = self.connect().await?;
                sender.send_request(request).await?
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY);
        let body = body
            .collect()
            .await
            .map_err(anyhow::Error::from_boxed)?
            .to_bytes();
        let mut idle = self.idle.lock().await;
        if idle.len() < MAX_IDLE && !sender.is_closed() {
            idle.push(sender);
        }
        Ok(Answer { status, body })
    }

    async fn checkout(&self) -> anyhow::Result<Sender> {
        while let Some(mut sender) = self.idle.lock().await.pop() {
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        self.connect().await
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends when the sender is dropped or the peer closes; its errors reach the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}
