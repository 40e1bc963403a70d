//! The new epoch's side: listens for predecessors and lets their connections go on.
//!
//! Runs on the control thread. A connection is resolved against the configuration before it is
//! answered `Taken`, and goes to a worker at its `Go`, or when its giver died. Nothing of it is
//! read, written or shut down before.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use millrace_runtime::handoff::listener::{BindOptions, Listener, PeerPolicy};
use millrace_runtime::handoff::{Connection, HandoffError, Received};
use millrace_runtime::ready::Ready;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Handover;
use super::adopt::{Adoptee, Resolver};
use super::message::{Decline, Giving, Parcel, Taking, VERSION, WINDOW};
use crate::worker::Workers;

type Session = Connection<Giving, Taking>;

/// What the conversations of a taker share.
struct Shared {
    handover: Handover,
    resolver: Resolver,
    workers: Workers,
    ready: Ready,
    leaving: CancellationToken,
}

/// The taker; see the module's documentation.
pub struct Taker {
    listener: Listener,
    shared: Arc<Shared>,
    sessions: JoinSet<()>,
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    #[error("the predecessor process is gone")]
    Gone,
    #[error("the predecessor gives nothing more")]
    Over,
    #[error("the predecessor speaks version {0} of the hand-over, this proxy {VERSION}")]
    Version(u32),
    #[error("a message out of order from the predecessor")]
    Unexpected,
}

impl Taker {
    /// Listens at `path`, in the place of an earlier epoch. Predecessors are welcome once `ready` is;
    /// after `leaving` is cancelled nothing more is taken.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn bind(
        path: &Path,
        handover: Handover,
        resolver: Resolver,
        workers: Workers,
        (ready, leaving): (Ready, CancellationToken),
    ) -> Result<Self, HandoffError> {
        let options = BindOptions {
            mode: 0o600,
            owner: None,
        };
        Ok(Self {
            listener: Listener::bind(path, options)?,
            shared: Arc::new(Shared {
                handover,
                resolver,
                workers,
                ready,
                leaving,
            }),
            sessions: JoinSet::new(),
        })
    }

    /// Takes what predecessors give until the proxy leaves. From its return on nobody is listening, so
    /// that a proxy never finds itself; the conversations are returned and go on.
    pub async fn run(mut self) -> JoinSet<()> {
        let policy = PeerPolicy::privileged();
        loop {
            // biased: a stop must not lose against predecessors.
            let accepted = tokio::select! {
                biased;
                () = self.shared.leaving.cancelled() => return self.sessions,
                accepted = self.listener.accept::<Giving, Taking>() => accepted,
                Some(_) = self.sessions.join_next() => continue,
            };
            match accepted {
                Ok((session, peer)) if policy.allows(peer) => {
                    let shared = self.shared.clone();
                    self.sessions.spawn(async move {
                        let mut conversation = Conversation {
                            session,
                            shared,
                            prepared: HashMap::new(),
                        };
                        conversation.run().await;
                    });
                }
                Ok((_, peer)) => tracing::warn!(?peer, "a stranger at the hand-over socket"),
                Err(error) => tracing::warn!(%error, "cannot accept at the hand-over socket"),
            }
        }
    }
}

/// One predecessor.
struct Conversation {
    session: Session,
    shared: Arc<Shared>,
    /// Taken and waiting for `Go`.
    prepared: HashMap<u64, Box<Adoptee>>,
}

impl Conversation {
    async fn run(&mut self) {
        let mut ended = self.converse().await;
        if !matches!(ended, Ended::Gone | Ended::Over | Ended::Version(_)) {
            tracing::warn!(%ended, "a hand-over cannot go on");
            ended = self.wind_up().await;
        }
        tracing::info!(%ended, "a predecessor has gone");
        let left: Vec<_> = self.prepared.drain().map(|(_, adoptee)| adoptee).collect();
        for adoptee in left {
            self.shared.handover.prepare(false);
            // A predecessor that lives says `End` before it closes: this one died after it had
            // fallen silent, and nobody else has the connection.
            if matches!(ended, Ended::Gone) {
                self.adopt(adoptee);
            }
        }
    }

