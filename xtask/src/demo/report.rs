//! What the demo found, for a person and as JSON.

use serde::Serialize;
use serde_json::{Value, json};

use super::capture::{CapturedPod, Switched};
use super::hops::Traced;
use super::split::Split;

/// Everything that was shown.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) pods: Vec<CapturedPod>,
    pub(super) splits: Vec<Split>,
    pub(super) switch: Option<Switched>,
    pub(super) hops: Option<Traced>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            pods: Vec::new(),
            splits: Vec::new(),
            switch: None,
            hops: None,
        }
    }

    /// Whether all of it is as it should be.
    pub(super) fn ok(&self) -> bool {
        self.lines().iter().all(|(ok, _)| *ok)
    }

    /// One line for each thing that was to be shown.
    pub(super) fn lines(&self) -> Vec<(bool, String)> {
        let captured = self.pods.iter().filter(|pod| pod.ok).count();
        let mut lines = vec![(
            captured == self.pods.len() && captured > 0,
            format!("{captured} of {} pods captured", self.pods.len()),
        )];
        for split in &self.splits {
            lines.push((
                split.ok,
                format!("{}: {} requests", split.name, split.requests),
            ));
        }
        lines.push(match &self.switch {
            Some(switch) => (
                switch.ok(),
                format!(
                    "{} switched to {} and back with the same result",
                    switch.pod, switch.to
                ),
            ),
            None => (false, "no pod was switched".to_owned()),
        });
        lines.push(match &self.hops {
            Some(traced) => (
                traced.ok(),
                format!(
                    "one request seen at {} hops; through the mesh {:.0} us, outside it {:.0} us (p50)",
                    traced.hops.len(),
                    traced.mesh.p50_us,
                    traced.outside.p50_us
                ),
            ),
            None => (false, "no request was traced".to_owned()),
        });
        lines
    }

    pub(super) fn json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["ok"] = json!(self.ok());
        value
    }
}
