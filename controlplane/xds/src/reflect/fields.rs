//! Which fields an encoded message sets, with their names: for a reader that must tell what it
//! leaves unread.
//!
//! In: an encoded message and its type. Out: calls to a [`FieldVisitor`]. Used by the proxy's
//! conversion.

use prost::encoding::WireType;
use prost_reflect::{Kind, MessageDescriptor};

use super::{MAX_DEPTH, Record, descriptor, records};
use crate::proto;

/// Told of the fields of a message.
pub trait FieldVisitor {
    /// A field of `message` (its full name) is set; true to be told of the fields inside, after
    /// which [`FieldVisitor::leave`] is called. Each element of a list or map is told by itself
    /// (`element` for those of lists), and what an `Any` holds as if it stood in its place.
    fn enter(&mut self, message: &str, field: &str, element: bool) -> bool;

    /// The last field that was entered ends.
    fn leave(&mut self);

    /// A field that the message's definition does not have is set.
    fn unknown(&mut self, message: &str, number: u32);
}

/// Visits the fields that an encoded message of type `full_name` sets; malformed parts and
/// unknown types are passed over.
pub fn visit_fields(full_name: &str, message: &[u8], visitor: &mut dyn FieldVisitor) {
    if let Some(descriptor) = descriptor(full_name) {
        walk(&descriptor, message, MAX_DEPTH, visitor);
    }
}

fn walk(
    descriptor: &MessageDescriptor,
    message: &[u8],
    depth: u32,
    visitor: &mut dyn FieldVisitor,
) {
    let Some(records) = records(message).filter(|_| depth > 0) else {
        return;
    };
    if descriptor.full_name() == "google.protobuf.Any" {
        if let Some((inner, payload)) = inside_any(&records, message) {
            walk(&inner, payload, depth - 1, visitor);
        }
        return;
    }
    for record in &records {
        let Some(field) = descriptor.get_field(record.number) else {
            visitor.unknown(descriptor.full_name(), record.number);
            continue;
        };
        if !visitor.enter(descriptor.full_name(), field.name(), field.is_list()) {
            continue;
        }
        let payload = &message[record.payload.clone()];
        if let Kind::Message(inner) = field.kind()
            && record.wire_type == WireType::LengthDelimited
        {
            if field.is_map() {
                map_value(&inner, payload, depth - 1, visitor);
            } else {
                walk(&inner, payload, depth - 1, visitor);
            }
        }
        visitor.leave();
    }
}

/// The value of a map entry, the entry itself being no message of the definition.
fn map_value(
    entry: &MessageDescriptor,
    message: &[u8],
    depth: u32,
    visitor: &mut dyn FieldVisitor,
) {
    let value = entry.map_entry_value_field();
    let Kind::Message(inner) = value.kind() else {
        return;
    };
    for record in records(message).unwrap_or_default() {
        if record.number == value.number() && record.wire_type == WireType::LengthDelimited {
            walk(&inner, &message[record.payload], depth, visitor);
        }
    }
}

fn inside_any<'a>(records: &[Record], message: &'a [u8]) -> Option<(MessageDescriptor, &'a [u8])> {
    let field = |number| records.iter().find(|record| record.number == number);
    let type_url = std::str::from_utf8(&message[field(1)?.payload.clone()]).ok()?;
    let inner = descriptor(proto::message_name(type_url))?;
    Some((inner, &message[field(2)?.payload.clone()]))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::envoy::extensions::filters::http::router::v3::Router;
    use crate::proto::{Cluster, pack};

    #[derive(Default)]
    struct Paths {
        stack: Vec<String>,
        seen: Vec<String>,
    }

    impl FieldVisitor for Paths {
        fn enter(&mut self, _: &str, field: &str, _: bool) -> bool {
            self.stack.push(field.to_owned());
            self.seen.push(self.stack.join("."));
            true
        }

        fn leave(&mut self) {
            self.stack.pop();
        }

        fn unknown(&mut self, message: &str, number: u32) {
            self.seen.push(format!("{message}#{number}"));
        }
    }

    fn seen(full_name: &str, bytes: &[u8]) -> Vec<String> {
        let mut paths = Paths::default();
        visit_fields(full_name, bytes, &mut paths);
        paths.seen
    }

    #[test]
    fn fields_are_named_through_maps_and_any() {
        let router = Router {
            suppress_envoy_headers: true,
            ..Default::default()
        };
        let cluster = Cluster {
            name: "c".into(),
            typed_extension_protocol_options: [("k".to_owned(), pack(&router))].into(),
            ..Default::default()
        };
        let mut bytes = cluster.encode_to_vec();
        assert_eq!(
            seen("envoy.config.cluster.v3.Cluster", &bytes),
            [
                "name",
                "typed_extension_protocol_options",
                "typed_extension_protocol_options.suppress_envoy_headers",
            ]
        );
        bytes.extend([0xf8, 0x7f, 0x01]);
        let last = seen("envoy.config.cluster.v3.Cluster", &bytes).pop();
        assert_eq!(
            last.as_deref(),
            Some("envoy.config.cluster.v3.Cluster#2047")
        );
    }

    #[test]
    fn malformed_parts_are_passed_over() {
        assert!(seen("envoy.config.cluster.v3.Cluster", &[0x0a, 0x7f]).is_empty());
        assert!(seen("no.such.Message", &[0x0a, 0x00]).is_empty());
    }
}
