//! What a client is told at its start, and the state of its connection.

use std::time::Duration;

use crate::TypeUrl;
use crate::node::Node;

/// How to reach the control plane and what is known from before.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `http://host:port` (HTTP/2 without TLS) or `unix:///path`.
    pub server: String,
    /// Who we are; sent with the first request of every stream.
    pub node: Node,
    /// gRPC metadata sent with every stream, such as `authorization`.
    pub metadata: Vec<(String, String)>,
    /// Pauses between attempts to connect.
    pub backoff: BackoffConfig,
    /// Limit for one attempt to connect.
    pub connect_timeout: Duration,
    /// HTTP/2 pings find a dead server after twice this time.
    pub keepalive: Duration,
    /// A subscribed name that the server has said nothing of for this long is reported as
    /// [`super::Event::Missing`] (the protocol recommends 15 s).
    pub resource_timeout: Duration,
    /// Resources kept from an earlier run, such as a last good state on disk: the server sends
    /// them again only if they changed.
    pub known: Vec<KnownResource>,
}

impl ClientConfig {
    /// A configuration with the usual limits.
    pub fn new(server: impl Into<String>, node: Node) -> Self {
        Self {
            server: server.into(),
            node,
            metadata: Vec::new(),
            backoff: BackoffConfig::default(),
            connect_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(30),
            resource_timeout: Duration::from_secs(15),
            known: Vec::new(),
        }
    }
}

/// Why the address of the server cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("invalid control plane address {server}, expected http://host:port or unix:///path")]
pub struct InvalidServer {
    /// The address as given.
    pub server: String,
    /// What is wrong with it, where that is known.
    #[source]
    pub source: Option<tonic::transport::Error>,
}

/// A resource that the consumer holds already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownResource {
    /// Its type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: String,
    /// The version it was received with.
    pub version: String,
}

/// Exponential pauses; each is drawn at random from the upper half of its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackoffConfig {
    /// Upper bound of the first pause.
    pub base: Duration,
    /// Upper bound of any pause.
    pub max: Duration,
    /// A stream that lived this long resets the pause to `base`.
    pub reset_after: Duration,
}

impl BackoffConfig {
    /// The pause after this many failures in a row.
    pub(super) fn pause(&self, failures: u32, random: &mut fastrand::Rng) -> Duration {
        let doubled = self
            .base
            .saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.max).mul_f64(0.5 + random.f64() / 2.0)
    }
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(200),
            max: Duration::from_secs(30),
            reset_after: Duration::from_secs(10),
        }
    }
}

/// Where the connection to the control plane stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// An attempt is under way; the first is number 1.
    Connecting {
        /// Attempts since the last stream that worked.
        attempt: u32,
    },
    /// The stream is open.
    Connected {
        /// What the server calls itself, once it has said so.
        control_plane: Option<String>,
    },
    /// The stream broke or could not be opened; the last good state keeps serving.
    Disconnected {
        /// Why.
        error: String,
        /// Pause until the next attempt.
        retry_in: Duration,
    },
    /// The driver has ended.
    Closed,
}
