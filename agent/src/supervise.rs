//! Starts, restarts, upgrades and ends processes: the rules, apart from any process.
//!
//! A [`Supervisor`] owns one program and its epochs. Events come in (an epoch exited, a desired
//! configuration changed, an upgrade was asked for, time has passed), orders go out; `node.rs`
//! carries them out. The rules are Istio's pilot-agent's: a new configuration starts a new epoch
//! beside the old ones, which are left to drain; an epoch that fails is started again after
//! 200 ms, doubling, at most ten times in a row; a stop ends all epochs, then the launcher.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_runtime::backoff::Backoff;
use tokio::time::Instant;

/// First delay before a restart.
pub const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Restarts in a row before the supervisor gives up.
pub const BUDGET: u32 = 10;
/// Longest delay; within the budget only a program without one reaches it.
const LONGEST_DELAY: Duration = Duration::from_secs(103);
/// An epoch that ran for this long was a success: the budget is full again.
pub const PROVEN: Duration = Duration::from_mins(1);
/// A new epoch that is not ready by then does not replace the old ones.
pub const READY_WITHIN: Duration = Duration::from_mins(1);

/// One start of the program; each is one higher than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The configuration that the program should run with, as a digest over all its inputs.
    Desired(u64),
    /// Start a new epoch although nothing changed (SIGHUP).
    Upgrade,
    /// An epoch serves.
    Ready(Epoch),
    /// An epoch ended.
    Exited {
        /// Which.
        epoch: Epoch,
        /// It ended with status 0.
        clean: bool,
    },
    /// An epoch could not even be started.
    NotStarted(Epoch),
    /// The time of [`Supervisor::deadline`] has come.
    Tick,
    /// End everything.
    Stop,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start this epoch with the desired configuration.
    Start(Epoch),
    /// Let this epoch finish what it has and exit.
    Drain(Epoch),
    /// End this epoch.
    End(Epoch),
    /// Nothing runs any more and nothing will: leave.
    Leave {
        /// The budget was spent, rather than a stop asked for.
        failed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Running {
    since: Instant,
    ready: bool,
    draining: bool,
}

/// The rules and state of one program.
#[derive(Debug)]
pub struct Supervisor {
    epochs: BTreeMap<Epoch, Running>,
    next: u32,
    desired: Option<u64>,
    current: Option<u64>,
    retry: Backoff,
    restart_at: Option<Instant>,
    stopping: bool,
    failed: bool,
    left: bool,
}

impl Supervisor {
    /// A program that gives up after [`BUDGET`] failures in a row.
    pub fn new() -> Self {
        Self::with(Backoff::new(FIRST_DELAY, LONGEST_DELAY).with_budget(BUDGET))
    }

    /// A program that is restarted for ever, with delays up to `longest`.
    pub fn tireless(longest: Duration) -> Self {
        Self::with(Backoff::new(FIRST_DELAY, longest))
    }

    fn with(retry: Backoff) -> Self {
        Self {
            epochs: BTreeMap::new(),
            next: 0,
            desired: None,
            current: None,
            retry,
            restart_at: None,
            stopping: false,
            failed: false,
            left: false,
        }
    }

    /// Epochs that run, oldest first.
    pub fn running(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.epochs.keys().copied()
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let late = self
            .newest()
            .filter(|(_, running)| !running.ready && self.epochs.len() > 1 && !self.stopping)
            .map(|(_, running)| running.since + READY_WITHIN);
        [self.restart_at, late].into_iter().flatten().min()
    }

    /// Takes an event in and says what to do now, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Order> {
        let mut orders = match event {
            Event::Desired(digest) => self.desire(digest),
            Event::Upgrade => self.upgrade(),
            Event::Ready(epoch) => self.ready(epoch),
            Event::Exited { epoch, clean } => self.exited(epoch, clean),
            Event::NotStarted(epoch) => self.exited(epoch, false),
            Event::Tick => self.tick(),
            Event::Stop => self.stop(),
        };
        if (self.stopping || self.failed) && self.epochs.is_empty() && !self.left {
            self.left = true;
            orders.push(Order::Leave {
                failed: self.failed,
            });
        }
        orders
    }

    fn newest(&self) -> Option<(Epoch, Running)> {
        self.epochs.last_key_value().map(|(e, r)| (*e, *r))
    }

    fn start(&mut self) -> Vec<Order> {
        let epoch = Epoch(self.next);
        self.next += 1;
        self.restart_at = None;
        self.current = self.desired;
        self.epochs.insert(
            epoch,
            Running {
                since: Instant::now(),
                ready: false,
                draining: false,
            },
        );
        vec![Order::Start(epoch)]
    }

    /// Equal to what runs: nothing. Else a new epoch, with a full budget.
    fn desire(&mut self, digest: u64) -> Vec<Order> {
        self.desired = Some(digest);
        if self.stopping || self.current == self.desired {
            return Vec::new();
        }
        self.failed = false;
        self.retry.reset();
        self.start()
    }

    fn upgrade(&mut self) -> Vec<Order> {
        if self.stopping || self.desired.is_none() {
            return Vec::new();
        }
        self.retry.reset();
        self.start()
    }

    /// The new epoch serves: older ones may go.
    fn ready(&mut self, epoch: Epoch) -> Vec<Order> {
        if let Some(running) = self.epochs.get_mut(&epoch) {
            running.ready = true;
        }
        let mut orders = Vec::new();
        for (older, running) in self.epochs.range_mut(..epoch) {
            if !running.draining {
                running.draining = true;
                orders.push(Order::Drain(*older));
            }
        }
        orders
    }

    fn exited(&mut self, epoch: Epoch, clean: bool) -> Vec<Order> {
        let Some(ended) = self.epochs.remove(&epoch) else {
            return Vec::new();
        };
        if self.stopping || ended.draining {
            return Vec::new();
        }
        let newer = self.epochs.keys().any(|other| *other > epoch);
        if newer || (!self.epochs.is_empty() && !ended.ready) {
            // A newer epoch is coming, or this one was to replace others, which serve on.
            return Vec::new();
        }
        if ended.since.elapsed() >= PROVEN {
            self.retry.reset();
        }
        if let Some(delay) = self.retry.next_delay() {
            tracing::warn!(%epoch, clean, ?delay, "process ended, starting it again");
            self.restart_at = Some(Instant::now() + delay);
        } else {
            tracing::error!(%epoch, tries = self.retry.tries(), "process keeps failing, giving up");
            self.failed = true;
        }
        Vec::new()
    }

    fn tick(&mut self) -> Vec<Order> {
        let now = Instant::now();
        if self.stopping {
            return Vec::new();
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            return self.start();
        }
        let late = self.newest().filter(|(_, running)| {
            !running.ready && self.epochs.len() > 1 && running.since + READY_WITHIN <= now
        });
        match late {
            Some((epoch, _)) => {
                tracing::error!(%epoch, "new process is not ready in time, the old one stays");
                if let Some(running) = self.epochs.get_mut(&epoch) {
                    running.draining = true;
                    running.ready = true;
                }
                vec![Order::End(epoch)]
            }
            None => Vec::new(),
        }
    }

    fn stop(&mut self) -> Vec<Order> {
        self.stopping = true;
        self.restart_at = None;
        self.running().map(Order::End).collect()
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}
