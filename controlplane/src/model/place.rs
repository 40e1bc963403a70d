//! The place in somebody's configuration that a resource comes from: an object, and a field of it.
//!
//! Noted by [`super::validate`] on every rule, written into resources by [`crate::translate`] in Istio's form, and
//! read back by pilot's admin port, which knows the file and line behind it. Lines themselves are not pushed:
//! one line more at the top of a file would be a new version of everything below it.

use std::sync::Arc;

use super::names::ObjectName;
use super::{Kind, ObjectId};

/// An object, or a field of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The object.
    pub object: ObjectId,
    /// The field's path from the object's root, such as `spec.http[0]`; empty for the whole object.
    pub field: String,
}

impl Place {
    /// A field of an object.
    pub fn new(kind: Kind, name: &ObjectName, field: impl Into<String>) -> Self {
        Self {
            object: ObjectId {
                kind,
                name: name.clone(),
            },
            field: field.into(),
        }
    }

    /// As a rule keeps it.
    pub fn shared(kind: Kind, name: &ObjectName, field: impl Into<String>) -> Option<Arc<Self>> {
        Some(Arc::new(Self::new(kind, name, field)))
    }

    /// The object as Istio writes it into a resource's metadata:
    /// `/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews`.
    pub fn config(&self) -> String {
        let ObjectId { kind, name } = &self.object;
        let (namespace, name) = (&name.namespace, &name.name);
        format!(
            "{}/namespaces/{namespace}/{}/{name}",
            api(*kind),
            dashed(*kind)
        )
    }

    /// The object that [`Place::config`] means; none where the text is nothing of the kind.
    pub fn object_of(config: &str) -> Option<ObjectId> {
        let (group, rest) = config.split_once("/namespaces/")?;
        let mut parts = rest.split('/');
        let (namespace, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let is = |known: &&Kind| dashed(**known) == kind && api(**known) == group;
        let known = Kind::ALL.iter().find(is)?;
        parts.next().is_none().then(|| ObjectId {
            kind: *known,
            name: ObjectName::new(namespace, name),
        })
    }
}

/// The group with its newest version.
fn api(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace
        | Kind::Node
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Endpoints
        | Kind::Pod => "/api/v1",
        Kind::EndpointSlice => "/apis/discovery.k8s.io/v1",
        Kind::Deployment => "/apis/apps/v1",
        Kind::Ingress => "/apis/networking.k8s.io/v1",
        Kind::VirtualService
        | Kind::DestinationRule
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::Sidecar
        | Kind::IstioGateway => "/apis/networking.istio.io/v1",
        Kind::RouteRule | Kind::EgressRule => "/apis/config.istio.io/v1alpha2",
        Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TcpRoute
        | Kind::TlsRoute
        | Kind::ReferenceGrant
        | Kind::Gateway
        | Kind::GatewayClass => "/apis/gateway.networking.k8s.io/v1",
    }
}

/// `virtual-service` of `VirtualService`, `http-route` of `HTTPRoute`.
fn dashed(kind: Kind) -> String {
    let letters: Vec<char> = kind.as_str().chars().collect();
    let mut text = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let after_small = at > 0 && letters[at - 1].is_lowercase();
        let before_small = letters.get(at + 1).is_some_and(|next| next.is_lowercase());
        if at > 0 && letter.is_uppercase() && (after_small || before_small) {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_written_as_istio_writes_them_and_read_back() {
        let name = ObjectName::new("default", "reviews");
        let istio = Place::new(Kind::VirtualService, &name, "spec.http[0]");
        let expected = "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews";
        assert_eq!(istio.config(), expected);
        for kind in Kind::ALL {
            let place = Place::new(*kind, &name, "");
            let read = Place::object_of(&place.config()).unwrap();
            assert_eq!(read, place.object, "{kind:?}");
        }
        let api = Place::new(Kind::HttpRoute, &name, "").config();
        assert!(api.ends_with("/http-route/reviews"), "{api}");
        for text in ["", "/apis/x/namespaces/a/b", "/namespaces/a/nothing/b"] {
            assert_eq!(Place::object_of(text), None, "{text}");
        }
    }
}
