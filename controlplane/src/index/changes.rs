//! What changed between two snapshots, as far as anyone downstream cares.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::names::{Hostname, ObjectName};
use crate::model::route::VirtualService;
use crate::model::service::{Service, ServiceKind};

/// What changed.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a table of its own, and any of them may have changed"
)]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangeSet {
    /// Services added, removed or changed.
    pub services: BTreeSet<ObjectName>,
    /// These services as they were and as they are.
    pub versions: Vec<Arc<Service>>,
    /// Services whose endpoints changed.
    pub endpoints: BTreeSet<ObjectName>,
    /// Their hosts.
    pub moved: BTreeSet<Hostname>,
    /// Whether any of them is headless, so that its addresses are in listeners and in the table of names.
    pub headless: bool,
    /// Pods added, removed or changed.
    pub workloads: BTreeSet<ObjectName>,
    /// Nodes added, removed or moved.
    pub nodes: BTreeSet<ObjectName>,
    /// Whether any route of any kind changed.
    pub routes: bool,
    /// `VirtualServices` that have hosts, as they were and as they are.
    pub rules: Vec<Arc<VirtualService>>,
    /// Whether any `RouteRule` changed, whose labels make subsets.
    pub labels: bool,
    /// Whether any route of the Gateway API changed, or what it may refer to.
    pub attached: bool,
    /// Whether any `DestinationRule` changed.
    pub policies: bool,
    /// The hosts that these name.
    pub ruled: BTreeSet<Hostname>,
    /// Whether any `Sidecar` changed.
    pub scopes: bool,
    /// The namespaces that these are in.
    pub scoped: BTreeSet<Arc<str>>,
    /// Whether any gateway changed.
    pub gateways: bool,
    /// Whether the mesh's settings changed.
    pub mesh: bool,
}

impl ChangeSet {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The endpoints of a service changed.
    pub(super) fn note_endpoints(&mut self, service: Option<&Arc<Service>>) {
        let Some(service) = service else {
            return;
        };
        self.moved.insert(service.hostname.clone());
        self.headless |= service.kind == ServiceKind::Headless;
    }
}
