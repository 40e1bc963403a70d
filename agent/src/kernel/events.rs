//! How often the programs could not capture a connection of a pod, and when last.
//!
//! Filled by the task that reads the programs' events, read by the API and the metrics. Counts
//! begin with the agent's start and end with the pod's enrolment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bpf::{BpfEvent, EventKind};
use crate::status::rfc3339;

/// Most pods that are counted for: more than a node runs.
const MAX_PODS: usize = 4096;

/// Connections of one pod that were not captured as they should have been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureEvents {
    /// Of an open pod, past the proxy.
    pub went_direct: u64,
    /// Of a closed pod, refused as nothing could take them.
    pub refused: u64,
    /// Captured, but their original destination could not be published.
    pub not_captured: u64,
    /// When the last one was, RFC 3339.
    pub last: Option<String>,
    /// Why, and where it wanted to go.
    pub last_reason: Option<String>,
}

impl CaptureEvents {
    fn count(&mut self, event: &BpfEvent, now: SystemTime) {
        let count = match event.kind {
            EventKind::WentDirect => &mut self.went_direct,
            EventKind::Refused => &mut self.refused,
            EventKind::OrigDstLost => &mut self.not_captured,
        };
        *count += 1;
        self.last = Some(rfc3339(now));
        self.last_reason = Some(format!(
            "{}: {}, to {}",
            event.reason.hook(),
            event.reason.outcome(),
            event.destination
        ));
    }
}

/// The counts of all pods, by namespace cookie; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<Mutex<HashMap<u64, CaptureEvents>>>);

impl Tally {
    pub(super) fn count(&self, event: &BpfEvent) {
        let mut pods = self.0.lock();
        if pods.len() < MAX_PODS || pods.contains_key(&event.netns_cookie) {
            let pod = pods.entry(event.netns_cookie).or_default();
            pod.count(event, SystemTime::now());
        }
    }

    pub(super) fn of(&self, netns_cookie: u64) -> CaptureEvents {
        let pods = self.0.lock();
        pods.get(&netns_cookie).cloned().unwrap_or_default()
    }

    pub(super) fn forget(&self, netns_cookie: u64) {
        self.0.lock().remove(&netns_cookie);
    }
}
