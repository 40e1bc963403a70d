//! Every open stream and how far it is, for `/debug/syncz`, metrics and shutdown.
//!
//! In: streams that open and close. Out: [`ConnectionStatus`], serializable. Kept by
//! [`super::AdsService`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Connection, ConnectionId, ProtocolVariant};
use crate::node::Node;
use crate::push::{Session, TypeStatus, Variant};

/// The streams of one server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    next_id: AtomicU64,
    open: Mutex<BTreeMap<ConnectionId, Entry>>,
    draining: watch::Sender<bool>,
}

struct Entry {
    connection: Arc<Connection>,
    since: SystemTime,
    session: Arc<dyn SessionStatus>,
}

/// A stream's state, as a whole.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionStatus {
    /// Identifies the stream.
    pub id: ConnectionId,
    /// The client's node id.
    pub node_id: String,
    /// What else the client said of itself.
    #[serde(skip)]
    pub node: Arc<Node>,
    /// Program of the client.
    pub user_agent: String,
    /// Address it came from; none over a Unix socket.
    pub peer: Option<SocketAddr>,
    /// Variant it speaks.
    pub variant: ProtocolVariant,
    /// When its first request came, in seconds of Unix time.
    pub connected_at: u64,
    /// Its types in push order.
    pub types: Vec<TypeStatus>,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            next_id: AtomicU64::new(1),
            open: Mutex::default(),
            draining: watch::Sender::new(false),
        }))
    }

    /// Number of open streams whose first request has come.
    pub fn count(&self) -> usize {
        self.0.open.lock().len()
    }

    /// The state of every stream, oldest first.
    pub fn status(&self) -> Vec<ConnectionStatus> {
        let now = Instant::now();
        self.0
            .open
            .lock()
            .values()
            .map(|entry| entry.status(now))
            .collect()
    }

    /// Ends all streams, now and from now on, with `UNAVAILABLE`: clients go to another replica or
    /// come back after a pause.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.0.draining.subscribe()
    }

    pub(super) fn next_id(&self) -> ConnectionId {
        ConnectionId(self.0.next_id.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn insert(
        &self,
        connection: Arc<Connection>,
        session: Arc<dyn SessionStatus>,
    ) -> Registration {
        let id = connection.id;
        self.0.open.lock().insert(
            id,
            Entry {
                connection,
                since: SystemTime::now(),
                session,
            },
        );
        Registration {
            connections: self.clone(),
            id,
        }
    }
}

/// Takes the stream out of the list when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    connections: Connections,
    id: ConnectionId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.0.open.lock().remove(&self.id);
    }
}

/// Hides the variant of a session.
pub(super) trait SessionStatus: Send + Sync {
    fn types(&self, now: Instant) -> Vec<TypeStatus>;
}

impl<V: Variant> SessionStatus for Mutex<Session<V>> {
    fn types(&self, now: Instant) -> Vec<TypeStatus> {
        self.lock().status(now)
    }
}

impl Entry {
    fn status(&self, now: Instant) -> ConnectionStatus {
        let Connection {
            id,
            node,
            peer,
            variant,
            ..
        } = &*self.connection;
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH);
        ConnectionStatus {
            id: *id,
            node_id: node.id.clone(),
            node: Arc::clone(node),
            user_agent: format!("{} {}", node.user_agent_name, node.user_agent_version)
                .trim()
                .to_owned(),
            peer: *peer,
            variant: *variant,
            connected_at: since.map_or(0, |age| age.as_secs()),
            types: self.session.types(now),
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}
