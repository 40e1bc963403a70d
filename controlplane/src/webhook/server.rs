//! The webhook's server: HTTP/1.1 over TLS for the API server.
//!
//! Input: connections and a certificate that changes; output: answers of [`super::review`]. Connections, header time, body
//! size and body time are bounded, since whoever reaches the port can ask.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::review;
use crate::metrics::PilotMetrics;
use crate::serve::MeshSource;

/// Where reviews are sent.
pub const PATH: &str = "/validate";
/// An API server keeps a few connections; more wait in the backlog.
const MAX_CONNECTIONS: usize = 128;
/// An object and the one before it, which etcd holds to 1.5 MiB each, with room for how JSON writes them.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// For a handshake, for headers, for a body. The API server waits for ten seconds at all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What reviews are answered from.
#[derive(Debug)]
pub struct Reviewer {
    /// The mesh that objects are judged in.
    pub source: Arc<MeshSource>,
    /// The cluster's DNS domain.
    pub domain: String,
    /// Where outcomes are counted.
    pub metrics: PilotMetrics,
}

/// Serves until stopped; questions under way are answered.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    reviewer: Arc<Reviewer>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            break;
        };
        // biased: a stop must not lose against a busy listener.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, reviewer) = (acceptor.clone(), Arc::clone(&reviewer));
                let stop = stop.clone();
                connections.spawn(async move {
                    connection(acceptor, stream, peer, reviewer, stop).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "webhook connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    reviewer: Arc<Reviewer>,
    stop: CancellationToken,
) {
    let stream = match tokio::time::timeout(TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return tracing::debug!(%peer, %error, "no TLS with a client of the webhook");
        }
        Err(_) => return tracing::debug!(%peer, "no TLS in time with a client of the webhook"),
    };
    let service = service_fn(move |request| {
        let reviewer = Arc::clone(&reviewer);
        async move { Ok::<_, Infallible>(reviewer.respond(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "webhook connection ended");
    }
}

impl Reviewer {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return plain(
                StatusCode::NOT_FOUND,
                format!("reviews are sent to {PATH}\n"),
            );
        }
        if request.method() != Method::POST {
            return plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "reviews are POSTed\n".to_owned(),
            );
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = match tokio::time::timeout(TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return plain(StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n")),
            Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "too slow\n".to_owned()),
        };
        self.review(&body)
    }

    fn review(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let published = self.source.published();
        let mesh = self.source.is_published().then_some(&*published.snapshot);
        match review::answer(body, mesh, &self.domain) {
            Ok((answer, outcome)) => {
                self.metrics.reviewed(outcome.as_str());
                let mut response = Response::new(Full::from(answer.to_string()));
                let json = http::HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                response
            }
            Err(error) => {
                self.metrics.reviewed("invalid");
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no answer to a review"
                );
                plain(StatusCode::BAD_REQUEST, format!("{error}\n"))
            }
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