    /// Takes what is given; says why that came to its end.
    async fn converse(&mut self) -> Ended {
        if let Err(ended) = self.welcome().await {
            return ended;
        }
        loop {
            if let Err(ended) = self.step().await {
                return ended;
            }
        }
    }

    async fn step(&mut self) -> Result<(), Ended> {
        let Received { message, fds } = self.next().await?;
        match message {
            Giving::Give { id, parcel } => self.give(id, *parcel, fds).await,
            Giving::Go { id } => self.go(id),
            Giving::End => Err(Ended::Over),
            Giving::Hello { .. } => Err(Ended::Unexpected),
        }
    }

    fn go(&mut self, id: u64) -> Result<(), Ended> {
        let adoptee = self.prepared.remove(&id).ok_or(Ended::Unexpected)?;
        self.adopt(adoptee);
        self.shared.handover.prepare(false);
        Ok(())
    }

    /// Takes nothing more, but what the predecessor has let go by now.
    async fn wind_up(&mut self) -> Ended {
        if let Err(error) = self.session.send(&Taking::Stop, &[]).await {
            tracing::debug!(%error, "the predecessor is gone");
        }
        loop {
            let message = match self.next().await {
                Ok(received) => received.message,
                // What is no message lets nothing go.
                Err(Ended::Handoff(HandoffError::Decode(_) | HandoffError::FdsLost)) => continue,
                Err(ended) => return ended,
            };
            match message {
                Giving::Go { id } => {
                    if let Err(ended) = self.go(id) {
                        tracing::warn!(id, %ended, "a connection was let go that was not taken");
                    }
                }
                Giving::End => return Ended::Over,
                Giving::Give { .. } | Giving::Hello { .. } => {}
            }
        }
    }

    async fn welcome(&mut self) -> Result<(), Ended> {
        let Giving::Hello {
            version,
            epoch,
            pid,
        } = self.next().await?.message
        else {
            return Err(Ended::Unexpected);
        };
        if version != VERSION {
            let refused = Taking::Refused { version: VERSION };
            self.session.send(&refused, &[]).await?;
            return Err(Ended::Version(version));
        }
        self.shared.ready.wait().await;
        tracing::info!(epoch, pid, "a predecessor hands its connections over");
        let welcome = Taking::Welcome {
            version: VERSION,
            epoch: self.shared.handover.epoch(),
            pid: std::process::id(),
        };
        Ok(self.session.send(&welcome, &[]).await?)
    }

    async fn next(&self) -> Result<Received<Giving>, Ended> {
        loop {
            match self.session.recv().await {
                // The kernel says so before it gives out what came before, when a predecessor goes
                // with answers unread (`unix_release_sock`, Linux 6.18).
                Err(HandoffError::Io(error)) if error.kind() == ErrorKind::ConnectionReset => {}
                received => return received?.ok_or(Ended::Gone),
            }
        }
    }

    async fn give(&mut self, id: u64, parcel: Parcel, fds: Vec<OwnedFd>) -> Result<(), Ended> {
        let resolved = if self.shared.leaving.is_cancelled() {
            Err(Decline::Leaving)
        } else if self.prepared.contains_key(&id) || self.prepared.len() >= WINDOW {
            return Err(Ended::Unexpected);
        } else {
            self.shared.resolver.resolve(parcel, fds)
        };
        let answer = match resolved {
            Ok(adoptee) => {
                self.shared.handover.prepare(true);
                self.prepared.insert(id, adoptee);
                Taking::Taken { id }
            }
            Err(reason) => Taking::Declined { id, reason },
        };
        Ok(self.session.send(&answer, &[]).await?)
    }

    fn adopt(&self, adoptee: Box<Adoptee>) {
        self.shared.workers.adopt(adoptee.worker(), adoptee);
    }
}
