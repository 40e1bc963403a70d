//! The old epoch's side: finds the successor and passes connections on, one conversation at a time.
//!
//! Runs on the control thread from the moment at which the proxy is told to end. Input: [`Offer`]s of
//! the workers' connections, at most [`super::message::WINDOW`] at a time. Every offer is answered:
//! with success once `Go` has been sent, else with the reason for which the connection stays.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use millrace_runtime::handoff::{Connection, HandoffError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::message::{Decline, Giving, Taking, VERSION};
use super::{Handover, Kept, Offer, SEEK, Stage};

/// Pause between attempts to find a successor, first and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

type Session = Connection<Taking, Giving>;

/// Why there is no conversation, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The socket failed; where nobody listens there is no successor.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
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
}

/// Connections that were given and not answered, by number.
type Unanswered = HashMap<u64, oneshot::Sender<Result<(), Kept>>>;

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
                Ok((session, epoch)) => {
                    tracing::info!(epoch, "a successor takes connections");
                    pause = PAUSE[0];
                    self.handover.set_stage(Stage::Open);
                    let error = self.session(&session).await;
                    tracing::info!(%error, "no more connections for this successor");
                    error
                }
                Err(error) => {
                    tracing::debug!(%error, path = %self.path.display(), "no successor");
                    error
                }
            };
            // Another one may come while there are connections, but nobody waits for it.
            let nobody = matches!(error, Ended::Handoff(_) | Ended::Version(_));
            if nobody || Instant::now() >= alone {
                self.handover.set_stage(Stage::Alone);
            } else {
                self.handover.set_stage(Stage::Seeking);
            }
            self.refuse();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    /// A conversation with a successor that serves, and its epoch.
    async fn connect(&self) -> Result<(Session, u32), Ended> {
        let session = Session::connect(&self.path)?;
        let hello = Giving::Hello {
            version: VERSION,
            epoch: self.handover.epoch(),
            pid: std::process::id(),
        };
        session.send(&hello, &[]).await?;
        let answer = tokio::time::timeout(SEEK, session.recv()).await;
        let answer = answer.map_err(|_| Ended::NotReady)??;
        match answer.ok_or(Ended::Closed)?.message {
            Taking::Welcome { version, epoch, .. } if version == VERSION => Ok((session, epoch)),
            Taking::Welcome { version, .. } | Taking::Refused { version } => {
                Err(Ended::Version(version))
            }
            Taking::Taken { .. } | Taking::Declined { .. } | Taking::Stop => Err(Ended::Unexpected),
        }
    }

    /// Gives what is offered until the conversation ends; says why it did. What was not taken by then
    /// stays.
    async fn session(&mut self, session: &Session) -> Ended {
        let mut given = Unanswered::new();
        let ended = self.converse(session, &mut given).await;
        // So that the taker does not think that this process died, and with it its part in what was
        // taken and not let go. If this cannot be said the taker is gone.
        if let Err(error) = session.send(&Giving::End, &[]).await {
            tracing::debug!(%error, "the successor is gone");
        }
        for answer in given.into_values() {
            answer.send(Err(Kept::Lost)).ok();
        }
        ended
    }

    async fn converse(&mut self, session: &Session, given: &mut Unanswered) -> Ended {
        let mut leaving = false;
        loop {
            // Not biased: both arms are cancel-safe and neither may starve the other.
            let result = tokio::select! {
                received = session.recv() => match received {
                    Ok(Some(received)) => self.answered(session, received.message, given).await,
                    Ok(None) => return Ended::Closed,
                    Err(error) => return error.into(),
                },
                Some(offer) = self.offers.recv(), if !leaving => {
                    self.give(session, offer, given).await
                }
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
        match session
            .send(&Giving::Give { id, parcel }, &contents.fds())
            .await
        {
            Ok(()) => {
                given.insert(id, answer);
                Ok(())
            }
            Err(error) if error.is_unsendable() => {
                tracing::debug!(%error, "a connection cannot be described");
                answer.send(Err(Kept::Unpackable)).ok();
                Ok(())
            }
            Err(error) => {
                answer.send(Err(Kept::Lost)).ok();
                Err(error.into())
            }
        }
    }

    async fn answered(
        &self,
        session: &Session,
        answer: Taking,
        given: &mut Unanswered,
    ) -> Result<(), Ended> {
        match answer {
            Taking::Taken { id } => {
                let answer = given.remove(&id).ok_or(Ended::Unexpected)?;
                match session.send(&Giving::Go { id }, &[]).await {
                    Ok(()) => {
                        answer.send(Ok(())).ok();
                        Ok(())
                    }
                    Err(error) => {
                        answer.send(Err(Kept::Lost)).ok();
                        Err(error.into())
                    }
                }
            }
            Taking::Declined { id, reason } => {
                let answer = given.remove(&id).ok_or(Ended::Unexpected)?;
                answer.send(Err(Kept::Declined(reason))).ok();
                match reason {
                    Decline::Leaving => Err(Ended::Leaving),
                    Decline::Unknown | Decline::Malformed => Ok(()),
                }
            }
            Taking::Stop => Err(Ended::Stopped),
            Taking::Welcome { .. } | Taking::Refused { .. } => Err(Ended::Unexpected),
        }
    }

    /// Offers that nobody takes go back.
    fn refuse(&mut self) {
        while let Ok(offer) = self.offers.try_recv() {
            offer.answer.send(Err(Kept::Lost)).ok();
        }
    }
}
