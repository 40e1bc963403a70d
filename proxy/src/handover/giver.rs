//! The old epoch's side: finds the successor and passes connections on, one conversation at a time.
//!
//! Runs on the control thread from the moment at which the proxy is told to end. Input: [`Offer`]s of
//! the workers' connections, at most [`super::message::WINDOW`] at a time. Every offer is answered:
//! with success once `Go` has been sent, else with the reason for which the connection stays.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use std::os::fd::AsFd as _;

use millrace_runtime::handoff::{Connection, HandoffError, PeerPolicy};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::message::{Decline, Giving, Taking, VERSION};
use super::will::Will;
use super::{Handover, Kept, Offer, SEEK, Stage};

/// Pause between attempts to find a successor, first and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// How long a successor may take to answer or to read: connections are silent meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// A conversation with a successor.
struct Session {
    connection: Connection<Taking, Giving>,
    will: Will,
    epoch: u32,
    /// Connections that it took.
    taken: u64,
}

/// Why there is no conversation, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The socket failed; where nobody listens there is no successor.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// Another user's process listens there.
    #[error("a process of user {0} is in the successor's place")]
    Stranger(u32),
    /// The successor closed it.
    #[error("the successor closed the connection")]
    Closed,
    /// The successor speaks another protocol.
    #[error("the successor speaks version {0} of the hand-over, this proxy {VERSION}")]
    Version(u32),
    /// It said something that is no answer.
    #[error("an answer to nothing from the successor")]
    Unexpected,
    /// It could not go on, as where it has no descriptors left.
    #[error("the successor stopped the hand-over")]
    Stopped,
    /// It is being replaced itself.
    #[error("the successor is leaving itself")]
    Leaving,
    /// It does not serve yet.
    #[error("the successor did not say that it serves")]
    NotReady,
    /// It neither answers nor reads.
    #[error("the successor is silent")]
    Silent,
    /// There is no memory or no descriptor for a will.
    #[error("cannot write a will")]
    Will(#[source] io::Error),
}

/// A connection that was given and not answered.
struct Given {
    answer: oneshot::Sender<Result<(), Kept>>,
    since: Instant,
}

/// Such connections by number, the oldest first.
type Unanswered = BTreeMap<u64, Given>;

/// The giver; see the module's documentation.
pub struct Giver {
    path: PathBuf,
    handover: Handover,
    offers: mpsc::Receiver<Offer>,
    next: u64,
}

impl Giver {
    /// A giver that has not looked for anybody yet.
    pub fn new(path: PathBuf, (handover, offers): (Handover, mpsc::Receiver<Offer>)) -> Self {
        Self {
            path,
            handover,
            offers,
            next: 0,
        }
    }

