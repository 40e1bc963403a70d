//! What `filter_metadata` says of where a resource comes from.

use millrace_xds::proto::envoy::config::core::v3::Metadata;
use millrace_xds::proto::google::protobuf::Struct;
use millrace_xds::proto::google::protobuf::value::Kind;

use crate::resource::Origin;

/// The object and field that a resource was made from; `None` where the control plane does not say.
pub(super) fn origin(metadata: Option<&Metadata>) -> Option<Origin> {
    let metadata = metadata?;
    Some(Origin {
        config: of(metadata, "istio", "config")?.into(),
        field: of(metadata, "millrace", "field").map(Into::into),
    })
}

/// A text under a key.
pub(super) fn of<'a>(metadata: &'a Metadata, key: &str, name: &str) -> Option<&'a str> {
    text(metadata.filter_metadata.get(key)?, name)
}

/// A field that is a text.
pub(super) fn text<'a>(fields: &'a Struct, name: &str) -> Option<&'a str> {
    match &fields.fields.get(name)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}
