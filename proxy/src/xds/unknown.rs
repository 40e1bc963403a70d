//! Clusters that do not exist, for now: mostly of rules that came before what they name.
//!
//! Where an earlier version of the referrer serves and names others, it goes on for a while, so that rules may be
//! written in any order; where none does, waiting helps nobody. Pure bookkeeping for `xds::state`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// How long the version before goes on: long enough for objects that are written together, and short, since what else
/// changed in the same resource waits too.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Since when each is waited for.
#[derive(Debug, Default)]
pub struct Unknown {
    since: BTreeMap<String, Instant>,
}

impl Unknown {
    /// These do not exist and are newly named by versions that warm, and no others.
    pub fn set(&mut self, names: BTreeSet<String>, now: Instant) {
        self.since.retain(|name, _| names.contains(name));
        for name in names {
            self.since.entry(name).or_insert(now);
        }
    }

    /// Whether a version that newly names this one has to wait for it.
    pub fn is_awaited(&self, name: &str, now: Instant) -> bool {
        let since = self.since.get(name);
        since.is_some_and(|since| now < *since + PATIENCE)
    }

    /// The next time at which waiting ends.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let ends = self.since.values().map(|since| *since + PATIENCE);
        ends.filter(|end| *end > now).min()
    }
}
