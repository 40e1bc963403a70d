//! One upstream host of one cluster, and its counters.
//!
//! The counters are those of Envoy's `/clusters` (R71). They belong to the address within its
//! cluster and survive updates of the endpoint's weight or health.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::resource::{Endpoint, Locality};

/// Identity of a host's counters: the same for as long as the address stays in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub u64);

/// One upstream host.
#[derive(Debug)]
pub struct Host {
    /// Its endpoint as the newest configuration has it.
    pub endpoint: Arc<Endpoint>,
    /// Where it is.
    pub locality: Locality,
    /// Its priority, 0 being the highest.
    pub priority: u32,
    /// Its counters.
    pub stats: Arc<HostStats>,
}

/// Counters of one host, shared by all workers.
#[derive(Debug)]
pub struct HostStats {
    id: HostId,
    gone: AtomicBool,
    /// Open connections.
    pub cx_active: Gauge,
    /// Connections that could not be opened.
    pub cx_connect_fail: Counter,
    /// Connections opened or tried.
    pub cx_total: Counter,
    /// Requests under way.
    pub rq_active: Gauge,
    /// Requests that failed: no response or a 5xx.
    pub rq_error: Counter,
    /// Requests that did not.
    pub rq_success: Counter,
    /// Requests that timed out.
    pub rq_timeout: Counter,
    /// Requests sent.
    pub rq_total: Counter,
}

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A count that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// One unit of a [`Gauge`] of a host, given back when dropped.
#[derive(Debug)]
pub struct Active {
    stats: Arc<HostStats>,
    gauge: fn(&HostStats) -> &Gauge,
}

impl Host {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Identity of its counters.
    pub fn id(&self) -> HostId {
        self.stats.id
    }

    /// Whether the newest configuration no longer has it; its pooled connections are then
    /// closed when they fall idle.
    pub fn is_gone(&self) -> bool {
        self.stats.gone.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as the value lives.
    pub fn connection(&self) -> Active {
        self.stats.cx_total.add(1);
        Active::new(&self.stats, |stats| &stats.cx_active)
    }

    /// Counts a request for as long as the value lives.
    pub fn request(&self) -> Active {
        self.stats.rq_total.add(1);
        Active::new(&self.stats, |stats| &stats.rq_active)
    }
}

impl HostStats {
    pub(crate) fn new(id: HostId) -> Self {
        Self {
            id,
            gone: AtomicBool::new(false),
            cx_active: Gauge::default(),
            cx_connect_fail: Counter::default(),
            cx_total: Counter::default(),
            rq_active: Gauge::default(),
            rq_error: Counter::default(),
            rq_success: Counter::default(),
            rq_timeout: Counter::default(),
            rq_total: Counter::default(),
        }
    }

    pub(crate) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }
}

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Active {
    fn new(stats: &Arc<HostStats>, gauge: fn(&HostStats) -> &Gauge) -> Self {
        gauge(stats).0.fetch_add(1, Ordering::Relaxed);
        Self {
            stats: stats.clone(),
            gauge,
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        (self.gauge)(&self.stats).0.fetch_sub(1, Ordering::Relaxed);
    }
}
