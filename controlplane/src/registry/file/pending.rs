//! When a file is worth reading.
//!
//! A file that somebody has open for writing is half of what it will be, perhaps empty: it is read
//! when it is closed, or when the writer has been silent for long. Pure, over the caller's clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use tokio::time::Instant;

/// A file is read this long after its last write even if nobody closed it.
const SILENCE: Duration = Duration::from_millis(500);

/// Files that wait to be read.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Written and not closed, with the time of the last write.
    open: BTreeMap<PathBuf, Instant>,
    due: BTreeSet<PathBuf>,
    since: Option<Instant>,
}

impl Pending {
    /// The system said something.
    pub(super) fn record(&mut self, event: &notify::Event, now: Instant) {
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    self.open.remove(path);
                    self.due.insert(path.clone());
                }
                self.since.get_or_insert(now);
            }
            EventKind::Access(_) => {}
            EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                for path in &event.paths {
                    self.open.insert(path.clone(), now);
                }
            }
            _ => {
                // Renames, removals, directories, lost events: the scan finds out what they mean.
                for path in &event.paths {
                    self.open.remove(path);
                    self.due.insert(path.clone());
                }
                self.rescan(now);
            }
        }
    }

    /// Everything is to be looked at.
    pub(super) fn rescan(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// When to look; none when there is nothing to look at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let silent = self.open.values().min().map(|last| *last + SILENCE);
        match (self.since, silent) {
            (Some(since), Some(silent)) => Some(since.min(silent)),
            (since, silent) => since.or(silent),
        }
    }

    /// The files to read whatever they look like.
    pub(super) fn take(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        let silent: Vec<PathBuf> = self
            .open
            .iter()
            .filter(|(_, last)| **last + SILENCE <= now)
            .map(|(path, _)| path.clone())
            .collect();
        for path in silent {
            self.open.remove(&path);
            self.due.insert(path);
        }
        self.since = None;
        std::mem::take(&mut self.due)
    }

    /// The files that must not be read yet.
    pub(super) fn open(&self) -> impl Fn(&std::path::Path) -> bool + '_ {
        |path| self.open.contains_key(path)
    }
}

#[cfg(test)]
mod tests {
    use notify::event::DataChange;

    use super::*;

    fn event(kind: EventKind) -> notify::Event {
        notify::Event::new(kind).add_path("/c/a.yaml".into())
    }

    const CREATE: EventKind = EventKind::Create(CreateKind::File);
    const WRITE: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

    #[test]
    fn a_file_is_read_when_it_is_closed_not_when_it_is_truncated() {
        let start = Instant::now();
        let mut pending = Pending::default();
        pending.record(&event(WRITE), start);
        assert_eq!(pending.deadline(), Some(start + SILENCE));
        assert!(pending.open()("/c/a.yaml".as_ref()));
        let later = start + Duration::from_millis(400);
        pending.record(&event(WRITE), later);
        pending.record(&event(CLOSE), later);
        assert_eq!(pending.deadline(), Some(later));
        assert_eq!(pending.take(later).len(), 1);
        assert_eq!(pending.deadline(), None);
    }

    #[test]
    fn a_writer_that_falls_silent_does_not_hold_the_file_back_for_ever() {
        let start = Instant::now();
        let mut pending = Pending::default();
        pending.record(&event(CREATE), start);
        assert!(pending.take(start + Duration::from_millis(499)).is_empty());
        assert_eq!(pending.take(start + SILENCE).len(), 1);
        assert!(!pending.open()("/c/a.yaml".as_ref()));
    }

    #[test]
    fn a_rename_is_looked_at_at_once() {
        let start = Instant::now();
        let mut pending = Pending::default();
        pending.record(
            &event(EventKind::Modify(ModifyKind::Name(
                notify::event::RenameMode::To,
            ))),
            start,
        );
        assert_eq!(pending.deadline(), Some(start));
        assert_eq!(pending.take(start).len(), 1);
    }
}
