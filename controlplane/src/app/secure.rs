//! xDS over TLS, for nodes that show a token: pilot's own certificate, and a guard at the door.
//!
//! Input: flags, the API server; output: a second server of the same source. Started by [`crate::app`].

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::cluster::names;
use crate::config::Config;
use crate::kube::secret::SecretStore;
use crate::kube::tokens::Tokens;
use crate::registry::kubernetes::{Access, connect};
use crate::serve::admit::TokenGuard;
use crate::tls::keep::Keeper;
use crate::tls::rotation::Lifetimes;
use crate::tls::serving::Serving;

/// How long a client may take for its handshake, and how many may be at it.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 256;
/// The API server is not asked about a token more often than so.
const SHORTEST_REVIEW: Duration = Duration::from_secs(1);

/// The port, not served yet.
pub(super) struct Secure {
    listener: TcpListener,
    serving: Arc<Serving>,
    guard: Arc<TokenGuard>,
    keeper: Keeper<SecretStore>,
}

impl Secure {
    /// Binds the port; none where none was asked for.
    pub(super) async fn bind(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(address) = config.tls_xds_addr else {
            return Ok(None);
        };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("binding xDS over TLS to {address}"))?;
        let access = Access {
            kubeconfig: config.kubeconfig.clone(),
            context: config.context.clone(),
        };
        let client = connect(&access)
            .await
            .context("--tls-xds-addr needs the API server that reviews nodes' tokens")?;
        let serving = Serving::new();
        let store = SecretStore::new(client.clone(), &config.namespace);
        let lifetimes = Lifetimes {
            authority: config.ca_lifetime,
            serving: config.certificate_lifetime,
        };
        let keeper = Keeper::new(store, Arc::clone(&serving), names(config), lifetimes);
        let tokens = Tokens::new(client, &config.token_audience);
        let guard = TokenGuard {
            tokens,
            nodes: config.node_accounts.clone(),
            review: config.token_review_interval.max(SHORTEST_REVIEW),
        };
        Ok(Some(Self {
            listener,
            serving,
            guard: Arc::new(guard),
            keeper,
        }))
    }

    pub(super) fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving)
    }

    pub(super) fn guard(&self) -> Arc<TokenGuard> {
        Arc::clone(&self.guard)
    }

    /// Keeps the certificate valid, and gives connections whose handshake is done.
    pub(super) fn start(
        self,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> anyhow::Result<ReceiverStream<std::io::Result<Handshaken>>> {
        let config = self.serving.config(&[b"h2"])?;
        let (done, connections) = mpsc::channel(1);
        tasks.spawn(self.keeper.run(stop.clone()));
        let serving = self.serving;
        let accepting = accept(self.listener, TlsAcceptor::from(config), done, stop.clone());
        tasks.spawn(async move {
            serving.ready().await;
            accepting.await;
        });
        Ok(ReceiverStream::new(connections))
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<std::io::Result<Handshaken>>,
    stop: CancellationToken,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            // biased: a stop before work, and what is done before more is begun.
            biased;
            () = stop.cancelled() => return,
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES => {
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, done) = (acceptor.clone(), done.clone());
                handshakes.spawn(async move {
                    match tokio::time::timeout(HANDSHAKE, shake(&acceptor, stream, peer)).await {
                        Ok(Ok(stream)) => drop(done.send(Ok(stream)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "no handshake"),
                        Err(_) => tracing::debug!(%peer, "no handshake in time"),
                    }
                });
            }
        }
    }
}

async fn shake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> std::io::Result<Handshaken> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let stream = acceptor.accept(stream).await?;
    Ok(Handshaken {
        stream,
        info: TcpConnectInfo {
            local_addr: Some(local),
            remote_addr: Some(peer),
        },
    })
}

/// A connection under TLS, as the gRPC server takes it.
#[derive(Debug)]
pub(super) struct Handshaken {
    stream: TlsStream<TcpStream>,
    info: TcpConnectInfo,
}

impl Connected for Handshaken {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Handshaken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Handshaken {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