    /// Looks for successors and gives them what is offered, for as long as the process lives.
    pub async fn run(mut self) {
        let alone = Instant::now() + SEEK;
        let mut pause = PAUSE[0];
        self.handover.set_stage(Stage::Seeking);
        loop {
            let error = match self.connect().await {
                Ok(mut session) => {
                    tracing::info!(epoch = session.epoch, "a successor takes connections");
                    self.handover.set_stage(Stage::Open);
                    let error = self.session(&mut session).await;
                    tracing::info!(%error, "no more connections for this successor");
                    if session.taken > 0 {
                        pause = PAUSE[0];
                    }
                    error
                }
                Err(error) => {
                    tracing::debug!(%error, path = %self.path.display(), "no successor");
                    error
                }
            };
            // Another one may come while there are connections, but nobody waits for it.
            let nobody = matches!(
                error,
                Ended::Handoff(_) | Ended::Version(_) | Ended::Stranger(_)
            );
            if nobody || Instant::now() >= alone {
                self.handover.set_stage(Stage::Alone);
            } else {
                self.handover.set_stage(Stage::Seeking);
            }
            self.refusing(tokio::time::sleep(pause)).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    /// A conversation with a successor that serves.
    async fn connect(&mut self) -> Result<Session, Ended> {
        let connection = Connection::connect(&self.path)?;
        // A name in the abstract namespace is anybody's.
        let peer = connection.peer_cred()?;
        if !PeerPolicy::privileged().allows(peer) {
            return Err(Ended::Stranger(peer.uid));
        }
        let epoch = self.handover.epoch();
        let greeting = self.refusing(tokio::time::timeout(SEEK, greet(&connection, epoch)));
        let epoch = greeting.await.map_err(|_| Ended::NotReady)??;
        let will = Will::new().map_err(Ended::Will)?;
        patiently(connection.send(&Giving::Will, &[will.as_fd()])).await?;
        Ok(Session {
            connection,
            will,
            epoch,
            taken: 0,
        })
    }

    /// Gives what is offered until the conversation ends; says why it did. What was not taken by then
    /// stays.
    async fn session(&mut self, session: &mut Session) -> Ended {
        let mut given = Unanswered::new();
        let ended = self.converse(session, &mut given).await;
        // So that the taker does not think that this process died, and with it its part in what was
        // taken and not let go.
        if let Err(error) = session.will.revoke() {
            tracing::error!(%error, "cannot revoke what was given");
        }
        for (_, given) in given {
            given.answer.send(Err(Kept::Lost)).ok();
        }
        ended
    }

    async fn converse(&mut self, session: &mut Session, given: &mut Unanswered) -> Ended {
        let mut leaving = false;
        loop {
            let oldest = given.first_key_value().map(|(_, given)| given.since);
            // Not biased: all arms are cancel-safe and none may starve the others.
            let result = tokio::select! {
                received = session.connection.recv() => match received {
                    Ok(Some(received)) => self.answered(session, received.message, given).await,
                    Ok(None) => return Ended::Closed,
                    Err(error) => return error.into(),
                },
                Some(offer) = self.offers.recv(), if !leaving => {
                    self.give(session, offer, given).await
                }
                () = overdue(oldest) => Err(Ended::Silent),
            };
            match result {
                Ok(()) => {}
                Err(Ended::Leaving) => {
                    leaving = true;
                    self.handover.set_stage(Stage::Seeking);
                    self.refuse();
                }
                Err(error) => return error,
            }
            if leaving && given.is_empty() {
                return Ended::Leaving;
            }
        }
    }

    async fn give(
        &mut self,
        session: &Session,
        offer: Offer,
        given: &mut Unanswered,
    ) -> Result<(), Ended> {
        let Offer {
            parcel,
            contents,
            answer,
        } = offer;
        let id = self.next;
        self.next += 1;
        let message = Giving::give(id, parcel);
        let sent = patiently(session.connection.send(&message, &contents.fds())).await;
        if let Err(Ended::Handoff(error)) = &sent
            && error.is_unsendable()
        {
            tracing::debug!(%error, "a connection cannot be described");
            answer.send(Err(Kept::Unpackable)).ok();
            return Ok(());
        }
        // Also where it could not be sent: the conversation's end answers it.
        let since = Instant::now();
        given.insert(id, Given { answer, since });
        sent
    }

    async fn answered(
        &self,
        session: &mut Session,
        answer: Taking,
        given: &mut Unanswered,
    ) -> Result<(), Ended> {
        match answer {
            Taking::Taken { id } if given.contains_key(&id) => {
                patiently(session.connection.send(&Giving::Go { id }, &[])).await?;
                session.taken += 1;
                if let Some(given) = given.remove(&id) {
                    given.answer.send(Ok(())).ok();
                }
                Ok(())
            }
            Taking::Declined { id, reason } => {
                let given = given.remove(&id).ok_or(Ended::Unexpected)?;
                given.answer.send(Err(Kept::Declined(reason))).ok();
                match reason {
                    Decline::Leaving => Err(Ended::Leaving),
                    Decline::Unknown | Decline::Malformed | Decline::Full | Decline::Other => {
                        Ok(())
                    }
                }
            }
            Taking::Stop => Err(Ended::Stopped),
            Taking::Taken { .. } | Taking::Welcome { .. } | Taking::Refused { .. } => {
                Err(Ended::Unexpected)
            }
        }
    }

    /// Waits; what is offered meanwhile goes back at once, since it is silent.
    async fn refusing<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        loop {
            self.refuse();
            // Not biased: both arms are cancel-safe.
            tokio::select! {
                result = &mut wait => return result,
                Some(offer) = self.offers.recv() => refuse(offer),
            }
        }
    }

    /// Offers that nobody takes go back.
    fn refuse(&mut self) {
        while let Ok(offer) = self.offers.try_recv() {
            refuse(offer);
        }
    }
}

fn refuse(offer: Offer) {
    offer.answer.send(Err(Kept::Lost)).ok();
}

/// Says who comes; the epoch of whoever welcomes it.
async fn greet(connection: &Connection<Taking, Giving>, epoch: u32) -> Result<u32, Ended> {
    let hello = Giving::Hello {
        version: VERSION,
        epoch,
        pid: std::process::id(),
    };
    connection.send(&hello, &[]).await?;
    match connection.recv().await?.ok_or(Ended::Closed)?.message {
        Taking::Welcome { version, epoch, .. } if version == VERSION => Ok(epoch),
        Taking::Welcome { version, .. } | Taking::Refused { version } => {
            Err(Ended::Version(version))
        }
        Taking::Taken { .. } | Taking::Declined { .. } | Taking::Stop => Err(Ended::Unexpected),
    }
}

/// Sends, unless the successor does not read.
async fn patiently(sending: impl Future<Output = Result<(), HandoffError>>) -> Result<(), Ended> {
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    Ok(sent.map_err(|_| Ended::Silent)??)
}

/// Completes when what was given then should have been answered.
async fn overdue(since: Option<Instant>) {
    match since {
        Some(since) => tokio::time::sleep_until(since + PATIENCE).await,
        None => std::future::pending().await,
    }
}
