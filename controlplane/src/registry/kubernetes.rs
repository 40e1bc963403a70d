//! The Kubernetes registry: one watch per kind of object at an API server.
//!
//! Input: the API server's lists and watches; output: objects, gone objects and problems. [`connect`] makes the
//! client, [`kinds`] says what is watched, [`watch`] keeps one watch alive, [`catalog`] decides what an update means;
//! this file only moves updates between them. Nothing is deleted because a watch broke: the last good state serves
//! until the API server says otherwise.

mod catalog;
mod connect;
mod kinds;
mod watch;

pub(crate) use self::connect::connect;
pub use self::connect::{Access, ConnectError};
pub(crate) use self::kinds::{CONFIG_KINDS, ConfigKind, served};

use std::collections::BTreeSet;

use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::catalog::Catalog;
use self::watch::Update;
use super::{Registry, RegistryError, RegistryEvent, Running, Sink};
use crate::model::problem::Problem;

const NAME: &str = "kubernetes";
/// Updates that wait for the reader; watches wait when it is full.
const UPDATES: usize = 256;
/// Updates that are told to the writer at once, so that a burst is one change.
const BATCH: usize = 1024;

/// The names of the custom resource definitions that the API server has; none until they are known.
type Definitions = Option<BTreeSet<String>>;

/// The registry.
#[derive(Clone, Debug)]
pub struct KubernetesRegistry {
    access: Access,
    domain: String,
}

impl KubernetesRegistry {
    /// A registry of the cluster that this leads to, for a mesh of this domain.
    pub fn new(access: Access, domain: &str) -> Self {
        Self {
            access,
            domain: domain.to_owned(),
        }
    }
}

impl Registry for KubernetesRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            let client = connect(&self.access).await?;
            let (updates, received) = mpsc::channel(UPDATES);
            let (definitions, known) = latest::channel(None);
            let mut watches = JoinSet::new();
            kinds::start(&client, &self.domain, &updates, &known, &mut watches);
            let mut reader = Reader {
                catalog: Catalog::default(),
                definitions,
                problems: Vec::new(),
                synced: false,
                sink,
            };
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = watches.join_next() => Err(RegistryError::WatchEnded {
                    name: NAME,
                    source: ended.and_then(Result::err),
                }),
                failed = reader.run(received) => failed,
            }
        })
    }
}

/// The registry at work.
struct Reader {
    catalog: Catalog,
    definitions: latest::Sender<Definitions>,
    problems: Vec<Problem>,
    synced: bool,
    sink: Sink,
}

impl Reader {
    async fn run(&mut self, mut received: mpsc::Receiver<Update>) -> Result<(), RegistryError> {
        let mut batch = Vec::new();
        while received.recv_many(&mut batch, BATCH).await > 0 {
            for update in batch.drain(..) {
                self.catalog.take(update);
            }
            self.tell().await?;
        }
        Ok(())
    }

    /// Tells the writer, and whoever waits for definitions, what is different.
    async fn tell(&mut self) -> Result<(), RegistryError> {
        let definitions = self.catalog.definitions();
        self.definitions.send_if_modified(|known| {
            let differs = known.as_ref() != definitions;
            if differs {
                *known = definitions.cloned();
            }
            differs
        });
        let (applied, deleted) = self.catalog.take_changes();
        if !applied.is_empty() || !deleted.is_empty() {
            self.send(RegistryEvent::Changed { applied, deleted })
                .await?;
        }
        let problems = self.catalog.problems();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            self.send(RegistryEvent::Problems(problems)).await?;
        }
        if !self.synced && self.catalog.is_synced() {
            self.synced = true;
            self.send(RegistryEvent::Synced).await?;
        }
        Ok(())
    }

    async fn send(&self, event: RegistryEvent) -> Result<(), RegistryError> {
        self.sink
            .send(event)
            .await
            .map_err(|_| RegistryError::Closed { name: NAME })
    }
}
