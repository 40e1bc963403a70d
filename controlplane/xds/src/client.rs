//! The node's side: one delta ADS stream with reconnects, run by [`Driver`].
//!
//! In: subscriptions from any task through [`Client`]; responses of the control plane. Out:
//! [`Event`]s, of which each [`Update`] is to be committed or rejected by its consumer; the
//! [`ConnectionState`]. Used by the proxy.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::TypeUrl;
use crate::delta::client::{DeltaClient, Verdict};
use crate::proto;

mod config;
mod connect;
mod driver;
mod states;
mod update;

pub use config::{BackoffConfig, ClientConfig, ConnectionState, InvalidServer, KnownResource};
pub use driver::Driver;
pub use states::{StateEvent, StateStream};
pub use update::{Event, Update};

/// Room for events that the consumer has not taken yet. The driver reads no response without room,
/// so a slow consumer slows the server down and memory stays bounded.
const EVENT_BACKLOG: usize = 16;

/// Prepares a client. Nothing happens until [`Driver::run`] runs, which the caller spawns and owns.
///
/// # Errors
/// When the server's address is malformed.
pub fn client(config: ClientConfig) -> Result<(Client, Events, Driver), InvalidServer> {
    let mut machine = DeltaClient::new(proto::Node::from(&config.node), config.resource_timeout);
    for known in &config.known {
        machine.restore(&known.type_url, &known.name, &known.version);
    }
    let (state, state_watch) = watch::channel(ConnectionState::Connecting { attempt: 1 });
    let shared = Arc::new(Shared {
        machine: Mutex::new(machine),
        changed: Notify::new(),
        renewed: Notify::new(),
    });
    let (sender, receiver) = mpsc::channel(EVENT_BACKLOG);
    let driver = Driver::new(config, shared.clone(), sender, state)?;
    let client = Client {
        shared,
        state: state_watch,
    };
    Ok((client, Events(receiver), driver))
}

/// A handle to say what is wanted, from any task; cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    state: watch::Receiver<ConnectionState>,
}

impl Client {
    /// Subscribes to names, collections (`<prefix>/*`) or everything (`*`) of a type. What is
    /// subscribed to already is not asked for again.
    pub fn subscribe<S: AsRef<str>>(&self, type_url: &TypeUrl, terms: impl IntoIterator<Item = S>) {
        let mut machine = self.shared.machine.lock();
        for term in terms {
            machine.subscribe(type_url, [term.as_ref()]);
        }
        drop(machine);
        self.shared.changed.notify_one();
    }

    /// Ends subscriptions. The consumer may forget resources that no other term covers; nothing
    /// more is said of them.
    pub fn unsubscribe<S: AsRef<str>>(
        &self,
        type_url: &TypeUrl,
        terms: impl IntoIterator<Item = S>,
    ) {
        let mut machine = self.shared.machine.lock();
        for term in terms {
            machine.unsubscribe(type_url, [term.as_ref()]);
        }
        drop(machine);
        self.shared.changed.notify_one();
    }

    /// Subscribes and unsubscribes so that exactly these terms of a type remain. The consumer may
    /// forget resources that none of them covers, restored ones too; none of those is claimed any more.
    pub fn set_subscription<S: AsRef<str>>(
        &self,
        type_url: &TypeUrl,
        terms: impl IntoIterator<Item = S>,
    ) {
        let wanted: crate::Selection = terms.into_iter().collect();
        let mut machine = self.shared.machine.lock();
        let current: Vec<String> = machine
            .wanted(type_url)
            .into_iter()
            .flat_map(|selection| selection.terms().collect::<Vec<_>>())
            .collect();
        for term in wanted.terms() {
            machine.subscribe(type_url, [term.as_str()]);
        }
        let ended = current.iter().filter(|term| !wanted.has(term));
        machine.unsubscribe(type_url, ended.map(String::as_str));
        drop(machine);
        self.shared.changed.notify_one();
    }

    /// The connection's state and its changes.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Subscribed terms of a type that the control plane has said nothing of yet: those that a
    /// start-up has to wait for. Terms reported by [`Event::Missing`] are not among them.
    pub fn unanswered(&self, type_url: &TypeUrl) -> Vec<String> {
        let machine = self.shared.machine.lock();
        machine.unanswered(type_url).map(str::to_owned).collect()
    }

    /// Names and versions committed so far, for a saved last good state.
    pub fn known(&self, type_url: &TypeUrl) -> Vec<(String, String)> {
        let machine = self.shared.machine.lock();
        machine
            .known(type_url)
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect()
    }
}

/// What comes from the control plane, in order.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event; none when the driver has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }

    /// The next event if one is there already, so that a consumer can take several into one change.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }
}

/// The session, shared by handles, updates and the driver. The lock is held for single steps of
/// the state machine, never across an await.
#[derive(Debug)]
pub(crate) struct Shared {
    machine: Mutex<DeltaClient>,
    /// There may be a request to send.
    changed: Notify,
    /// A TTL may pass earlier than was known.
    renewed: Notify,
}

impl Shared {
    fn finish(&self, verdict: Verdict) {
        self.machine.lock().finish(verdict);
        self.changed.notify_one();
    }
}
