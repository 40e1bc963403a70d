//! Encodes proto structs with their keys in order.
//!
//! Generated messages keep maps in hash order, so the same message can encode to different bytes; the
//! versions of resources are hashes of bytes and must not differ between two pilots, or two moments.
//! Protobuf lets fields come in any order, so a struct can be encoded here and appended to its parent.

use std::collections::BTreeMap;

use millrace_xds::proto::google::protobuf as google;

const LENGTH_DELIMITED: u64 = 2;

/// Appends a field of length-delimited type.
pub(super) fn append(out: &mut Vec<u8>, tag: u64, body: &[u8]) {
    varint(out, tag << 3 | LENGTH_DELIMITED);
    varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

/// `core.v3.Metadata` with one entry of `filter_metadata`.
pub(super) fn metadata(key: &str, fields: &google::Struct) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, 1, &entry(key, &structure(fields)));
    out
}

/// `google.protobuf.Struct`.
pub(super) fn structure(value: &google::Struct) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in value.fields.iter().collect::<BTreeMap<_, _>>() {
        append(&mut out, 1, &entry(key, &encode(value)));
    }
    out
}

fn entry(key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, 1, key.as_bytes());
    append(&mut out, 2, value);
    out
}

fn encode(value: &google::Value) -> Vec<u8> {
    let mut out = Vec::new();
    match &value.kind {
        None => {}
        Some(google::value::Kind::StructValue(value)) => append(&mut out, 5, &structure(value)),
        Some(google::value::Kind::ListValue(list)) => {
            let mut items = Vec::new();
            for item in &list.values {
                append(&mut items, 1, &encode(item));
            }
            append(&mut out, 6, &items);
        }
        // Without a map inside, the generated encoding is as good.
        Some(_) => out = millrace_xds::proto::pack(value).value,
    }
    out
}

/// Seven bits at a time, the lowest first; all but the last with the high bit set.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(low & 0x7f);
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use millrace_xds::proto::{Any, pack, unpack};

    use super::*;
    use crate::translate::wrap::{list, nested, object, text};

    #[test]
    fn the_encoding_says_what_the_message_says_and_never_varies() {
        let value = || {
            let service = nested([
                ("host", text("a".repeat(200))),
                ("name", text("b")),
                ("namespace", text("c")),
            ]);
            object([
                ("services", list(vec![service.clone(), service])),
                ("subset", text("v1")),
            ])
        };
        let first = structure(&value());
        for _ in 0..20 {
            assert_eq!(structure(&value()), first);
        }
        let any = Any {
            type_url: pack(&value()).type_url,
            value: first,
        };
        assert_eq!(unpack::<google::Struct>(&any).unwrap(), value());
    }
}
