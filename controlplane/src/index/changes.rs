//! What changed between two snapshots, as far as anyone downstream cares.

use std::collections::BTreeSet;

use crate::model::names::ObjectName;

/// What changed.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a table of its own, and any of them may have changed"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Services added, removed or changed.
    pub services: BTreeSet<ObjectName>,
    /// Services whose endpoints changed.
    pub endpoints: BTreeSet<ObjectName>,
    /// Pods added, removed or changed.
    pub workloads: BTreeSet<ObjectName>,
    /// Nodes added, removed or moved.
    pub nodes: BTreeSet<ObjectName>,
    /// Whether any `VirtualService` or `RouteRule` changed.
    pub routes: bool,
    /// Whether any `DestinationRule` changed.
    pub policies: bool,
    /// Whether any `Sidecar` changed.
    pub scopes: bool,
    /// Whether the mesh's settings changed.
    pub mesh: bool,
}

impl ChangeSet {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds another set of changes to this one.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.workloads.extend(other.workloads);
        self.nodes.extend(other.nodes);
        self.routes |= other.routes;
        self.policies |= other.policies;
        self.scopes |= other.scopes;
        self.mesh |= other.mesh;
    }
}
