//! Metrics of the data path, under Istio's names and labels.
//!
//! Every worker has its own [`WorkerTelemetry`] with its own series, which it alone writes, so
//! counting costs no shared cache line. A scrape reads the series of all workers and adds up
//! those with equal labels. Handles are resolved once per combination of peers and outcome.

pub mod labels;
pub mod series;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::access_log::{Loggers, Sinks};
use crate::resource::AccessLog;
use labels::{HttpKey, HttpLabels, TcpKey, TcpLabels};
use series::{HttpSeries, HttpSum, Shelf, TcpSeries, TcpSum};

/// Telemetry of the process: the series of all workers and the access logs.
#[derive(Default)]
pub struct Telemetry {
    http: Mutex<Shelf<HttpLabels, HttpSeries>>,
    tcp: Mutex<Shelf<TcpLabels, TcpSeries>>,
    sinks: Sinks,
    /// Counts [`Telemetry::age`]; a worker lets its handles go when it changes.
    ages: AtomicU64,
}

/// One worker's telemetry.
pub struct WorkerTelemetry {
    shared: Arc<Telemetry>,
    worker: usize,
    http: RefCell<HashMap<HttpKey, Arc<HttpSeries>>>,
    tcp: RefCell<HashMap<TcpKey, Arc<TcpSeries>>>,
    loggers: RefCell<HashMap<usize, Opened>>,
    age: Cell<u64>,
}

/// Access logs of a configuration, as long as that lives.
struct Opened {
    owner: Weak<dyn Any + Send + Sync>,
    loggers: Loggers,
}

/// A worker forgets its handles when it has this many; the counts stay.
const MAX_HANDLES: usize = 16_384;
/// Time between two calls of [`Telemetry::age`].
pub const AGE: Duration = Duration::from_mins(10);
/// Compiled access logs of configurations that are gone are swept beyond this number.
const MAX_LOGGERS: usize = 256;

impl Telemetry {
    /// Telemetry without a series.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The access log files.
    pub fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Keeps memory bounded, to be called every [`AGE`]: workers let go what they hold of
    /// series, and what none has written for an hour is forgotten.
    pub fn age(&self) {
        self.http.lock().age();
        self.tcp.lock().age();
        self.ages.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker's part.
    pub fn worker(self: &Arc<Self>, worker: usize) -> WorkerTelemetry {
        WorkerTelemetry {
            shared: self.clone(),
            worker,
            http: RefCell::default(),
            tcp: RefCell::default(),
            loggers: RefCell::default(),
            age: Cell::new(self.ages.load(Ordering::Relaxed)),
        }
    }
}

type AllTotals = (
    BTreeMap<HttpLabels, HttpSum>,
    BTreeMap<TcpLabels, TcpSum>,
    u64,
    u64,
);

impl Telemetry {
    fn totals(&self) -> AllTotals {
        let (mut http, mut tcp) = (self.http.lock(), self.tcp.lock());
        let expired = http.expired() + tcp.expired();
        let overflowed = http.overflowed() + tcp.overflowed();
        (http.totals(), tcp.totals(), expired, overflowed)
    }
}

impl WorkerTelemetry {
    /// The series of requests with this key; `labels` is called when the key is new.
    pub fn http(&self, key: HttpKey, labels: impl FnOnce() -> HttpLabels) -> Arc<HttpSeries> {
        self.renew();
        handle(&self.http, key, || self.shared.http.lock().open(labels()))
    }

    /// The series of connections with this key; `labels` is called when the key is new.
    pub fn tcp(&self, key: TcpKey, labels: impl FnOnce() -> TcpLabels) -> Arc<TcpSeries> {
        self.renew();
        handle(&self.tcp, key, || self.shared.tcp.lock().open(labels()))
    }

    /// The access logs of a configuration, compiled when first asked for. `owner` is what the
    /// logs are part of; its address is the key.
    pub fn loggers<T: Any + Send + Sync>(&self, owner: &Arc<T>, logs: &[AccessLog]) -> Loggers {
        if logs.is_empty() {
            return Loggers::default();
        }
        let key = Arc::as_ptr(owner).addr();
        let mut known = self.loggers.borrow_mut();
        if let Some(opened) = known.get(&key)
            && opened.owner.strong_count() > 0
        {
            return opened.loggers.clone();
        }
        if known.len() > MAX_LOGGERS {
            known.retain(|_, opened| opened.owner.strong_count() > 0);
        }
        let loggers = Loggers::open(logs, &self.shared.sinks, self.worker);
        let owner: Arc<dyn Any + Send + Sync> = owner.clone();
        let opened = Opened {
            owner: Arc::downgrade(&owner),
            loggers: loggers.clone(),
        };
        known.insert(key, opened);
        loggers
    }

    /// Lets handles go that may be of pods and hosts long gone; those in use are resolved anew.
    fn renew(&self) {
        let age = self.shared.ages.load(Ordering::Relaxed);
        if self.age.replace(age) != age {
            self.http.borrow_mut().clear();
            self.tcp.borrow_mut().clear();
        }
    }
}

fn handle<K: std::hash::Hash + Eq, S>(
    handles: &RefCell<HashMap<K, Arc<S>>>,
    key: K,
    open: impl FnOnce() -> Arc<S>,
) -> Arc<S> {
    let mut handles = handles.borrow_mut();
    if let Some(series) = handles.get(&key) {
        return series.clone();
    }
    if handles.len() >= MAX_HANDLES {
        handles.clear();
    }
    let series = open();
    handles.insert(key, series.clone());
    series
}

/// Registers with a registry: `registry.register_collector(Box::new(TelemetryCollector(..)))`.
#[derive(Clone)]
pub struct TelemetryCollector(pub Arc<Telemetry>);

impl fmt::Debug for TelemetryCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TelemetryCollector")
    }
}

impl Collector for TelemetryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // The locks are held for the copies alone, never while text is made.
        let (http, tcp, expired, overflowed) = self.0.totals();
        series::encode_http(&http, &mut encoder)?;
        series::encode_tcp(&tcp, &mut encoder)?;
        series::encode_counter(
            &mut encoder,
            "millrace_proxy_series_expired",
            "Combinations of labels forgotten as nothing was counted under them for an hour",
            expired,
        )?;
        series::encode_counter(
            &mut encoder,
            "millrace_proxy_series_overflowed",
            "Series counted under overflow labels as there were too many",
            overflowed,
        )?;
        series::encode_counter(
            &mut encoder,
            "millrace_proxy_access_log_dropped_lines",
            "Access log lines dropped because their buffer was full or could not be written",
            self.0.sinks.dropped(),
        )
    }
}
