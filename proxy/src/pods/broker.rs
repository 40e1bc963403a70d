//! The client of the broker: takes in pods and their sockets, asks for more, gives them back to
//! a new broker.
//!
//! Runs on the control thread. Input: `proxy.sock`, the pools' [`Want`]s. Output: [`LocalPods`],
//! listening sockets for the workers ([`Listening`]), and which pods are local. Of every
//! listening socket one duplicate stays here, so that a broker that was killed gets them back
//! (`Return`) and no connection is refused in between; meanwhile everything goes on but pools
//! are not refilled.

mod held;
mod session;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{
    BrokerConnection, HandoffError, ListenerRole, PROTOCOL_VERSION, PodUid, ProxyRequest, ToProxy,
};
use millrace_runtime::ready::Blocker;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::held::Held;
use super::{LocalPods, Want, Wants};

#[cfg(test)]
mod tests;

/// First pause before another attempt to reach the broker.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause; pools are not refilled meanwhile.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How long the broker may take to answer `Hello`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// What this proxy tells the broker of itself.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Restart epoch.
    pub epoch: u32,
    /// Worker threads.
    pub workers: u16,
}

/// Where listening sockets of pods go.
pub trait Listening {
    /// Serves a socket on worker `index` modulo the number of workers until `stop` is cancelled.
    fn serve(&self, socket: Socket, stop: CancellationToken);
}

/// A listening socket of a pod on its way to a worker.
#[derive(Debug)]
pub struct Socket {
    /// The pod.
    pub uid: PodUid,
    /// What it is for.
    pub role: ListenerRole,
    /// The broker's index in the socket's group.
    pub index: u16,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// Why a session with the broker ended.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The socket failed.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// It closed the connection.
    #[error("the broker closed the connection")]
    Closed,
    /// It will not serve this proxy.
    #[error("the broker refuses this proxy: {0}")]
    Refused(String),
    /// It speaks another protocol.
    #[error("the broker speaks protocol version {0}, this proxy {PROTOCOL_VERSION}")]
    Version(u32),
    /// It said something else than `Welcome`, or nothing.
    #[error("no welcome from the broker")]
    NoWelcome,
}

/// The client; see the module's documentation.
pub struct BrokerClient<L> {
    path: PathBuf,
    identity: Identity,
    held: Held<L>,
    wants: mpsc::UnboundedReceiver<Want>,
    draining: CancellationToken,
    released: CancellationToken,
    synced: Option<Blocker>,
}

impl<L: Listening> BrokerClient<L> {
    /// A client that has not connected yet. `synced` holds readiness back until the broker has
    /// announced every pod; `draining` makes it tell the broker and let the sockets go, once the broker
    /// has them.
    pub fn new(
        path: PathBuf,
        identity: Identity,
        pods: Arc<LocalPods>,
        listening: L,
        (synced, draining): (Blocker, CancellationToken),
    ) -> Self {
        let (sender, wants): (Wants, _) = mpsc::unbounded_channel();
        Self {
            path,
            identity,
            held: Held::new(pods, listening, sender),
            wants,
            draining,
            released: CancellationToken::new(),
            synced: Some(synced),
        }
    }

    /// Changes when the broker has announced every pod, and whenever the set of local pods does
    /// after that; the set itself is in [`LocalPods`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.held.changes()
    }

    /// Cancelled when a proxy that drains has let its sockets go: until then nobody else may have them,
    /// and connections that wait in them end with this process.
    pub fn released(&self) -> CancellationToken {
        self.released.clone()
    }

    /// Keeps a session with the broker, for as long as the process lives.
    pub async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            match self.connect().await {
                Ok((connection, told_draining)) => {
                    tracing::info!(path = %self.path.display(), "connected to the broker");
                    pause = RETRY_MIN;
                    let error = self.session(&connection, told_draining).await;
                    tracing::warn!(%error, "lost the broker, serving on");
                }
                Err(error) => {
                    tracing::debug!(%error, path = %self.path.display(), "no broker");
                }
            }
            self.wait(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Waits before another attempt; only a little where connections wait in sockets that nobody accepts
    /// from any more.
    async fn wait(&self, pause: Duration) {
        if self.draining.is_cancelled() {
            return tokio::time::sleep(RETRY_MIN).await;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.draining.cancelled() => {}
        }
    }

    /// A connection on which the broker has everything back and may announce pods, and whether it knows
    /// that the proxy drains.
    async fn connect(&mut self) -> Result<(BrokerConnection, bool), BrokerError> {
        let connection = BrokerConnection::connect(&self.path)?;
        let hello = ProxyRequest::Hello {
            version: PROTOCOL_VERSION,
            epoch: self.identity.epoch,
            workers: self.identity.workers,
            pid: std::process::id(),
        };
        connection.send(&hello, &[]).await?;
        let answer = tokio::time::timeout(WELCOME_TIMEOUT, connection.recv()).await;
        let answer = answer.map_err(|_| BrokerError::NoWelcome)??;
        match answer.ok_or(BrokerError::Closed)?.message {
            ToProxy::Welcome { version, .. } if version == PROTOCOL_VERSION => {}
            ToProxy::Welcome { version, .. } => return Err(BrokerError::Version(version)),
            ToProxy::Refused { reason } => return Err(BrokerError::Refused(reason)),
            _ => return Err(BrokerError::NoWelcome),
        }
        // Also of a proxy that drains: while it lost the broker it was the only one that had them.
        self.held.give_back(&connection).await?;
        let draining = self.draining.is_cancelled();
        if draining {
            connection.send(&ProxyRequest::Draining, &[]).await?;
        }
        connection.send(&ProxyRequest::Ready, &[]).await?;
        Ok((connection, draining))
    }
}
