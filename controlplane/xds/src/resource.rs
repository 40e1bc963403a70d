//! Resources on their way: encoded by the pilot ([`EncodedResource`]), received by a client
//! ([`RawResource`]) and decoded in two phases, so that a bad resource is rejected by its name
//! while the good ones of the same response apply.
//!
//! Phase one (bytes to message) is here; phase two (message to a validated type) is the caller's
//! function, usually `TryFrom`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::TypeUrl;
use crate::mcp;
use crate::proto::envoy::service::discovery::v3::Resource;
use crate::proto::{self, Any};
use crate::reflect;
use crate::subscription::Selection;
use crate::version::Version;

/// A message that is an xDS resource: it has a type URL and carries its name.
pub trait WireResource: Message + Default + 'static {
    /// Type under which it is subscribed to.
    const TYPE_URL: TypeUrl;

    /// The name inside the message; empty where the message has none (NDS).
    fn name(&self) -> &str;
}

macro_rules! wire_resource {
    ($($message:ty => $type_url:ident . $name:ident),* $(,)?) => {
        $(impl WireResource for $message {
            const TYPE_URL: TypeUrl = TypeUrl::$type_url;

            fn name(&self) -> &str {
                &self.$name
            }
        })*

        /// The name that a resource without a wrapper carries; none where it cannot be read.
        pub(crate) fn name_of(type_url: &TypeUrl, any: &Any) -> Option<String> {
            if type_url.object_kind().is_some() {
                return mcp::name_of(any);
            }
            if proto::message_name(&any.type_url) != proto::message_name(type_url.as_str()) {
                return None;
            }
            $(if *type_url == TypeUrl::$type_url {
                let message = <$message>::decode(any.value.as_slice()).ok()?;
                return Some(message.$name);
            })*
            Some(String::new())
        }
    };
}

wire_resource! {
    proto::Cluster => CLUSTER.name,
    proto::ClusterLoadAssignment => ENDPOINT.cluster_name,
    proto::Listener => LISTENER.name,
    proto::RouteConfiguration => ROUTE.name,
    proto::ScopedRouteConfiguration => SCOPED_ROUTE.name,
    proto::VirtualHost => VIRTUAL_HOST.name,
    proto::Secret => SECRET.name,
    proto::envoy::config::core::v3::TypedExtensionConfig => EXTENSION_CONFIG.name,
    proto::envoy::service::runtime::v3::Runtime => RUNTIME.name,
}

impl WireResource for proto::NameTable {
    const TYPE_URL: TypeUrl = TypeUrl::NAME_TABLE;

    fn name(&self) -> &'static str {
        ""
    }
}

/// A resource encoded once, shared by every client it is sent to.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedResource {
    type_url: TypeUrl,
    name: Arc<str>,
    version: Version,
    body: Bytes,
    ttl: Option<Duration>,
    aliases: Arc<[String]>,
}

impl EncodedResource {
    /// Encodes a message under the name it carries. Equal messages give equal bytes and versions.
    pub fn encode<M: WireResource>(message: &M) -> Self {
        Self::encode_as(message.name(), message)
    }

    /// Encodes a message under a name of its own, for types whose messages carry none.
    pub fn encode_as<M: WireResource>(name: &str, message: &M) -> Self {
        let mut body = message.encode_to_vec();
        reflect::canonicalize(proto::message_name(M::TYPE_URL.as_str()), &mut body);
        Self::from_bytes(M::TYPE_URL, name, body.into())
    }

    /// A resource whose message is encoded already, in one order of map entries.
    pub fn from_bytes(type_url: TypeUrl, name: &str, body: Bytes) -> Self {
        Self {
            type_url,
            name: name.into(),
            version: Version::of(&body),
            body,
            ttl: None,
            aliases: Arc::default(),
        }
    }

    /// The same for clients that may also ask for it by these names, as they do for virtual hosts.
    #[must_use]
    pub fn with_aliases(self, aliases: Vec<String>) -> Self {
        Self {
            aliases: aliases.into(),
            ..self
        }
    }

    /// Further names by which clients may ask for it.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// Whether a client asks for it, by whatever name.
    pub fn is_selected_by(&self, selection: &Selection) -> bool {
        selection.contains(&self.name) || self.is_asked_for_by_alias(selection)
    }

