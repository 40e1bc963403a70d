//! From the mesh to xDS: pure functions of a snapshot, a proxy's view of it, and a resource's name.
//!
//! Input: [`MeshSnapshot`], [`ProxyView`]; output: encoded resources. The only code besides
//! [`crate::serve`] that knows proto. A resource is made from its name alone, so that clients which ask
//! by name cost what they ask for, and equal inputs give equal bytes.

mod canonical;
mod cluster;
mod endpoint;
mod fault;
mod filter;
mod gateway;
mod grpc;
mod hash;
mod inbound;
mod listener;
mod names;
mod netns;
mod outlier;
mod route;
mod route_action;
mod route_match;
mod view;
mod wrap;

use std::sync::Arc;

use millrace_xds::proto;
use millrace_xds::{EncodedResource, TypeUrl};

pub(crate) use self::endpoint::once_per_pod;
pub(crate) use self::inbound::{is_name as is_inbound_name, name_of as inbound_name};
pub(crate) use self::view::Part;
pub use self::view::{InvalidView, ProxyView, Scope};

use crate::model::endpoint::ServiceEndpoints;
use crate::model::names::{ClusterName, ObjectName};
use crate::model::near::Place;
use crate::model::route::{Destination, Reference};
use crate::snapshot::MeshSnapshot;

/// The types that pilot makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// NDS.
    NameTable,
}

impl ResourceKind {
    /// All of them, in push order.
    pub const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Route,
        Self::NameTable,
    ];

    /// The kind of a type URL; none for types that pilot does not make.
    pub fn of(type_url: &TypeUrl) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == *type_url)
    }

    /// The type URL of the kind.
    pub fn type_url(self) -> TypeUrl {
        match self {
            Self::Cluster => TypeUrl::CLUSTER,
            Self::Endpoints => TypeUrl::ENDPOINT,
            Self::Listener => TypeUrl::LISTENER,
            Self::Route => TypeUrl::ROUTE,
            Self::NameTable => TypeUrl::NAME_TABLE,
        }
    }
}

/// A snapshot as one proxy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Translator<'a> {
    snapshot: &'a MeshSnapshot,
    view: &'a ProxyView,
}

impl<'a> Translator<'a> {
    /// A snapshot as one proxy sees it.
    pub fn new(snapshot: &'a MeshSnapshot, view: &'a ProxyView) -> Self {
        Self { snapshot, view }
    }

    /// The names of everything that this proxy is meant to have without asking by name.
    pub fn names(&self, kind: ResourceKind) -> Vec<String> {
        match kind {
            ResourceKind::Cluster => cluster::names(self),
            ResourceKind::Endpoints => endpoint::names(self),
            ResourceKind::Listener => listener::names(self),
            ResourceKind::Route => route::names(self),
            ResourceKind::NameTable => vec![names::NAME.to_owned()],
        }
    }

    /// What clients of a namespace call a cluster: pods of a node share one, unless this namespace sees
    /// the service, or the rules for it, in a way of its own.
    fn cluster_name(&self, namespace: &str, name: &ClusterName) -> String {
        let own = match (self.view, name) {
            (ProxyView::Node { .. }, ClusterName::Outbound { port, host, .. }) => {
                self.snapshot.has_own_cluster(host, *port, namespace)
            }
            _ => false,
        };
        if own {
            self.view.join(namespace, &name.to_string())
        } else {
            name.to_string()
        }
    }

    /// The cluster that a route of a namespace's clients means for what came to `port`. One that nobody
    /// allowed has a name that no cluster has.
    fn destination(&self, namespace: &str, to: &Destination, port: u16) -> String {
        if let Some(Reference { kind, from, to }) = &to.reference
            && !self.snapshot.is_granted(*kind, from, to)
        {
            return format!("not-granted|{to}");
        }
        let name = self.snapshot.cluster_of(to, port, Some(namespace));
        self.cluster_name(namespace, &name)
    }

    /// The endpoints that an EDS resource is made from; none where it has none.
    pub(crate) fn endpoints_behind(&self, name: &str) -> Option<&'a Arc<ServiceEndpoints>> {
        let service = cluster::source(self, name)?.service;
        self.snapshot.endpoints.get(&service.name)
    }

    /// Where the client stands: as it says, else where its pod runs, in the zone that the node's object has.
    pub(crate) fn place(&self) -> Place {
        let mut place = self.view.stated_place();
        if place.node.is_empty() {
            let pod = self.view.own_pod();
            let pod = pod.and_then(|pod| self.snapshot.workloads.get(&pod));
            place.node = pod.and_then(|pod| pod.node.clone()).unwrap_or_default();
        }
        if place.zone.is_empty() {
            let node = self.snapshot.nodes.get(&ObjectName::new("", &place.node));
            place.zone = node.map_or_else(String::new, |node| node.locality.zone.clone());
        }
        place
    }

    /// The names in a collection (`<prefix>/*`) of this proxy: listeners of a namespace or of its pods.
    pub fn collection(&self, kind: ResourceKind, prefix: &str) -> Vec<String> {
        match kind {
            ResourceKind::Listener => listener::collection(self, prefix),
            _ => Vec::new(),
        }
    }

    /// Makes a resource; none when the mesh has nothing of that name.
    pub fn resource(&self, kind: ResourceKind, name: &str) -> Option<EncodedResource> {
        let body = match kind {
            ResourceKind::Cluster => cluster::cluster(self, name)?,
            ResourceKind::Endpoints => proto::pack(&endpoint::assignment(self, name)?).value,
            ResourceKind::Listener => canonical::listener(listener::listener(self, name)?),
            ResourceKind::Route => canonical::configuration(route::configuration(self, name)?),
            ResourceKind::NameTable => {
                (name == names::NAME).then(|| proto::pack(&names::table(self)).value)?
            }
        };
        Some(EncodedResource::from_bytes(
            kind.type_url(),
            name,
            body.into(),
        ))
    }
}

#[cfg(test)]
mod tests;
