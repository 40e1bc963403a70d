//! From Kubernetes' objects to the model.
//!
//! Input: `k8s-openapi` types; output: model objects with findings on what is wrong in them. Called by
//! [`super::document`] for files; the same functions serve any other source of these objects.

mod endpoints;
mod ingress;
mod pod;
mod service;

pub use self::endpoints::{endpoint_slice, endpoints};
pub use self::ingress::ingress;
pub use self::pod::{deployment, pod};
pub use self::service::service;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::Object;
use crate::model::names::ObjectName;
use crate::model::node::{self, Locality};
use crate::model::validate::Validated;

/// A namespace.
pub fn namespace(object: Namespace, _domain: &str) -> Validated<Object> {
    let name = object.metadata.name.unwrap_or_default();
    Validated::good(Object::Namespace(ObjectName::new("", &name)))
}

/// Labels that say where a node stands: Kubernetes', those that it had before, Istio's for the part of a zone.
const REGION: [&str; 2] = [
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/region",
];
const ZONE: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];
const SUBZONE: [&str; 1] = ["topology.istio.io/subzone"];

/// A node.
pub fn node(object: Node, _domain: &str) -> Validated<Object> {
    let labels = object.metadata.labels.unwrap_or_default();
    let label = |names: &[&str]| -> String {
        let stated = names.iter().find_map(|name| labels.get(*name));
        stated.cloned().unwrap_or_default()
    };
    let node = node::Node {
        name: ObjectName::new("", object.metadata.name.as_deref().unwrap_or_default()),
        locality: Locality {
            region: label(&REGION),
            zone: label(&ZONE),
            subzone: label(&SUBZONE),
        },
    };
    Validated::good(Object::Node(Arc::new(node)))
}

/// A service account.
#[expect(
    clippy::needless_pass_by_value,
    reason = "every converter takes the object it was read as"
)]
pub fn service_account(object: ServiceAccount, _domain: &str) -> Validated<Object> {
    Validated::good(Object::ServiceAccount(name_of(&object.metadata)))
}

/// Namespace and name, `default` where no namespace is given.
fn name_of(metadata: &ObjectMeta) -> ObjectName {
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default");
    ObjectName::new(namespace, metadata.name.as_deref().unwrap_or_default())
}

/// When the API server made the object.
fn created(metadata: &ObjectMeta) -> Option<String> {
    let time = metadata.creation_timestamp.as_ref()?;
    serde_json::to_value(time).ok()?.as_str().map(str::to_owned)
}

/// A port number, which Kubernetes keeps as an `i32`.
fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
