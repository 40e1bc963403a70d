//! Handing connections over to the next epoch of the proxy.
//!
//! A proxy that is told to end while its successor serves gives it every HTTP/1.1 connection between
//! two requests, every raw TCP connection and every HTTP/1 tunnel, socket and all: the peers notice nothing. What
//! the kernel has of a connection stays in it; only bytes that were read and not yet written travel
//! beside it. HTTP/2 connections are told to go away and end where they are.
//!
//! [`Handover`] is what connections see: they ask for a [`Turn`] once their worker leaves, fall
//! silent when they have it, and give themselves away. `giver` speaks to the successor, `taker` to
//! the predecessor, `parcel` packs and unpacks, `adopt` lets a connection go on, `will` says what becomes
//! of connections whose giver dies. Listening sockets go another way: the broker has them on a node; without
//! one they are an epoch's `estate`, which the next one asks for (`claim`).

pub mod adopt;
pub mod claim;
pub mod estate;
pub mod giver;
pub mod message;
pub mod parcel;
pub mod stats;
pub mod taker;
pub mod will;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use message::{Decline, Parcel, WINDOW};
use parcel::Contents;
pub use stats::Stats;

/// How long a proxy that is told to end looks for a successor before it drains alone.
pub const SEEK: Duration = Duration::from_secs(2);
/// Pause before a connection is offered again that could not be taken.
const RETRY: Duration = Duration::from_millis(200);
/// How often such a connection is offered: a successor whose broker was replaced too hears of its pods
/// within this many pauses, 10 s.
const TRIES: u32 = 50;
/// How long what was taken may wait for its `Go` when the taker is told to end itself.
const SETTLE: Duration = Duration::from_secs(1);

/// Where a successor listens: the proxy's own directory below the run directory, where there is one.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    let own = run_dir.join("proxy");
    if own.is_dir() {
        own.join("takeover.sock")
    } else {
        run_dir.join("proxy-takeover.sock")
    }
}

/// Whether connections can be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The proxy serves.
    Serving,
    /// It is told to end and looks for its successor.
    Seeking,
    /// The successor takes connections.
    Open,
    /// There is none; one may still come.
    Alone,
}

impl Stage {
    /// As the admin port shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Seeking => "seeking a successor",
            Self::Open => "handing over",
            Self::Alone => "alone",
        }
    }
}

/// The way to the successor, and what went it. Clones share it.
#[derive(Clone, Debug)]
pub struct Handover(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    epoch: u32,
    stage: watch::Sender<Stage>,
    window: Arc<Semaphore>,
    offers: mpsc::Sender<Offer>,
    /// Connections that were taken and wait for their `Go`.
    prepared: watch::Sender<usize>,
    stats: Stats,
}

/// A connection on its way to the successor.
#[derive(Debug)]
pub struct Offer {
    parcel: Box<Parcel>,
    contents: Contents,
    answer: oneshot::Sender<Result<(), Kept>>,
}

/// Why a connection was not handed over and goes on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Kept {
    /// The successor went away; another one may come.
    #[error("the successor went away")]
    Lost,
    /// The successor cannot serve it.
    #[error("the successor declined ({})", .0.name())]
    Declined(Decline),
    /// It does not fit into a message, or its descriptors cannot be duplicated now.
    #[error("the connection cannot be packed")]
    Unpackable,
}

impl Handover {
    /// The way of this epoch, and the offers that its giver is to pass on.
    pub fn new(epoch: u32) -> (Self, mpsc::Receiver<Offer>) {
        // No more than there are turns.
        let (offers, receiver) = mpsc::channel(WINDOW);
        let shared = Shared {
            epoch,
            stage: watch::Sender::new(Stage::Serving),
            window: Arc::new(Semaphore::new(WINDOW)),
            offers,
            prepared: watch::Sender::new(0),
            stats: Stats::default(),
        };
        (Self(Arc::new(shared)), receiver)
    }

    /// One that leads nowhere, where no successor can be.
    pub fn none() -> Self {
        let (none, _) = Self::new(0);
        none.set_stage(Stage::Alone);
        none
    }

    /// This epoch.
    pub fn epoch(&self) -> u32 {
        self.0.epoch
    }

    /// What was given and taken.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Whether connections can be handed over.
    pub fn stage(&self) -> Stage {
        *self.0.stage.borrow()
    }

    fn set_stage(&self, stage: Stage) {
        self.0.stage.send_replace(stage);
    }

    /// There is no way to a successor: connections finish here.
    pub fn abandon(&self) {
        self.set_stage(Stage::Alone);
    }

