//! Configuration for other control planes: objects as MCP servers send them (`millrace_xds::mcp`).
//!
//! Input: what people have said of objects, and services of a snapshot; output: encoded resources of the types
//! `group/version/Kind`. Services that no object of configuration states go as `ServiceEntries`, as Istio sends them, so
//! that a client needs no registry of its own. Asked by [`super::MeshView`], kept up by the writer.

mod services;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use millrace_xds::mcp;
use millrace_xds::node::Node;
use millrace_xds::{EncodedResource, TypeUrl, Version};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::kube::document::Origin;
use crate::model::endpoint::ServiceEndpoints;
use crate::model::names::ObjectName;
use crate::model::service::Service;
use crate::model::{Kind, ObjectId};
use crate::registry::kubernetes::{CONFIG_KINDS, ConfigKind};
use crate::snapshot::{MeshSnapshot, Table};

/// The objects of a moment. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects(Table<ObjectId, Arc<Stated>>);

/// An object, encoded when it is first asked for.
#[derive(Debug)]
struct Stated {
    text: Arc<str>,
    encoded: OnceLock<Option<Arc<EncodedResource>>>,
}

/// What [`Origin::text`] has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    metadata: SaidMetadata,
    spec: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SaidMetadata {
    labels: std::collections::BTreeMap<String, String>,
    annotations: std::collections::BTreeMap<String, String>,
    creation_timestamp: String,
}

impl Objects {
    /// An object stands there, or nowhere; whether that is news.
    pub(crate) fn set(&mut self, id: &ObjectId, origin: Option<&Origin>) -> bool {
        if config_kind(id.kind).is_none() {
            return false;
        }
        let Some(origin) = origin else {
            return self.0.remove(id).is_some();
        };
        let text = origin.text();
        if self.0.get(id).is_some_and(|known| known.text == text) {
            return false;
        }
        let stated = Stated {
            text,
            encoded: OnceLock::new(),
        };
        self.0.insert(id.clone(), Arc::new(stated));
        true
    }

    fn states(&self, service: &Service) -> bool {
        let entry = service.entry();
        entry.is_some_and(|entry| self.0.contains_key(&entry.object))
    }
}

impl Stated {
    fn encoded(&self, kind: &ConfigKind, id: &ObjectId) -> Option<Arc<EncodedResource>> {
        let encode = || {
            let said: Said = serde_json::from_str(&self.text).ok()?;
            let object = mcp::Object {
                namespace: id.name.namespace.to_string(),
                name: id.name.name.to_string(),
                created: said.metadata.creation_timestamp,
                version: Version::of(self.text.as_bytes()).as_str().to_owned(),
                labels: said.metadata.labels,
                annotations: said.metadata.annotations,
                spec: said.spec,
                unknown: Vec::new(),
            };
            pack(kind, &object).map(Arc::new)
        };
        self.encoded.get_or_init(encode).clone()
    }
}

/// Services as they were encoded last.
#[derive(Debug, Default)]
pub(super) struct Services(Mutex<HashMap<ObjectName, Encoded>>);

#[derive(Debug)]
struct Encoded {
    service: Arc<Service>,
    endpoints: Option<Arc<ServiceEndpoints>>,
    resource: Arc<EncodedResource>,
}

impl Services {
    /// Those that no object states. What has not changed is not encoded again.
    fn encoded(&self, objects: &Objects, snapshot: &MeshSnapshot) -> Vec<Arc<EncodedResource>> {
        let Some(kind) = config_kind(Kind::ServiceEntry) else {
            return Vec::new();
        };
        let mut known = self.0.lock();
        let mut before = std::mem::take(&mut *known);
        let unstated = snapshot.services.iter();
        for (name, service) in unstated.filter(|(_, service)| !objects.states(service)) {
            let endpoints = snapshot.endpoints.get(name);
            let same = |encoded: &Encoded| {
                let have = encoded.endpoints.as_ref();
                let same_endpoints = match (have, endpoints) {
                    (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                    (one, other) => one.is_none() && other.is_none(),
                };
                Arc::ptr_eq(&encoded.service, service) && same_endpoints
            };
            let last = before.remove(name).filter(same);
            let encoded = last.or_else(|| {
                let object = services::entry(service, endpoints.map(Arc::as_ref))?;
                Some(Encoded {
                    service: Arc::clone(service),
                    endpoints: endpoints.cloned(),
                    resource: Arc::new(pack(kind, &object)?),
                })
            });
            if let Some(encoded) = encoded {
                known.insert(name.clone(), encoded);
            }
        }
        let mut all: Vec<_> = known.values().map(|it| Arc::clone(&it.resource)).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }
}

/// Whether a client says, as Istio's do, that it reads objects, and not what a proxy gets of them.
pub(super) fn are_read_by(node: &Node) -> bool {
    node.text("GENERATOR") == Some("api")
}

/// Everything of a type; nothing of types that are none of configuration.
pub(super) fn resources(
    type_url: &TypeUrl,
    objects: &Objects,
    snapshot: &MeshSnapshot,
    services: &Services,
) -> Vec<Arc<EncodedResource>> {
    let kind = type_url.object_kind().and_then(|(group, version, kind)| {
        CONFIG_KINDS.iter().find(|known| {
            (known.group, known.kind.as_str()) == (group, kind) && known.versions.contains(&version)
        })
    });
    let Some(kind) = kind else {
        return Vec::new();
    };
    let stated = objects.0.iter().filter(|(id, _)| id.kind == kind.kind);
    let mut all: Vec<_> = stated
        .filter_map(|(id, stated)| stated.encoded(kind, id))
        .collect();
    if kind.kind == Kind::ServiceEntry {
        all.extend(services.encoded(objects, snapshot));
    }
    all
}

fn config_kind(kind: Kind) -> Option<&'static ConfigKind> {
    CONFIG_KINDS.iter().find(|known| known.kind == kind)
}

/// An object on the wire; none, and a line in the log, where it cannot be said.
fn pack(kind: &ConfigKind, object: &mcp::Object) -> Option<EncodedResource> {
    let name = kind.kind.as_str();
    let version = kind.versions.first()?;
    let type_url = TypeUrl::from(&*format!("{}/{version}/{name}", kind.group));
    let title = format!("{}/{}", object.namespace, object.name);
    match mcp::pack(kind.group, name, object) {
        Ok(body) => {
            let full = if object.namespace.is_empty() {
                &object.name
            } else {
                &title
            };
            Some(EncodedResource::from_bytes(type_url, full, body.into()))
        }
        Err(error) => {
            tracing::warn!(kind = name, object = title, %error, "an object cannot be sent on");
            None
        }
    }
}

#[cfg(test)]
mod tests;
