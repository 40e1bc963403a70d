//! Which gateways a pod runs.

use std::sync::Arc;

use super::MeshSnapshot;
use crate::model::gateway::Gateway;
use crate::model::workload::Labels;

impl MeshSnapshot {
    /// The gateways that a pod of a namespace with these labels runs, in the order in which they count.
    pub fn gateways_of(&self, namespace: &str, labels: &Labels) -> Vec<&Arc<Gateway>> {
        let all = self.gateways.values();
        let mut own: Vec<_> = all
            .filter(|gateway| gateway.runs_on(namespace, labels))
            .collect();
        own.sort_by(|a, b| a.order().cmp(&b.order()));
        own
    }
}
