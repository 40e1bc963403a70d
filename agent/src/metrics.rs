//! The agent's metrics: pods by capture, health, and what the eBPF programs count.
//!
//! Collected at scrape time from the [`View`] and the kernel's maps, so nothing is counted twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_runtime::metrics::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use crate::bpf::{Direction, MapOccupancy};
use crate::kernel::{AccelerationCounts, Kernel};
use crate::status::View;

/// Registers the agent's collector.
pub fn register(metrics: &Metrics, view: watch::Receiver<Arc<View>>, kernel: Kernel) {
    metrics.register(|registry| {
        registry.register_collector(Box::new(NodeCollector { view, kernel }));
    });
}

/// `outbound` or `inbound`.
pub(crate) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

struct NodeCollector {
    view: watch::Receiver<Arc<View>>,
    kernel: Kernel,
}

impl std::fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeCollector")
    }
}

type Encoded = Result<(), std::fmt::Error>;

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let view = self.view.borrow().clone();
        encode_pods(&mut encoder, &view)?;
        for (name, help, value) in [
            (
                "millrace_agent_broker_connected",
                "The broker is connected",
                view.node.broker_connected,
            ),
            (
                "millrace_agent_proxy_gone",
                "No proxy has been heard of for the deadline",
                view.node.proxy_gone,
            ),
            (
                "millrace_agent_ebpf_available",
                "The eBPF programs are loaded",
                view.node.ebpf.available,
            ),
        ] {
            gauge(&mut encoder, name, help, i64::from(value))?;
        }
        let problems = i64::try_from(view.node.problems.len()).unwrap_or(i64::MAX);
        gauge(
            &mut encoder,
            "millrace_agent_description_problems",
            "Pod descriptions that cannot be used",
            problems,
        )?;
        self.encode_kernel(&mut encoder, &view)
    }
}

impl NodeCollector {
    fn encode_kernel(&self, encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
        if let Ok(counters) = self.kernel.counters() {
            let counter = ConstCounter::new(0_u64);
            let mut family = encoder.encode_descriptor(
                "millrace_ebpf_outcomes",
                "Outcomes of the kernel programs",
                None,
                counter.metric_type(),
            )?;
            for value in counters {
                let labels = [
                    ("hook", value.counter.hook()),
                    ("outcome", value.counter.outcome()),
                ];
                let encoder = family.encode_family(&labels)?;
                ConstCounter::new(value.value).encode(encoder)?;
            }
        }
        self.encode_maps(encoder)?;
        self.encode_events(encoder, view)?;
        self.encode_acceleration(encoder, view)?;
        let Ok(traffic) = self.kernel.traffic() else {
            return Ok(());
        };
        for (name, help, read) in TRAFFIC {
            let counter = ConstCounter::new(0_u64);
            let mut family = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for pod in &traffic {
                let known = view
                    .pods
                    .iter()
                    .find(|p| p.netns_cookie == Some(pod.netns_cookie));
                let Some(known) = known else { continue };
                let labels = [
                    ("namespace", known.namespace.as_str()),
                    ("pod", known.name.as_str()),
                    ("direction", direction(pod.direction)),
                ];
                let encoder = family.encode_family(&labels)?;
                ConstCounter::new(read(&pod.sums)).encode(encoder)?;
            }
        }
        Ok(())
    }
}

impl NodeCollector {
    fn encode_maps(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let maps = self.kernel.occupancy();
        let gauges: [(&str, &str, ReadMap); 2] = [
            (
                "millrace_ebpf_map_elements",
                "Elements in a map of the kernel programs",
                |map| i64::try_from(map.used).unwrap_or(i64::MAX),
            ),
            (
                "millrace_ebpf_map_capacity",
                "Elements that a map of the kernel programs can hold",
                |map| i64::from(map.capacity),
            ),
        ];
        for (name, help, read) in gauges {
            let gauge = ConstGauge::new(0_i64);
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for map in &maps {
                let labels = [("map", map.map)];
                let encoder = family.encode_family(&labels)?;
                ConstGauge::new(read(map)).encode(encoder)?;
            }
        }
        Ok(())
    }

    fn encode_events(&self, encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
        let counter = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor(
            "millrace_pod_capture_events",
            "Connections of a pod that eBPF did not capture as it should",
            None,
            counter.metric_type(),
        )?;
        for pod in &view.pods {
            let Some(cookie) = pod.netns_cookie else {
                continue;
            };
            let events = self.kernel.capture_events(cookie);
            for (event, count) in [
                ("went_direct", events.went_direct),
                ("refused", events.refused),
                ("not_captured", events.not_captured),
            ] {
                let labels = [
                    ("namespace", pod.namespace.as_str()),
                    ("pod", pod.name.as_str()),
                    ("event", event),
                ];
                let encoder = family.encode_family(&labels)?;
                ConstCounter::new(count).encode(encoder)?;
            }
        }
        Ok(())
    }
}

