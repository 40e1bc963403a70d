//! Which namespaces have pods on which node, kept as pods come and go.
//!
//! Input: the pods that a generation changed; output: the namespaces of a node and when they last changed. Kept
//! beside each snapshot by [`super::MeshSource::publish`], asked by [`super::allow`].

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_xds::server::Generation;

use crate::index::ChangeSet;
use crate::model::names::ObjectName;
use crate::snapshot::{MeshSnapshot, Table};

/// The namespaces of every node.
#[derive(Clone, Debug, Default)]
pub(super) struct Residents {
    nodes: Table<String, Resident>,
    /// When a node last lost its last pod.
    emptied: Generation,
}

/// One node's.
#[derive(Clone, Debug, Default)]
struct Resident {
    /// How many pods each has there.
    pods: Arc<BTreeMap<String, usize>>,
    changed: Generation,
}

impl Residents {
    /// Notes what a generation changed.
    pub(super) fn record(
        &mut self,
        changes: &ChangeSet,
        (before, after): (&MeshSnapshot, &MeshSnapshot),
        generation: Generation,
    ) {
        for pod in &changes.workloads {
            let (old, new) = (node_of(before, pod), node_of(after, pod));
            if old == new {
                continue;
            }
            if let Some(node) = old {
                self.leave(node, &pod.namespace, generation);
            }
            if let Some(node) = new {
                self.enter(node, &pod.namespace, generation);
            }
        }
    }

    fn enter(&mut self, node: &str, namespace: &str, generation: Generation) {
        let mut resident = self.nodes.get(node).cloned().unwrap_or_default();
        let pods = Arc::make_mut(&mut resident.pods);
        let count = pods.entry(namespace.to_owned()).or_default();
        *count += 1;
        if *count == 1 {
            resident.changed = generation;
        }
        self.nodes.insert(node.to_owned(), resident);
    }

    fn leave(&mut self, node: &str, namespace: &str, generation: Generation) {
        let Some(resident) = self.nodes.get_mut(node) else {
            return;
        };
        let pods = Arc::make_mut(&mut resident.pods);
        let Some(count) = pods.get_mut(namespace) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        pods.remove(namespace);
        resident.changed = generation;
        if pods.is_empty() {
            // Names of nodes come and go too.
            self.nodes.remove(node);
            self.emptied = generation;
        }
    }

    /// Whether a namespace has pods on a node.
    pub(super) fn has(&self, node: &str, namespace: &str) -> bool {
        let resident = self.nodes.get(node);
        resident.is_some_and(|resident| resident.pods.contains_key(namespace))
    }

    /// The namespaces that have pods on a node.
    pub(super) fn namespaces(&self, node: &str) -> impl Iterator<Item = &str> {
        let resident = self.nodes.get(node).into_iter();
        resident.flat_map(|resident| resident.pods.keys().map(String::as_str))
    }

    /// When a node's namespaces last changed, or later.
    pub(super) fn changed(&self, node: &str) -> Generation {
        let resident = self.nodes.get(node);
        resident.map_or(self.emptied, |resident| resident.changed)
    }
}

/// The node that a pod is bound to.
pub(super) fn node_of<'a>(snapshot: &'a MeshSnapshot, pod: &ObjectName) -> Option<&'a str> {
    snapshot.workloads.get(pod)?.node.as_deref()
}
