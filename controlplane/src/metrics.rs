//! Pilot's own metrics.

use std::time::Duration;

use millrace_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::model::problem::Problem;
use crate::snapshot::MeshSnapshot;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabels {
    severity: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Handles of all of pilot's metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct PilotMetrics {
    problems: Family<ProblemLabels, Gauge>,
    objects: Family<KindLabels, Gauge>,
    pushes: Counter,
    wait: Histogram,
    clients: Gauge,
    acks: Family<TypeLabels, Counter>,
    nacks: Family<TypeLabels, Counter>,
    translations: Family<TypeLabels, Counter>,
    cached: Family<TypeLabels, Counter>,
    reviews: Family<OutcomeLabels, Counter>,
    statuses: Family<OutcomeLabels, Counter>,
    polls: Family<TypeLabels, Counter>,
}

impl PilotMetrics {
    /// Registers the families.
    pub fn new(metrics: &Metrics) -> Self {
        // From 1 ms, in steps of two, to 4 s.
        let buckets = prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 13);
        let this = Self {
            problems: Family::default(),
            objects: Family::default(),
            pushes: Counter::default(),
            wait: Histogram::new(buckets),
            clients: Gauge::default(),
            acks: Family::default(),
            nacks: Family::default(),
            translations: Family::default(),
            cached: Family::default(),
            reviews: Family::default(),
            statuses: Family::default(),
            polls: Family::default(),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("millrace_pilot");
            registry.register(
                "config_errors",
                "Problems of the configuration now",
                this.problems.clone(),
            );
            registry.register("objects", "Objects of the mesh now", this.objects.clone());
            registry.register("pushes", "Snapshots published", this.pushes.clone());
            registry.register(
                "push_wait_seconds",
                "From the first change to the snapshot",
                this.wait.clone(),
            );
            registry.register("xds_clients", "Streams open now", this.clients.clone());
            registry.register("xds_acks", "Responses accepted", this.acks.clone());
            registry.register("xds_nacks", "Responses rejected", this.nacks.clone());
            registry.register(
                "xds_translations",
                "Resources made",
                this.translations.clone(),
            );
            registry.register(
                "xds_cached",
                "Resources served again without being made",
                this.cached.clone(),
            );
            registry.register(
                "admission_reviews",
                "Objects judged for the API server",
                this.reviews.clone(),
            );
            registry.register(
                "status_writes",
                "Statuses written back, or tried to be",
                this.statuses.clone(),
            );
            let polls = this.polls.clone();
            registry.register("legacy_polls", "Polls of seed-era proxies", polls);
        });
        this
    }

    pub(crate) fn reviewed(&self, outcome: &'static str) {
        self.reviews.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    pub(crate) fn status_written(&self, outcome: &'static str) {
        self.statuses
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    pub(crate) fn polled(&self, short_name: &str) {
        self.polls
            .get_or_create(&TypeLabels {
                r#type: short_name.to_owned(),
            })
            .inc();
    }

    pub(crate) fn set_problems(&self, problems: &[Problem]) {
        self.problems.clear();
        for problem in problems {
            let labels = ProblemLabels {
                severity: problem.severity.as_str(),
                reason: problem.reason.as_str(),
            };
            self.problems.get_or_create(&labels).inc();
        }
    }

    pub(crate) fn set_mesh(&self, snapshot: &MeshSnapshot) {
        for (kind, count) in [
            ("service", snapshot.services.len()),
            ("pod", snapshot.workloads.len()),
            ("virtual_service", snapshot.virtual_services.len()),
            ("destination_rule", snapshot.destination_rules.len()),
            ("route_rule", snapshot.route_rules.len()),
            ("service_entry", snapshot.service_entries.len()),
            ("workload_entry", snapshot.workload_entries.len()),
            ("sidecar", snapshot.sidecars.len()),
            ("api_route", snapshot.api_routes.len()),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.objects.get_or_create(&KindLabels { kind }).set(count);
        }
    }

    pub(crate) fn pushed(&self, waited: Duration) {
        self.pushes.inc();
        self.wait.observe(waited.as_secs_f64());
    }

    pub(crate) fn connected(&self) {
        self.clients.inc();
    }

    pub(crate) fn disconnected(&self) {
        self.clients.dec();
    }

    pub(crate) fn acked(&self, short_name: &str) {
        self.acks
            .get_or_create(&TypeLabels {
                r#type: short_name.to_owned(),
            })
            .inc();
    }

    pub(crate) fn nacked(&self, short_name: &str) {
        self.nacks
            .get_or_create(&TypeLabels {
                r#type: short_name.to_owned(),
            })
            .inc();
    }

    pub(crate) fn translated(&self, short_name: &str) {
        self.translations
            .get_or_create(&TypeLabels {
                r#type: short_name.to_owned(),
            })
            .inc();
    }

    pub(crate) fn reused(&self, short_name: &str) {
        self.cached
            .get_or_create(&TypeLabels {
                r#type: short_name.to_owned(),
            })
            .inc();
    }
}
