//! Configuration as servers of the Mesh Configuration Protocol send it over xDS: types called `group/version/Kind`,
//! each resource an `istio.mcp.v1alpha1.Resource` with an object's metadata and its spec.
//!
//! In: packed resources, or objects. Out: the other of the two. A spec is a message of its kind, in JSON what its YAML
//! says, or a `google.protobuf.Struct` of kinds without a message. Used by both ends of pilot.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage as _, SerializeOptions,
    Value as Field,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::proto::{self, Any};
use crate::reflect;

/// What every resource is packed as, whatever its type is called.
pub(crate) const RESOURCE: &str = "type.googleapis.com/istio.mcp.v1alpha1.Resource";
const STRUCT: &str = "google.protobuf.Struct";
/// The package of the messages that specs of these groups are.
const MESSAGES: [(&str, &str); 1] = [("networking.istio.io", "istio.networking.v1alpha3")];
const AT_TYPE: &str = "@type";

/// An object of a server's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// The namespace; empty for kinds that have none.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// When it was made, as RFC 3339 has it; empty where that is not known.
    pub created: String,
    /// Differs when the object does; opaque.
    pub version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What its YAML has under `spec`.
    pub spec: Value,
    /// Paths of what the spec has that this release has no name for.
    pub unknown: Vec<String>,
}

/// Why a resource is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidObject {
    /// It is something else.
    #[error("expected {RESOURCE}, found {0}")]
    Type(String),
    /// Its bytes are broken.
    #[error("malformed {0}")]
    Malformed(String),
    /// It has no name.
    #[error("metadata.name: {0:?} is not <namespace>/<name>")]
    Name(String),
    /// Its spec is of a kind of message that is not known.
    #[error("body: messages {0} are not known")]
    Body(String),
    /// Its spec cannot be said in JSON.
    #[error("body: {0}")]
    Unrepresentable(String),
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    metadata: WireMetadata,
    body: Value,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct WireMetadata {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    create_time: String,
    version: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// The name under which a packed object goes; none where it cannot be read.
pub fn name_of(any: &Any) -> Option<String> {
    let resource = decode(any).ok()?;
    let metadata = resource.get_field_by_name("metadata")?;
    let name = metadata.as_message()?.get_field_by_name("name")?;
    name.as_str().map(str::to_owned)
}

/// Reads a packed object.
///
/// # Errors
/// When it is none, or its spec is of an unknown kind.
pub fn unpack(any: &Any) -> Result<Object, InvalidObject> {
    let resource = decode(any)?;
    let unknown = unknown_of_body(&resource)?;
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let wire = resource
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| InvalidObject::Unrepresentable(error.to_string()))?;
    let wire: Wire = serde_json::from_value(wire)
        .map_err(|error| InvalidObject::Unrepresentable(error.to_string()))?;
    let name = wire.metadata.name;
    let (namespace, own) = name
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or(("", &name));
    if own.is_empty() || own.contains('/') {
        return Err(InvalidObject::Name(name));
    }
    Ok(Object {
        namespace: namespace.to_owned(),
        name: own.to_owned(),
        created: wire.metadata.create_time,
        version: wire.metadata.version,
        labels: wire.metadata.labels,
        annotations: wire.metadata.annotations,
        spec: spec(wire.body),
        unknown,
    })
}

/// Packs an object of a kind of a group.
///
/// # Errors
/// When its metadata cannot be written.
pub fn pack(group: &str, kind: &str, object: &Object) -> Result<Vec<u8>, InvalidObject> {
    let name = if object.namespace.is_empty() {
        object.name.clone()
    } else {
        format!("{}/{}", object.namespace, object.name)
    };
    let metadata = WireMetadata {
        name,
        create_time: object.created.clone(),
        version: object.version.clone(),
        labels: object.labels.clone(),
        annotations: object.annotations.clone(),
    };
    let wire = Wire {
        metadata,
        body: body(group, kind, &object.spec),
    };
    let wire = serde_json::to_value(wire)
        .map_err(|error| InvalidObject::Unrepresentable(error.to_string()))?;
    let resource = DynamicMessage::deserialize(descriptor(proto::message_name(RESOURCE))?, wire)
        .map_err(|error| InvalidObject::Unrepresentable(error.to_string()))?;
    let mut bytes = resource.encode_to_vec();
    reflect::canonicalize(proto::message_name(RESOURCE), &mut bytes);
    Ok(bytes)
}

