//! The broker: the only process that enters pod namespaces. It makes sockets there, writes
//! capture rules there and hands the sockets to the proxy; it parses no traffic and knows no
//! Kubernetes.
//!
//! Input: calls of the agent on `broker.sock`, messages of proxies on `proxy.sock`. Output:
//! descriptors. All state is in memory: after a restart the agent adopts its pods again and the
//! proxy returns its listening sockets, so no backlog is lost.

pub mod capture;
pub mod creator;
pub mod guard;
pub mod netns;
pub mod routes;
pub mod sockets;

mod hub;
mod inspect;
mod netlink;
mod outbox;
mod server;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use hub::chain;
use millrace_runtime::handoff::{BindOptions, HandoffError, Listener, PeerPolicy};
use tokio_util::sync::CancellationToken;

use crate::iptables::BEAT;

/// How often the broker looks whether a proxy is still there.
const WATCH: Duration = Duration::from_millis(250);

/// What the broker is told at start.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where the agent connects.
    pub agent_socket: PathBuf,
    /// Where proxies connect.
    pub proxy_socket: PathBuf,
    /// The user that proxies run as.
    pub proxy_uid: u32,
    /// The group that may reach the proxies' socket.
    pub proxy_gid: u32,
    /// Sockets per role before any proxy has said how many workers it has.
    pub workers: u16,
}

/// Serves until `stop` is cancelled. What is in pods stays as it is.
///
/// # Errors
/// When a socket cannot be bound.
pub async fn run(config: BrokerConfig, stop: CancellationToken) -> Result<(), HandoffError> {
    let agents = Listener::bind(
        &config.agent_socket,
        BindOptions {
            mode: 0o600,
            owner: None,
        },
    )?;
    let proxies = Listener::bind(
        &config.proxy_socket,
        BindOptions {
            mode: 0o660,
            owner: Some((config.proxy_uid, config.proxy_gid)),
        },
    )?;
    let hub = Arc::new(hub::Hub::new(config.workers));
    tracing::info!(
        agents = %config.agent_socket.display(),
        proxies = %config.proxy_socket.display(),
        "broker serves"
    );
    tokio::join!(
        server::serve_agents(
            agents,
            PeerPolicy::privileged(),
            Arc::clone(&hub),
            stop.clone()
        ),
        server::serve_proxies(
            proxies,
            PeerPolicy::users(&[config.proxy_uid]),
            Arc::clone(&hub),
            stop.clone()
        ),
        watch(hub, stop),
    );
    Ok(())
}

async fn watch(hub: Arc<hub::Hub>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(WATCH);
    let mut beats = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => hub.expire().await,
            _ = beats.tick() => {
                hub.refresh_open();
                hub.refresh_steered();
            }
        }
    }
}
