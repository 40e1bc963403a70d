//! Responses as bytes, made without copying what they carry.
//!
//! In: the fields of a response, and the shared encodings of its resources. Out: chunks for a gRPC body, made
//! when the transport asks for them, so that a response of megabytes to each of a thousand nodes does not lie
//! in memory a thousand times. Filled by [`crate::push::Variant::pieces`], sent by [`crate::server`].

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::resource::EncodedResource;

/// Chunks are about this large; a body beyond it is a chunk of its own.
const CHUNK: usize = 32 * 1024;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The fields of `google.protobuf.Any`.
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// A message in pieces, some of which are shared.
#[derive(Debug, Default)]
pub struct Pieces {
    /// What stands between the bodies, one after the other.
    own: BytesMut,
    /// How much of it comes before each body.
    bodies: VecDeque<(usize, Bytes)>,
    /// Of it, what comes before the last body.
    taken: usize,
    /// Of the message while it is made, then of what is still to be sent.
    length: usize,
}

impl Pieces {
    /// A message with these fields.
    pub fn of(message: &impl Message) -> Self {
        let mut pieces = Self::default();
        pieces.own.extend_from_slice(&[0; PREFIX]);
        pieces.put(message);
        pieces
    }

    /// Adds fields.
    fn put(&mut self, message: &impl Message) {
        let length = message.encoded_len();
        self.own.reserve(length);
        message.encode_raw(&mut self.own);
        self.length += length;
    }

    /// Adds a field that is this message.
    pub fn put_message(&mut self, field: u32, message: &impl Message) {
        self.put_nested(field, message.encoded_len());
        self.put(message);
    }

    /// Adds a field that is an `Any` with this resource.
    pub fn put_any(&mut self, field: u32, resource: &EncodedResource) {
        self.put_nested(field, any_len(resource));
        self.put_any_fields(resource);
    }

    /// Adds a field that is a message with these fields, and an `Any` with this resource in `inner`.
    pub fn put_with_any(
        &mut self,
        field: u32,
        message: &impl Message,
        inner: u32,
        resource: &EncodedResource,
    ) {
        let any = any_len(resource);
        let nested = key_len(inner) + encoded_len_varint(any as u64) + any;
        self.put_nested(field, message.encoded_len() + nested);
        self.put(message);
        self.put_nested(inner, any);
        self.put_any_fields(resource);
    }

    /// Begins a field of this length.
    fn put_nested(&mut self, field: u32, length: usize) {
        let before = self.own.len();
        encode_key(field, WireType::LengthDelimited, &mut self.own);
        encode_varint(length as u64, &mut self.own);
        self.length += self.own.len() - before;
    }

    fn put_any_fields(&mut self, resource: &EncodedResource) {
        let type_url = resource.type_url().content();
        self.put_nested(TYPE_URL, type_url.len());
        self.own.extend_from_slice(type_url.as_bytes());
        self.length += type_url.len();
        let body = resource.body().clone();
        if body.is_empty() {
            return;
        }
        self.put_nested(VALUE, body.len());
        self.length += body.len();
        let before = self.own.len() - self.taken;
        self.taken = self.own.len();
        self.bodies.push_back((before, body));
    }

    /// Ready to be sent; an error where it is longer than a gRPC message can be.
    ///
    /// # Errors
    /// When its length has no place in the prefix.
    pub fn finish(mut self) -> Result<Self, std::num::TryFromIntError> {
        let length = u32::try_from(self.length)?;
        self.own[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        self.length += PREFIX;
        Ok(self)
    }

    /// The next bytes to send; none when all is sent.
    pub fn next_chunk(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        loop {
            let own = self.bodies.front().map_or(self.own.len(), |(own, _)| *own);
            let room = CHUNK.saturating_sub(chunk.len());
            let piece = self.own.split_to(own.min(room));
            if let Some((own, _)) = self.bodies.front_mut() {
                *own -= piece.len();
            }
            append(&mut chunk, &piece, self.length);
            match self.bodies.front() {
                Some((0, body)) if chunk.is_empty() && body.len() > CHUNK / 2 => {
                    self.length = self.length.saturating_sub(body.len());
                    return self.bodies.pop_front().map(|(_, body)| body);
                }
                Some((0, body)) if chunk.len() + body.len() <= CHUNK => {
                    append(&mut chunk, body, self.length);
                    self.bodies.pop_front();
                }
                None if own > piece.len() || !chunk.is_empty() => break,
                None => return None,
                Some(_) => break,
            }
        }
        self.length = self.length.saturating_sub(chunk.len());
        Some(chunk.freeze())
    }
}

/// Takes room for a whole chunk at once, or for all that is left.
fn append(chunk: &mut BytesMut, bytes: &[u8], left: usize) {
    if chunk.capacity() == 0 && !bytes.is_empty() {
        chunk.reserve(CHUNK.min(left));
    }
    chunk.extend_from_slice(bytes);
}

fn any_len(resource: &EncodedResource) -> usize {
    let field =
        |number: u32, length: usize| key_len(number) + encoded_len_varint(length as u64) + length;
    let body = resource.body().len();
    let value = if body == 0 { 0 } else { field(VALUE, body) };
    field(TYPE_URL, resource.type_url().content().len()) + value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::TypeUrl;
    use crate::delta::server::Delta;
    use crate::push::{Draft, Envelope, Variant};
    use crate::sotw::server::Sotw;
    use crate::version::Version;

    /// A type whose messages are packed as another.
    const OBJECTS: &str = "networking.istio.io/v1/VirtualService";
    const ENVELOPE: Envelope<'static> = Envelope {
        nonce: "nonce",
        identifier: "pilot",
        tells_ttls: true,
    };

