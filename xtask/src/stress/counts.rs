//! What a run came to: sums that applications report and the command adds up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tag::{Checked, Faults};

/// Faults are described up to this number; all are counted.
const NOTES: usize = 20;

/// Sums of one application, or of several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Writes.
    pub(super) messages: u64,
    /// Bytes that came and were right.
    pub(super) bytes: u64,
    #[serde(flatten)]
    pub(super) faults: Faults,
    /// HTTP requests that were answered.
    pub(super) requests: u64,
    /// Connections by what became of them.
    pub(super) connections: BTreeMap<String, u64>,
    /// Calls by their kind.
    pub(super) calls: BTreeMap<String, u64>,
    /// Connections that ended as they should not have.
    pub(super) unexpected: u64,
    /// What was wrong, with what repeats it.
    pub(super) notes: Vec<String>,
}

impl Counts {
    /// Whether everything was as it should be.
    pub(super) fn ok(&self) -> bool {
        !self.faults.any() && self.unexpected == 0
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.faults.add(&other.faults);
        self.requests += other.requests;
        self.unexpected += other.unexpected;
        for (mine, theirs) in [
            (&mut self.connections, &other.connections),
            (&mut self.calls, &other.calls),
        ] {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
        for note in &other.notes {
            self.note(note.clone());
        }
    }

    /// Counts a call.
    pub(super) fn call(&mut self, kind: &str) {
        match self.calls.get_mut(kind) {
            Some(count) => *count += 1,
            None => drop(self.calls.insert(kind.to_owned(), 1)),
        }
    }

    /// Counts what came of a stream; `what` repeats it.
    pub(super) fn stream(&mut self, checked: &Checked, what: impl FnOnce() -> String) {
        self.bytes += checked.bytes;
        self.faults.add(&checked.faults);
        if checked.faults.any() {
            self.note(format!("{:?} in {}", checked.faults, what()));
        }
    }

    /// Counts a connection that ended as it should.
    pub(super) fn ended(&mut self, outcome: &str) {
        *self.connections.entry(outcome.to_owned()).or_default() += 1;
    }

    /// Counts a connection that did not.
    pub(super) fn failed(&mut self, outcome: &str, what: impl FnOnce() -> String) {
        self.ended(outcome);
        self.unexpected += 1;
        self.note(format!("{outcome}: {}", what()));
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < NOTES {
            self.notes.push(note);
        }
    }
}
