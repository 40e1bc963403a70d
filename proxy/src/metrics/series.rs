//! Series of counters: written by one worker, read by a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::labels::{HttpLabels, Overflow, TcpLabels};

/// Envoy's histogram buckets, for milliseconds and bytes alike.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// A count with one writer: no locked instruction is needed.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram with one writer; the sum is in thousandths.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [Count; BUCKETS.len() + 1],
    sum: Count,
}

impl Histogram {
    fn observe(&self, thousandths: u64) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a bucket bound is no exact science"
        )]
        let value = thousandths as f64 / 1000.0;
        let bucket = BUCKETS.iter().position(|bound| value <= *bound);
        self.buckets[bucket.unwrap_or(BUCKETS.len())].add(1);
        self.sum.add(thousandths);
    }
}

/// Requests with the same labels.
#[derive(Debug, Default)]
pub struct HttpSeries {
    requests: Count,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl HttpSeries {
    /// Counts one request.
    pub fn record(&self, duration: Duration, request_bytes: u64, response_bytes: u64) {
        self.requests.add(1);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(micros);
        self.request_bytes
            .observe(request_bytes.saturating_mul(1000));
        self.response_bytes
            .observe(response_bytes.saturating_mul(1000));
    }
}

/// Connections with the same labels.
#[derive(Debug, Default)]
pub struct TcpSeries {
    opened: Count,
    closed: Count,
    sent: Count,
    received: Count,
}

impl TcpSeries {
    /// A connection was opened.
    pub fn opened(&self) {
        self.opened.add(1);
    }

    /// A connection was closed.
    pub fn closed(&self) {
        self.closed.add(1);
    }

    /// Bytes went to the client.
    pub fn sent(&self, bytes: u64) {
        self.sent.add(bytes);
    }

    /// Bytes came from the client.
    pub fn received(&self, bytes: u64) {
        self.received.add(bytes);
    }
}

/// Totals of equal labels.
pub(super) trait Totals: Default {
    type Sum: Clone + Default;
    fn add_to(&self, sum: &mut Self::Sum);
}

#[derive(Clone, Default)]
pub(super) struct HistogramSum {
    buckets: [u64; BUCKETS.len() + 1],
    sum: u64,
}

impl HistogramSum {
    fn add(&mut self, from: &Histogram) {
        for (sum, count) in self.buckets.iter_mut().zip(&from.buckets) {
            *sum += count.get();
        }
        self.sum += from.sum.get();
    }
}

#[derive(Clone, Default)]
pub(super) struct HttpSum {
    requests: u64,
    duration: HistogramSum,
    request_bytes: HistogramSum,
    response_bytes: HistogramSum,
}

impl Totals for HttpSeries {
    type Sum = HttpSum;

    fn add_to(&self, sum: &mut HttpSum) {
        sum.requests += self.requests.get();
        sum.duration.add(&self.duration);
        sum.request_bytes.add(&self.request_bytes);
        sum.response_bytes.add(&self.response_bytes);
    }
}

#[derive(Clone, Default)]
pub(super) struct TcpSum {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

#[cfg(test)]
impl TcpSum {
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }
}

impl Totals for TcpSeries {
    type Sum = TcpSum;

    fn add_to(&self, sum: &mut TcpSum) {
        sum.opened += self.opened.get();
        sum.closed += self.closed.get();
        sum.sent += self.sent.get();
        sum.received += self.received.get();
    }
}

/// Combinations of labels that are kept at most.
pub(super) const MAX_SERIES: usize = 20_000;
/// Fewest handles between two looks for those that no worker writes any more.
const FOLD: usize = 1024;
/// Ages that a combination of labels is kept without a worker's writing it.
pub(super) const KEPT_AGES: u32 = 6;

/// All series of one kind: those that a worker still writes, and of every combination of labels
/// the total of those that none does any more. Memory is bounded whether or not anybody scrapes.
pub(super) struct Shelf<L, S: Totals> {
    live: Vec<(L, Arc<S>)>,
    known: BTreeMap<L, Total<S::Sum>>,
    /// How many handles there may be before those that nobody writes are folded.
    fold_at: usize,
    /// Combinations that were forgotten.
    expired: u64,
    /// Handles that were given for the overflow's labels.
    overflowed: u64,
}

#[derive(Default)]
struct Total<Sum> {
    sum: Sum,
    /// Ages since a worker wrote it.
    idle: u32,
}

impl<L, S: Totals> Default for Shelf<L, S> {
    fn default() -> Self {
        Self {
            live: Vec::new(),
            known: BTreeMap::new(),
            fold_at: FOLD,
            expired: 0,
            overflowed: 0,
        }
    }
}

impl<L: Ord + Clone + Overflow, S: Totals> Shelf<L, S> {
    pub(super) fn open(&mut self, mut labels: L) -> Arc<S> {
        if self.live.len() >= self.fold_at {
            self.fold();
        }
        if self.known.len() >= MAX_SERIES && !self.known.contains_key(&labels) {
            self.overflowed += 1;
            labels = labels.overflow();
        }
        self.known.entry(labels.clone()).or_default().idle = 0;
        let series = Arc::new(S::default());
        self.live.push((labels, series.clone()));
        series
    }