    /// Whether a client asks for it by another name than its own.
    pub fn is_asked_for_by_alias(&self, selection: &Selection) -> bool {
        let mut aliases = self.aliases.iter();
        aliases.any(|alias| selection.names_exactly(alias))
    }

    /// The same for clients that forget it unless they hear of it again within this time. The server sees to that.
    #[must_use]
    pub fn with_ttl(self, ttl: Option<Duration>) -> Self {
        let ttl = ttl.filter(|ttl| !ttl.is_zero());
        Self { ttl, ..self }
    }

    /// How long clients keep it without hearing of it.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// The resource's type.
    pub fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    /// The resource's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, shared.
    pub fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// The hash of the content.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The encoded message, without the `Any` around it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The message in the `Any` that responses carry.
    pub fn to_any(&self) -> Any {
        Any {
            type_url: self.type_url.content().to_owned(),
            value: self.body.to_vec(),
        }
    }
}

/// A resource in the wrapper that has its name and version beside it. Without content it only renews a TTL (xDS protocol,
/// "TTL").
pub(crate) fn wrapped(resource: &EncodedResource, is_heartbeat: bool) -> Resource {
    let duration = |ttl: Duration| proto::google::protobuf::Duration {
        seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        nanos: ttl.subsec_nanos().try_into().unwrap_or(0),
    };
    Resource {
        name: resource.name().to_owned(),
        version: resource.version().as_str().to_owned(),
        resource: (!is_heartbeat).then(|| resource.to_any()),
        ttl: resource.ttl().map(duration),
        aliases: resource.aliases().to_vec(),
        ..Default::default()
    }
}

impl fmt::Debug for EncodedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}@{}", self.type_url, self.name, self.version)
    }
}

/// A resource as a client received it: named, not yet decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct RawResource {
    /// Name under which it was sent.
    pub name: String,
    /// Version that the server gave it; empty in `SotW`, where only responses have versions.
    pub version: String,
    /// The packed message.
    pub body: Any,
}

impl RawResource {
    /// Phase one: the message.
    ///
    /// # Errors
    /// Names the resource when its type is another, its bytes are malformed, or the message calls
    /// itself by another name than the one it was sent under.
    pub fn decode<M: WireResource>(&self) -> Result<M, ResourceError> {
        let fail = |message: String| ResourceError {
            name: self.name.clone(),
            message,
        };
        let found = proto::message_name(&self.body.type_url);
        let expected = M::TYPE_URL;
        if found != proto::message_name(expected.as_str()) {
            return Err(fail(format!(
                "expected {expected}, found {}",
                self.body.type_url
            )));
        }
        let message = M::decode(self.body.value.as_slice())
            .map_err(|error| fail(format!("malformed {found}: {error}")))?;
        let inner = message.name();
        if !inner.is_empty() && inner != self.name {
            return Err(fail(format!("carries the name {inner}")));
        }
        Ok(message)
    }
}

/// Why one resource was rejected; the message reaches the server in the NACK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct ResourceError {
    /// The rejected resource.
    pub name: String,
    /// What is wrong with it.
    pub message: String,
}

/// What both phases made of a response's resources.
#[derive(Debug)]
pub struct Decoded<T> {
    /// Accepted resources by name, in the order received.
    pub accepted: Vec<(String, T)>,
    /// Rejected ones.
    pub rejected: Vec<ResourceError>,
}

/// Runs both phases over resources of one type; `validate` is the second.
pub fn decode_all<M, T, E>(
    resources: &[RawResource],
    mut validate: impl FnMut(M) -> Result<T, E>,
) -> Decoded<T>
where
    M: WireResource,
    E: fmt::Display,
{
    let mut decoded = Decoded {
        accepted: Vec::with_capacity(resources.len()),
        rejected: Vec::new(),
    };
    for resource in resources {
        let validated = resource.decode::<M>().and_then(|message| {
            validate(message).map_err(|error| ResourceError {
                name: resource.name.clone(),
                message: format!("{error:#}"),
            })
        });
        match validated {
            Ok(value) => decoded.accepted.push((resource.name.clone(), value)),
            Err(error) => decoded.rejected.push(error),
        }
    }
    decoded
}

#[cfg(test)]
mod tests;
