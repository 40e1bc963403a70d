//! Istio's objects as their YAML has them, field by field, unjudged.
//!
//! [`crate::model::validate`] turns them into the model. Fields that nothing executes are read as
//! [`Unexecuted`], so that they can be named instead of dropped.

mod destination_rule;
mod egress_rule;
mod gateway;
mod gateway_api;
mod route_rule;
mod service_entry;
mod sidecar;
mod virtual_service;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

pub use self::destination_rule::*;
pub use self::egress_rule::*;
pub use self::gateway::*;
pub use self::gateway_api::*;
pub use self::route_rule::*;
pub use self::service_entry::*;
pub use self::sidecar::*;
pub use self::virtual_service::*;

/// The part of an object's metadata that pilot reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The name.
    pub name: String,
    /// The namespace; `default` where absent.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The labels.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// The annotations.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    /// When the API server made it.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
    #[serde(default, rename = "uid")]
    _uid: Option<String>,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: Option<String>,
    #[serde(default, rename = "generation")]
    _generation: Option<i64>,
    #[serde(default, rename = "generateName")]
    _generate_name: Option<String>,
    #[serde(default, rename = "deletionTimestamp")]
    _deletion_timestamp: Option<String>,
    #[serde(default, rename = "deletionGracePeriodSeconds")]
    _deletion_grace_period: Option<i64>,
    #[serde(default, rename = "selfLink")]
    _self_link: Option<String>,
    #[serde(default, rename = "finalizers")]
    _finalizers: Option<Unexecuted>,
    #[serde(default, rename = "managedFields")]
    _managed_fields: Option<Unexecuted>,
    #[serde(default, rename = "ownerReferences")]
    _owner_references: Option<Unexecuted>,
}

impl Metadata {
    /// The namespace, or `default`.
    pub fn namespace(&self) -> &str {
        self.namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or("default")
    }
}

/// A field that the kind has and this release does not execute: only that it is there matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexecuted;

impl<'de> Deserialize<'de> for Unexecuted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Swallow)
    }
}

/// The names of the fields of an object that are not read one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherFields(pub Vec<String>);

impl<'de> Deserialize<'de> for OtherFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Names)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = OtherFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<OtherFields, A::Error> {
        let mut names = Vec::new();
        while let Some((name, _)) = access.next_entry::<String, Unexecuted>()? {
            names.push(name);
        }
        Ok(OtherFields(names))
    }
}

/// Reads everything below, so that it does not count as unknown.
struct Swallow;

impl<'de> Visitor<'de> for Swallow {
    type Value = Unexecuted;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unexecuted, E> {
        Ok(Unexecuted)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unexecuted, E> {
        Ok(Unexecuted)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unexecuted, E> {
        Ok(Unexecuted)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unexecuted, E> {
        Ok(Unexecuted)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unexecuted, E> {
        Ok(Unexecuted)
    }

    fn visit_unit<E>(self) -> Result<Unexecuted, E> {
        Ok(Unexecuted)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Unexecuted, A::Error> {
        while access.next_element::<Unexecuted>()?.is_some() {}
        Ok(Unexecuted)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unexecuted, A::Error> {
        while access.next_key::<IgnoredAny>()?.is_some() {
            access.next_value::<Unexecuted>()?;
        }
        Ok(Unexecuted)
    }
}

#[cfg(test)]
mod manifests;
