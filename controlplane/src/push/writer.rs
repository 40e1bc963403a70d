//! The writer: the one task that owns the index.
//!
//! Input: what registries and the mesh settings' file say; output: a published snapshot after each
//! burst of changes. Started and joined by [`crate::app`].

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::debounce::{Debounce, DebounceConfig};
use super::problems::Problems;
use crate::index::Index;
use crate::metrics::PilotMetrics;
use crate::model::mesh::MeshConfig;
use crate::model::problem::Problem;
use crate::registry::RegistryEvent;
use crate::serve::MeshSource;
use crate::serve::objects::Objects;

/// What the writer is told.
#[derive(Debug)]
pub enum Input {
    /// By a registry.
    Registry(RegistryEvent),
    /// By the mesh settings' file: the settings if they are good, and what is wrong.
    Mesh(Option<MeshConfig>, Vec<Problem>),
}

/// The writer.
#[derive(Debug)]
pub struct Writer {
    index: Index,
    debounce: Debounce,
    problems: Problems,
    objects: Objects,
    /// Whether the objects are others than those that were published.
    restated: bool,
    source: Arc<MeshSource>,
    metrics: PilotMetrics,
    synced: bool,
}

impl Writer {
    /// A writer that publishes to `source`.
    pub fn new(
        mesh: MeshConfig,
        debounce: DebounceConfig,
        source: Arc<MeshSource>,
        metrics: PilotMetrics,
    ) -> Self {
        Self {
            index: Index::new(mesh),
            debounce: Debounce::new(debounce),
            problems: Problems::new(source.origins().clone()),
            objects: Objects::default(),
            restated: false,
            source,
            metrics,
            synced: false,
        }
    }

    /// Works until stopped or until nobody can tell it anything any more.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        loop {
            let wake = self.debounce.deadline().filter(|_| self.synced);
            let far = Instant::now() + std::time::Duration::from_hours(1);
            // biased: a stop first, then the push that is due, so that a flood of changes cannot put it
            // off for ever.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(wake.unwrap_or(far)), if wake.is_some() => self.push(),
                input = inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Mesh(mesh, problems) => {
                if let Some(mesh) = mesh {
                    self.index.set_mesh(mesh);
                }
                self.problems.set_mesh(problems);
            }
            Input::Registry(RegistryEvent::Changed { applied, deleted }) => {
                for id in deleted {
                    self.index.delete(&id);
                    self.restated |= self.objects.set(&id, None);
                    self.problems.set_origin(id, None);
                }
                for sourced in applied {
                    let id = sourced.object.id();
                    self.restated |= self.objects.set(&id, sourced.origin.as_deref());
                    self.problems.set_origin(id, sourced.origin);
                    self.index.apply(sourced.object);
                }
            }
            Input::Registry(RegistryEvent::Problems(problems)) => {
                self.problems.set_registry(problems);
            }
            Input::Registry(RegistryEvent::Synced) => {
                self.synced = true;
                self.debounce.record(Instant::now());
                // Clients wait for the first snapshot, and nothing more is about to come.
                self.push();
                return;
            }
        }
        self.debounce.record(Instant::now());
        self.source.set_waiting(self.debounce.waiting());
    }

    fn push(&mut self) {
        let (changes, age) = self.debounce.take(Instant::now());
        self.source.set_waiting(0);
        let change_set = self.index.take_changes();
        let snapshot = Arc::new(self.index.snapshot());
        self.problems.analyze(&snapshot, &change_set);
        let problems = self.problems.current();
        self.metrics.set_problems(&problems);
        self.metrics.set_mesh(&snapshot);
        self.source.set_problems(problems);
        let restated = std::mem::take(&mut self.restated);
        if restated {
            self.source.set_objects(self.objects.clone());
        }
        if change_set.is_empty() && !restated && self.source.is_published() {
            return;
        }
        let generation = self.source.publish(snapshot, &change_set);
        self.metrics.pushed(age);
        tracing::info!(
            generation = generation.0,
            changes,
            services = change_set.services.len(),
            endpoints = change_set.endpoints.len(),
            workloads = change_set.workloads.len(),
            routes = change_set.routes,
            policies = change_set.policies,
            waited_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            "published"
        );
    }
}