/// The spec as an `Any` in JSON: a message of its kind where there is one and it fits, else a `Struct`.
fn body(group: &str, kind: &str, spec: &Value) -> Value {
    let package = MESSAGES.iter().find(|(of, _)| *of == group);
    let name = package.map(|(_, package)| format!("{package}.{kind}"));
    let fits = |name: &String| {
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let descriptor = reflect::descriptor(name)?;
        DynamicMessage::deserialize_with_options(descriptor, spec, &options).ok()
    };
    let json = SerializeOptions::new();
    let message = name.as_ref().and_then(|name| Some((name, fits(name)?)));
    let message = message.and_then(|(name, message)| {
        let value = message.serialize_with_options(serde_json::value::Serializer, &json);
        Some((name, value.ok()?))
    });
    if let Some((name, Value::Object(mut fields))) = message {
        fields.insert(
            AT_TYPE.to_owned(),
            format!("type.googleapis.com/{name}").into(),
        );
        return Value::Object(fields);
    }
    let spec = if spec.is_null() {
        Value::Object(serde_json::Map::new())
    } else {
        spec.clone()
    };
    serde_json::json!({AT_TYPE: format!("type.googleapis.com/{STRUCT}"), "value": spec})
}

/// The spec of an `Any` in JSON.
fn spec(body: Value) -> Value {
    let Value::Object(mut fields) = body else {
        return Value::Object(serde_json::Map::new());
    };
    let name = fields.remove(AT_TYPE);
    let is_struct = name
        .as_ref()
        .and_then(Value::as_str)
        .is_some_and(|name| proto::message_name(name) == STRUCT);
    if is_struct {
        return fields.remove("value").unwrap_or_default();
    }
    Value::Object(fields)
}

fn decode(any: &Any) -> Result<DynamicMessage, InvalidObject> {
    let name = proto::message_name(RESOURCE);
    if proto::message_name(&any.type_url) != name {
        return Err(InvalidObject::Type(any.type_url.clone()));
    }
    DynamicMessage::decode(descriptor(name)?, any.value.as_slice())
        .map_err(|error| InvalidObject::Malformed(error.to_string()))
}

fn descriptor(name: &str) -> Result<MessageDescriptor, InvalidObject> {
    reflect::descriptor(name).ok_or_else(|| InvalidObject::Body(name.to_owned()))
}

/// The paths of fields that the spec has and no descriptor.
fn unknown_of_body(resource: &DynamicMessage) -> Result<Vec<String>, InvalidObject> {
    let mut paths = Vec::new();
    let Some(body) = resource.get_field_by_name("body") else {
        return Ok(paths);
    };
    let Some(body) = body
        .as_message()
        .filter(|_| resource.has_field_by_name("body"))
    else {
        return Ok(paths);
    };
    let text = |field| {
        body.get_field_by_name(field)
            .map(std::borrow::Cow::into_owned)
    };
    let (Some(Field::String(url)), Some(Field::Bytes(bytes))) = (text("type_url"), text("value"))
    else {
        return Ok(paths);
    };
    let name = proto::message_name(&url);
    let message = DynamicMessage::decode(descriptor(name)?, bytes)
        .map_err(|error| InvalidObject::Malformed(format!("{name}: {error}")))?;
    note_unknown(&message, "spec", &mut paths);
    Ok(paths)
}

fn note_unknown(message: &DynamicMessage, path: &str, paths: &mut Vec<String>) {
    let numbers = message
        .unknown_fields()
        .map(prost_reflect::UnknownField::number);
    let of = message.descriptor();
    paths.extend(numbers.map(|number| format!("{path}: field {number} of {}", of.full_name())));
    for (field, value) in message.fields() {
        note_in_value(value, &format!("{path}.{}", field.json_name()), paths);
    }
}

fn note_in_value(value: &Field, path: &str, paths: &mut Vec<String>) {
    match value {
        Field::Message(message) => note_unknown(message, path, paths),
        Field::List(items) => {
            for (index, item) in items.iter().enumerate() {
                note_in_value(item, &format!("{path}[{index}]"), paths);
            }
        }
        Field::Map(entries) => {
            for item in entries.values() {
                note_in_value(item, path, paths);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
