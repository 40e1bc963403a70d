//! Listeners: from an accepted connection to the filter chain that takes it.
//!
//! `accept` takes connections, `accepted` knows their original destination and listener, `inspector` reads as few
//! first bytes as a decision needs, `filter_chain` decides, and the chain's network filter
//! (`http::connection` or `tcp`) gets the stream with its [`DownstreamInfo`].

pub mod accept;
pub mod accepted;
pub mod bind;
pub mod detect;
pub mod filter_chain;
pub mod inspector;
pub mod server_first;
pub mod stats;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::pods::LocalPod;
use crate::resource::{ListenerName, TrafficDirection};

/// The downstream side of a connection.
pub type DownstreamStream = crate::socket::Stream;

/// What is known of a downstream connection; all addresses are canonical (never v4-mapped).
#[derive(Clone, Debug)]
pub struct DownstreamInfo {
    /// Unique within the process.
    pub id: u64,
    /// The pod in whose network namespace the connection was accepted; none when the proxy
    /// made its listeners itself.
    pub pod: Option<Arc<LocalPod>>,
    /// The client. Where capture made it a loopback address, the pod's own address.
    pub peer: SocketAddr,
    /// The accepted socket's own address.
    pub local: SocketAddr,
    /// Where the client wanted to go.
    pub orig_dst: SocketAddr,
    /// Whether the pod's application is the client or the server.
    pub direction: TrafficDirection,
    /// The listener that took the connection.
    pub listener: ListenerName,
    /// The name of its filter chain.
    pub filter_chain: String,
    /// The server name of its `ClientHello`, where one was looked at.
    pub server_name: Option<String>,
    /// When it was accepted.
    pub started: Instant,
}
