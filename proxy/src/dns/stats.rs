//! Counters of the DNS server.

use millrace_runtime::metrics::Metrics;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// A mesh name, answered here.
    Mesh,
    /// A canary of the agent's, which is no application's question.
    Canary,
    /// Answered by a resolver.
    Forwarded,
    /// No resolver answered.
    Failed,
    /// Too many questions at a time.
    Overloaded,
    /// Not a well-formed question; refused.
    Malformed,
    /// No question at all; dropped.
    Dropped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

/// Counters of questions by outcome; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DnsStats {
    requests: Family<Labels, Counter>,
}

impl DnsStats {
    /// Counts one question.
    pub fn count(&self, outcome: Outcome) {
        self.requests.get_or_create(&Labels { outcome }).inc();
    }

    /// How many questions ended so.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.requests.get_or_create(&Labels { outcome }).get()
    }

    /// Exposes them as `millrace_proxy_dns_requests_total`.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register(
                "millrace_proxy_dns_requests",
                "Questions to the DNS server by outcome",
                self.requests.clone(),
            );
        });
    }
}
