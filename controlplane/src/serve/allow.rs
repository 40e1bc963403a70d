//! What a client may have that has proven who it is: a node what pods on it need, a pod what its namespace may call.
//!
//! Input: a view, a resource's name; output: whether it is served, and whether that may have changed. Asked by
//! [`super::MeshView`] for what is asked for by name: what a wildcard stands for is the client's own anyway. A client that
//! has proven nothing is served whatever it names, on ports that only friends reach.

use millrace_xds::server::Generation;

use super::Published;
use super::residents::node_of;
use crate::model::names::{ClusterName, Hostname};
use crate::translate::{Part, ProxyView, ResourceKind};

impl Published {
    /// Whether a client of this view may have a resource of this name.
    pub(super) fn allows(&self, view: &ProxyView, kind: ResourceKind, name: &str) -> bool {
        match view {
            ProxyView::Node { name: node, .. } => self.allows_node(node, view, kind, name),
            // It lets in what is bound for any of them.
            ProxyView::Router { .. } => true,
            // Their names say nothing of a namespace, so it is their own.
            ProxyView::Sidecar { namespace, .. } | ProxyView::Grpc { namespace, .. } => {
                match view.part(kind, name) {
                    Part::Cluster(_) => match view.split_cluster(name) {
                        Some((_, ClusterName::Outbound { host, port, .. })) => {
                            self.may_call(namespace, &host, Some(port))
                        }
                        _ => true,
                    },
                    Part::Routes(_, Some(host)) => self.may_call(namespace, &host, None),
                    _ => true,
                }
            }
        }
    }

    fn allows_node(&self, node: &str, view: &ProxyView, kind: ResourceKind, name: &str) -> bool {
        match kind {
            ResourceKind::NameTable => true,
            ResourceKind::Cluster | ResourceKind::Endpoints => match view.split_cluster(name) {
                Some((Some(namespace), _)) => self.residents.has(node, namespace),
                Some((None, ClusterName::Outbound { port, host, .. })) => {
                    let service = self.snapshot.service_on(&host, port, None);
                    let mut namespaces = self.residents.namespaces(node);
                    service.is_some_and(|service| {
                        namespaces.any(|namespace| self.snapshot.may_use(namespace, service))
                    })
                }
                _ => true,
            },
            ResourceKind::Listener | ResourceKind::Route => match view.part(kind, name) {
                Part::Inbound { pod: Some(pod), .. } | Part::OutboundOf(pod) => {
                    node_of(&self.snapshot, &pod) == Some(node)
                }
                Part::Outbound(namespace) | Part::Routes(namespace, _) => {
                    self.residents.has(node, namespace)
                }
                _ => false,
            },
        }
    }

    /// Whether pods of a namespace may call a host, or be sent there by a rule.
    fn may_call(&self, namespace: &str, host: &Hostname, port: Option<u16>) -> bool {
        let snapshot = &self.snapshot;
        let Some(sidecar) = snapshot.sidecar_of(namespace) else {
            return true;
        };
        let imported = snapshot.services_with(host).any(|service| {
            let ports = service.ports.iter().map(|declared| declared.port);
            let mut ports = ports.filter(|declared| port.is_none_or(|port| port == *declared));
            ports.any(|port| sidecar.imports(namespace, &service.name.namespace, host, port))
        });
        imported || snapshot.hosts_routed_to(namespace).contains(host)
    }

    /// Whether other names than at `since` may be allowed to a client.
    pub(super) fn allows_others(&self, view: &ProxyView, since: Generation) -> bool {
        match view {
            ProxyView::Node { name, .. } => self.residents.changed(name) > since,
            ProxyView::Router { .. } => false,
            ProxyView::Sidecar { namespace, .. } | ProxyView::Grpc { namespace, .. } => {
                let at = &self.history.revisions;
                let rules = [at.routes, at.labels, at.attached].into_iter().max();
                let confined = || self.snapshot.sidecar_of(namespace).is_some();
                at.scopes > since || (rules.is_some_and(|last| last > since) && confined())
            }
        }
    }
}
