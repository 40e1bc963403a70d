//! HTTP/2 with prior knowledge: an echo server that also answers gRPC calls, and a client that sends
//! many requests at once over one connection. Both hide their runtime, so tests stay plain code.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::echo::Seen;
use crate::host::Host;
use crate::http::Peer;

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")
}

/// An echo server for HTTP/2 without TLS; it ends with its connections on drop.
///
/// It answers with a [`Seen`] in JSON. A request of a content-type `application/grpc*` gets its own
/// body back, with the trailers `grpc-status: 0` and `x-server`.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Serves at `listener`.
    pub fn start(listener: TcpListener, name: &str) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("the listener's address")?;
        listener
            .set_nonblocking(true)
            .context("making the listener non-blocking")?;
        let runtime = runtime()?;
        let (stop, mut stopped) = watch::channel(false);
        let name: Arc<str> = name.into();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                // Stopping comes first: under load there is always something to accept.
                tokio::select! {
                    biased;
                    _ = stopped.changed() => {}
                    () = accept(listener, name) => {}
                }
            });
        });
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed.
            thread.join().ok();
        }
    }
}

async fn accept(listener: TcpListener, name: Arc<str>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = JoinSet::new();
    while let Ok((stream, remote)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        stream.set_nodelay(true).ok();
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        let (name, peer) = (Arc::clone(&name), Peer { remote, local });
        let service = service_fn(move |request| echo(request, Arc::clone(&name), peer));
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        connections.spawn(async move {
            // A connection that breaks is its client's affair.
            server
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

async fn echo(
    request: Request<Incoming>,
    name: Arc<str>,
    peer: Peer,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let server = HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("echo"));
    let content_type = head.headers.get("content-type").cloned();
    let grpc = content_type
        .as_ref()
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let (content_type, body) = if grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        trailers.insert("x-server", server.clone());
        let body = Full::new(body)
            .with_trailers(async { Some(Ok(trailers)) })
            .boxed();
        (HeaderValue::from_static("application/grpc"), body)
    } else {
        let headers = head.headers.iter();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let seen = Seen {
            server: name.to_string(),
            method: head.method.to_string(),
            path: head.uri.to_string(),
            headers: headers
                .map(|(key, value)| (key.to_string(), text(value)))
                .collect(),
            body_length: body.len(),
            remote: peer.remote,
            local: peer.local,
        };
        let body = serde_json::to_vec(&seen).unwrap_or_default();
        (
            HeaderValue::from_static("application/json"),
            Full::from(body).boxed(),
        )
    };
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", content_type);
    response.headers_mut().insert("x-server", server);
    Ok(response)
}

/// What came back for a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status and headers.
    pub head: http::response::Parts,
    /// The body.
    pub body: Bytes,
    /// The trailers; empty when there were none.
    pub trailers: HeaderMap,
}

/// One HTTP/2 connection of a client.
pub struct Client {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects from a node or pod.
    pub fn connect(from: &Host, to: SocketAddr) -> anyhow::Result<Self> {
        Self::over(from.connect(to)?)
    }

    /// Uses a connection that exists.
    pub fn over(stream: TcpStream) -> anyhow::Result<Self> {
        stream
            .set_nonblocking(true)
            .context("making the connection non-blocking")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let runtime = runtime()?;
        let sender = runtime.block_on(async {
            let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
            let (sender, connection) = handshake.await?;
            // It ends with the sender; its errors reach whoever waits for an answer.
            tokio::spawn(connection);
            anyhow::Ok(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    /// Sends one request and waits for the whole answer.
    pub fn send(&mut self, request: Request<Bytes>) -> anyhow::Result<Answer> {
        self.send_all(vec![request])?.pop().context("no answer")
    }

    /// Sends the requests at once, each on a stream of its own; the answers are in their order.
    pub fn send_all(&mut self, requests: Vec<Request<Bytes>>) -> anyhow::Result<Vec<Answer>> {
        let sender = &self.sender;
        self.runtime.block_on(async {
            let mut pending = JoinSet::new();
            for (index, request) in requests.into_iter().enumerate() {
                let mut sender = sender.clone();
                pending.spawn(async move {
                    sender.ready().await?;
                    let response = sender.send_request(request.map(Full::new)).await?;
                    let (head, body) = response.into_parts();
                    let body = body.collect().await?;
                    let trailers = body.trailers().cloned().unwrap_or_default();
                    anyhow::Ok((
                        index,
                        Answer {
                            head,
                            body: body.to_bytes(),
                            trailers,
                        },
                    ))
                });
            }
            let mut answers = Vec::new();
            while let Some(joined) = pending.join_next().await {
                answers.push(joined.map_err(|error| anyhow!("a request panicked: {error}"))??);
            }
            answers.sort_by_key(|(index, _)| *index);
            Ok(answers.into_iter().map(|(_, answer)| answer).collect())
        })
    }
}
