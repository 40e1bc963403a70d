//! Type URLs of xDS resources and what the protocol says of each type: its place in the push
//! order, whether `SotW` responses carry the full state, whether an empty first request means
//! everything.
//!
//! Used by the state machines and by everyone who names a resource type.

use std::borrow::Cow;
use std::fmt;

/// A resource type, such as `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeUrl(Cow<'static, str>);

impl TypeUrl {
    /// CDS.
    pub const CLUSTER: Self = Self::of("type.googleapis.com/envoy.config.cluster.v3.Cluster");
    /// EDS.
    pub const ENDPOINT: Self =
        Self::of("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    /// LDS.
    pub const LISTENER: Self = Self::of("type.googleapis.com/envoy.config.listener.v3.Listener");
    /// RDS.
    pub const ROUTE: Self =
        Self::of("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
    /// SRDS.
    pub const SCOPED_ROUTE: Self =
        Self::of("type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration");
    /// VHDS.
    pub const VIRTUAL_HOST: Self =
        Self::of("type.googleapis.com/envoy.config.route.v3.VirtualHost");
    /// ECDS.
    pub const EXTENSION_CONFIG: Self =
        Self::of("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
    /// SDS.
    pub const SECRET: Self =
        Self::of("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    /// RTDS.
    pub const RUNTIME: Self = Self::of("type.googleapis.com/envoy.service.runtime.v3.Runtime");
    /// NDS (Istio's name table).
    pub const NAME_TABLE: Self = Self::of("type.googleapis.com/istio.networking.nds.v1.NameTable");

    const fn of(url: &'static str) -> Self {
        Self(Cow::Borrowed(url))
    }

    /// The URL as it is on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The usual short name (`CDS`), or the message's name for types without one.
    pub fn short_name(&self) -> &str {
        self.known()
            .map_or_else(|| crate::proto::message_name(&self.0), |known| known.short)
    }

    /// Place in the push order CDS, EDS, LDS, SRDS, RDS, VHDS, ECDS, SDS, RTDS, NDS, others;
    /// removals go the other way round (xDS protocol, "Eventual consistency considerations").
    pub fn push_rank(&self) -> u8 {
        self.known().map_or(u8::MAX, |known| known.rank)
    }

    /// Whether a `SotW` response must carry every resource the client needs, so that absence means
    /// removal: LDS and CDS only (xDS protocol, "Grouping Resources into Responses"), and objects of
    /// configuration, as Istio's clients read them.
    pub fn is_full_state(&self) -> bool {
        *self == Self::LISTENER || *self == Self::CLUSTER || self.object_kind().is_some()
    }

    /// Group, version and kind of a type of configuration objects, which is called
    /// `group/version/Kind` (Istio's MCP over xDS; Kubernetes' own group is `core`).
    pub fn object_kind(&self) -> Option<(&str, &str, &str)> {
        let (group, rest) = self.0.split_once('/')?;
        let (version, kind) = rest.split_once('/')?;
        (group != "type.googleapis.com" && !kind.contains('/')).then_some((group, version, kind))
    }

    /// What messages of this type are packed as.
    pub(crate) fn content(&self) -> &str {
        if self.object_kind().is_some() {
            return crate::mcp::RESOURCE;
        }
        self.as_str()
    }

    /// Whether a first request without names asks for everything. The protocol says so for LDS
    /// and CDS; types whose resources are always named by another resource are excluded, every
    /// other type (NDS, RTDS, SRDS) is asked for in this way by Istio's agents.
    pub fn has_legacy_wildcard(&self) -> bool {
        ![
            Self::ENDPOINT,
            Self::ROUTE,
            Self::VIRTUAL_HOST,
            Self::EXTENSION_CONFIG,
            Self::SECRET,
        ]
        .contains(self)
    }

    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.url == *self)
    }
}

impl From<&str> for TypeUrl {
    fn from(url: &str) -> Self {
        KNOWN
            .iter()
            .find(|known| known.url.as_str() == url)
            .map_or_else(
                || Self(Cow::Owned(url.to_owned())),
                |known| known.url.clone(),
            )
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

impl serde::Serialize for TypeUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

struct Known {
    url: TypeUrl,
    short: &'static str,
    rank: u8,
}

const fn known(url: TypeUrl, short: &'static str, rank: u8) -> Known {
    Known { url, short, rank }
}

static KNOWN: [Known; 10] = [
    known(TypeUrl::CLUSTER, "CDS", 0),
    known(TypeUrl::ENDPOINT, "EDS", 1),
    known(TypeUrl::LISTENER, "LDS", 2),
    known(TypeUrl::SCOPED_ROUTE, "SRDS", 3),
    known(TypeUrl::ROUTE, "RDS", 4),
    known(TypeUrl::VIRTUAL_HOST, "VHDS", 5),
    known(TypeUrl::EXTENSION_CONFIG, "ECDS", 6),
    known(TypeUrl::SECRET, "SDS", 7),
    known(TypeUrl::RUNTIME, "RTDS", 8),
    known(TypeUrl::NAME_TABLE, "NDS", 9),
];

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Name;

    #[test]
    fn constants_are_the_type_urls_of_their_messages() {
        assert_eq!(TypeUrl::CLUSTER.as_str(), crate::proto::Cluster::type_url());
        assert_eq!(
            TypeUrl::ENDPOINT.as_str(),
            crate::proto::ClusterLoadAssignment::type_url()
        );
        assert_eq!(
            TypeUrl::LISTENER.as_str(),
            crate::proto::Listener::type_url()
        );
        assert_eq!(
            TypeUrl::ROUTE.as_str(),
            crate::proto::RouteConfiguration::type_url()
        );
        assert_eq!(TypeUrl::SECRET.as_str(), crate::proto::Secret::type_url());
        assert_eq!(
            TypeUrl::NAME_TABLE.as_str(),
            crate::proto::NameTable::type_url()
        );
    }

    #[test]
    fn unknown_types_keep_their_url_and_go_last() {
        let url = TypeUrl::from("type.googleapis.com/example.Thing");
        assert_eq!(url.as_str(), "type.googleapis.com/example.Thing");
        assert_eq!(url.short_name(), "example.Thing");
        assert!(url.push_rank() > TypeUrl::NAME_TABLE.push_rank());
    }
}
