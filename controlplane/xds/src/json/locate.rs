//! Finds where in a JSON value the reason lies that it is not a certain message.
//!
//! In: a value that did not deserialize, and what the deserializer said (which knows no path). Out:
//! an error with the path. Called by [`super::from_value`].

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{JsonError, descriptor_of_url};

/// The error at its place; at the root when no single field explains it.
pub(super) fn explain(
    descriptor: &MessageDescriptor,
    value: &Value,
    error: &serde_json::Error,
) -> JsonError {
    match check_message(descriptor, value, &Path(String::new())) {
        Err(located) => located,
        Ok(()) => Path(String::new()).invalid(error.to_string()),
    }
}

#[derive(Clone)]
struct Path(String);

impl Path {
    fn field(&self, name: &str) -> Self {
        let dot = if self.0.is_empty() { "" } else { "." };
        Self(format!("{}{dot}{name}", self.0))
    }

    fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key:?}]", self.0))
    }

    fn invalid(&self, reason: impl Into<String>) -> JsonError {
        JsonError::Invalid {
            path: if self.0.is_empty() {
                ".".to_owned()
            } else {
                self.0.clone()
            },
            reason: reason.into(),
        }
    }
}

fn check_message(
    descriptor: &MessageDescriptor,
    value: &Value,
    path: &Path,
) -> Result<(), JsonError> {
    if descriptor.full_name() == "google.protobuf.Any" {
        return check_any(value, path);
    }
    if is_special(descriptor) {
        return attempt(descriptor, value, path);
    }
    let Value::Object(object) = value else {
        return Err(path.invalid(format!("expected a {} object", descriptor.full_name())));
    };
    check_fields(descriptor, object, path)
}

fn check_fields(
    descriptor: &MessageDescriptor,
    object: &Map<String, Value>,
    path: &Path,
) -> Result<(), JsonError> {
    let mut chosen: Vec<(String, &str)> = Vec::new();
    for (name, value) in object {
        let at = path.field(name);
        let field = descriptor
            .get_field_by_json_name(name)
            .or_else(|| descriptor.get_field_by_name(name))
            .ok_or_else(|| JsonError::UnknownField {
                path: at.0.clone(),
                message: descriptor.full_name().to_owned(),
            })?;
        if value.is_null() {
            continue;
        }
        if let Some(oneof) = field.containing_oneof() {
            let earlier = chosen.iter().find(|(one, _)| one == oneof.name());
            if let Some((_, earlier)) = earlier {
                return Err(at.invalid(format!("cannot be set together with {earlier}")));
            }
            chosen.push((oneof.name().to_owned(), name));
        }
        check_field(descriptor, &field, value, &at)?;
    }
    Ok(())
}

fn check_field(
    parent: &MessageDescriptor,
    field: &FieldDescriptor,
    value: &Value,
    path: &Path,
) -> Result<(), JsonError> {
    let alone = |value: Value| -> Value {
        Value::Object(Map::from_iter([(field.name().to_owned(), value)]))
    };
    if field.is_map() {
        let Value::Object(entries) = value else {
            return Err(path.invalid("expected an object"));
        };
        let Kind::Message(entry) = field.kind() else {
            return Ok(());
        };
        for (key, value) in entries {
            let at = path.key(key);
            if let Kind::Message(message) = entry.map_entry_value_field().kind() {
                check_message(&message, value, &at)?;
            } else {
                let single = Map::from_iter([(key.clone(), value.clone())]);
                attempt(parent, &alone(Value::Object(single)), &at)?;
            }
        }
        return Ok(());
    }
    if field.is_list() {
        let Value::Array(elements) = value else {
            return Err(path.invalid("expected a list"));
        };
        for (index, element) in elements.iter().enumerate() {
            let at = path.index(index);
            match field.kind() {
                Kind::Message(message) => check_message(&message, element, &at)?,
                _ => attempt(parent, &alone(Value::Array(vec![element.clone()])), &at)?,
            }
        }
        return Ok(());
    }
    match field.kind() {
        Kind::Message(message) => check_message(&message, value, path),
        _ => attempt(parent, &alone(value.clone()), path),
    }
}

fn check_any(value: &Value, path: &Path) -> Result<(), JsonError> {
    let Value::Object(object) = value else {
        return Err(path.invalid("expected an object with an @type"));
    };
    let type_url = match object.get("@type") {
        Some(Value::String(type_url)) => type_url,
        Some(_) => return Err(path.field("@type").invalid("expected a type URL")),
        None => return Err(path.invalid("has no @type")),
    };
    let descriptor = descriptor_of_url(type_url).map_err(|_| {
        path.field("@type")
            .invalid(format!("unknown type {type_url}"))
    })?;
    if is_special(&descriptor) {
        let inner = object.get("value").unwrap_or(&Value::Null);
        return check_message(&descriptor, inner, &path.field("value"));
    }
    let mut rest = object.clone();
    rest.remove("@type");
    check_fields(&descriptor, &rest, path)
}

/// Types that are no plain object in JSON.
fn is_special(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf"
        && matches!(
            descriptor.name(),
            "Duration"
                | "Timestamp"
                | "Struct"
                | "Value"
                | "ListValue"
                | "FieldMask"
                | "DoubleValue"
                | "FloatValue"
                | "Int64Value"
                | "UInt64Value"
                | "Int32Value"
                | "UInt32Value"
                | "BoolValue"
                | "StringValue"
                | "BytesValue"
        )
}

/// Deserializes a part by itself, to learn whether it is to blame.
fn attempt(descriptor: &MessageDescriptor, value: &Value, path: &Path) -> Result<(), JsonError> {
    DynamicMessage::deserialize(descriptor.clone(), value)
        .map(drop)
        .map_err(|error| path.invalid(error.to_string()))
}
