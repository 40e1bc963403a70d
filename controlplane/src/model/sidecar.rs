//! Sidecars: what the pods of a namespace see of the mesh, and which ports they are reached at.

use super::mesh::OutboundPolicy;
use super::names::{Hostname, ObjectName};
use super::service::Protocol;
use super::workload::Labels;

/// What pods see of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was created, as RFC 3339 text; sorts before the name where two are for the same pods.
    pub created: Option<String>,
    /// The labels of the pods that it is for; empty for all of its namespace.
    pub selector: Labels,
    /// What pods may call; none where it does not say.
    pub egress: Option<Vec<EgressListener>>,
    /// The ports that pods are reached at; none where it does not say.
    pub ingress: Option<Vec<IngressListener>>,
    /// What happens to traffic that belongs to no service; the mesh's setting where absent.
    pub outbound: Option<OutboundPolicy>,
}

/// Hosts that pods may call, on one port or on all that no other listener is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressListener {
    /// The port; absent for the rest.
    pub port: Option<u16>,
    /// The hosts.
    pub hosts: Vec<Import>,
}

/// Hosts of some namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The namespaces.
    pub namespace: ImportNamespace,
    /// The hosts in them.
    pub host: Hostname,
}

/// Which namespaces hosts are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportNamespace {
    /// Any.
    Any,
    /// None.
    None,
    /// That of the pod, also where the object is for the whole mesh.
    Own,
    /// This one.
    Named(String),
}

/// A port that pods are reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressListener {
    /// The port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
}

impl Import {
    /// Whether pods of `client` get this host of this namespace.
    pub fn includes(&self, client: &str, namespace: &str, host: &Hostname) -> bool {
        let here = match &self.namespace {
            ImportNamespace::Any => true,
            ImportNamespace::None => false,
            ImportNamespace::Own => namespace == client,
            ImportNamespace::Named(name) => name == namespace,
        };
        here && self.host.covers(host)
    }
}

impl Sidecar {
    /// Whether pods of `client` may call a port of a host: by the listener for that port, else by the
    /// one for the rest.
    pub fn imports(&self, client: &str, namespace: &str, host: &Hostname, port: u16) -> bool {
        let Some(egress) = &self.egress else {
            return true;
        };
        let of_port = egress.iter().filter(|listener| listener.port == Some(port));
        let mut listeners: Vec<_> = of_port.collect();
        if listeners.is_empty() {
            listeners = egress
                .iter()
                .filter(|listener| listener.port.is_none())
                .collect();
        }
        let mut hosts = listeners.into_iter().flat_map(|listener| &listener.hosts);
        hosts.any(|import| import.includes(client, namespace, host))
    }

    /// Whether pods of `client` get the rules of a namespace for a host, or for any that it covers.
    pub fn imports_rules(&self, client: &str, namespace: &str, host: &Hostname) -> bool {
        let Some(egress) = &self.egress else {
            return true;
        };
        let mut hosts = egress.iter().flat_map(|listener| &listener.hosts);
        hosts.any(|import| {
            import.includes(client, namespace, host)
                || (host.covers(&import.host) && import.includes(client, namespace, &import.host))
        })
    }
}
