//! Envoy's message descriptors, and with them the canonical encoding of messages.
//!
//! In: encoded messages. Out: the same with map entries in one order. prost keeps maps in hash
//! maps, so equal messages encode differently each time; versions are hashes of the encoding, and
//! a client must not be sent (an Envoy not drain) what did not change. Called by
//! [`crate::EncodedResource`] and [`crate::json`].

use std::ops::Range;
use std::sync::LazyLock;

use prost::encoding::{WireType, decode_key, decode_varint};
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

use crate::proto;

mod fields;

pub use fields::{FieldVisitor, visit_fields};

/// Constant data: decoding it takes some 10 ms, which only those who use it should spend.
static POOL: LazyLock<Result<DescriptorPool, String>> = LazyLock::new(|| {
    let descriptors = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    DescriptorPool::decode(descriptors.as_slice()).map_err(|error| error.to_string())
});

/// Nesting at which the walk stops; prost decodes no deeper either.
const MAX_DEPTH: u32 = 100;

/// The descriptor of a message by its full name.
pub(crate) fn descriptor(full_name: &str) -> Option<MessageDescriptor> {
    POOL.as_ref().ok()?.get_message_by_name(full_name)
}

/// Sorts the entries of every map in an encoded message, also inside of `Any`. The length does not
/// change. What is unknown or malformed stays as it is.
pub(crate) fn canonicalize(full_name: &str, message: &mut [u8]) {
    if let Some(descriptor) = descriptor(full_name) {
        walk(&descriptor, message, MAX_DEPTH);
    }
}

/// One field on the wire.
struct Record {
    number: u32,
    wire_type: WireType,
    /// With key and length.
    whole: Range<usize>,
    payload: Range<usize>,
}

fn walk(descriptor: &MessageDescriptor, message: &mut [u8], depth: u32) {
    let Some(records) = records(message).filter(|_| depth > 0) else {
        return;
    };
    if descriptor.full_name() == "google.protobuf.Any" {
        walk_any(&records, message, depth);
        return;
    }
    let mut maps: Vec<&Record> = Vec::new();
    for record in &records {
        let field = descriptor
            .get_field(record.number)
            .filter(|_| record.wire_type == WireType::LengthDelimited);
        let Some(field) = field else {
            continue;
        };
        if let Kind::Message(inner) = field.kind() {
            walk(&inner, &mut message[record.payload.clone()], depth - 1);
        }
        if field.is_map() {
            maps.push(record);
        }
    }
    for entries in maps.chunk_by(|a, b| a.number == b.number && a.whole.end == b.whole.start) {
        sort(entries, message);
    }
}

fn walk_any(records: &[Record], message: &mut [u8], depth: u32) {
    let field = |number| records.iter().find(|record| record.number == number);
    let (Some(type_url), Some(value)) = (field(1), field(2)) else {
        return;
    };
    let name = std::str::from_utf8(&message[type_url.payload.clone()]).ok();
    let inner = name.and_then(|name| descriptor(proto::message_name(name)));
    if let Some(inner) = inner {
        walk(&inner, &mut message[value.payload.clone()], depth - 1);
    }
}

fn sort(entries: &[&Record], message: &mut [u8]) {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return;
    };
    let mut sorted: Vec<Vec<u8>> = entries
        .iter()
        .map(|entry| message[entry.whole.clone()].to_vec())
        .collect();
    sorted.sort_unstable();
    message[first.whole.start..last.whole.end].copy_from_slice(&sorted.concat());
}

/// The fields of a message; none when it is malformed or has groups.
fn records(message: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    let mut rest = message;
    let position = |rest: &[u8]| message.len() - rest.len();
    while !rest.is_empty() {
        let start = position(rest);
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut rest).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let begin = position(rest);
        rest = rest.get(length..)?;
        records.push(Record {
            number,
            wire_type,
            whole: start..begin + length,
            payload: begin..begin + length,
        });
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use prost::{Message, Name};

    use super::*;
    use crate::proto::envoy::config::core::v3::Metadata;
    use crate::proto::google::protobuf::{Struct, Value, value::Kind as ValueKind};
    use crate::proto::{Any, Cluster, pack};

    fn metadata() -> Metadata {
        let value = |text: &str| Value {
            kind: Some(ValueKind::StringValue(text.into())),
        };
        let object = Struct {
            fields: (0..8).map(|n| (format!("k{n}"), value("v"))).collect(),
        };
        Metadata {
            filter_metadata: (0..8).map(|n| (format!("f{n}"), object.clone())).collect(),
            typed_filter_metadata: [("any".to_owned(), pack(&object))].into(),
        }
    }

    fn canonical<M: Message + Name>(message: &M) -> Vec<u8> {
        let mut bytes = message.encode_to_vec();
        canonicalize(&M::full_name(), &mut bytes);
        bytes
    }

    #[test]
    fn equal_messages_encode_equally() {
        let cluster = || Cluster {
            name: "c".into(),
            metadata: Some(metadata()),
            typed_extension_protocol_options: (0..4)
                .map(|n| (format!("o{n}"), pack(&metadata())))
                .collect(),
            ..Default::default()
        };
        let first = canonical(&cluster());
        assert_eq!(Cluster::decode(first.as_slice()).unwrap().name, "c");
        for _ in 0..20 {
            assert_eq!(canonical(&cluster()), first);
        }
    }

    #[test]
    fn order_of_repeated_fields_is_kept() {
        let route = |hosts: [&str; 2]| proto::RouteConfiguration {
            virtual_hosts: hosts
                .map(|name| proto::VirtualHost {
                    name: name.into(),
                    ..Default::default()
                })
                .into(),
            ..Default::default()
        };
        let message = route(["b", "a"]);
        assert_eq!(canonical(&message), message.encode_to_vec());
        assert_ne!(canonical(&message), canonical(&route(["a", "b"])));
    }

    #[test]
    fn unknown_and_malformed_content_stays() {
        let any = Any {
            type_url: "example.com/No".into(),
            value: vec![0xff, 0xff],
        };
        assert_eq!(canonical(&any), any.encode_to_vec());
        let mut broken = vec![0x0a, 0x7f, 0x01];
        canonicalize("envoy.config.cluster.v3.Cluster", &mut broken);
        assert_eq!(broken, [0x0a, 0x7f, 0x01]);
    }
}
