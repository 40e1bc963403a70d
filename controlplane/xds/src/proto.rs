//! The protobuf types of xDS: everything of `envoy-types` (which only this crate depends on),
//! Istio's name table, and packing to and from [`Any`].
//!
//! In: nothing. Out: message types, used by the code that builds or reads protos (the pilot's
//! translation, the proxy's conversion) and by the state machines of this crate.

pub use envoy_types::pb::*;

pub mod nds;

pub use self::envoy::config::bootstrap::v3::Bootstrap;
pub use self::envoy::config::cluster::v3::Cluster;
pub use self::envoy::config::core::v3::{Locality, Node};
pub use self::envoy::config::endpoint::v3::ClusterLoadAssignment;
pub use self::envoy::config::listener::v3::Listener;
pub use self::envoy::config::route::v3::{
    RouteConfiguration, ScopedRouteConfiguration, VirtualHost,
};
pub use self::envoy::extensions::transport_sockets::tls::v3::Secret;
pub use self::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
pub use self::google::protobuf::Any;
pub use self::google::rpc::Status;
pub use self::nds::NameTable;

use prost::{Message, Name};

/// Packs a message with its own type URL.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Why an [`Any`] did not unpack.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The content is of another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// Type URL asked for.
        expected: String,
        /// Type URL found.
        found: String,
    },
    /// The bytes are not a valid encoding of the type.
    #[error("malformed {type_url}")]
    Malformed {
        /// Type URL of the content.
        type_url: String,
        /// What the decoder says.
        #[source]
        source: prost::DecodeError,
    },
}

/// Unpacks a message; only the name after the last `/` of the type URL counts, as protobuf
/// says of `Any`.
///
/// # Errors
/// When the content is of another type or malformed.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    if message_name(&any.type_url) != M::full_name() {
        return Err(UnpackError::Type {
            expected: M::type_url(),
            found: any.type_url.clone(),
        });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Malformed {
        type_url: any.type_url.clone(),
        source,
    })
}

/// The message's full name in a type URL: what follows the last `/`.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_round_trips_and_prefix_of_type_url_is_ignored() {
        let cluster = Cluster {
            name: "outbound|9080||reviews".into(),
            ..Default::default()
        };
        let mut any = pack(&cluster);
        any.type_url = format!("example.com/{}", Cluster::full_name());
        assert_eq!(unpack::<Cluster>(&any).unwrap(), cluster);
    }

    #[test]
    fn other_type_and_malformed_content_are_told_apart() {
        let any = pack(&Cluster::default());
        assert!(matches!(
            unpack::<Listener>(&any),
            Err(UnpackError::Type { .. })
        ));
        let broken = Any {
            type_url: Cluster::type_url(),
            value: vec![0x0a, 0xff],
        };
        assert!(matches!(
            unpack::<Cluster>(&broken),
            Err(UnpackError::Malformed { .. })
        ));
    }
}
