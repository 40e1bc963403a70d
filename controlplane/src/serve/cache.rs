//! Encoded resources, made once for each distinct input and shared by every client.
//!
//! An entry is good as long as the parts of the mesh that it was made from are the same, which their
//! revisions say; nothing has to be told what to throw away.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_xds::EncodedResource;
use millrace_xds::server::Generation;
use parking_lot::Mutex;

use super::Published;
use crate::metrics::PilotMetrics;
use crate::model::endpoint::ServiceEndpoints;
use crate::model::near::{Nearness, Place};
use crate::push::scope::Stamp;
use crate::translate::{ProxyView, ResourceKind, Scope, Translator};

/// Entries that nobody asked for over this many generations are dropped: pods and services that are
/// gone leave them behind.
const IDLE_GENERATIONS: u64 = 64;

#[derive(Debug)]
pub(super) struct Cache {
    entries: Mutex<HashMap<Key, Entry>>,
    metrics: PilotMetrics,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: ResourceKind,
    scope: Scope,
    /// Of the client's place what its endpoints depend on.
    place: Place,
    name: String,
}

#[derive(Debug)]
struct Entry {
    inputs: Inputs,
    resource: Arc<EncodedResource>,
    used: Generation,
}

/// What a resource was made from.
#[derive(Debug)]
struct Inputs {
    stamp: Stamp,
    /// For EDS the service's endpoints alone, so that one pod does not touch every service.
    endpoints: Option<Arc<ServiceEndpoints>>,
}

impl Inputs {
    fn of(
        published: &Published,
        translator: &Translator<'_>,
        kind: ResourceKind,
        name: &str,
    ) -> Self {
        let stamp = published.revisions.stamp(kind);
        let endpoints = || translator.endpoints_behind(name).cloned();
        let endpoints = (kind == ResourceKind::Endpoints).then(endpoints).flatten();
        Self { stamp, endpoints }
    }

    /// The place of a client, as far as its endpoints depend on it: nodes whose endpoints do not share one entry.
    fn place(&self, translator: &Translator<'_>) -> Place {
        let nearness = self.endpoints.as_ref().map(|behind| behind.nearness);
        match nearness.unwrap_or_default() {
            Nearness::Nothing => Place::default(),
            nearness => nearness.part_of(translator.place()),
        }
    }

    fn same(&self, other: &Self) -> bool {
        let endpoints = match (&self.endpoints, &other.endpoints) {
            (None, None) => true,
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            _ => false,
        };
        endpoints && self.stamp == other.stamp
    }
}

impl Cache {
    pub(super) fn new(metrics: PilotMetrics) -> Self {
        Self {
            entries: Mutex::default(),
            metrics,
        }
    }

    /// A resource, made if need be; none when the mesh has nothing of that name. What is not there is
    /// not remembered: clients choose names, and could fill the memory with them.
    pub(super) fn resource(
        &self,
        published: &Published,
        view: &ProxyView,
        kind: ResourceKind,
        name: &str,
    ) -> Option<Arc<EncodedResource>> {
        let translator = Translator::new(&published.snapshot, view);
        let inputs = Inputs::of(published, &translator, kind, name);
        let key = Key {
            kind,
            scope: view.scope(kind, name),
            place: inputs.place(&translator),
            name: name.to_owned(),
        };
        let short_name = kind.type_url();
        if let Some(entry) = self
            .entries
            .lock()
            .get_mut(&key)
            .filter(|entry| entry.inputs.same(&inputs))
        {
            entry.used = published.generation;
            self.metrics.reused(short_name.short_name());
            return Some(Arc::clone(&entry.resource));
        }
        // Made outside the lock: two clients may make the same thing, but none waits for another.
        let made = translator.resource(kind, name);
        self.metrics.translated(short_name.short_name());
        let mut entries = self.entries.lock();
        let Some(made) = made else {
            entries.remove(&key);
            return None;
        };
        let resource = match entries.get(&key) {
            // The same again: clients that hold the old allocation see that nothing changed.
            Some(entry) if *entry.resource == made => Arc::clone(&entry.resource),
            _ => Arc::new(made),
        };
        let entry = Entry {
            inputs,
            resource: Arc::clone(&resource),
            used: published.generation,
        };
        entries.insert(key, entry);
        Some(resource)
    }

    /// Drops what nobody has asked for in a long time.
    pub(super) fn age(&self, now: Generation) {
        if now.0.is_multiple_of(IDLE_GENERATIONS) {
            self.entries
                .lock()
                .retain(|_, entry| entry.used.0 + 2 * IDLE_GENERATIONS > now.0);
        }
    }
}
