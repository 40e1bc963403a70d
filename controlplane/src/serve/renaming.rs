//! The era's names over xDS: resources of today under Istio 0.7's names, for sidecars that ask for them.
//!
//! Input: resources as [`crate::translate`] makes them; output: the same with clusters, virtual hosts and spans named
//! as the REST v1 documents name them. What they do is not changed. Called by [`crate::serve`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use millrace_xds::node::Node;
use millrace_xds::proto::{Cluster, ClusterLoadAssignment, Listener, RouteConfiguration};
use millrace_xds::server::Generation;
use millrace_xds::subscription::Selection;
use millrace_xds::{EncodedResource, Version, WireResource, json};
use parking_lot::Mutex;
use serde_json::Value;

use crate::legacy::endpoints;
use crate::legacy::names::{self, ServiceKey};
use crate::legacy::routes::DEFAULT_ROUTE;
use crate::model::names::{ClusterName, Hostname};
use crate::model::workload::Labels;
use crate::snapshot::MeshSnapshot;
use crate::translate::{ProxyView, ResourceKind};

/// The key of metadata by which a sidecar asks for the era's names, and what it says there.
const GENERATOR: (&str, &str) = ("GENERATOR", "legacy");

/// Whether a client is a sidecar that asks for the era's names.
pub(crate) fn is_asked_for(node: &Node, view: &ProxyView) -> bool {
    let asked = node.text(GENERATOR.0) == Some(GENERATOR.1);
    asked && matches!(view, ProxyView::Sidecar { .. })
}

/// Renamed resources of the newest generation, made once for all who get the same.
#[derive(Debug, Default)]
pub(crate) struct Renamed(Mutex<(Generation, HashMap<Key, Arc<EncodedResource>>)>);

/// A resource of today: names of ports and labels of subsets are part of what a generation says.
type Key = (ResourceKind, Arc<str>, Version);

/// A snapshot as clients of one namespace name it.
#[derive(Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) snapshot: &'a MeshSnapshot,
    pub(crate) namespace: &'a str,
}

impl Renamed {
    /// The resources under the era's names, each name once: subsets with the same labels share one.
    pub(crate) fn all(
        &self,
        names: Names<'_>,
        generation: Generation,
        (kind, resources): (ResourceKind, Vec<Arc<EncodedResource>>),
    ) -> Vec<Arc<EncodedResource>> {
        let mut seen = BTreeSet::new();
        let mut renamed = Vec::with_capacity(resources.len());
        for resource in resources {
            let resource = self.one(names, generation, (kind, resource));
            if seen.insert(resource.shared_name().clone()) {
                renamed.push(resource);
            }
        }
        renamed
    }

    fn one(
        &self,
        names: Names<'_>,
        generation: Generation,
        (kind, resource): (ResourceKind, Arc<EncodedResource>),
    ) -> Arc<EncodedResource> {
        let name = resource.shared_name().clone();
        let key = (kind, name, resource.version().clone());
        {
            let mut kept = self.0.lock();
            if kept.0 < generation {
                *kept = (generation, HashMap::new());
            }
            if kept.0 == generation
                && let Some(renamed) = kept.1.get(&key)
            {
                return Arc::clone(renamed);
            }
        }
        let made = match kind {
            ResourceKind::Cluster => renamed::<Cluster>(names, &resource),
            ResourceKind::Endpoints => renamed::<ClusterLoadAssignment>(names, &resource),
            ResourceKind::Listener => renamed::<Listener>(names, &resource),
            ResourceKind::Route => renamed::<RouteConfiguration>(names, &resource),
            ResourceKind::NameTable => None,
        };
        // What cannot be read cannot be served under any name, and has no cluster in it.
        let made = made.map_or(resource, Arc::new);
        let mut kept = self.0.lock();
        if kept.0 == generation {
            kept.1.insert(key, Arc::clone(&made));
        }
        made
    }
}

fn renamed<M: WireResource>(
    names: Names<'_>,
    resource: &EncodedResource,
) -> Option<EncodedResource> {
    let mut value = json::any_to_value(&resource.to_any()).ok()?;
    names.rename(&mut value);
    let any = json::any_from_value(&value).ok()?;
    let message = M::decode(any.value.as_slice()).ok()?;
    Some(EncodedResource::encode(&message).with_ttl(resource.ttl()))
}

