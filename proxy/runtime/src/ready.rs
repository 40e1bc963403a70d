//! Readiness by drop: every part that must come up holds a [`Blocker`] and drops it when it has.
//!
//! The process is ready while no blocker is held; the readiness routes show which ones are.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Readiness of one process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ready {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<BTreeMap<String, usize>>,
    changed: watch::Sender<bool>,
}

/// Holds readiness back until dropped.
#[derive(Debug)]
#[must_use = "readiness is given the moment the blocker is dropped"]
pub struct Blocker {
    name: String,
    shared: Arc<Shared>,
}

impl Default for Ready {
    fn default() -> Self {
        Self::new()
    }
}

impl Ready {
    /// Ready, as nothing holds it back yet.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                pending: Mutex::default(),
                changed: watch::Sender::new(true),
            }),
        }
    }

    /// Holds readiness back in the name of `name`, at start or at any time after.
    pub fn block(&self, name: &str) -> Blocker {
        let mut pending = self.shared.pending.lock();
        *pending.entry(name.to_owned()).or_default() += 1;
        self.shared.changed.send_replace(false);
        Blocker {
            name: name.to_owned(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether nothing is pending.
    pub fn is_ready(&self) -> bool {
        self.shared.pending.lock().is_empty()
    }

    /// The names that hold readiness back.
    pub fn pending(&self) -> Vec<String> {
        self.shared.pending.lock().keys().cloned().collect()
    }

    /// Waits until nothing is pending; cancel-safe.
    pub async fn wait(&self) {
        let mut changed = self.shared.changed.subscribe();
        // The sender lives in `self`, so the channel cannot close here.
        drop(changed.wait_for(|ready| *ready).await);
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        let mut pending = self.shared.pending.lock();
        if let Some(count) = pending.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.name);
            }
        }
        self.shared.changed.send_replace(pending.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_blocker_is_dropped() {
        let ready = Ready::new();
        let xds = ready.block("xds");
        let pods = ready.block("pods");
        assert_eq!(ready.pending(), ["pods", "xds"]);
        drop(xds);
        assert!(!ready.is_ready());
        drop(pods);
        ready.wait().await;
        assert!(ready.is_ready());
    }
}
