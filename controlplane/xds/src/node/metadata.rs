//! `google.protobuf.Struct` to JSON and back, and the user agent's version in either form.
//!
//! Called by the conversions of [`super::Node`].

use serde_json::{Map, Number, Value};

use crate::proto::envoy::config::core::v3::node::UserAgentVersionType;
use crate::proto::google::protobuf::{self as pb, value::Kind};

/// A struct as a JSON object. Numbers that JSON cannot say (NaN, infinities) become null;
/// whole ones stay whole.
pub(super) fn to_json(object: pb::Struct) -> Map<String, Value> {
    object
        .fields
        .into_iter()
        .map(|(key, value)| (key, value_to_json(value)))
        .collect()
}

/// A JSON object as a struct.
pub(super) fn to_struct(object: &Map<String, Value>) -> pb::Struct {
    pb::Struct {
        fields: object
            .iter()
            .map(|(key, value)| (key.clone(), value_to_proto(value)))
            .collect(),
    }
}

/// The version text, or `major.minor.patch` of a build version.
pub(super) fn user_agent_version(version: UserAgentVersionType) -> String {
    match version {
        UserAgentVersionType::UserAgentVersion(text) => text,
        UserAgentVersionType::UserAgentBuildVersion(build) => {
            build.version.map_or_else(String::new, |version| {
                format!(
                    "{}.{}.{}",
                    version.major_number, version.minor_number, version.patch
                )
            })
        }
    }
}

fn value_to_json(value: pb::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => flag.into(),
        Some(Kind::NumberValue(number)) => number_to_json(number),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(value_to_json).collect(),
        Some(Kind::StructValue(object)) => Value::Object(to_json(object)),
    }
}

fn number_to_json(number: f64) -> Value {
    // Every whole number below 2^53 is exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "whole and within the exact range"
        )]
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn value_to_proto(value: &Value) -> pb::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => Kind::ListValue(pb::ListValue {
            values: list.iter().map(value_to_proto).collect(),
        }),
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    pb::Value { kind: Some(kind) }
}
