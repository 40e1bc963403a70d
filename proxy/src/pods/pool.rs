//! A pool of unconnected sockets of one kind and family from one pod's network namespace.
//!
//! The broker makes them; `pods::broker` fills the pool, connections drain it. It asks for more
//! below half of its target; the target doubles when somebody found the pool empty and shrinks
//! again while few are used, so that a busy pod never waits for the broker. A pod that has used
//! none for a while keeps a single one: each is memory of the kernel's, and a node has many pods.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use millrace_runtime::handoff::{Family, MAX_WANT, PodUid, SocketKind};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

#[cfg(test)]
mod tests;

/// Sockets kept ready for a pod that uses none.
const IDLE_TARGET: usize = 1;
/// Sockets kept ready at least for a pod that does.
const MIN_TARGET: usize = 4;
/// Ticks without use that make a pool an idle one.
const IDLE: u32 = 60;
/// Sockets kept ready at most.
const MAX_TARGET: usize = 512;

/// A request for sockets, as the broker's client sends it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The pod.
    pub uid: PodUid,
    /// What for.
    pub kind: SocketKind,
    /// Address family.
    pub family: Family,
    /// How many.
    pub count: u16,
}

/// Where pools send their requests. Unbounded because each pool has at most one request under
/// way, so the number of pools bounds it.
pub type Wants = mpsc::UnboundedSender<Want>;

/// See the module's documentation. Cloning shares the pool.
#[derive(Clone, Debug)]
pub struct SocketPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    uid: PodUid,
    kind: SocketKind,
    family: Family,
    wants: Wants,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: VecDeque<OwnedFd>,
    waiting: VecDeque<oneshot::Sender<OwnedFd>>,
    /// Sockets asked for and not yet come.
    asked: usize,
    target: usize,
    /// Sockets taken since the last [`SocketPool::tick`].
    taken: usize,
    /// Ticks since any was.
    unused: u32,
    open: bool,
}

impl SocketPool {
    /// An empty pool; the first [`SocketPool::take`] or [`SocketPool::prefetch`] fills it.
    pub fn new(uid: PodUid, kind: SocketKind, family: Family, wants: Wants) -> Self {
        let state = State {
            free: VecDeque::new(),
            waiting: VecDeque::new(),
            asked: 0,
            target: IDLE_TARGET,
            taken: 0,
            unused: IDLE,
            open: true,
        };
        Self {
            shared: Arc::new(Shared {
                uid,
                kind,
                family,
                wants,
                state: Mutex::new(state),
            }),
        }
    }

    /// A socket, as soon as there is one; `None` when the pod is gone. The caller bounds the
    /// wait by its connect timeout.
    pub async fn take(&self) -> Option<OwnedFd> {
        let receiver = {
            let mut state = self.shared.state.lock();
            if !state.open {
                return None;
            }
            state.taken += 1;
            state.unused = 0;
            state.target = state.target.max(MIN_TARGET);
            if let Some(fd) = state.free.pop_front() {
                self.refill(&mut state);
                return Some(fd);
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            state.target = (state.target * 2).min(MAX_TARGET);
            self.refill(&mut state);
            receiver
        };
        receiver.await.ok()
    }

    /// Asks for sockets if there are few, so that the first connection need not wait.
    pub fn prefetch(&self) {
        self.refill(&mut self.shared.state.lock());
    }

    /// Takes in what the broker sent. What nobody needs is closed.
    pub fn fill(&self, fds: Vec<OwnedFd>) {
        let mut state = self.shared.state.lock();
        state.asked = 0;
        if !state.open {
            return;
        }
        for fd in fds {
            state.hand_out(fd);
        }
        self.refill(&mut state);
    }

    /// The broker could not meet a request: those that wait are told, the next one asks anew.
    pub fn failed(&self) {
        let mut state = self.shared.state.lock();
        state.asked = 0;
        state.waiting.clear();
    }

    /// The broker cannot meet a request yet: those that wait go on waiting.
    pub fn postponed(&self) {
        self.shared.state.lock().asked = 0;
    }

    /// The connection to the broker is new: what was asked of the old one never comes.
    pub fn reconnected(&self) {
        let mut state = self.shared.state.lock();
        state.asked = 0;
        let wanted = !state.waiting.is_empty() || !state.free.is_empty();
        if wanted {
            self.refill(&mut state);
        }
    }

    /// Called about once a second: shrinks the target while few sockets are used.
    pub fn tick(&self) {
        let mut state = self.shared.state.lock();
        if state.taken == 0 {
            state.unused = state.unused.saturating_add(1);
        }
        let least = if state.unused < IDLE {
            MIN_TARGET
        } else {
            IDLE_TARGET
        };
        if state.taken * 4 < state.target {
            state.target = (state.target / 2).max(least);
            let keep = state.target * 2;
            state.free.truncate(keep);
        }
        state.taken = 0;
    }

    /// Closes the pool and its unused sockets; whoever waits gets nothing.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.open = false;
        state.free.clear();
        state.waiting.clear();
    }

    /// Which sockets these are.
    pub fn key(&self) -> (SocketKind, Family) {
        (self.shared.kind, self.shared.family)
    }

    /// Sockets ready now.
    pub fn ready(&self) -> usize {
        self.shared.state.lock().free.len()
    }

    fn refill(&self, state: &mut State) {
        state.waiting.retain(|waiter| !waiter.is_closed());
        let lacking = (state.target + state.waiting.len()).saturating_sub(state.free.len());
        let urgent = !state.waiting.is_empty() || state.free.len() * 2 <= state.target;
        if state.asked > 0 || !urgent || lacking == 0 || !state.open {
            return;
        }
        let count = u16::try_from(lacking).map_or(MAX_WANT, |n| n.min(MAX_WANT));
        let want = Want {
            uid: self.shared.uid.clone(),
            kind: self.shared.kind,
            family: self.shared.family,
            count,
        };
        // The receiver goes away only when the process ends.
        if self.shared.wants.send(want).is_ok() {
            state.asked = usize::from(count);
        }
    }
}

impl State {
    fn hand_out(&mut self, mut fd: OwnedFd) {
        while let Some(waiter) = self.waiting.pop_front() {
            match waiter.send(fd) {
                Ok(()) => return,
                Err(back) => fd = back,
            }
        }
        if self.free.len() < MAX_TARGET {
            self.free.push_back(fd);
        }
    }
}
