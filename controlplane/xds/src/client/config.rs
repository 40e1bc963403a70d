//! What a client is told at its start, and the state of its connection.

use std::path::PathBuf;
use std::time::Duration;

use crate::TypeUrl;
use crate::node::Node;

/// How to reach the control plane and what is known from before.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `http://host:port` (HTTP/2 without TLS), `https://host:port` or `unix:///path`; replicas with commas
    /// between, of which each client begins with one at random.
    pub server: String,
    /// PEM of the authorities that are trusted with `https`; read anew for every connection.
    pub roots: Option<PathBuf>,
    /// The name in the server's certificate; the host of its address where absent.
    pub server_name: Option<String>,
    /// A token that is shown as `authorization: Bearer`, never in plain text; read anew for every stream.
    pub token: Option<PathBuf>,
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
            roots: None,
            server_name: None,
            token: None,
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
#[error(
    "invalid control plane address {server:?}, expected http://host:port, https://host:port or unix:///path: {reason}"
)]
pub struct InvalidServer {
    /// The address as given.
    pub server: String,
    /// What is wrong with it.
    pub reason: String,
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

/// Exponential pauses; each is drawn at random from all of what its bound allows, so that the nodes of a replica that
/// died do not come to another one together.
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
        // Not at once: what failed may fail as fast as it is tried.
        doubled.min(self.max).mul_f64(0.05 + 0.95 * random.f64())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_drawn_from_the_whole_of_a_growing_bound() {
        let backoff = BackoffConfig::default();
        let mut random = fastrand::Rng::with_seed(7);
        for (failures, bound) in [(1, 200), (2, 400), (4, 1600), (40, 30_000)] {
            let bound = Duration::from_millis(bound);
            let pauses: Vec<Duration> = (0..1000)
                .map(|_| backoff.pause(failures, &mut random))
                .collect();
            assert!(
                pauses
                    .iter()
                    .all(|pause| *pause <= bound && *pause >= bound / 20)
            );
            assert!(pauses.iter().any(|pause| *pause < bound / 10));
            assert!(pauses.iter().any(|pause| *pause > bound / 10 * 9));
        }
    }
}
