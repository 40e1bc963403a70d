//! How a proxy without a broker comes by the listening sockets of the epoch before, and tells it to leave.
//!
//! The new epoch connects and says `Hello`; the old one gives it a duplicate of every socket that it
//! listens on (`Sockets`). Both accept until the new one serves and says `Succeed`; then the old one
//! stops accepting, hands its connections over and ends. A new epoch that goes away before has changed nothing.
//! [`Claim`] is the new epoch's side, [`Claims`] the old one's. Both run on the control thread.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use millrace_runtime::handoff::{
    Connection, HandoffError, Listener, Message, PeerPolicy, Received,
};
use serde::{Deserialize, Serialize};

use super::estate::{Estate, Place};

/// Version spoken by this build. Epochs of different versions do not follow each other without loss.
pub const VERSION: u32 = 1;
/// Sockets in one message: their places fit into it, whatever their addresses.
const BATCH: usize = 100;
/// How long the epoch before may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (descriptors or memory are short).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// New epoch → old epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Claiming {
    /// First message.
    Hello {
        /// [`VERSION`] of the new epoch.
        version: u32,
        /// Its number.
        epoch: u32,
        /// Its process id.
        pid: u32,
    },
    /// It serves on the sockets: the old epoch is to hand over and to end.
    Succeed {
        /// How long that may take, in milliseconds.
        within_ms: u64,
    },
}

impl Message for Claiming {
    fn fd_count(&self) -> usize {
        0
    }
}

/// Old epoch → new epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Granting {
    /// Answer to `Hello`: sockets, one for each place.
    Sockets {
        /// Number of the old epoch.
        epoch: u32,
        /// What each listens on.
        places: Vec<Place>,
        /// Whether these are the last ones.
        last: bool,
    },
    /// Answer to a `Hello` that cannot be served.
    Refused {
        /// [`VERSION`] of the old epoch.
        version: u32,
        /// Its number.
        epoch: u32,
    },
}

impl Message for Granting {
    fn fd_count(&self) -> usize {
        match self {
            Self::Sockets { places, .. } => places.len(),
            Self::Refused { .. } => 0,
        }
    }
}

/// Why there is no way to follow the epoch before.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The socket failed; where nobody listens there is no such epoch.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// Another user's process has the name.
    #[error("a process of user {0} has the name")]
    Stranger(u32),
    /// It is no older than this one.
    #[error("epoch {0} runs already; the next one is started with --restart-epoch {next}", next = .0 + 1)]
    Epoch(u32),
    /// It speaks another protocol.
    #[error("the running proxy speaks version {0} of the hand-over of sockets, this one {VERSION}")]
    Version(u32),
    /// It does not answer.
    #[error("the running proxy does not answer")]
    Silent,
    /// It closed the connection or said something that is no answer.
    #[error("the running proxy gives no sockets")]
    Unexpected,
}

impl ClaimError {
    /// Whether nobody is there whose sockets could be had.
    pub fn is_nobody(&self) -> bool {
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        matches!(self, Self::Stranger(_))
            || matches!(self, Self::Handoff(HandoffError::Io(error)) if refused(error))
    }
}

/// A conversation with the epoch before.
#[derive(Debug)]
pub struct Claim {
    connection: Connection<Granting, Claiming>,
    /// Its number.
    pub epoch: u32,
}

impl Claim {
    /// Asks the epoch that has this name for its sockets, as epoch `epoch`.
    ///
    /// # Errors
    /// When there is none, or it gives none.
    pub async fn make(name: &Path, epoch: u32) -> Result<(Self, Estate), ClaimError> {
        let connection = Connection::connect(name)?;
        let peer = connection.peer_cred()?;
        if !PeerPolicy::privileged().allows(peer) {
            return Err(ClaimError::Stranger(peer.uid));
        }
        let asking = ask(&connection, epoch);
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        let (epoch, sockets) = answer.map_err(|_| ClaimError::Silent)??;
        Ok((Self { connection, epoch }, Estate::of(sockets)))
    }

