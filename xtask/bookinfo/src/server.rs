//! The HTTP/1.1 server that every service runs in; it ends on SIGTERM after open requests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::reply::Reply;

/// How long open requests may take to finish once the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// One of the four services.
pub(crate) trait App: Send + Sync + 'static {
    /// Answers a request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Reply> + Send;
}

pub(crate) async fn serve(at: SocketAddr, app: impl App) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at)
        .await
        .with_context(|| format!("listening on {at}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("watching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching SIGINT")?;
    let app = Arc::new(app);
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        // No arm starves another: signals are rare, and accepts wait in the backlog.
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&app), stopping.clone()));
                }
                Err(error) => eprintln!("accepting: {error}"),
            },
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        eprintln!("stopped with requests open");
    }
    Ok(())
}

async fn connection(stream: TcpStream, app: Arc<impl App>, mut stopping: watch::Receiver<bool>) {
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request: Request<Incoming>| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(app.answer(request).await.into_response()) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
    );
    // A connection that breaks is its client's affair.
    tokio::select! {
        _ = &mut connection => {}
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }
}
