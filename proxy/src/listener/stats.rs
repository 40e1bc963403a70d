//! What happens to connections before a filter chain has them, counted over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flags::ResponseFlags;

/// Why a connection was reset before a filter chain took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It was made to a port of the proxy itself.
    Loop,
    /// No listener stands for its destination.
    NoListener,
    /// No filter chain of its listener matches.
    NoFilterChain,
    /// The client sent too little to be told apart, for too long.
    InspectionTimeout,
    /// It was gone before it was looked at.
    Gone,
}

impl Refusal {
    /// As the access log has it.
    pub fn flag(self) -> ResponseFlags {
        match self {
            Self::NoFilterChain => ResponseFlags::NO_ROUTE,
            Self::Gone => ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            Self::Loop | Self::NoListener | Self::InspectionTimeout => ResponseFlags::NONE,
        }
    }
}

/// Counters of all listeners; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ListenerStats {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    loops: AtomicU64,
    no_listener: AtomicU64,
    no_filter_chain: AtomicU64,
    inspection_timeout: AtomicU64,
    gone: AtomicU64,
    accept_failed: AtomicU64,
    server_first: AtomicU64,
    canaries: AtomicU64,
}

impl ListenerStats {
    /// Counts a connection that was reset.
    pub fn refused(&self, refusal: Refusal) {
        self.counter(refusal).fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections were reset for this reason.
    pub fn refusals(&self, refusal: Refusal) -> u64 {
        self.counter(refusal).load(Ordering::Relaxed)
    }

    /// Counts an accept that the kernel could not serve.
    pub fn accept_failed(&self) {
        self.shared.accept_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection whose server spoke first.
    pub fn server_first(&self) {
        self.shared.server_first.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a canary of the agent's, which is nobody's traffic.
    pub fn canary(&self) {
        self.shared.canaries.fetch_add(1, Ordering::Relaxed);
    }

    /// How many canaries were answered.
    pub fn canaries(&self) -> u64 {
        self.shared.canaries.load(Ordering::Relaxed)
    }

    /// All counters with the names that the admin port shows.
    pub fn all(&self) -> [(&'static str, u64); 8] {
        let shared = &*self.shared;
        [
            ("downstream_cx_loop_refused", &shared.loops),
            ("downstream_cx_no_listener", &shared.no_listener),
            ("no_filter_chain_match", &shared.no_filter_chain),
            ("downstream_pre_cx_timeout", &shared.inspection_timeout),
            ("downstream_cx_gone", &shared.gone),
            ("downstream_accept_failed", &shared.accept_failed),
            ("downstream_cx_server_first", &shared.server_first),
            ("downstream_cx_canary", &shared.canaries),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    fn counter(&self, refusal: Refusal) -> &AtomicU64 {
        match refusal {
            Refusal::Loop => &self.shared.loops,
            Refusal::NoListener => &self.shared.no_listener,
            Refusal::NoFilterChain => &self.shared.no_filter_chain,
            Refusal::InspectionTimeout => &self.shared.inspection_timeout,
            Refusal::Gone => &self.shared.gone,
        }
    }
}