    /// Adds handles that no worker has any more to the totals.
    fn fold(&mut self) {
        let known = &mut self.known;
        self.live.retain(|(labels, series)| {
            let written = Arc::strong_count(series) > 1;
            if !written {
                let total = known.entry(labels.clone()).or_default();
                series.add_to(&mut total.sum);
            }
            written
        });
        self.fold_at = (self.live.len() * 2).max(FOLD);
    }

    /// Forgets what no worker has written for [`KEPT_AGES`] calls.
    pub(super) fn age(&mut self) {
        self.fold();
        for total in self.known.values_mut() {
            total.idle += 1;
        }
        for (labels, _) in &self.live {
            if let Some(total) = self.known.get_mut(labels) {
                total.idle = 0;
            }
        }
        let before = self.known.len();
        self.known.retain(|_, total| total.idle <= KEPT_AGES);
        self.expired += (before - self.known.len()) as u64;
    }

    pub(super) fn totals(&mut self) -> BTreeMap<L, S::Sum> {
        self.fold();
        let known = self.known.iter();
        let mut totals: BTreeMap<_, _> = known.map(|(l, t)| (l.clone(), t.sum.clone())).collect();
        for (labels, series) in &self.live {
            series.add_to(totals.entry(labels.clone()).or_default());
        }
        totals
    }

    /// How many handles and combinations of labels there are.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.live.len(), self.known.len())
    }

    pub(super) fn expired(&self) -> u64 {
        self.expired
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

pub(super) fn encode_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let counter = ConstCounter::new(value);
    let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    counter.encode(metric)
}

fn counters<L: EncodeLabelSet, S>(
    totals: &BTreeMap<L, S>,
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    value: impl Fn(&S) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, sum) in totals {
        ConstCounter::new(value(sum)).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

fn histograms<L: EncodeLabelSet, S>(
    totals: &BTreeMap<L, S>,
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    value: impl Fn(&S) -> &HistogramSum,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, sum) in totals {
        let histogram = value(sum);
        let bounds = BUCKETS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(histogram.buckets).collect();
        #[expect(clippy::cast_precision_loss, reason = "a sum of measurements")]
        let total = histogram.sum as f64 / 1000.0;
        family
            .encode_family(labels)?
            .encode_histogram::<NoLabelSet>(
                total,
                histogram.buckets.iter().sum(),
                &buckets,
                None,
            )?;
    }
    Ok(())
}

pub(super) fn encode_http(
    totals: &BTreeMap<HttpLabels, HttpSum>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let requests = ("istio_requests", "Requests handled by the proxy");
    counters(totals, encoder, requests, |sum| sum.requests)?;
    let duration = (
        "istio_request_duration_milliseconds",
        "Duration of requests in milliseconds",
    );
    histograms(totals, encoder, duration, |sum| &sum.duration)?;
    let request = ("istio_request_bytes", "Size of request bodies");
    histograms(totals, encoder, request, |sum| &sum.request_bytes)?;
    let response = ("istio_response_bytes", "Size of response bodies");
    histograms(totals, encoder, response, |sum| &sum.response_bytes)
}

pub(super) fn encode_tcp(
    totals: &BTreeMap<TcpLabels, TcpSum>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let opened = ("istio_tcp_connections_opened", "TCP connections opened");
    counters(totals, encoder, opened, |sum| sum.opened)?;
    let closed = ("istio_tcp_connections_closed", "TCP connections closed");
    counters(totals, encoder, closed, |sum| sum.closed)?;
    let sent = ("istio_tcp_sent_bytes", "Bytes sent to TCP clients");
    counters(totals, encoder, sent, |sum| sum.sent)?;
    let received = (
        "istio_tcp_received_bytes",
        "Bytes received from TCP clients",
    );
    counters(totals, encoder, received, |sum| sum.received)
}
