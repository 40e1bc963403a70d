//! Canonical proto-JSON of every xDS message, both ways, by reflection over Envoy's descriptors.
//!
//! In: messages, JSON values, YAML text. Out: JSON with proto field names, sorted (as Envoy's
//! config dump prints it), or messages; errors name the path of the bad field. Used by config
//! dumps, goldens and the static bootstrap of `millrace-proxy -c FILE`.

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::proto::{self, Any};
use crate::reflect;

mod locate;

/// Why JSON and protobuf did not translate.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The text is not YAML (of which JSON is a part).
    #[error("malformed YAML")]
    Syntax(#[source] Box<serde_saphyr::Error>),
    /// A field that its message does not have.
    #[error("{path}: {message} has no field of this name")]
    UnknownField {
        /// Where, such as `static_resources.listeners[0].nam`.
        path: String,
        /// The message's full name.
        message: String,
    },
    /// A value that its field cannot have.
    #[error("{path}: {reason}")]
    Invalid {
        /// Where; `.` for the whole.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A type that no descriptor is there for.
    #[error("unknown message type {0}")]
    UnknownType(String),
    /// The message's own encoding is broken.
    #[error("malformed {type_name}")]
    Malformed {
        /// Its full name.
        type_name: String,
        /// What the decoder says.
        #[source]
        source: prost::DecodeError,
    },
    /// The message cannot be said in JSON, such as a timestamp out of range or an `Any` of an
    /// unknown type.
    #[error("{type_name} has no JSON form: {reason}")]
    Unrepresentable {
        /// Its full name.
        type_name: String,
        /// What stands in the way.
        reason: String,
    },
}

/// A message as JSON.
///
/// # Errors
/// When it contains an `Any` of an unknown type or with broken content.
pub fn to_value<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    dynamic_to_value(&M::full_name(), &message.encode_to_vec())
}

/// A packed message as JSON, with its `@type`.
///
/// # Errors
/// When its type is unknown or its content broken.
pub fn any_to_value(any: &Any) -> Result<Value, JsonError> {
    // Through the envelope, so that well-known types take their special form inside.
    to_value(any)
}

/// A message from JSON; fields may be in `snake_case` or `lowerCamelCase`.
///
/// # Errors
/// When a field is unknown or has a bad value; the error names its path.
pub fn from_value<M: Message + Name + Default>(value: &Value) -> Result<M, JsonError> {
    let descriptor = descriptor(&M::full_name())?;
    let dynamic = DynamicMessage::deserialize(descriptor.clone(), value)
        .map_err(|error| locate::explain(&descriptor, value, &error))?;
    M::decode(dynamic.encode_to_vec().as_slice()).map_err(|source| JsonError::Malformed {
        type_name: M::full_name(),
        source,
    })
}

/// A packed message from JSON with an `@type`.
///
/// # Errors
/// As [`from_value`], and when the type is missing or unknown.
pub fn any_from_value(value: &Value) -> Result<Any, JsonError> {
    from_value(value)
}

/// A message from a YAML or JSON document.
///
/// # Errors
/// As [`from_value`], and when the text is malformed.
pub fn from_yaml<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| JsonError::Syntax(Box::new(error)))?;
    from_value(&value)
}

fn dynamic_to_value(type_name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    let dynamic = DynamicMessage::decode(descriptor(type_name)?, bytes).map_err(|source| {
        JsonError::Malformed {
            type_name: type_name.to_owned(),
            source,
        }
    })?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map(sorted)
        .map_err(|error| JsonError::Unrepresentable {
            type_name: type_name.to_owned(),
            reason: error.to_string(),
        })
}

/// Sorts keys whatever map type `serde_json` was built with: its features are the sum of what all
/// crates of a build ask for.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.into_iter().collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(entries.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        scalar => scalar,
    }
}

fn descriptor(full_name: &str) -> Result<MessageDescriptor, JsonError> {
    reflect::descriptor(full_name).ok_or_else(|| JsonError::UnknownType(full_name.to_owned()))
}

fn descriptor_of_url(type_url: &str) -> Result<MessageDescriptor, JsonError> {
    descriptor(proto::message_name(type_url))
}

#[cfg(test)]
mod tests;