    /// As the admin port shows it.
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut page = self.stats().json();
        page["epoch"] = self.epoch().into();
        page["pid"] = std::process::id().into();
        page["stage"] = self.stage().name().into();
        page
    }

    /// Waits until it is known whether there is a successor: true if so. Cancel-safe.
    pub async fn sought(&self) -> bool {
        self.reach(|stage| matches!(stage, Stage::Open | Stage::Alone))
            .await
            == Stage::Open
    }

    /// Waits until it is known that there is no successor. Cancel-safe.
    pub async fn alone(&self) {
        self.reach(|stage| stage == Stage::Alone).await;
    }

    /// Waits until everything that was taken has been let go by its giver, or that takes too long.
    pub async fn settled(&self) {
        if tokio::time::timeout(SETTLE, self.unprepared())
            .await
            .is_err()
        {
            tracing::warn!("connections that were taken over were not let go in time");
        }
    }

    /// Waits until everything that was taken has been let go by its giver. Cancel-safe.
    pub async fn unprepared(&self) {
        let mut prepared = self.0.prepared.subscribe();
        // The sender lives in `self`, so the channel cannot close here.
        prepared.wait_for(|count| *count == 0).await.ok();
    }

    async fn reach(&self, reached: impl Fn(Stage) -> bool) -> Stage {
        let mut stage = self.0.stage.subscribe();
        // The sender lives in `self`, so the channel cannot close here.
        stage
            .wait_for(|stage| reached(*stage))
            .await
            .map_or(Stage::Alone, |stage| *stage)
    }

    /// Waits until a successor takes connections and there is room for one more. Cancel-safe.
    pub async fn turn(&self) -> Turn {
        loop {
            self.reach(|stage| stage == Stage::Open).await;
            let Ok(room) = self.0.window.clone().acquire_owned().await else {
                return std::future::pending().await;
            };
            if self.stage() == Stage::Open {
                return Turn {
                    handover: self.clone(),
                    _room: room,
                };
            }
        }
    }

    fn prepare(&self, add: bool) {
        self.0.prepared.send_modify(|count| {
            *count = if add {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        });
    }
}

/// Room for one connection that falls silent.
#[derive(Debug)]
pub struct Turn {
    handover: Handover,
    _room: OwnedSemaphorePermit,
}

impl Turn {
    /// Gives a connection away. The caller neither reads nor writes until this returns; on success it
    /// closes its descriptors and nothing else.
    ///
    /// # Errors
    /// Where the connection stays here, as it was.
    pub async fn give(self, parcel: Parcel, contents: Contents) -> Result<(), Kept> {
        let kind = parcel.carried.name();
        let (answer, answered) = oneshot::channel();
        let offer = Offer {
            parcel: Box::new(parcel),
            contents,
            answer,
        };
        let result = match self.handover.0.offers.send(offer).await {
            Ok(()) => answered.await.unwrap_or(Err(Kept::Lost)),
            Err(_) => Err(Kept::Lost),
        };
        match result {
            Ok(()) => self.handover.stats().given(kind),
            Err(why) => self.handover.stats().kept(why),
        }
        result
    }
}

/// One connection's part in a hand-over.
#[derive(Debug)]
pub struct Parking {
    handover: Handover,
    leaving: CancellationToken,
    /// How often the connection was declined for a reason that need not last.
    declined: u32,
    /// When it may be offered again; a moment, since a busy connection asks for its turn anew after each
    /// request.
    again: Instant,
    stays: bool,
}

impl Parking {
    /// Of a connection on a worker that leaves when `leaving` is cancelled.
    pub fn new(handover: Handover, leaving: CancellationToken) -> Self {
        Self {
            handover,
            leaving,
            declined: 0,
            again: Instant::now(),
            stays: false,
        }
    }

    /// Waits for the connection's turn to fall silent; for ever where it has been declined.
    /// Cancel-safe.
    pub async fn turn(&self) -> Turn {
        if self.stays {
            return std::future::pending().await;
        }
        self.leaving.cancelled().await;
        if self.declined > 0 {
            tokio::time::sleep_until(self.again).await;
        }
        self.handover.turn().await
    }

    /// Whether the connection is to be handed over if that turns out to be possible.
    pub fn is_due(&self) -> bool {
        self.leaving.is_cancelled() && !self.stays
    }

    /// Whether the successor has declined the connection for good: it drains here.
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Gives the connection away; false where it stays here, as it was.
    pub async fn give(&mut self, turn: Turn, parcel: Parcel, contents: Option<Contents>) -> bool {
        let id = parcel.connection;
        let result = if let Some(contents) = contents {
            turn.give(parcel, contents).await
        } else {
            turn.handover.stats().kept(Kept::Unpackable);
            Err(Kept::Unpackable)
        };
        match result {
            Ok(()) => true,
            Err(why) => {
                match why {
                    Kept::Lost | Kept::Declined(Decline::Leaving) => {}
                    // Also where descriptors are short, here or there: that need not last.
                    Kept::Declined(Decline::Unknown | Decline::Full | Decline::Other)
                    | Kept::Unpackable => {
                        self.declined += 1;
                        self.again = Instant::now() + RETRY;
                        self.stays = self.declined >= TRIES;
                    }
                    Kept::Declined(Decline::Malformed) => self.stays = true,
                }
                tracing::debug!(id, %why, "a connection was not handed over");
                false
            }
        }
    }
}
