//! Encodes proto structs, and resources that carry them, with their keys in order.
//!
//! Generated messages keep maps in hash order, so the same message can encode to different bytes; the
//! versions of resources are hashes of bytes and must not differ between two pilots, or two moments.
//! Protobuf lets fields come in any order, so a struct can be encoded here and appended to its parent.

use std::collections::BTreeMap;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3::FilterChain;
use millrace_xds::proto::google::protobuf as google;
use millrace_xds::proto::{Listener, RouteConfiguration, pack};

const LENGTH_DELIMITED: u64 = 2;
/// Numbers of fields, of the messages that they are in.
mod tag {
    pub(super) const CONFIGURATION_HOSTS: u64 = 2;
    pub(super) const HOST_ROUTES: u64 = 3;
    pub(super) const HOST_METADATA: u64 = 24;
    pub(super) const ROUTE_METADATA: u64 = 4;
    pub(super) const LISTENER_CHAINS: u64 = 3;
    pub(super) const LISTENER_DEFAULT_CHAIN: u64 = 25;
    pub(super) const CHAIN_METADATA: u64 = 5;
}

/// A route configuration with metadata on virtual hosts and routes.
pub(super) fn configuration(mut config: RouteConfiguration) -> Vec<u8> {
    let hosts = std::mem::take(&mut config.virtual_hosts);
    let mut out = pack(&config).value;
    for mut host in hosts {
        let routes = std::mem::take(&mut host.routes);
        let own = host.metadata.take();
        let mut body = with_metadata(pack(&host).value, tag::HOST_METADATA, own);
        for mut route in routes {
            let own = route.metadata.take();
            let route = with_metadata(pack(&route).value, tag::ROUTE_METADATA, own);
            append(&mut body, tag::HOST_ROUTES, &route);
        }
        append(&mut out, tag::CONFIGURATION_HOSTS, &body);
    }
    out
}

/// A listener with metadata on filter chains; its own has one field at most.
pub(super) fn listener(mut listener: Listener) -> Vec<u8> {
    let chains = std::mem::take(&mut listener.filter_chains);
    let default = listener.default_filter_chain.take();
    let mut out = pack(&listener).value;
    for chain in chains {
        append(&mut out, tag::LISTENER_CHAINS, &self::chain(chain));
    }
    if let Some(chain) = default {
        append(&mut out, tag::LISTENER_DEFAULT_CHAIN, &self::chain(chain));
    }
    out
}

fn chain(mut chain: FilterChain) -> Vec<u8> {
    let own = chain.metadata.take();
    with_metadata(pack(&chain).value, tag::CHAIN_METADATA, own)
}

fn with_metadata(mut body: Vec<u8>, tag: u64, own: Option<core::Metadata>) -> Vec<u8> {
    if let Some(own) = own {
        append(&mut body, tag, &metadata(&own));
    }
    body
}

/// Appends a field of length-delimited type.
pub(super) fn append(out: &mut Vec<u8>, tag: u64, body: &[u8]) {
    varint(out, tag << 3 | LENGTH_DELIMITED);
    varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

/// `core.v3.Metadata`, of which `filter_metadata` alone is used.
pub(super) fn metadata(value: &core::Metadata) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, fields) in value.filter_metadata.iter().collect::<BTreeMap<_, _>>() {
        append(&mut out, 1, &entry(key, &structure(fields)));
    }
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
        Some(_) => out = pack(value).value,
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
    use millrace_xds::proto::envoy::config::route::v3 as route;
    use millrace_xds::proto::{Any, unpack};

    use super::*;
    use crate::model::Kind;
    use crate::model::names::ObjectName;
    use crate::model::place::Place;
    use crate::translate::wrap::{list, nested, object, text, written_at};

    #[test]
    fn resources_say_the_same_with_metadata_in_order() {
        let name = ObjectName::new("default", "reviews");
        let place = Place::new(Kind::VirtualService, &name, "spec.http[0]");
        let own = || Some(written_at(&place));
        let route = |name: &str| route::Route {
            name: name.to_owned(),
            metadata: own(),
            ..Default::default()
        };
        let hosts = ["a", "b"].map(|host| route::VirtualHost {
            name: host.to_owned(),
            routes: vec![route("one"), route("two")],
            metadata: own(),
            ..Default::default()
        });
        let config = RouteConfiguration {
            name: "default/9080".to_owned(),
            virtual_hosts: hosts.into(),
            ..Default::default()
        };
        let chain = |name: &str| FilterChain {
            name: name.to_owned(),
            metadata: own(),
            ..Default::default()
        };
        let listener = Listener {
            name: "default/0.0.0.0_9080".to_owned(),
            filter_chains: vec![chain("one"), chain("two")],
            default_filter_chain: Some(chain("rest")),
            ..Default::default()
        };
        let (routes, chains) = (
            configuration(config.clone()),
            self::listener(listener.clone()),
        );
        for _ in 0..20 {
            assert_eq!(configuration(config.clone()), routes);
            assert_eq!(self::listener(listener.clone()), chains);
        }
        let any = |type_url: String, value| Any { type_url, value };
        let read = unpack(&any(pack(&config).type_url, routes));
        assert_eq!(read.ok(), Some(config));
        let read = unpack(&any(pack(&listener).type_url, chains));
        assert_eq!(read.ok(), Some(listener));
    }

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
