//! A configuration that tests change at will, and the view of it that sessions are given.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_xds::push::{ConfigView, Generation};
use millrace_xds::{EncodedResource, Selection, TypeUrl, WireResource, proto};

/// Resources by type and name; names that begin with `hidden` are not part of the wildcard.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) generation: u64,
    pub(crate) resources: BTreeMap<TypeUrl, BTreeMap<String, Arc<EncodedResource>>>,
}

impl World {
    pub(crate) fn set(&mut self, type_url: &TypeUrl, name: &str, content: u8) {
        self.put(encode(type_url, name, content));
    }

    pub(crate) fn put(&mut self, resource: EncodedResource) {
        let of_type = self.resources.entry(resource.type_url().clone());
        let name = resource.name().to_owned();
        of_type.or_default().insert(name, Arc::new(resource));
    }

    pub(crate) fn remove(&mut self, type_url: &TypeUrl, name: &str) {
        if let Some(of_type) = self.resources.get_mut(type_url) {
            of_type.remove(name);
        }
    }

    /// Makes what was changed visible as a new generation.
    pub(crate) fn publish(&mut self) -> Generation {
        self.generation += 1;
        Generation(self.generation)
    }

    /// Name to content of all that a subscription covers.
    pub(crate) fn expected(&self, type_url: &TypeUrl, wanted: &Selection) -> BTreeMap<String, u8> {
        self.resources(type_url, wanted)
            .iter()
            .map(|resource| {
                let content = content(type_url, resource.body());
                (resource.name().to_owned(), content)
            })
            .collect()
    }
}

impl ConfigView for World {
    fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    fn resources(&self, type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let of_type = self.resources.get(type_url).into_iter().flatten();
        of_type
            .filter(|(name, _)| {
                selection.names_exactly(name)
                    || selection.globs_match(name)
                    || (selection.is_wildcard() && !name.starts_with("hidden"))
            })
            .map(|(_, resource)| resource.clone())
            .collect()
    }
}

/// A resource whose content is one number, kept in a field that the type happens to have.
pub(crate) fn encode(type_url: &TypeUrl, name: &str, content: u8) -> EncodedResource {
    let text = content.to_string();
    if *type_url == TypeUrl::CLUSTER {
        EncodedResource::encode(&proto::Cluster {
            name: name.into(),
            alt_stat_name: text,
            ..Default::default()
        })
    } else if *type_url == TypeUrl::LISTENER {
        EncodedResource::encode(&proto::Listener {
            name: name.into(),
            stat_prefix: text,
            ..Default::default()
        })
    } else if *type_url == TypeUrl::ROUTE {
        EncodedResource::encode(&proto::RouteConfiguration {
            name: name.into(),
            internal_only_headers: vec![text],
            ..Default::default()
        })
    } else if *type_url == TypeUrl::ENDPOINT {
        let policy = proto::envoy::config::endpoint::v3::cluster_load_assignment::Policy {
            overprovisioning_factor: Some(proto::google::protobuf::UInt32Value {
                value: content.into(),
            }),
            ..Default::default()
        };
        EncodedResource::encode(&proto::ClusterLoadAssignment {
            cluster_name: name.into(),
            policy: Some(policy),
            ..Default::default()
        })
    } else {
        panic!("no content for {type_url}");
    }
}

/// The content that [`encode`] put in.
pub(crate) fn content(type_url: &TypeUrl, body: &[u8]) -> u8 {
    fn decode<M: WireResource>(body: &[u8]) -> M {
        M::decode(body).unwrap()
    }
    let text = if *type_url == TypeUrl::CLUSTER {
        decode::<proto::Cluster>(body).alt_stat_name
    } else if *type_url == TypeUrl::LISTENER {
        decode::<proto::Listener>(body).stat_prefix
    } else if *type_url == TypeUrl::ROUTE {
        decode::<proto::RouteConfiguration>(body).internal_only_headers[0].clone()
    } else {
        let policy = decode::<proto::ClusterLoadAssignment>(body).policy;
        let factor = policy.unwrap().overprovisioning_factor;
        factor.unwrap().value.to_string()
    };
    text.parse().unwrap()
}
