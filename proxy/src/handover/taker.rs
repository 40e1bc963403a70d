//! The new epoch's side: listens for predecessors and lets their connections go on.
//!
//! Runs on the control thread. A connection is resolved against the configuration before it is
//! answered `Taken`, and goes to a worker at its `Go`, or when its giver died. Nothing of it is
//! read, written or shut down before.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::listener::{BindOptions, Listener, PeerPolicy};
use millrace_runtime::handoff::{Connection, HandoffError, Received};
use millrace_runtime::limits;
use millrace_runtime::ready::Ready;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Handover;
use super::adopt::{Adoptee, Resolver};
use super::message::{Decline, Described, Giving, Taking, VERSION, WINDOW};
use super::will::Will;
use crate::worker::Workers;

/// Pause after a failed accept (descriptors or memory are short).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
type Session = Connection<Giving, Taking>;

/// What the conversations of a taker share.
struct Shared {
    handover: Handover,
    resolver: Resolver,
    workers: Workers,
    ready: Ready,
    leaving: CancellationToken,
    /// Descriptors from this number on are for new connections.
    reserved: RawFd,
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
    #[error("the predecessor speaks version {0} of the hand-over, this proxy {VERSION}")]
    Version(u32),
    #[error("a message out of order from the predecessor")]
    Unexpected,
}

impl Taker {
    /// Listens at `path`, in the place of an earlier epoch.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path) -> Result<Listener, HandoffError> {
        let options = BindOptions {
            mode: 0o600,
            owner: None,
        };
        Listener::bind(path, options)
    }

    /// A taker that predecessors find at `listener`. They are welcome once `ready` is; after `leaving` is
    /// cancelled nothing more is taken.
    pub fn new(
        listener: Listener,
        handover: Handover,
        resolver: Resolver,
        workers: Workers,
        (ready, leaving): (Ready, CancellationToken),
    ) -> Self {
        Self {
            listener,
            shared: Arc::new(Shared {
                handover,
                resolver,
                workers,
                ready,
                leaving,
                reserved: reserved(limits::open_files()),
            }),
            sessions: JoinSet::new(),
        }
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
                        Conversation::new(session, shared).run().await;
                    });
                }
                Ok((_, peer)) => tracing::warn!(?peer, "a stranger at the hand-over socket"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept at the hand-over socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The first descriptor that is not for connections of a predecessor, of so many.
fn reserved(limit: u64) -> RawFd {
    // The kernel gives the lowest number that is free, so that a number tells how many are in use.
    RawFd::try_from(limit - limit / 8).unwrap_or(RawFd::MAX)
}

/// One predecessor.
struct Conversation {
    session: Session,
    shared: Arc<Shared>,
    will: Option<Will>,
    /// Taken and waiting for `Go`.
    prepared: HashMap<u64, Box<Adoptee>>,
}

impl Conversation {
    fn new(session: Session, shared: Arc<Shared>) -> Self {
        Self {
            session,
            shared,
            will: None,
            prepared: HashMap::new(),
        }
    }

    async fn run(&mut self) {
        let mut ended = self.converse().await;
        if !matches!(ended, Ended::Gone | Ended::Version(_)) {
            tracing::warn!(%ended, "a hand-over cannot go on");
            ended = self.wind_up().await;
        }
        // A predecessor that lives revokes its will: this one died after what it had given had fallen
        // silent, and nobody else has it.
        let inherited = self.will.as_ref().is_some_and(Will::holds);
        tracing::info!(%ended, inherited, "a predecessor has gone");
        let left: Vec<_> = self.prepared.drain().map(|(_, adoptee)| adoptee).collect();
        for adoptee in left {
            if inherited && matches!(ended, Ended::Gone) {
                self.adopt(adoptee);
            }
            self.shared.handover.prepare(false);
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
            Giving::Will => {
                self.will = fds.into_iter().next().map(Will::from);
                Ok(())
            }
            Giving::Give { id, parcel, .. } => {
                let answer = match self.prepare(id, parcel, fds)? {
                    Ok(()) => Taking::Taken { id },
                    Err(reason) => Taking::Declined { id, reason },
                };
                Ok(self.session.send(&answer, &[]).await?)
            }
            Giving::Go { id } => self.go(id),
            Giving::Hello { .. } => Err(Ended::Unexpected),
        }
    }

    fn go(&mut self, id: u64) -> Result<(), Ended> {
        let adoptee = self.prepared.remove(&id).ok_or(Ended::Unexpected)?;
        self.adopt(adoptee);
        self.shared.handover.prepare(false);
        Ok(())
    }

    /// Answers nothing more. What the predecessor has let go by now is taken, and what it had given where
    /// it turns out to have died.
    async fn wind_up(&mut self) -> Ended {
        if let Err(error) = self.session.send(&Taking::Stop, &[]).await {
            tracing::debug!(%error, "the predecessor is gone");
        }
        loop {
            let result = match self.next().await {
                // What is no message lets nothing go.
                Err(Ended::Handoff(HandoffError::Decode(_) | HandoffError::FdsLost)) => continue,
                Err(ended) => return ended,
                Ok(Received { message, fds }) => match message {
                    Giving::Go { id } => self.go(id),
                    Giving::Give { id, parcel, .. } => self.prepare(id, parcel, fds).map(drop),
                    Giving::Hello { .. } | Giving::Will => Ok(()),
                },
            };
            if let Err(ended) = result {
                tracing::warn!(%ended, "the predecessor lost the thread");
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

    /// Keeps a connection until its `Go`, or says why it stays with the giver.
    fn prepare(
        &mut self,
        id: u64,
        parcel: Described,
        fds: Vec<OwnedFd>,
    ) -> Result<Result<(), Decline>, Ended> {
        if self.shared.leaving.is_cancelled() {
            return Ok(Err(Decline::Leaving));
        }
        if self.prepared.contains_key(&id) || self.prepared.len() >= WINDOW {
            return Err(Ended::Unexpected);
        }
        if fds.iter().any(|fd| fd.as_raw_fd() >= self.shared.reserved) {
            return Ok(Err(Decline::Full));
        }
        let Described::Readable(parcel) = parcel else {
            return Ok(Err(Decline::Malformed));
        };
        Ok(self.shared.resolver.resolve(*parcel, fds).map(|adoptee| {
            self.shared.handover.prepare(true);
            self.prepared.insert(id, adoptee);
        }))
    }

    fn adopt(&self, adoptee: Box<Adoptee>) {
        self.shared.workers.adopt(adoptee.worker(), adoptee);
    }
}
