//! What the watch over capture found, as metrics: by pod, and for the programs that serve all pods.

use std::sync::Arc;

use millrace_runtime::metrics::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use super::{Integrity, PodIntegrity};
use crate::status::View;

/// Registers the collector.
pub fn register(metrics: &Metrics, view: watch::Receiver<Arc<View>>, integrity: Integrity) {
    metrics.register(|registry| {
        registry.register_collector(Box::new(IntegrityCollector { view, integrity }));
    });
}

#[derive(Debug)]
struct IntegrityCollector {
    view: watch::Receiver<Arc<View>>,
    integrity: Integrity,
}

type Encoded = Result<(), std::fmt::Error>;

/// A pod's labels with what is known of it.
struct Pod {
    namespace: String,
    name: String,
    found: PodIntegrity,
}

impl Pod {
    fn labels<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = [
            ("namespace", self.namespace.as_str()),
            ("pod", self.name.as_str()),
        ];
        own.into_iter().chain(more.iter().copied()).collect()
    }
}

impl Collector for IntegrityCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let view = self.view.borrow().clone();
        let enrolled = view.pods.iter().filter(|pod| pod.enrolled);
        let pods: Vec<Pod> = enrolled
            .map(|pod| Pod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                found: self.integrity.pod(&pod.uid),
            })
            .collect();
        counts(&mut encoder, &pods)?;
        gauges(&mut encoder, &pods)?;
        self.node(&mut encoder)
    }
}

fn counts(encoder: &mut DescriptorEncoder<'_>, pods: &[Pod]) -> Encoded {
    let kind = ConstCounter::new(0_u64).metric_type();
    for (name, help, repaired) in [
        (
            "millrace_pod_capture_broken",
            "Times that a part of the pod's capture was found broken",
            false,
        ),
        (
            "millrace_pod_capture_repaired",
            "Times that a broken part of the pod's capture was found in order again",
            true,
        ),
    ] {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for pod in pods {
            let totals = if repaired {
                &pod.found.repaired_total
            } else {
                &pod.found.broken_total
            };
            for (cause, count) in totals {
                let labels = pod.labels(&[("cause", cause.name())]);
                let encoder = family.encode_family(&labels)?;
                ConstCounter::new(*count).encode(encoder)?;
            }
        }
    }
    let mut family = encoder.encode_descriptor(
        "millrace_pod_canary_failures",
        "Canaries of the pod that were not answered by its own listener",
        None,
        kind,
    )?;
    for pod in pods {
        for (way, status) in &pod.found.canary.ways {
            let labels = pod.labels(&[("way", way.name())]);
            let encoder = family.encode_family(&labels)?;
            ConstCounter::new(status.failures).encode(encoder)?;
        }
    }
    Ok(())
}

type Read = fn(&PodIntegrity) -> Option<i64>;

const GAUGES: [(&str, &str, Read); 3] = [
    (
        "millrace_pod_capture_intact",
        "Nothing of the pod's capture is known to be broken",
        |found| Some(i64::from(found.broken.is_empty())),
    ),
    (
        "millrace_pod_canary_last_success_timestamp_seconds",
        "When a canary of the pod was last answered on every way",
        |found| i64::try_from(found.canary.last_success_seconds?).ok(),
    ),
    (
        "millrace_pod_foreign_captures",
        "Rules and programs of others in the pod's namespace that interfere with capture",
        |found| i64::try_from(found.foreign.len()).ok(),
    ),
];

fn gauges(encoder: &mut DescriptorEncoder<'_>, pods: &[Pod]) -> Encoded {
    for (name, help, read) in GAUGES {
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for pod in pods {
            if let Some(value) = read(&pod.found) {
                let labels = pod.labels(&[]);
                let encoder = family.encode_family(&labels)?;
                ConstGauge::new(value).encode(encoder)?;
            }
        }
    }
    Ok(())
}

impl IntegrityCollector {
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let node = self.integrity.node();
        for (name, help, totals) in [
            (
                "millrace_node_capture_broken",
                "Times that what captures all pods was found broken",
                &node.broken_total,
            ),
            (
                "millrace_node_capture_repaired",
                "Times that what captures all pods was found in order again",
                &node.repaired_total,
            ),
        ] {
            let kind = ConstCounter::new(0_u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (cause, count) in totals {
                let labels = [("cause", cause.name())];
                let encoder = family.encode_family(&labels)?;
                ConstCounter::new(*count).encode(encoder)?;
            }
        }
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = encoder.encode_descriptor(
            "millrace_node_foreign_program",
            "A cgroup program of somebody else's at a hook that capture uses",
            None,
            kind,
        )?;
        for program in &node.foreign {
            let id = program.id.to_string();
            let labels = [
                ("hook", program.hook.as_str()),
                ("program", program.name.as_str()),
                ("id", id.as_str()),
                ("at", program.at.as_str()),
                ("order", program.order.name()),
            ];
            let encoder = family.encode_family(&labels)?;
            ConstGauge::new(1_i64).encode(encoder)?;
        }
        Ok(())
    }
}
