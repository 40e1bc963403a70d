//! The sending half of a peer: messages with shared descriptors, in order, without waiting.
//!
//! A peer that does not read is disconnected rather than waited for: what it missed it is told
//! again when it reconnects.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use millrace_runtime::handoff::{Connection, Message};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Messages that may wait for one peer: every pod of a full node several times over.
const CAPACITY: usize = 4096;

type Parcel<M> = (M, Vec<Arc<OwnedFd>>);

/// Queues messages for one peer.
#[derive(Debug)]
pub(super) struct Outbox<M> {
    queue: mpsc::Sender<Parcel<M>>,
    closed: CancellationToken,
}

impl<M> Clone for Outbox<M> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            closed: self.closed.clone(),
        }
    }
}

impl<M: Message + 'static> Outbox<M> {
    /// Starts the task that sends to `connection`; it ends with the outbox or the peer, and
    /// cancels `closed` when the peer fails.
    pub(super) fn start<R: Message + 'static>(
        connection: Arc<Connection<R, M>>,
        closed: CancellationToken,
    ) -> Self {
        let (queue, mut parcels) = mpsc::channel::<Parcel<M>>(CAPACITY);
        let outbox = Self {
            queue,
            closed: closed.clone(),
        };
        tokio::spawn(async move {
            while let Some((message, fds)) = parcels.recv().await {
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
                let sent = tokio::select! {
                    sent = connection.send(&message, &borrowed) => sent,
                    () = closed.cancelled() => return,
                };
                if let Err(error) = &sent
                    && error.is_unsendable()
                {
                    // The peer misses what this one message is about, and nothing else.
                    tracing::error!(%error, "message is left out");
                    continue;
                }
                if let Err(error) = sent {
                    tracing::debug!(%error, "peer cannot be written to");
                    closed.cancel();
                    return;
                }
            }
        });
        outbox
    }

    /// Queues a message.
    pub(super) fn post(&self, message: M, fds: Vec<Arc<OwnedFd>>) {
        if self.queue.try_send((message, fds)).is_err() {
            self.closed.cancel();
        }
    }

    /// Queues a message once there is room for it; used for answers, so that a peer that asks
    /// faster than it reads waits for itself.
    pub(super) async fn answer(&self, message: M, fds: Vec<Arc<OwnedFd>>) {
        if self.queue.send((message, fds)).await.is_err() {
            self.closed.cancel();
        }
    }

    /// Ends the peer's connection.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use millrace_runtime::handoff::{
        CaptureMode, Families, MAX_MESSAGE, PodSpec, ProxyRequest, ToProxy,
    };

    use super::*;

    #[tokio::test]
    async fn a_message_that_is_too_long_costs_itself_and_not_the_connection() {
        let (peer, own) = Connection::<ToProxy, ProxyRequest>::pair().unwrap();
        let closed = CancellationToken::new();
        let outbox = Outbox::start(Arc::new(own), closed.clone());
        let labels = [("key".to_owned(), "x".repeat(MAX_MESSAGE))].into();
        let pod = PodSpec {
            labels,
            ..PodSpec::default()
        };
        outbox.post(
            ToProxy::PodUp {
                pod: Box::new(pod),
                families: Families::default(),
                capture: CaptureMode::None,
                listeners: Vec::new(),
                total: 0,
            },
            Vec::new(),
        );
        outbox.post(ToProxy::Synced, Vec::new());
        let next = peer.recv().await.unwrap().unwrap();
        assert_eq!(next.message, ToProxy::Synced);
        assert!(!closed.is_cancelled());
    }
}
