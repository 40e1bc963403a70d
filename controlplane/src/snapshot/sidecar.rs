//! Which `Sidecar` is for whom.

use std::sync::Arc;

use super::MeshSnapshot;
use crate::model::mesh::OutboundPolicy;
use crate::model::sidecar::Sidecar;
use crate::model::workload::{Workload, selects};

impl MeshSnapshot {
    /// The `Sidecar` for all pods of a namespace: its own, else that of the mesh's root namespace; the
    /// oldest of several.
    pub fn sidecar_of(&self, namespace: &str) -> Option<&Arc<Sidecar>> {
        let for_all = |sidecar: &&Arc<Sidecar>| sidecar.selector.is_empty();
        oldest(self.sidecars_in(namespace).filter(for_all)).or_else(|| {
            let root = self.mesh.root_namespace.as_str();
            oldest(self.sidecars_in(root).filter(for_all))
        })
    }

    /// The `Sidecar` that says at which ports a pod is reached: one that selects it goes first.
    pub fn sidecar_for(&self, workload: &Workload) -> Option<&Arc<Sidecar>> {
        let selected = self
            .sidecars_in(&workload.name.namespace)
            .filter(|sidecar| selects(&sidecar.selector, &workload.labels));
        oldest(selected).or_else(|| self.sidecar_of(&workload.name.namespace))
    }

    /// What happens to a namespace's traffic that belongs to no service.
    pub fn outbound_policy(&self, namespace: &str) -> OutboundPolicy {
        let own = self
            .sidecar_of(namespace)
            .and_then(|sidecar| sidecar.outbound);
        own.unwrap_or(self.mesh.outbound)
    }

    fn sidecars_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.sidecars.in_namespace(namespace)
    }
}

fn oldest<'a>(sidecars: impl Iterator<Item = &'a Arc<Sidecar>>) -> Option<&'a Arc<Sidecar>> {
    sidecars.min_by_key(|sidecar| {
        (
            sidecar.created.is_none(),
            sidecar.created.clone(),
            sidecar.name.clone(),
        )
    })
}
