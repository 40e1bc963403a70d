//! Counters of acceleration, over all workers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_runtime::handoff::Refusal;
use millrace_runtime::handoff::accel::{AccelState, AccelTraffic};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::entry::{Entry, Returned};
use super::{Accelerator, Agent};

/// Why a request came to nothing, and its name.
const REFUSALS: [(Refusal, &str); 18] = [
    (Refusal::Unavailable, "unavailable"),
    (Refusal::UnknownPod, "unknown_pod"),
    (Refusal::Off, "off"),
    (Refusal::NotFound, "not_found"),
    (Refusal::NotEstablished, "not_established"),
    (Refusal::NotProxys, "not_proxys"),
    (Refusal::Unknown, "unknown"),
    (Refusal::NotAccepted, "not_accepted"),
    (Refusal::Blocking, "blocking"),
    (Refusal::SocketOption, "socket_option"),
    (Refusal::Mptcp, "mptcp"),
    (Refusal::InUse, "in_use"),
    (Refusal::Unsupported, "unsupported"),
    (Refusal::Full, "full"),
    (Refusal::Failed, "failed"),
    (Refusal::Withdrawn, "withdrawn"),
    (Refusal::Unread, "unread"),
    (Refusal::Unsettled, "unsettled"),
];

/// Counters that only grow.
#[derive(Debug, Default)]
pub struct Stats {
    asked: AtomicU64,
    promoted: AtomicU64,
    refused: [AtomicU64; REFUSALS.len()],
    unanswered: AtomicU64,
    returned: [AtomicU64; Returned::ALL.len()],
    left: AtomicU64,
    forced: AtomicU64,
    stalled: AtomicU64,
    spliced: AtomicU64,
    not_spliced: [AtomicU64; REFUSALS.len()],
    unspliced: AtomicU64,
    /// Messages and bytes that went from one pod straight into another.
    moved: [AtomicU64; 2],
    /// Of connections that are closed: to and from applications.
    closed: [Traffic; 2],
}

#[derive(Debug, Default)]
struct Traffic([AtomicU64; 4]);

