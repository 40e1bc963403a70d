//! The metrics registry of a process and its text exposition.
//!
//! Parts register typed families once at start; the admin route calls [`Metrics::encode`] at
//! each scrape, away from the data path.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::build_info::BuildInfo;

/// Content type of what [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A shared registry; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry that knows the build it belongs to (`millrace_build_info`).
    pub fn new(build: &BuildInfo) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "millrace_build",
            "Build of the running component",
            Info::new(vec![
                ("component", build.component.clone()),
                ("version", build.version.clone()),
                ("commit", build.commit.clone()),
            ]),
        );
        Self {
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// Lets a part register its families.
    pub fn register<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        with(&mut self.registry.lock())
    }

    /// All metrics as text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry.lock()) {
            // Writing to a string fails only if a collector does; what it wrote so far is kept.
            tracing::warn!(%error, "a metric cannot be encoded");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn registered_families_and_the_build_are_exposed() {
        let metrics = Metrics::new(&BuildInfo::of("test"));
        let counter: Counter = Counter::default();
        metrics.register(|r| r.register("millrace_test_events", "Events", counter.clone()));
        counter.inc_by(3);
        let text = metrics.encode();
        assert!(text.contains("millrace_test_events_total 3"));
        assert!(text.contains(r#"millrace_build_info{component="test""#));
        assert!(text.ends_with("# EOF\n"));
    }
}
