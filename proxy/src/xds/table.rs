//! The resources of one type: what is served, what is accepted and still warming, what was
//! rejected, what is removed but still referred to. Pure bookkeeping for `xds::state`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::convert::Unsupported;

/// How long an accepted resource waits for what it refers to, and a removed one for its
/// referrers to go (`initial_fetch_timeout`).
pub const WARMING_TIMEOUT: Duration = Duration::from_secs(15);

/// An accepted version of a resource.
#[derive(Debug)]
pub struct Held<T> {
    /// The resource.
    pub value: Arc<T>,
    /// Version that the control plane gave it.
    pub version: String,
    /// When it was received.
    pub updated: SystemTime,
    /// The encoded message.
    pub body: Bytes,
    /// What it asks for in vain.
    pub unsupported: Vec<Unsupported>,
}

/// A version that was refused.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The version.
    pub version: String,
    /// Why.
    pub message: String,
    /// When.
    pub at: SystemTime,
}

/// Everything known of one name.
#[derive(Debug)]
pub struct Entry<T> {
    /// What the data path uses.
    pub serving: Option<Held<T>>,
    /// Accepted, and waiting for what it refers to until the given time.
    pub warming: Option<(Held<T>, Instant)>,
    /// Removed by the control plane; served while referred to, at longest until then.
    pub doomed: Option<Instant>,
    /// The newest version, where it was refused.
    pub rejected: Option<Rejected>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self {
            serving: None,
            warming: None,
            doomed: None,
            rejected: None,
        }
    }
}

impl<T> Entry<T> {
    fn is_empty(&self) -> bool {
        self.serving.is_none() && self.warming.is_none() && self.rejected.is_none()
    }

    /// Versions that are served or about to be.
    pub fn held(&self) -> impl Iterator<Item = &Held<T>> {
        let warming = self.warming.as_ref().map(|(held, _)| held);
        self.serving.iter().chain(warming)
    }
}

/// The resources of one type.
#[derive(Debug)]
pub struct Table<T> {
    entries: BTreeMap<String, Entry<T>>,
    /// Names that the control plane says do not exist, or said nothing of in time.
    absent: BTreeSet<String>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            absent: BTreeSet::new(),
        }
    }
}

impl<T> Table<T> {
    /// Takes in an accepted version. The same bytes as before change nothing but the version.
    pub fn accept(&mut self, name: &str, held: Held<T>, now: Instant) {
        self.absent.remove(name);
        let entry = self.entries.entry(name.to_owned()).or_default();
        entry.rejected = None;
        entry.doomed = None;
        if let Some(serving) = &mut entry.serving
            && serving.body == held.body
        {
            serving.version = held.version;
            entry.warming = None;
            return;
        }
        entry.warming = Some((held, now + WARMING_TIMEOUT));
    }

    /// Remembers a refused version; what is served stays.
    pub fn reject(&mut self, name: &str, rejected: Rejected) {
        let entry = self.entries.entry(name.to_owned()).or_default();
        entry.rejected = Some(rejected);
    }

    /// The control plane removed it, or says that it does not exist.
    pub fn remove(&mut self, name: &str, now: Instant) {
        self.absent.insert(name.to_owned());
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.warming = None;
        entry.rejected = None;
        if entry.serving.is_some() {
            entry.doomed = Some(now + WARMING_TIMEOUT);
        } else {
            self.entries.remove(name);
        }
    }

    /// The control plane removed it; what is served stays until nobody wants it.
    pub fn orphan(&mut self, name: &str) {
        self.absent.insert(name.to_owned());
        if let Some(entry) = self.entries.get_mut(name) {
            entry.warming = None;
            entry.rejected = None;
        }
    }

    /// What the control plane removed and serves on.
    pub fn orphans(&self) -> impl Iterator<Item = &Held<T>> {
        self.absent.iter().filter_map(|name| self.serving(name))
    }

    /// The control plane said nothing of it in time.
    pub fn missing(&mut self, name: &str) {
        if !self.entries.contains_key(name) {
            self.absent.insert(name.to_owned());
        }
    }

    /// Whether there is a version that is served.
    pub fn serves(&self, name: &str) -> bool {
        self.serving(name).is_some()
    }

    /// The version that is served.
    pub fn serving(&self, name: &str) -> Option<&Held<T>> {
        self.entries.get(name)?.serving.as_ref()
    }

    /// Whether it is known not to exist.
    pub fn is_absent(&self, name: &str) -> bool {
        self.absent.contains(name)
    }

    /// All entries by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Entry<T>)> {
        self.entries.iter()
    }

    /// The entry of a name.
    pub fn get(&self, name: &str) -> Option<&Entry<T>> {
        self.entries.get(name)
    }

    /// What is served, by name.
    pub fn all_serving(&self) -> impl Iterator<Item = (&String, &Held<T>)> {
        self.entries
            .iter()
            .filter_map(|(name, entry)| Some((name, entry.serving.as_ref()?)))
    }

    /// Puts into service what `warm` says is ready, beside what serves, or what has waited long enough; true
    /// when something changed.
    pub fn promote(&mut self, now: Instant, warm: impl Fn(&T, Option<&T>) -> bool) -> bool {
        let mut changed = false;
        for entry in self.entries.values_mut() {
            let serving = entry.serving.as_ref().map(|held| held.value.as_ref());
            if let Some((held, _)) = entry
                .warming
                .take_if(|(held, until)| *until <= now || warm(&held.value, serving))
            {
                entry.serving = Some(held);
                changed = true;
            }
        }
        changed
    }

    /// Drops what was removed and is not `needed` any more, or for too long; true when something
    /// changed.
    pub fn bury(&mut self, now: Instant, needed: impl Fn(&str) -> bool) -> bool {
        self.retain(|name, entry| entry.doomed.is_none_or(|until| until > now && needed(name)))
    }

    /// Versions that wait, each with the one that serves meanwhile.
    pub fn updates(&self) -> impl Iterator<Item = (&T, &T)> {
        self.entries.values().filter_map(|entry| {
            let (warming, _) = entry.warming.as_ref()?;
            Some((
                warming.value.as_ref(),
                entry.serving.as_ref()?.value.as_ref(),
            ))
        })
    }

    /// Keeps what is `wanted`; true when something that was served is gone.
    pub fn keep(&mut self, wanted: impl Fn(&str) -> bool) -> bool {
        self.absent.retain(|name| wanted(name));
        self.retain(|name, _| wanted(name))
    }

    /// The next time at which waiting ends.
    pub fn deadline(&self) -> Option<Instant> {
        let times = |entry: &Entry<T>| {
            let warming = entry.warming.as_ref().map(|(_, until)| *until);
            warming.into_iter().chain(entry.doomed)
        };
        self.entries.values().flat_map(times).min()
    }

    /// Whether nothing waits.
    pub fn is_settled(&self) -> bool {
        self.entries.values().all(|entry| entry.warming.is_none())
    }

    fn retain(&mut self, keep: impl Fn(&str, &Entry<T>) -> bool) -> bool {
        let mut changed = false;
        self.entries.retain(|name, entry| {
            let keep = keep(name, entry) && !entry.is_empty();
            changed |= !keep && entry.serving.is_some();
            keep
        });
        changed
    }
}
