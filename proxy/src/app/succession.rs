//! This epoch between the one before it and the one after it.
//!
//! On a node the launcher starts and ends epochs, and the broker has the listening sockets. A proxy without
//! a broker finds the epoch before by a name in its network namespace ([`Inheritance`]), listens on the same
//! sockets, and tells it to leave once it serves itself. Connections go the same way in all modes
//! (`handover`). Called by `app`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use millrace_runtime::handoff::{HandoffError, Listener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::config::{Config, Mode};
use crate::handover::adopt::Resolver;
use crate::handover::claim::{Claim, ClaimError, Claims, Successor};
use crate::handover::estate::{Estate, Inherited, Place};
use crate::handover::giver::Giver;
use crate::handover::taker::Taker;
use crate::handover::{self, Handover, Offer};
use crate::worker::Workers;

/// What the epoch before left to a proxy that has no broker.
#[derive(Default)]
pub(super) struct Inheritance {
    estate: Estate,
    claim: Option<Claim>,
    meeting: Option<Meeting>,
}

/// Where the epochs of a proxy that has no broker meet.
struct Meeting {
    claims: Listener,
    takeover: Listener,
}

impl Inheritance {
    /// Asks the epoch before for its sockets, where there is one.
    ///
    /// # Errors
    /// When a proxy has the name that does not let this one follow it.
    pub(super) async fn find(config: &Config) -> anyhow::Result<Self> {
        let Some(name) = &config.hot_restart else {
            return Ok(Self::default());
        };
        let (claim, estate) = match Claim::make(name, config.epoch).await {
            Ok((claim, estate)) => (Some(claim), estate),
            Err(error) if error.is_nobody() => {
                if config.epoch > 0 && !matches!(error, ClaimError::Stranger(_)) {
                    tracing::warn!(name = %name.display(), "no epoch before this one runs");
                }
                (None, Estate::default())
            }
            Err(error) => {
                return Err(error).context(
                    "following the proxy that runs (another one needs a --base-id of its own)",
                );
            }
        };
        let meeting = Meeting::at(name, &estate).inspect_err(|error| {
            tracing::warn!(name = %name.display(), %error, "this proxy cannot be replaced without loss");
        });
        Ok(Self {
            estate,
            claim,
            meeting: meeting.ok(),
        })
    }

    /// The sockets of the epoch before, and in time this one's.
    pub(super) fn estate(&self) -> Estate {
        self.estate.clone()
    }
}

impl Meeting {
    /// With the sockets of the epoch before, so that no other process can have the names in between.
    fn at(name: &Path, estate: &Estate) -> Result<Self, HandoffError> {
        let listener = |place, path: &Path| {
            let listener = match estate.take(place).pop() {
                Some(socket) => Listener::from_socket(socket, path),
                None => Listener::bind_name(path),
            }?;
            estate.hold(place, &[&listener])?;
            Ok::<_, HandoffError>(listener)
        };
        Ok(Self {
            claims: listener(Place::Claims, name)?,
            takeover: listener(Place::Takeover, &takeover(name))?,
        })
    }
}

/// Where a successor takes connections over, by the name at which the epochs meet.
fn takeover(name: &Path) -> PathBuf {
    let mut takeover = name.as_os_str().to_owned();
    takeover.push("-takeover");
    takeover.into()
}

/// This epoch between the one before it and the one after it.
pub(super) struct Succession {
    /// Where a successor takes connections over.
    path: Option<PathBuf>,
    handover: Handover,
    leaving: CancellationToken,
    taker: Option<JoinHandle<JoinSet<()>>>,
    estate: Estate,
    successor: Option<oneshot::Receiver<Successor>>,
    /// How long this epoch may live once another one has taken over; where none has.
    limits: [Duration; 2],
}

