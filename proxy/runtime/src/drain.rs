//! The drain pair: one [`Trigger`] starts draining, every piece of work holds a [`Watcher`].
//!
//! A watcher that is dropped has finished. The trigger waits for all of them up to a limit and
//! then forces the rest, so a process ends when its work ends, or when its time is up.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// New work is welcome.
    Running,
    /// Finish what there is, by `deadline`.
    Draining {
        /// When force begins.
        deadline: Instant,
    },
    /// Drop everything.
    Forced,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All work finished by itself.
    Finished,
    /// The limit came first.
    Forced,
}

/// Starts the drain; held by the process's owner.
#[derive(Debug)]
pub struct Trigger {
    phase: watch::Sender<Phase>,
    finished: mpsc::Receiver<Infallible>,
}

/// Held by a piece of work for as long as it runs.
#[derive(Clone, Debug)]
pub struct Watcher {
    phase: watch::Receiver<Phase>,
    _alive: mpsc::Sender<Infallible>,
}

/// Creates a drain pair.
pub fn channel() -> (Trigger, Watcher) {
    let (phase, watch) = watch::channel(Phase::Running);
    // Nothing is ever sent: the channel closes when the last watcher is dropped.
    let (alive, finished) = mpsc::channel(1);
    (
        Trigger { phase, finished },
        Watcher {
            phase: watch,
            _alive: alive,
        },
    )
}

impl Trigger {
    /// Starts draining, waits until every watcher is dropped or `limit` has passed, then forces.
    pub async fn drain(mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        self.phase.send_replace(Phase::Draining { deadline });
        let outcome = match tokio::time::timeout_at(deadline, self.finished.recv()).await {
            Ok(_) => Outcome::Finished,
            Err(_) => Outcome::Forced,
        };
        self.phase.send_replace(Phase::Forced);
        outcome
    }
}

impl Watcher {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether new work shall be refused.
    pub fn is_draining(&self) -> bool {
        self.phase() != Phase::Running
    }

    /// Waits until draining has begun; also returns when the trigger is gone. Cancel-safe.
    pub async fn draining(&mut self) {
        self.reach(|phase| phase != Phase::Running).await;
    }

    /// Waits until work is to be dropped; also returns when the trigger is gone. Cancel-safe.
    pub async fn forced(&mut self) {
        self.reach(|phase| phase == Phase::Forced).await;
    }

    async fn reach(&mut self, reached: impl Fn(Phase) -> bool) {
        // An error means that the trigger was dropped: its process is ending.
        drop(self.phase.wait_for(|phase| reached(*phase)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_ends_when_the_last_watcher_goes() {
        let (trigger, mut watcher) = channel();
        assert!(!watcher.is_draining());
        let work = tokio::spawn(async move {
            watcher.draining().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let start = Instant::now();
        let outcome = trigger.drain(Duration::from_secs(45)).await;
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlives_the_limit_is_forced() {
        let (trigger, mut watcher) = channel();
        let work = tokio::spawn(async move { watcher.forced().await });
        let outcome = trigger.drain(Duration::from_secs(5)).await;
        assert_eq!(outcome, Outcome::Forced);
        work.await.unwrap();
    }
}