impl Traffic {
    fn add(&self, traffic: &AccelTraffic) {
        for (sum, value) in self.0.iter().zip(values(traffic)) {
            sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    fn values(&self) -> [u64; 4] {
        self.0.each_ref().map(|sum| sum.load(Ordering::Relaxed))
    }
}

fn values(traffic: &AccelTraffic) -> [u64; 4] {
    [
        traffic.redirected_messages,
        traffic.redirected_bytes,
        traffic.tcp_messages,
        traffic.tcp_bytes,
    ]
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Stats {
    pub(super) fn asked(&self) {
        add(&self.asked);
    }

    pub(super) fn promoted(&self) {
        add(&self.promoted);
    }

    pub(super) fn refused(&self, why: Refusal) {
        if let Some(at) = REFUSALS.iter().position(|(refusal, _)| *refusal == why) {
            add(&self.refused[at]);
        }
    }

    pub(super) fn unanswered(&self) {
        add(&self.unanswered);
    }

    pub(super) fn returned(&self, why: Returned) {
        add(&self.returned[why.index()]);
    }

    pub(super) fn left(&self) {
        add(&self.left);
    }

    pub(super) fn forced(&self) {
        add(&self.forced);
    }

    pub(super) fn stalled(&self) {
        add(&self.stalled);
    }

    pub(super) fn spliced(&self) {
        add(&self.spliced);
    }

    pub(super) fn not_spliced(&self, why: Refusal) {
        if let Some(at) = REFUSALS.iter().position(|(refusal, _)| *refusal == why) {
            add(&self.not_spliced[at]);
        }
    }

    pub(super) fn unspliced(&self) {
        add(&self.unspliced);
    }

    pub(super) fn moved(&self, messages: u64, bytes: u64) {
        for (sum, value) in self.moved.iter().zip([messages, bytes]) {
            sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// How many connections were spliced.
    pub fn splices(&self) -> u64 {
        self.spliced.load(Ordering::Relaxed)
    }

    /// A promoted connection is closed; this is what the kernel counted.
    pub(super) fn closed(&self, state: &AccelState) {
        self.closed[0].add(&state.sent);
        self.closed[1].add(&state.received);
    }

    /// How many connections were promoted.
    pub fn promotions(&self) -> u64 {
        self.promoted.load(Ordering::Relaxed)
    }

    /// How many requests were refused for this reason.
    pub fn refusals(&self, why: Refusal) -> u64 {
        let at = REFUSALS.iter().position(|(refusal, _)| *refusal == why);
        at.map_or(0, |at| self.refused[at].load(Ordering::Relaxed))
    }

    /// How many connections returned to TCP for this reason.
    pub fn returns(&self, why: Returned) -> u64 {
        self.returned[why.index()].load(Ordering::Relaxed)
    }
}

/// Shows the counters to Prometheus.
#[derive(Debug)]
pub struct AccelerationCollector(pub Accelerator);

impl Collector for AccelerationCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let entries = self.0.entries();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let e = &mut encoder;
        let agent = u64::from(self.0.agent() == Agent::Ready);
        gauge(e, "available", "Whether the agent takes requests", agent)?;
        let promoted = entries.iter().filter(|entry| entry.is_promoted());
        let now = promoted.clone().filter(|entry| entry.returned().is_none());
        let help = "Connections whose messages may go by the kernel's map now";
        gauge(e, "connections", help, now.count() as u64)?;
        counter(
            e,
            "asked",
            "Connections that earned acceleration",
            load(&stats.asked),
        )?;
        counter(
            e,
            "promoted",
            "Connections that were accelerated",
            load(&stats.promoted),
        )?;
        let help = "Connections of which the agent did not say what became of them";
        counter(e, "unanswered", help, load(&stats.unanswered))?;
        let help = "Applications' sockets that were taken out of the kernel's map";
        counter(e, "left", help, load(&stats.left))?;
        let help = "Times that a connection stayed in the kernel's map as nobody took it out";
        counter(e, "forced", help, load(&stats.forced))?;
        let help = "Applications that read nothing of an accelerated connection for ten seconds";
        counter(e, "reader_stalled", help, load(&stats.stalled))?;
        let refused = REFUSALS.iter().zip(&stats.refused);
        family(
            e,
            "refused",
            "Connections that stay plain TCP",
            refused.map(|((_, name), count)| (vec![("reason", *name)], load(count))),
        )?;
        encode_splices(e, stats, &entries)?;
        let returned = Returned::ALL.iter().zip(&stats.returned);
        family(
            e,
            "returned",
            "Accelerated connections that returned to TCP",
            returned.map(|(why, count)| (vec![("reason", why.name())], load(count))),
        )?;
        let mut sums = [stats.closed[0].values(), stats.closed[1].values()];
        for entry in promoted {
            let kernel = entry.state();
            for (sum, traffic) in sums.iter_mut().zip([&kernel.sent, &kernel.received]) {
                for (sum, value) in sum.iter_mut().zip(values(traffic)) {
                    *sum += value;
                }
            }
        }
        traffic(e, &sums)
    }
}

/// Connections whose applications send to each other.
fn encode_splices(
    encoder: &mut DescriptorEncoder<'_>,
    stats: &Stats,
    entries: &[Arc<Entry>],
) -> fmt::Result {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let now = entries.iter().filter(|entry| entry.is_spliced()).count() as u64;
    let help = "Connections whose applications' messages go straight into another pod now";
    gauge(encoder, "spliced_connections", help, now)?;
    for (name, help, count) in [
        (
            "spliced",
            "Pairs of connections whose applications were made to send to each other",
            &stats.spliced,
        ),
        (
            "unspliced",
            "Pairs of connections that returned to the proxy",
            &stats.unspliced,
        ),
        (
            "spliced_messages",
            "Messages that went from one pod straight into another",
            &stats.moved[0],
        ),
        (
            "spliced_bytes",
            "Bytes that went from one pod straight into another",
            &stats.moved[1],
        ),
    ] {
        counter(encoder, name, help, load(count))?;
    }
    let refused = REFUSALS.iter().zip(&stats.not_spliced);
    family(
        encoder,
        "not_spliced",
        "Pairs of connections that stay with the proxy",
        refused.map(|((_, name), count)| (vec![("reason", *name)], load(count))),
    )
}

/// Messages and bytes of accelerated connections, by direction and way.
fn traffic(encoder: &mut DescriptorEncoder<'_>, sums: &[[u64; 4]; 2]) -> fmt::Result {
    for (first, name, help) in [
        (0, "messages", "Messages of accelerated connections"),
        (1, "bytes", "Bytes of accelerated connections"),
    ] {
        let directions = ["to_application", "from_application"];
        let series = directions.iter().zip(sums).flat_map(|(direction, sum)| {
            ["redirected", "tcp"]
                .iter()
                .enumerate()
                .map(move |(at, way)| {
                    let labels = vec![("direction", *direction), ("way", *way)];
                    (labels, sum[first + 2 * at])
                })
        });
        family(encoder, name, help, series)?;
    }
    Ok(())
}

fn full(name: &str) -> String {
    format!("millrace_proxy_acceleration_{name}")
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(value.cast_signed());
    let name = full(name);
    let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    gauge.encode(metric)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let name = full(name);
    let metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

type Labels = Vec<(&'static str, &'static str)>;

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let name = full(name);
    let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
