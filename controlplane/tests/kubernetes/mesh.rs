//! A registry at work, with the index that it fills.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use millrace_controlplane::index::Index;
use millrace_controlplane::model::ObjectId;
use millrace_controlplane::model::mesh::MeshConfig;
use millrace_controlplane::model::problem::Problem;
use millrace_controlplane::registry::file::FileRegistry;
use millrace_controlplane::registry::kubernetes::{Access, KubernetesRegistry};
use millrace_controlplane::registry::{Places, Registries, Registry, RegistryEvent};
use millrace_controlplane::snapshot::MeshSnapshot;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; a failure, not a measure.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
const DOMAIN: &str = "cluster.local";

pub(crate) struct Mesh {
    index: Index,
    events: mpsc::Receiver<RegistryEvent>,
    pub(crate) problems: Vec<Problem>,
    /// Every object that was ever said to be gone.
    pub(crate) deleted: Vec<ObjectId>,
    synced: bool,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Mesh {
    /// The registry of a cluster.
    pub(crate) fn of_cluster(kubeconfig: PathBuf) -> Self {
        let access = Access {
            kubeconfig: Some(kubeconfig),
            context: None,
        };
        Self::start(Box::new(KubernetesRegistry::new(access, DOMAIN)))
    }

    /// The registry of a directory.
    pub(crate) fn of_directory(directory: PathBuf) -> Self {
        Self::start(Box::new(FileRegistry::new(directory, DOMAIN)))
    }

    /// The registries of a cluster and of a directory, the cluster's first.
    pub(crate) fn of_both(kubeconfig: PathBuf, directory: PathBuf) -> anyhow::Result<Self> {
        let registries: Registries = "kubernetes,file".parse()?;
        let places = Places {
            directory,
            cluster: Access {
                kubeconfig: Some(kubeconfig),
                context: None,
            },
            ..Places::default()
        };
        Ok(Self::start(registries.build(&places, DOMAIN)))
    }

    fn start(registry: Box<dyn Registry>) -> Self {
        let (sink, events) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let running = registry.run(sink, stop.clone());
        let running = tokio::spawn(async move {
            if let Err(error) = running.await {
                panic!("the registry has ended: {error:?}");
            }
        });
        Self {
            index: Index::new(MeshConfig::default()),
            events,
            problems: Vec::new(),
            deleted: Vec::new(),
            synced: false,
            stop,
            running,
        }
    }

    /// Waits until everything there is has been told.
    pub(crate) async fn synced(&mut self) -> anyhow::Result<()> {
        self.until("synced", |mesh| mesh.synced).await
    }

    /// Waits until the index is as `holds` wants it.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let waiting = async {
            while !holds(self) {
                let event = self.events.recv().await.context("the registry has ended")?;
                self.take(event);
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(ended) => ended,
            Err(_) => bail!(
                "{what}: not so within {PATIENCE:?}; problems: {:#?}",
                self.problems
            ),
        }
    }

    /// The mesh as it is known now.
    pub(crate) fn snapshot(&self) -> MeshSnapshot {
        self.index.snapshot()
    }

    /// Ends the registry.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        drop(self.events);
        ensure!(self.running.await.is_ok(), "the registry has failed");
        Ok(())
    }

    fn take(&mut self, event: RegistryEvent) {
        match event {
            RegistryEvent::Changed { applied, deleted } => {
                for id in deleted {
                    self.index.delete(&id);
                    self.deleted.push(id);
                }
                for sourced in applied {
                    self.index.apply(sourced.object);
                }
            }
            RegistryEvent::Problems(problems) => self.problems = problems,
            RegistryEvent::Synced => self.synced = true,
        }
    }
}
