//! One connection that has asked: what the agent answered and what the kernel counted last.
//!
//! Shared between the worker that has the connection, the agent's client and the admin port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Waker};

use millrace_runtime::handoff::accel::{AccelSpliced, AccelState};
use millrace_runtime::handoff::{PromotionRequest, Refusal};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::lane::Carries;
use crate::pods::LocalPod;

/// Which side of the proxy a connection is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The application connected.
    Downstream,
    /// The proxy connected to the application.
    Upstream,
}

impl Side {
    /// As the admin port shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        }
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Sent, or on its way.
    Asked,
    /// Both ends are in the kernel's map.
    Promoted,
    /// They are not, and this is why.
    Refused(Refusal),
    /// The application's end is to leave the map.
    Leaving,
    /// It did not, and this is why.
    Stays(Refusal),
    /// It has.
    Left,
    /// The agent went away before it answered: only the kernel knows.
    Unanswered,
}

/// Why a promoted connection returned to TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Returned {
    /// The client sends requests before it has read answers.
    Pipelining,
    /// The connection changed to another protocol.
    Upgrade,
    /// A message is larger than what goes by the map.
    Large,
    /// The application does not read one message before the next comes.
    Unread,
    /// The application set an option that acceleration cannot honour, or TCP is short of memory.
    Obstacle,
    /// The pod's setting changed.
    Setting,
}

impl Returned {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Pipelining,
        Self::Upgrade,
        Self::Large,
        Self::Unread,
        Self::Obstacle,
        Self::Setting,
    ];

    /// Whether the connection may earn its promotion again.
    pub fn passes(self) -> bool {
        matches!(self, Self::Large | Self::Unread | Self::Obstacle)
    }

    /// As metrics and the admin port show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pipelining => "pipelining",
            Self::Upgrade => "upgrade",
            Self::Large => "large",
            Self::Unread => "unread",
            Self::Obstacle => "obstacle",
            Self::Setting => "setting",
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

const NOT_RETURNED: u8 = u8::MAX;

/// A connection that has asked.
#[derive(Debug)]
pub struct Entry {
    id: u64,
    pod: Arc<LocalPod>,
    side: Side,
    carries: Carries,
    local: SocketAddr,
    remote: SocketAddr,
    phase: Mutex<Phase>,
    /// Whoever waits for the phase to change.
    waker: Mutex<Option<Waker>>,
    /// The same as the phase, for who looks at every message.
    promoted: AtomicBool,
    refused: AtomicBool,
    left: AtomicBool,
    returned: AtomicU8,
    stalled: AtomicBool,
    /// What the application sends goes straight into another pod, as far as is known.
    spliced: AtomicBool,
    state: Mutex<AccelState>,
    moved: Mutex<AccelSpliced>,
}

impl Entry {
    /// An entry of a connection whose proxy's end has these addresses.
    pub fn new(
        id: u64,
        pod: Arc<LocalPod>,
        side: Side,
        carries: Carries,
        (local, remote): (SocketAddr, SocketAddr),
    ) -> Self {
        Self {
            id,
            pod,
            side,
            carries,
            local,
            remote,
            phase: Mutex::new(Phase::Asked),
            waker: Mutex::default(),
            promoted: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            left: AtomicBool::new(false),
            returned: AtomicU8::new(NOT_RETURNED),
            stalled: AtomicBool::new(false),
            spliced: AtomicBool::new(false),
            state: Mutex::default(),
            moved: Mutex::default(),
        }
    }

    /// Another for every request of the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The application's pod.
    pub fn pod(&self) -> &Arc<LocalPod> {
        &self.pod
    }

    /// What the connection carries.
    pub fn carries(&self) -> Carries {
        self.carries
    }

