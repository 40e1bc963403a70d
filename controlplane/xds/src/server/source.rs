//! What a control plane gives to the server and is told by it.
//!
//! In: connections and reports from the streams. Out: the view of the configuration that a client
//! is to have. Implemented by the pilot.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::node::Node;
use crate::push::{ConfigView, Generation};
use crate::resource::ResourceError;
use crate::subscription::Selection;
use crate::{TypeUrl, Version};

/// Identifies a stream for the life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which of the protocol's two variants a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolVariant {
    /// `StreamAggregatedResources`.
    Sotw,
    /// `DeltaAggregatedResources`.
    Delta,
}

/// A stream whose first request has come.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: ConnectionId,
    /// Who the client says it is.
    pub node: Arc<Node>,
    /// Address it came from; none over a Unix socket.
    pub peer: Option<SocketAddr>,
    /// Variant it speaks.
    pub variant: ProtocolVariant,
    /// gRPC metadata of the call, such as `authorization`.
    pub metadata: MetadataMap,
    /// Whether a [`Guard`] has found that it is who it says.
    pub proven: bool,
}

/// Decides who is let in, before the source hears of a client. A server without one lets everybody in.
#[tonic::async_trait]
pub trait Guard: Send + Sync + 'static {
    /// Whether the client may be who it says it is. An error closes the stream with that status.
    async fn admit(&self, connection: &Connection) -> Result<Stay, Status>;
}

/// How long a client may stay: ends with the status that closes its stream.
pub type Stay = Pin<Box<dyn Future<Output = Status> + Send>>;

/// The control plane behind an ADS server.
pub trait ConfigSource: Send + Sync + 'static {
    /// What the source keeps per stream: the identity it settled on, scope, counters.
    type Client: Send + Sync + 'static;
    /// A client's configuration at one moment.
    type View: ConfigView;

    /// A client has sent its first request. An error closes the stream with that status.
    fn connect(&self, connection: &Connection) -> Result<Self::Client, Status>;

    /// Changes whenever configuration changed, after [`ConfigSource::view`] shows it. Intermediate generations may be skipped: a client
    /// that is slow gets the newest one, never a queue.
    fn generations(&self) -> watch::Receiver<Generation>;

    /// The newest configuration for a client. Everything sent until the next call comes from this
    /// one view, so types never mix generations. Called once per generation and stream.
    fn view(&self, client: &Self::Client) -> Self::View;

    /// Whether resources of this type may have changed for this client since a generation. `false`
    /// spares the comparison; the default compares versions always.
    fn affects(&self, client: &Self::Client, since: Generation, type_url: &TypeUrl) -> bool {
        let _ = (client, since, type_url);
        true
    }

    /// A client accepted or rejected a response, or changed what it subscribes to.
    fn report(&self, client: &Self::Client, report: Report<'_>) {
        let _ = (client, report);
    }

    /// The stream is over.
    fn disconnect(&self, client: Self::Client) {
        drop(client);
    }
}

/// What happened on a stream.
#[derive(Debug)]
pub enum Report<'a> {
    /// A response was accepted.
    Acked(Acked<'a>),
    /// A response was rejected, at least in part.
    Nacked(Nacked<'a>),
    /// The subscription of a type changed.
    Subscribed {
        /// The type.
        type_url: &'a TypeUrl,
        /// What is subscribed to now.
        selection: &'a Arc<Selection>,
        /// What of it the client has just asked for, whether or not it did before.
        added: &'a [String],
    },
}

/// A response that a client accepted.
#[derive(Debug)]
pub struct Acked<'a> {
    /// Its type.
    pub type_url: &'a TypeUrl,
    /// Its version.
    pub version: &'a Version,
    /// Its nonce.
    pub nonce: &'a str,
    /// From sending to acceptance.
    pub latency: std::time::Duration,
}

/// A response that a client rejected.
#[derive(Debug)]
pub struct Nacked<'a> {
    /// Its type.
    pub type_url: &'a TypeUrl,
    /// Its version.
    pub version: &'a Version,
    /// Its nonce.
    pub nonce: &'a str,
    /// What the client says, whole.
    pub message: &'a str,
    /// Names of all resources in the response.
    pub resources: &'a [Arc<str>],
    /// The bad ones, where the client named them (ours do; Envoy puts them into the message).
    pub rejected: Vec<ResourceError>,
}
