//! Small protos that every resource needs.

#![expect(
    clippy::unnecessary_wraps,
    reason = "proto's message fields are options"
)]

use std::net::IpAddr;
use std::time::Duration;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::google::protobuf as google;

use crate::model::place::Place;

pub(super) fn uint(value: u32) -> Option<google::UInt32Value> {
    Some(google::UInt32Value { value })
}

pub(super) fn truth(value: bool) -> Option<google::BoolValue> {
    Some(google::BoolValue { value })
}

pub(super) fn duration(value: Duration) -> Option<google::Duration> {
    // The validation keeps durations within protobuf's range.
    let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(value.subsec_nanos()).unwrap_or(0);
    Some(google::Duration { seconds, nanos })
}

pub(super) fn socket(address: IpAddr, port: u16) -> core::Address {
    named_socket(&address.to_string(), port)
}

pub(super) fn named_socket(address: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(socket_address(
            address, port,
        ))),
    }
}

pub(super) fn socket_address(address: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(
            port,
        ))),
        ..Default::default()
    }
}

/// From the stream that asks.
pub(super) fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    })
}

pub(super) fn text(value: impl Into<String>) -> google::Value {
    google::Value {
        kind: Some(google::value::Kind::StringValue(value.into())),
    }
}

pub(super) fn yes() -> google::Value {
    google::Value {
        kind: Some(google::value::Kind::BoolValue(true)),
    }
}

pub(super) fn list(values: Vec<google::Value>) -> google::Value {
    google::Value {
        kind: Some(google::value::Kind::ListValue(google::ListValue { values })),
    }
}

pub(super) fn object(
    fields: impl IntoIterator<Item = (&'static str, google::Value)>,
) -> google::Struct {
    google::Struct {
        fields: fields
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

pub(super) fn nested(
    fields: impl IntoIterator<Item = (&'static str, google::Value)>,
) -> google::Value {
    google::Value {
        kind: Some(google::value::Kind::StructValue(object(fields))),
    }
}

/// The place that a resource comes from: the object where Istio writes it, the field under our own key.
/// Encoded by [`super::canonical`].
pub(super) fn written_at(place: &Place) -> core::Metadata {
    let mut metadata = istio_metadata(object([("config", text(place.config()))]));
    if !place.field.is_empty() {
        let own = object([("field", text(place.field.as_str()))]);
        metadata.filter_metadata.insert("millrace".to_owned(), own);
    }
    metadata
}

/// Metadata under the key that Istio uses. Structs of more than one field must go through
/// [`super::canonical`], since proto maps have no order.
pub(super) fn istio_metadata(fields: google::Struct) -> core::Metadata {
    core::Metadata {
        filter_metadata: [("istio".to_owned(), fields)].into(),
        ..Default::default()
    }
}
