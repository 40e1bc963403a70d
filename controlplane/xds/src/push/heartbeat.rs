//! When the TTLs of resources are to be renewed, so that clients do not forget what is as it was.
//!
//! In: what responses carry. Out: what is due. Kept by [`super::Session`] for each type; a response of either kind puts
//! the next renewal off by half the TTL.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Draft, Held, Sent};
use crate::resource::EncodedResource;

#[derive(Debug, Default)]
pub(super) struct Heartbeats {
    /// When each resource with a TTL is to be renewed; none for at once.
    due: BTreeMap<Arc<str>, Option<Instant>>,
}

impl Heartbeats {
    /// Notes what goes out.
    pub(super) fn sent(&mut self, draft: &Draft, now: Instant) {
        for resource in &draft.resources {
            let name = resource.shared_name();
            match resource.ttl() {
                Some(ttl) => self.due.insert(name.clone(), Some(now + ttl / 2)),
                None => self.due.remove(name),
            };
        }
        for name in &draft.removed {
            self.due.remove(name.as_str());
        }
    }

    /// Has a resource renewed at once.
    pub(super) fn now(&mut self, name: &Arc<str>) {
        self.due.insert(name.clone(), None);
    }

    /// What the client has and is to hear of now. Forgets what it has no longer.
    pub(super) fn due(&mut self, now: Instant, sent: &Held) -> Vec<Arc<EncodedResource>> {
        let mut resources = Vec::new();
        self.due.retain(|name, at| match sent.get(name) {
            Some(Sent::Resource(resource)) if resource.ttl().is_some() => {
                if at.is_none_or(|at| at <= now) {
                    resources.push(resource.clone());
                }
                true
            }
            _ => false,
        });
        resources
    }

    /// When something is due.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.due.values().map(|at| at.unwrap_or(now)).min()
    }
}