impl NodeCollector {
    fn encode_acceleration(&self, encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
        let pods: Vec<_> = view
            .pods
            .iter()
            .filter_map(|pod| Some((pod, self.kernel.pod_acceleration(pod.netns_cookie?))))
            .collect();
        for (name, help, read) in ACCELERATION {
            let counter = ConstCounter::new(0_u64);
            let mut family = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for (pod, counts) in &pods {
                let labels = [
                    ("namespace", pod.namespace.as_str()),
                    ("pod", pod.name.as_str()),
                ];
                let encoder = family.encode_family(&labels)?;
                ConstCounter::new(read(counts)).encode(encoder)?;
            }
        }
        for (name, help, read) in REFUSALS {
            let counter = ConstCounter::new(0_u64);
            let mut family = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for (pod, counts) in &pods {
                for (reason, count) in read(counts) {
                    let labels = [
                        ("namespace", pod.namespace.as_str()),
                        ("pod", pod.name.as_str()),
                        ("reason", reason.as_str()),
                    ];
                    let encoder = family.encode_family(&labels)?;
                    ConstCounter::new(*count).encode(encoder)?;
                }
            }
        }
        Ok(())
    }
}

type ReadCounts = fn(&AccelerationCounts) -> u64;

type ReadRefusals = fn(&AccelerationCounts) -> &BTreeMap<String, u64>;

const REFUSALS: [(&str, &str, ReadRefusals); 2] = [
    (
        "millrace_pod_acceleration_refused",
        "Connections of the pod that were not promoted, by reason",
        |counts| &counts.refused,
    ),
    (
        "millrace_pod_acceleration_not_spliced",
        "Connections of the pod that were not spliced with another pod's, by reason",
        |counts| &counts.not_spliced,
    ),
];

const ACCELERATION: [(&str, &str, ReadCounts); 13] = [
    (
        "millrace_pod_acceleration_promoted",
        "Connections of the pod that were promoted",
        |counts| counts.promoted,
    ),
    (
        "millrace_pod_acceleration_redirected_messages",
        "Messages that went past TCP",
        |counts| counts.redirected_messages,
    ),
    (
        "millrace_pod_acceleration_redirected_bytes",
        "Bytes that went past TCP",
        |counts| counts.redirected_bytes,
    ),
    (
        "millrace_pod_acceleration_tcp_messages",
        "Messages of promoted connections that went by TCP",
        |counts| counts.tcp_messages,
    ),
    (
        "millrace_pod_acceleration_tcp_bytes",
        "Bytes of promoted connections that went by TCP",
        |counts| counts.tcp_bytes,
    ),
    (
        "millrace_pod_acceleration_capped",
        "Messages that went by TCP because too much was unread",
        |counts| counts.capped,
    ),
    (
        "millrace_pod_acceleration_returned",
        "Connections that returned to TCP because of a socket option",
        |counts| counts.returned,
    ),
    (
        "millrace_pod_acceleration_mixed",
        "Times that an application had redirected and other bytes to read",
        |counts| counts.mixed,
    ),
    (
        "millrace_pod_acceleration_spliced",
        "Connections spliced with one of another pod's",
        |counts| counts.spliced,
    ),
    (
        "millrace_pod_acceleration_unspliced",
        "Directions of spliced connections that went back to the proxy",
        |counts| counts.unspliced,
    ),
    (
        "millrace_pod_acceleration_spliced_messages",
        "Messages that went straight into another pod",
        |counts| counts.spliced_messages,
    ),
    (
        "millrace_pod_acceleration_spliced_bytes",
        "Bytes that went straight into another pod",
        |counts| counts.spliced_bytes,
    ),
    (
        "millrace_pod_acceleration_stalled",
        "Connections whose application left redirected bytes unread",
        |counts| counts.stalled,
    ),
];

type ReadMap = fn(&MapOccupancy) -> i64;

type Read = fn(&crate::bpf::PodTelemetry) -> u64;

const TRAFFIC: [(&str, &str, Read); 6] = [
    (
        "millrace_pod_tcp_connections_opened",
        "TCP connections that the pod's applications opened or accepted",
        |sums| sums.opened,
    ),
    (
        "millrace_pod_tcp_connections_closed",
        "TCP connections of the pod's applications that were closed",
        |sums| sums.closed,
    ),
    (
        "millrace_pod_tcp_sent_bytes",
        "Bytes that the pod's applications sent",
        |sums| sums.sent_bytes,
    ),
    (
        "millrace_pod_tcp_received_bytes",
        "Bytes that the pod's applications received",
        |sums| sums.received_bytes,
    ),
    (
        "millrace_pod_tcp_rtt_microseconds",
        "Sum of the smoothed round-trip times at close; divide by the connections closed",
        |sums| sums.rtt_us_sum,
    ),
    (
        "millrace_pod_tcp_retransmits",
        "TCP segments of the pod's applications that were sent again",
        |sums| sums.retransmits,
    ),
];

fn encode_pods(encoder: &mut DescriptorEncoder<'_>, view: &View) -> Encoded {
    let counts = view.node.pods;
    let gauge = ConstGauge::new(0_i64);
    let mut family = encoder.encode_descriptor(
        "millrace_agent_pods",
        "Pods of this node by state",
        None,
        gauge.metric_type(),
    )?;
    for (state, count) in [
        ("known", counts.known),
        ("enrolled", counts.enrolled),
        ("ebpf", counts.ebpf),
        ("iptables", counts.iptables),
        ("unhealthy", counts.unhealthy),
    ] {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let labels = [("state", state)];
        let encoder = family.encode_family(&labels)?;
        ConstGauge::new(count).encode(encoder)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> Encoded {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}