    /// This epoch serves: the one before is to hand over and to end `within` that time.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn succeed(self, within: Duration) -> Result<(), HandoffError> {
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let message = Claiming::Succeed { within_ms };
        self.connection.send(&message, &[]).await
    }
}

async fn ask(
    connection: &Connection<Granting, Claiming>,
    own: u32,
) -> Result<(u32, Vec<(Place, OwnedFd)>), ClaimError> {
    let hello = Claiming::Hello {
        version: VERSION,
        epoch: own,
        pid: std::process::id(),
    };
    connection.send(&hello, &[]).await?;
    let mut sockets = Vec::new();
    loop {
        let Received { message, fds } = connection.recv().await?.ok_or(ClaimError::Unexpected)?;
        match message {
            Granting::Sockets {
                epoch,
                places,
                last,
            } => {
                sockets.extend(places.into_iter().zip(fds));
                if last {
                    return Ok((epoch, sockets));
                }
            }
            Granting::Refused { version, .. } if version != VERSION => {
                return Err(ClaimError::Version(version));
            }
            Granting::Refused { epoch, .. } => return Err(ClaimError::Epoch(epoch)),
        }
    }
}

/// The epoch that has taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Its number.
    pub epoch: u32,
    /// How long this one may still live.
    pub within: Duration,
}

/// Answers the epochs that want to follow this one.
#[derive(Debug)]
pub struct Claims {
    listener: Listener,
    estate: Estate,
    epoch: u32,
}

type Heir = Connection<Claiming, Granting>;

impl Claims {
    /// Of this epoch, which listens there and on the sockets of `estate`.
    pub fn new(listener: Listener, estate: Estate, epoch: u32) -> Self {
        Self {
            listener,
            estate,
            epoch,
        }
    }

    /// Waits until one of them serves. They are heard one after the other: each holds what it was given
    /// until it serves or goes away.
    pub async fn run(self) -> Successor {
        let policy = PeerPolicy::privileged();
        loop {
            match self.listener.accept().await {
                Ok((heir, peer)) if policy.allows(peer) => match self.converse(&heir).await {
                    Ok(Some(successor)) => return successor,
                    Ok(None) => tracing::warn!(pid = peer.pid, "no successor came of a claim"),
                    Err(error) => tracing::warn!(%error, pid = peer.pid, "a claim failed"),
                },
                Ok((_, peer)) => tracing::warn!(?peer, "a stranger claims the sockets"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept at the socket of successors");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// None where it goes away before it serves.
    async fn converse(&self, heir: &Heir) -> Result<Option<Successor>, HandoffError> {
        let hello = tokio::time::timeout(PATIENCE, heir.recv()).await;
        let Ok(Some(Received { message, .. })) = hello.unwrap_or(Ok(None)) else {
            return Ok(None);
        };
        let Claiming::Hello {
            version,
            epoch,
            pid,
        } = message
        else {
            return Ok(None);
        };
        if version != VERSION || epoch <= self.epoch {
            let refused = Granting::Refused {
                version: VERSION,
                epoch: self.epoch,
            };
            heir.send(&refused, &[]).await?;
            return Ok(None);
        }
        tracing::info!(epoch, pid, "a new epoch is given the listening sockets");
        self.give(heir).await?;
        match heir.recv().await?.map(|received| received.message) {
            Some(Claiming::Succeed { within_ms }) => Ok(Some(Successor {
                epoch,
                within: Duration::from_millis(within_ms),
            })),
            Some(Claiming::Hello { .. }) | None => Ok(None),
        }
    }

    async fn give(&self, heir: &Heir) -> Result<(), HandoffError> {
        let mut sockets = self.estate.copies()?;
        loop {
            let rest = sockets.split_off(sockets.len().min(BATCH));
            let message = Granting::Sockets {
                epoch: self.epoch,
                places: sockets.iter().map(|(place, _)| *place).collect(),
                last: rest.is_empty(),
            };
            let fds: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
            heir.send(&message, &fds).await?;
            if rest.is_empty() {
                return Ok(());
            }
            sockets = rest;
        }
    }
}

#[cfg(test)]
mod tests;
