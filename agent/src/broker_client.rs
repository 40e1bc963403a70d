//! The agent's end of `broker.sock`: numbered calls that may overlap, and events.
//!
//! A connection that breaks fails every call under way; the reconciler then connects anew and
//! adopts its pods again (`reconcile.rs`, `connect()`).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_runtime::handoff::{
    AgentAnswer, AgentCall, AgentConnection, AgentRequest, BrokerFault, HandoffError,
    PROTOCOL_VERSION, Received, ToAgent,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Events that may wait: a node's pods, several times over. More means that the agent hangs, and
/// the connection is given up so that it starts over.
const EVENTS: usize = 4096;
/// Longest wait for an answer; the slowest call is an `iptables-restore` behind a lock.
const ANSWER: Duration = Duration::from_secs(30);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The broker says no.
    #[error("broker")]
    Fault(#[from] BrokerFault),
    /// The connection failed.
    #[error("connection to the broker")]
    Handoff(#[from] HandoffError),
    /// The connection ended.
    #[error("the broker closed the connection")]
    Closed,
    /// The broker is silent.
    #[error("the broker did not answer within {ANSWER:?}")]
    Silent,
    /// The broker speaks another version.
    #[error("the broker speaks protocol {0}, this agent {PROTOCOL_VERSION}")]
    Version(u32),
    /// The answer belongs to another call.
    #[error("the broker's answer does not fit the call")]
    Unexpected,
}

impl CallError {
    /// Whether the connection is of no more use.
    pub fn is_fatal(&self) -> bool {
        // A message that breaks a limit is not sent: the call failed, the connection is as it was.
        !matches!(self, Self::Fault(_)) && !self.is_unsendable()
    }

    fn is_unsendable(&self) -> bool {
        matches!(self, Self::Handoff(error) if error.is_unsendable())
    }
}

/// An answer with its descriptors.
#[derive(Debug)]
pub struct Answer {
    /// What the broker says.
    pub answer: AgentAnswer,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

type Waiting = Mutex<HashMap<u64, oneshot::Sender<Result<Answer, BrokerFault>>>>;

/// A connection to the broker.
#[derive(Debug)]
pub struct BrokerClient {
    connection: Arc<AgentConnection>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
    closed: CancellationToken,
}

impl BrokerClient {
    /// Connects, greets, and returns the client with the stream of the broker's events.
    ///
    /// # Errors
    /// When nobody listens at `path` or the broker speaks another version.
    pub async fn connect(
        path: &Path,
    ) -> Result<(Self, mpsc::Receiver<Received<ToAgent>>), CallError> {
        let connection = Arc::new(AgentConnection::connect(path)?);
        let (events, stream) = mpsc::channel(EVENTS);
        let client = Self {
            connection: Arc::clone(&connection),
            waiting: Arc::default(),
            next: AtomicU64::new(1),
            closed: CancellationToken::new(),
        };
        tokio::spawn(read(
            connection,
            Arc::clone(&client.waiting),
            events,
            client.closed.clone(),
        ));
        let hello = AgentRequest::Hello {
            version: PROTOCOL_VERSION,
            pid: std::process::id(),
        };
        match client.call(hello).await?.answer {
            AgentAnswer::Welcome {
                version: PROTOCOL_VERSION,
                ..
            } => Ok((client, stream)),
            AgentAnswer::Welcome { version, .. } => Err(CallError::Version(version)),
            _ => Err(CallError::Unexpected),
        }
    }

    /// Sends one call and waits for its answer.
    ///
    /// # Errors
    /// When the broker refuses, or the connection has ended.
    pub async fn call(&self, request: AgentRequest) -> Result<Answer, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.waiting.lock().insert(id, reply);
        if self.closed.is_cancelled() {
            // The reader may have cleared the table just before.
            self.waiting.lock().remove(&id);
            return Err(CallError::Closed);
        }
        if let Err(error) = self.connection.send(&AgentCall { id, request }, &[]).await {
            self.waiting.lock().remove(&id);
            return Err(error.into());
        }
        let Ok(answer) = tokio::time::timeout(ANSWER, answer).await else {
            self.waiting.lock().remove(&id);
            return Err(CallError::Silent);
        };
        Ok(answer.map_err(|_| CallError::Closed)??)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for BrokerClient {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

async fn read(
    connection: Arc<AgentConnection>,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<Received<ToAgent>>,
    closed: CancellationToken,
) {
    loop {
        let received = tokio::select! {
            () = closed.cancelled() => break,
            received = connection.recv() => received,
        };
        match received {
            Ok(Some(received)) => {
                if !dispatch(&waiting, &events, received) {
                    tracing::warn!("events of the broker are not taken, connecting anew");
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = %crate::broker::chain(&error), "broker connection failed");
                break;
            }
        }
    }
    closed.cancel();
    waiting.lock().clear();
}

fn dispatch(
    waiting: &Waiting,
    events: &mpsc::Sender<Received<ToAgent>>,
    received: Received<ToAgent>,
) -> bool {
    match received.message {
        ToAgent::Reply { id, result } => {
            if let Some(reply) = waiting.lock().remove(&id) {
                let answer = result.map(|answer| Answer {
                    answer,
                    fds: received.fds,
                });
                // The caller may have stopped waiting; the descriptors then close here.
                drop(reply.send(answer));
            }
            true
        }
        ToAgent::Proxies { .. } | ToAgent::Listeners { .. } => events.try_send(received).is_ok(),
    }
}
