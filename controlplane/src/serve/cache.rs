//! Encoded resources, made once for each distinct input and shared by every client.
//!
//! An entry is good as long as no change has touched it, which the history says; nothing has to be told
//! what to throw away.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_xds::EncodedResource;
use millrace_xds::server::Generation;
use parking_lot::Mutex;

use super::Published;
use super::ttl::Ttls;
use crate::metrics::PilotMetrics;
use crate::model::near::{Nearness, Place};
use crate::translate::{ProxyView, ResourceKind, Scope, Translator, is_inbound_name};

/// Entries that nobody holds or asked for over this many generations are dropped: pods and services that are
/// gone leave them behind.
const IDLE_GENERATIONS: u64 = 64;

#[derive(Debug)]
pub(super) struct Cache {
    entries: Mutex<HashMap<Key, Entry>>,
    metrics: PilotMetrics,
    ttls: Ttls,
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
    /// The generation that it was made of, and the newest in which it was the same.
    made: Generation,
    valid: Generation,
    resource: Arc<EncodedResource>,
    used: Generation,
}

impl Cache {
    pub(super) fn new(metrics: PilotMetrics, ttls: Ttls) -> Self {
        Self {
            entries: Mutex::default(),
            metrics,
            ttls,
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
        let short_name = kind.type_url();
        if is_inbound_name(name) {
            // A pod is on one node, and that asks once: there are as many as pods, and nobody to share them.
            self.metrics.translated(short_name.short_name());
            return self.made(&translator, kind, name).map(Arc::new);
        }
        let key = Key {
            kind,
            scope: view.scope(kind, name),
            place: place(&translator, kind, name),
            name: name.to_owned(),
        };
        let now = published.generation;
        if let Some(entry) = self.entries.lock().get_mut(&key)
            && entry.made <= now
            && (entry.valid >= now || !published.touched(view, (kind, name), entry.valid))
        {
            entry.valid = entry.valid.max(now);
            entry.used = entry.used.max(now);
            self.metrics.reused(short_name.short_name());
            return Some(Arc::clone(&entry.resource));
        }
        // Made outside the lock: two clients may make the same thing, but none waits for another.
        let made = self.made(&translator, kind, name);
        self.metrics.translated(short_name.short_name());
        let mut entries = self.entries.lock();
        let known = entries.get(&key);
        if known.is_some_and(|entry| entry.made > now) {
            // Of a stream that is behind: others have the newer one.
            return made.map(Arc::new);
        }
        let Some(made) = made else {
            entries.remove(&key);
            return None;
        };
        let resource = match known {
            // The same again: clients that hold the old allocation see that nothing changed.
            Some(entry) if *entry.resource == made => Arc::clone(&entry.resource),
            _ => Arc::new(made),
        };
        let entry = Entry {
            made: now,
            valid: now,
            resource: Arc::clone(&resource),
            used: now,
        };
        entries.insert(key, entry);
        Some(resource)
    }

    fn made(
        &self,
        translator: &Translator<'_>,
        kind: ResourceKind,
        name: &str,
    ) -> Option<EncodedResource> {
        let made = translator.resource(kind, name)?;
        Some(made.with_ttl(self.ttls.get(kind)))
    }

    /// Drops what nobody has asked for in a long time.
    pub(super) fn age(&self, now: Generation) {
        if now.0.is_multiple_of(IDLE_GENERATIONS) {
            // What streams of whole states were sent is held by them, and asked for again.
            self.entries.lock().retain(|_, entry| {
                entry.used.0 + 2 * IDLE_GENERATIONS > now.0
                    || Arc::strong_count(&entry.resource) > 1
            });
        }
    }
}

/// The place of a client, as far as its endpoints depend on it: nodes whose endpoints do not share one entry.
fn place(translator: &Translator<'_>, kind: ResourceKind, name: &str) -> Place {
    let behind = (kind == ResourceKind::Endpoints).then(|| translator.endpoints_behind(name));
    match behind
        .flatten()
        .map(|behind| behind.nearness)
        .unwrap_or_default()
    {
        Nearness::Nothing => Place::default(),
        nearness => nearness.part_of(translator.place()),
    }
}