impl Succession {
    /// Listens for the epoch before, where there can be one.
    pub(super) fn prepare(
        app: &App,
        config: &Config,
        workers: &Workers,
        inheritance: Inheritance,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let mut succession = Self {
            path: None,
            handover: app.parts.handover.clone(),
            leaving: CancellationToken::new(),
            taker: None,
            estate: inheritance.estate,
            successor: None,
            limits: [config.parent_shutdown, config.drain_time],
        };
        let (path, listener) = match (&config.mode, &config.hot_restart, inheritance.meeting) {
            (Mode::Node { run_dir, .. }, ..) => {
                let path = handover::socket_path(run_dir);
                (path.clone(), Taker::listen(&path))
            }
            (_, Some(name), Some(meeting)) => {
                let claims = Claims::new(meeting.claims, app.estate.clone(), config.epoch);
                succession.follow(app, inheritance.claim, claims, tasks);
                (takeover(name), Ok(meeting.takeover))
            }
            _ => return succession,
        };
        match listener {
            Ok(listener) => succession.take(app, workers, listener),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no connection can be taken over");
            }
        }
        succession.path = Some(path);
        succession
    }

    fn take(&mut self, app: &App, workers: &Workers, listener: Listener) {
        let resolver = Resolver {
            store: app.parts.store.clone(),
            pods: app.parts.pods.clone(),
        };
        let when = (app.ready.clone(), self.leaving.clone());
        let handover = self.handover.clone();
        let taker = Taker::new(listener, handover, resolver, workers.clone(), when);
        self.taker = Some(tokio::spawn(taker.run()));
    }

    /// Once this epoch serves, the one before is told to leave, and the one after may come.
    fn follow(&mut self, app: &App, claim: Option<Claim>, claims: Claims, tasks: &mut JoinSet<()>) {
        let (found, successor) = oneshot::channel();
        self.successor = Some(successor);
        let (ready, estate, quit) = (
            app.ready.clone(),
            app.estate.clone(),
            app.lifecycle.quit.clone(),
        );
        let (leaving, [within, _]) = (self.leaving.clone(), self.limits);
        let life = async move {
            ready.wait().await;
            if estate.settle() == Inherited::Foreign {
                tracing::error!(
                    "the proxy that runs listens elsewhere and goes on; this one needs a --base-id of its own"
                );
                return quit.cancel();
            }
            if let Some(claim) = claim {
                let epoch = claim.epoch;
                match claim.succeed(within).await {
                    Ok(()) => tracing::info!(epoch, "took over from the epoch before"),
                    Err(error) => tracing::warn!(epoch, %error, "the epoch before is gone"),
                }
            }
            // The receiver is gone only when this epoch has been told to end.
            found.send(claims.run().await).ok();
        };
        tasks.spawn(async move {
            leaving.run_until_cancelled(life).await;
        });
    }

    /// Waits until another epoch serves in this one's place; for ever where none can. Cancel-safe.
    pub(super) async fn replaced(&mut self) -> Successor {
        if let Some(successor) = &mut self.successor
            && let Ok(successor) = successor.await
        {
            self.limits[0] = successor.within;
            return successor;
        }
        std::future::pending().await
    }

    /// Takes nothing any more and looks for the epoch after; returns the conversations that are still
    /// under way, and how long connections may finish.
    pub(super) async fn leave(
        self,
        handover: (Handover, mpsc::Receiver<Offer>),
        tasks: &mut JoinSet<()>,
    ) -> (Option<JoinSet<()>>, Duration) {
        self.leaving.cancel();
        let sessions = match self.taker {
            Some(taker) => taker.await.ok(),
            None => None,
        };
        self.estate.release_all();
        self.handover.settled().await;
        match self.path {
            Some(path) => drop(tasks.spawn(Giver::new(path, handover).run())),
            None => self.handover.abandon(),
        }
        let [within, alone] = self.limits;
        if self.handover.sought().await {
            (sessions, within)
        } else {
            (sessions, alone)
        }
    }
}