impl Names<'_> {
    /// What a client asks for, in today's names. What means nothing stays as it is, and is not there.
    pub(crate) fn modern(&self, kind: ResourceKind, selection: &Selection) -> Selection {
        let of_clusters = matches!(kind, ResourceKind::Cluster | ResourceKind::Endpoints);
        let term = |term: String| match self.modern_cluster(&term).filter(|_| of_clusters) {
            Some(name) => name.to_string(),
            None => term,
        };
        selection.terms().map(term).collect()
    }

    fn modern_cluster(&self, name: &str) -> Option<ClusterName> {
        if let Some(port) = name.strip_prefix("in.") {
            let port = port.parse().ok()?;
            return Some(ClusterName::Inbound { port });
        }
        let key: ServiceKey = name.strip_prefix("out.")?.parse().ok()?;
        let host = Hostname::literal(&key.host).ok()?;
        let mut services = self.snapshot.services_with(&host);
        let (service, port) = services.find_map(|service| {
            let port = endpoints::port(service, &key.port)?;
            self.snapshot
                .service_on(&host, port.port, Some(self.namespace))
                .filter(|meant| meant.name == service.name)
                .map(|meant| (meant, port))
        })?;
        if key.labels.is_empty() {
            return Some(ClusterName::outbound(port.port, "", &host));
        }
        let policy = self.snapshot.policy_of(service, Some(self.namespace));
        let subsets = policy.subsets();
        let subset = subsets.values().find(|it| it.labels == key.labels)?;
        Some(ClusterName::outbound(port.port, &subset.name, &host))
    }

    fn cluster(&self, name: &ClusterName) -> Option<String> {
        let (port, subset, host) = match name {
            ClusterName::Inbound { port } => return Some(names::inbound(*port)),
            ClusterName::Outbound { port, subset, host } => (*port, subset, host),
            _ => return None,
        };
        let service = self.snapshot.service_on(host, port, Some(self.namespace))?;
        let labels = if subset.is_empty() {
            Labels::new()
        } else {
            let policy = self.snapshot.policy_of(service, Some(self.namespace));
            policy.subsets().remove(subset)?.labels
        };
        let key = ServiceKey::of(service, service.port(port)?, &labels);
        Some(format!("out.{key}"))
    }

    /// Names of clusters stand as texts of their own, wherever they are.
    fn rename(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let name = text.parse::<ClusterName>().ok();
                if let Some(renamed) = name.and_then(|name| self.cluster(&name)) {
                    *text = renamed;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.rename(item)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    if key == "virtual_hosts" {
                        let hosts = value.as_array_mut().into_iter().flatten();
                        hosts.for_each(|host| self.virtual_host(host));
                    }
                    self.rename(value);
                }
            }
            _ => {}
        }
    }

    fn virtual_host(&self, host: &mut Value) {
        let name = host["name"].as_str().and_then(|name| self.host_name(name));
        if let Some(name) = name {
            host["name"] = name.into();
        }
        let routes = host.get_mut("routes").and_then(Value::as_array_mut);
        for route in routes.into_iter().flatten() {
            if route.get("decorator").is_none() {
                continue;
            }
            let rule = route["metadata"]["filter_metadata"]["istio"]["config"].as_str();
            let rule = rule.and_then(|config| config.rsplit('/').next());
            let operation: Value = rule.unwrap_or(DEFAULT_ROUTE).into();
            route["decorator"]["operation"] = operation;
        }
    }

    fn host_name(&self, name: &str) -> Option<String> {
        if let Some(port) = name.strip_prefix("inbound|http|") {
            return Some(format!("inbound|{port}"));
        }
        let (host, port) = name.rsplit_once(':')?;
        let (host, port) = (Hostname::literal(host).ok()?, port.parse().ok()?);
        let service = self
            .snapshot
            .service_on(&host, port, Some(self.namespace))?;
        let key = ServiceKey::of(service, service.port(port)?, &Labels::new());
        Some(key.to_string())
    }
}
