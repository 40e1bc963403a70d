//! The seed era's rendering of the mesh: Envoy's REST v1 API with the names that Istio 0.7 gave.
//!
//! Input: the newest [`MeshSnapshot`](crate::snapshot::MeshSnapshot), and paths that say who asks; output: the JSON
//! documents of LDS, RDS, CDS and SDS ([`schema`]), which Envoys up to 1.7 poll. What that API has no words for is
//! left out and named in the log. Started by [`crate::app`] where a flag says so; [`bootstrap`] is what such an Envoy
//! is started with.

pub mod bootstrap;
mod clusters;
mod conditions;
pub(crate) mod endpoints;
mod inbound;
mod listeners;
pub mod names;
pub(crate) mod routes;
pub mod schema;
pub(crate) mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use millrace_xds::node::{Node, NodeId};

use self::schema::Cluster;
use crate::model::names::ObjectName;
use crate::model::route::HttpRoute;
use crate::model::workload::Workload;
use crate::snapshot::MeshSnapshot;
use crate::translate::{InvalidView, ProxyView};

/// The sidecar that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    namespace: String,
    pod: ObjectName,
    addresses: Vec<IpAddr>,
}

impl std::str::FromStr for Client {
    type Err = InvalidView;

    /// Reads a service node, `sidecar~<ip>~<pod>.<namespace>~<domain>`.
    fn from_str(service_node: &str) -> Result<Self, InvalidView> {
        let id: NodeId = service_node.parse()?;
        match ProxyView::of_node(&Node::new(&id))? {
            ProxyView::Sidecar {
                namespace,
                pod,
                addresses,
                ..
            } => Ok(Self {
                pod: ObjectName::new(&namespace, &pod),
                namespace,
                addresses,
            }),
            ProxyView::Node { .. } | ProxyView::Router { .. } | ProxyView::Grpc { .. } => {
                Err(InvalidView::Role {
                    id: service_node.to_owned(),
                    role: id.role.as_str(),
                })
            }
        }
    }
}

/// Makes the documents of one client of one snapshot, and gathers on the way which clusters they name.
#[derive(Debug)]
pub struct Renderer<'a> {
    snapshot: &'a MeshSnapshot,
    client: &'a Client,
    clusters: BTreeMap<String, Cluster>,
    left_out: BTreeSet<String>,
}

impl<'a> Renderer<'a> {
    /// A snapshot as one client sees it.
    pub fn new(snapshot: &'a MeshSnapshot, client: &'a Client) -> Self {
        Self {
            snapshot,
            client,
            clusters: BTreeMap::new(),
            left_out: BTreeSet::new(),
        }
    }

    /// What had no words in the documents made so far: object, field and reason.
    pub fn left_out(&self) -> &BTreeSet<String> {
        &self.left_out
    }

    /// The client's pod, by its name or, where that is unknown, by its address.
    fn workload(&self) -> Option<&'a Arc<Workload>> {
        let pods = &self.snapshot.workloads;
        pods.get(&self.client.pod).or_else(|| {
            let addresses = &self.snapshot.addresses;
            let mut own = self.client.addresses.iter();
            pods.get(own.find_map(|address| addresses.get(address))?)
        })
    }

    /// The addresses of the client's pod, as far as they are known.
    fn own_addresses(&self) -> Vec<IpAddr> {
        let pod = self.workload().filter(|pod| !pod.addresses.is_empty());
        pod.map_or_else(
            || self.client.addresses.clone(),
            |pod| pod.addresses.clone(),
        )
    }

    /// Notes something of a rule that the era's API cannot say.
    fn leave_out(&mut self, rule: &HttpRoute, what: &str) {
        let place = rule.place.as_deref();
        let place = place.map_or_else(String::new, |place| {
            format!("{} {}: ", place.object, place.field)
        });
        self.left_out.insert(format!("{place}{what}"));
    }
}

#[cfg(test)]
mod tests;
