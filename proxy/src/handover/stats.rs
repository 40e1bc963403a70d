//! Counters of hand-overs, for `/handover` and the metrics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};

use super::{Handover, Kept};

/// Kinds of connections, by [`super::message::Carried::name`].
const KINDS: [&str; 4] = ["undecided", "http", "tcp", "tunnel"];
/// Reasons to stay.
const REASONS: [&str; 7] = [
    "lost",
    "leaving",
    "unknown",
    "malformed",
    "full",
    "other",
    "unpackable",
];

/// Counters of one epoch.
#[derive(Debug, Default)]
pub struct Stats {
    given: [AtomicU64; KINDS.len()],
    adopted: [AtomicU64; KINDS.len()],
    kept: [AtomicU64; REASONS.len()],
    paused_us: AtomicU64,
    longest_us: AtomicU64,
}

fn add<const N: usize>(counters: &[AtomicU64; N], names: &[&str; N], name: &str) {
    if let Some(at) = names.iter().position(|known| *known == name) {
        counters[at].fetch_add(1, Ordering::Relaxed);
    }
}

fn values<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    counters.each_ref().map(|c| c.load(Ordering::Relaxed))
}

impl Stats {
    pub(super) fn given(&self, kind: &str) {
        add(&self.given, &KINDS, kind);
    }

    pub(super) fn kept(&self, why: Kept) {
        let reason = match why {
            Kept::Lost => "lost",
            Kept::Declined(reason) => reason.name(),
            Kept::Unpackable => "unpackable",
        };
        add(&self.kept, &REASONS, reason);
    }

    /// A connection goes on after so long a silence.
    pub(super) fn adopted(&self, kind: &str, pause: Duration) {
        add(&self.adopted, &KINDS, kind);
        let pause = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.paused_us.fetch_add(pause, Ordering::Relaxed);
        self.longest_us.fetch_max(pause, Ordering::Relaxed);
    }

    /// How many connections went to the successor.
    pub fn given_total(&self) -> u64 {
        values(&self.given).iter().sum()
    }

    /// How many came from the predecessor.
    pub fn adopted_total(&self) -> u64 {
        values(&self.adopted).iter().sum()
    }

    /// How often a connection stayed although it was offered.
    pub fn kept_total(&self) -> u64 {
        values(&self.kept).iter().sum()
    }

    /// The longest silence of a connection that came from the predecessor.
    pub fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    /// As the admin port shows it.
    pub(crate) fn json(&self) -> Value {
        let named = |names: &[&str], values: &[u64]| {
            let pairs = names.iter().zip(values);
            pairs
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
        };
        json!({
            "handed_over": named(&KINDS, &values(&self.given)),
            "adopted": named(&KINDS, &values(&self.adopted)),
            "kept": named(&REASONS, &values(&self.kept)),
            "longest_pause_us": self.longest_us.load(Ordering::Relaxed),
        })
    }
}

/// Registers with a registry.
#[derive(Clone, Debug)]
pub struct HandoverCollector(pub Handover);

impl Collector for HandoverCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let families: [(_, _, _, &[&str], &[u64]); 3] = [
            (
                "millrace_proxy_connections_handed_over",
                "Connections given to the next epoch, by what they carry",
                "kind",
                &KINDS,
                &values(&stats.given),
            ),
            (
                "millrace_proxy_connections_adopted",
                "Connections taken from the epoch before, by what they carry",
                "kind",
                &KINDS,
                &values(&stats.adopted),
            ),
            (
                "millrace_proxy_connections_kept",
                "Connections offered to the next epoch that stayed, by reason",
                "reason",
                &REASONS,
                &values(&stats.kept),
            ),
        ];
        for (name, help, label, names, values) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (kind, value) in names.iter().zip(values) {
                let labels = [(label, *kind)];
                let metric = family.encode_family(&labels)?;
                ConstCounter::new(*value).encode(metric)?;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "microseconds of pauses")]
        let seconds = |us: &AtomicU64| us.load(Ordering::Relaxed) as f64 / 1e6;
        let gauges = [
            (
                "millrace_proxy_adoption_pause_longest_seconds",
                "Longest silence of a connection taken from the epoch before",
                seconds(&stats.longest_us),
            ),
            (
                "millrace_proxy_epoch",
                "Restart epoch of this proxy",
                f64::from(self.0.epoch()),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        let name = "millrace_proxy_adoption_pause_seconds";
        let help = "Silence of all connections taken from the epoch before, summed";
        let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(seconds(&stats.paused_us)).encode(counter)
    }
}