    /// What is asked of the agent.
    pub fn request(&self) -> PromotionRequest {
        PromotionRequest {
            id: self.id,
            uid: self.pod.spec.uid.clone(),
            local: self.local,
            remote: self.remote,
        }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    /// How far it has come; whoever asks is woken when that changes.
    pub(super) fn poll_phase(&self, cx: &Context<'_>) -> Phase {
        let mut waker = self.waker.lock();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        self.phase()
    }

    /// Whether both ends are in the map, as far as is known.
    pub fn is_promoted(&self) -> bool {
        self.promoted.load(Ordering::Acquire)
    }

    /// Whether neither end is in the map.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Whether everything goes by TCP.
    pub fn is_out(&self) -> bool {
        self.is_refused() || self.left.load(Ordering::Acquire)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.left.store(phase == Phase::Left, Ordering::Release);
        let refused = matches!(phase, Phase::Refused(_));
        self.refused.store(refused, Ordering::Release);
        let promoted = matches!(phase, Phase::Promoted | Phase::Leaving | Phase::Stays(_));
        self.promoted.store(promoted, Ordering::Release);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// The agent's answer, where it is waited for: `then` if the phase is `from` still.
    pub(super) fn answered(&self, from: Phase, then: Phase) -> bool {
        let is_awaited = self.phase() == from;
        if is_awaited {
            self.set_phase(then);
        }
        is_awaited
    }

    /// From the next message on everything goes by TCP; false where that was so already.
    pub fn give_up(&self, why: Returned) -> bool {
        let why = why as u8;
        let first =
            self.returned
                .compare_exchange(NOT_RETURNED, why, Ordering::Relaxed, Ordering::Relaxed);
        first.is_ok()
    }

    /// Why the connection returned to TCP, if it has.
    pub fn returned(&self) -> Option<Returned> {
        let index = usize::from(self.returned.load(Ordering::Relaxed));
        Returned::ALL.get(index).copied()
    }

    pub(super) fn set_stalled(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_spliced(&self, spliced: bool) {
        self.spliced.store(spliced, Ordering::Relaxed);
    }

    /// Whether the application's messages go straight into another pod, as far as is known.
    pub fn is_spliced(&self) -> bool {
        self.spliced.load(Ordering::Relaxed)
    }

    pub(super) fn set_moved(&self, moved: AccelSpliced) {
        *self.moved.lock() = moved;
    }

    /// What the kernel counted when it was last asked.
    pub fn state(&self) -> AccelState {
        *self.state.lock()
    }

    pub(super) fn set_state(&self, state: AccelState) {
        *self.state.lock() = state;
    }

    /// As the admin port shows it.
    pub fn json(&self) -> Value {
        let state = self.state();
        let traffic = |t: &millrace_runtime::handoff::accel::AccelTraffic| {
            json!({
                "redirected_messages": t.redirected_messages,
                "redirected_bytes": t.redirected_bytes,
                "tcp_messages": t.tcp_messages,
                "tcp_bytes": t.tcp_bytes,
            })
        };
        let (phase, refused) = match self.phase() {
            Phase::Asked => ("asked", None),
            Phase::Promoted if self.returned().is_some() => ("returned", None),
            Phase::Promoted if self.is_spliced() => ("spliced", None),
            Phase::Promoted => ("promoted", None),
            Phase::Refused(why) => ("refused", Some(why)),
            Phase::Leaving => ("leaving", None),
            Phase::Stays(why) => ("leaving", Some(why)),
            Phase::Left => ("left", None),
            Phase::Unanswered => ("unanswered", None),
        };
        let moved = *self.moved.lock();
        json!({
            "id": self.id,
            "pod": self.pod.spec.qualified_name(),
            "uid": self.pod.spec.uid,
            "side": self.side.name(),
            "carries": self.carries.name(),
            "local": self.local,
            "remote": self.remote,
            "state": phase,
            "refused": refused,
            "returned": self.returned().map(Returned::name),
            "reader_stalled": self.stalled.load(Ordering::Relaxed),
            "to_application": traffic(&state.sent),
            "from_application": traffic(&state.received),
            "to_other_pod": { "messages": moved.messages, "bytes": moved.bytes },
            "unread_redirected": state.unread_redirected,
            "unread_tcp": state.unread_tcp,
        })
    }
}