    /// Of resources some have TTLs, some aliases.
    fn draft(url: &TypeUrl, sizes: &[usize], removed: usize) -> Draft {
        let resource = |(at, size): (usize, &usize)| {
            let body = vec![u8::try_from(at % 251).unwrap_or(0); *size];
            let name = format!("resource-{at}");
            let resource = EncodedResource::from_bytes(url.clone(), &name, body.into());
            let ttl = Duration::from_millis(1500);
            let resource = resource.with_ttl((at % 3 == 1).then_some(ttl));
            let aliases = (0..at % 4).map(|alias| format!("{name}/{alias}"));
            Arc::new(resource.with_aliases(aliases.collect()))
        };
        let gone = |at: usize| format!("gone-{at}");
        Draft {
            resources: sizes.iter().enumerate().map(resource).collect(),
            removed: (0..removed).map(gone).collect(),
            unresolved: (0..removed / 2).map(gone).collect(),
            version: Version::from("7"),
            truncated: false,
            is_heartbeat: false,
        }
    }

    fn same<V: Variant>(
        url: &TypeUrl,
        draft: impl Fn() -> Draft,
        envelope: &Envelope<'_>,
    ) -> Result<(), TestCaseError>
    where
        V::Response: Message + Default + PartialEq + std::fmt::Debug,
    {
        let whole = V::response(url, draft(), envelope);
        let sent = sent::<V::Response>(V::pieces(url, draft(), envelope));
        prop_assert_eq!(sent, whole);
        Ok(())
    }

    /// What a client reads of the chunks.
    fn sent<M: Message + Default>(pieces: Pieces) -> M {
        let mut pieces = pieces.finish().expect("a length");
        let mut bytes = Vec::new();
        while let Some(chunk) = pieces.next_chunk() {
            assert!(!chunk.is_empty());
            bytes.extend_from_slice(&chunk);
        }
        let length = u32::try_from(bytes.len() - PREFIX).expect("a length");
        assert_eq!(bytes[..PREFIX], [&[0], &length.to_be_bytes()[..]].concat());
        M::decode(&bytes[PREFIX..]).expect("a message")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_sent_is_the_response(
            sizes in prop::collection::vec(
                prop_oneof![0..40_usize, 0..5_000_usize, 16_000..70_000_usize],
                0..30,
            ),
            removed in 0..4_usize,
            is_heartbeat: bool,
            tells_ttls: bool,
            is_object: bool,
        ) {
            let url = if is_object { TypeUrl::from(OBJECTS) } else { TypeUrl::CLUSTER };
            let draft = || Draft { is_heartbeat, ..draft(&url, &sizes, removed) };
            let envelope = Envelope { tells_ttls, ..ENVELOPE };
            same::<Delta>(&url, draft, &envelope)?;
            same::<Sotw>(&url, draft, &envelope)?;
        }
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let draft = draft(&TypeUrl::CLUSTER, &[100_000], 0);
        let body = draft.resources[0].body().clone();
        let mut pieces = Delta::pieces(&TypeUrl::CLUSTER, draft, &ENVELOPE)
            .finish()
            .expect("a length");
        let mut chunks = std::iter::from_fn(|| pieces.next_chunk());
        assert!(chunks.any(|chunk| chunk.as_ptr() == body.as_ptr()));
    }
}
