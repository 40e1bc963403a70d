//! Accelerated connections: which connections between an application and the proxy ask to have their
//! messages carried past the loopback TCP stack, and what the proxy keeps to once they are.
//!
//! `listener::accept` and `upstream::connect` give a [`Lane`] to every connection that could be
//! promoted; `http` and `tcp` tell it what the connection carries. After a few exchanges the lane
//! asks the agent through [`Accelerator`] (`client` is the agent's client, on the control thread). Before
//! each message from then on it asks the kernel whether the message may go by the map (`sockopt`); where
//! it may not, the application's end leaves the map first (`lane::way`). Two connections of which the proxy only
//! passes the bytes on may have their applications send to each other (`splice`). What must hold is in
//! `millrace_runtime::handoff::accel`; without agent or answer everything is plain TCP.

pub mod client;
pub mod entry;
pub mod lane;
mod sockopt;
pub mod splice;
pub mod stats;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_runtime::handoff::accel::{SpliceEnd, SpliceRequest};
use millrace_runtime::handoff::{Acceleration, Refusal};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::pods::LocalPod;
use entry::Phase;
pub use entry::{Entry, Returned, Side};
pub use lane::{Carries, Lane};
pub use stats::Stats;

/// Requests that wait for the agent's client: a few of its batches. Where there are more, connections
/// stay plain TCP for a while, which costs nothing but speed.
const QUEUE: usize = 1024;

/// The way to the agent, and what is known of the connections that took it. Clones share it.
#[derive(Clone, Debug)]
pub struct Accelerator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    asks: mpsc::Sender<Ask>,
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
    agent: Mutex<Agent>,
    available: std::sync::atomic::AtomicBool,
    stats: Stats,
}

/// What the agent is asked for.
#[derive(Debug)]
pub enum Ask {
    /// What the connection's phase says.
    Entry(Arc<Entry>),
    /// That the applications of two connections send to each other.
    Splice(SpliceRequest, oneshot::Sender<Result<(), Refusal>>),
}

/// What is known of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Agent {
    /// Nobody answers at its socket.
    #[default]
    Absent,
    /// It is there and says why nothing can be accelerated on this node.
    Unavailable(String),
    /// It takes requests.
    Ready,
}

impl Accelerator {
    /// An accelerator and the requests that its client is to send.
    pub fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(QUEUE);
        let shared = Shared {
            asks,
            entries: Mutex::default(),
            next: AtomicU64::new(1),
            agent: Mutex::default(),
            available: false.into(),
            stats: Stats::default(),
        };
        (Self(Arc::new(shared)), receiver)
    }

    /// One that never asks, where there is no agent to be asked.
    pub fn none() -> Self {
        Self::new().0
    }

    /// A lane for a connection whose other end is an application of this pod, where the pod's
    /// setting allows one.
    pub fn lane(&self, pod: &Arc<LocalPod>, side: Side) -> Option<Box<Lane>> {
        let setting = Acceleration::of(&pod.spec);
        let possible = pod.capture.is_by_programs() && setting != Acceleration::Off;
        possible.then(|| Box::new(Lane::new(self.clone(), pod.clone(), side, setting)))
    }

    /// Whether the agent takes requests.
    pub fn is_available(&self) -> bool {
        self.0.available.load(Ordering::Relaxed)
    }

    /// What is known of the agent.
    pub fn agent(&self) -> Agent {
        self.0.agent.lock().clone()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Every connection that has asked and not been refused, in the order of asking.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = self.0.entries.lock().values().cloned().collect();
        entries.sort_by_key(|entry| entry.id());
        entries
    }

    fn set_agent(&self, agent: Agent) {
        let ready = agent == Agent::Ready;
        *self.0.agent.lock() = agent;
        self.0.available.store(ready, Ordering::Relaxed);
    }

    fn next_id(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Passes a request on; false where too many wait.
    fn ask(&self, entry: &Arc<Entry>) -> bool {
        let mut entries = self.0.entries.lock();
        entries.insert(entry.id(), entry.clone());
        let sent = self.0.asks.try_send(Ask::Entry(entry.clone())).is_ok();
        if sent {
            self.0.stats.asked();
        } else {
            entries.remove(&entry.id());
        }
        sent
    }

    /// Asks for a promoted connection to leave the map; false where too many wait.
    fn ask_to_leave(&self, entry: &Arc<Entry>) -> bool {
        entry.set_phase(Phase::Leaving);
        let sent = self.is_available() && self.0.asks.try_send(Ask::Entry(entry.clone())).is_ok();
        if !sent {
            entry.set_phase(Phase::Promoted);
        }
        sent
    }

    /// Asks for two connections to be spliced; `None` where too many wait.
    fn ask_to_splice(
        &self,
        ends: [SpliceEnd; 2],
    ) -> Option<oneshot::Receiver<Result<(), Refusal>>> {
        let (answer, answered) = oneshot::channel();
        let id = self.next_id();
        let ask = Ask::Splice(SpliceRequest { id, ends }, answer);
        let sent = self.is_available() && self.0.asks.try_send(ask).is_ok();
        sent.then_some(answered)
    }

    /// Takes in a connection that another process had asked for.
    fn adopt(&self, entry: &Arc<Entry>) {
        self.0.entries.lock().insert(entry.id(), entry.clone());
    }

    fn entry(&self, id: u64) -> Option<Arc<Entry>> {
        self.0.entries.lock().get(&id).cloned()
    }

    fn forget(&self, id: u64) {
        self.0.entries.lock().remove(&id);
    }
}
