//! When a change has come to the nodes: what is waited for, and who has seen it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use parking_lot::RwLock;
use tokio::sync::mpsc;

/// How long a change is waited for before the measurement fails.
const LIMIT: Duration = Duration::from_mins(2);

/// A change is waited for by the names of resources, any of which shows it.
#[derive(Debug)]
struct Expected {
    names: BTreeSet<String>,
    seen: mpsc::UnboundedSender<(usize, Instant)>,
}

/// Shared by all nodes; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expectation(Arc<RwLock<Option<Expected>>>);

/// The arrivals of one change.
#[derive(Debug)]
pub(crate) struct Arrivals(mpsc::UnboundedReceiver<(usize, Instant)>);

impl Expectation {
    /// From now on nodes report the first of these resources that they are sent.
    pub(crate) fn set(&self, names: impl IntoIterator<Item = String>) -> Arrivals {
        let (seen, received) = mpsc::unbounded_channel();
        *self.0.write() = Some(Expected {
            names: names.into_iter().collect(),
            seen,
        });
        Arrivals(received)
    }

    /// A node was sent a resource; says whether that was expected.
    pub(crate) fn arrived(&self, node: usize, name: &str, now: Instant) -> bool {
        let expected = self.0.read();
        let expected = expected.as_ref().filter(|it| it.names.contains(name));
        if let Some(expected) = expected {
            // Nobody may be waiting any more.
            expected.seen.send((node, now)).ok();
        }
        expected.is_some()
    }
}

impl Arrivals {
    /// Waits until every one of these nodes has seen the change; the time of each since `start`.
    pub(crate) async fn all(
        mut self,
        nodes: &[usize],
        start: Instant,
    ) -> anyhow::Result<Vec<Duration>> {
        let mut missing: BTreeSet<usize> = nodes.iter().copied().collect();
        let mut times = Vec::with_capacity(nodes.len());
        while !missing.is_empty() {
            let next = tokio::time::timeout(LIMIT, self.0.recv()).await;
            let Ok(Some((node, at))) = next else {
                bail!(
                    "a change did not come to {} of {} nodes",
                    missing.len(),
                    nodes.len()
                );
            };
            if missing.remove(&node) {
                times.push(at.saturating_duration_since(start));
            }
        }
        Ok(times)
    }
}
