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
    due: Due,
    since: Option<Instant>,
}

/// What is to be looked at.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Due {
    /// These are to be read whatever they look like.
    pub(super) paths: BTreeSet<PathBuf>,
    /// And everything there is.
    pub(super) all: bool,
}

impl Pending {
    /// The system said something.
    pub(super) fn record(&mut self, event: &notify::Event, now: Instant) {
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    self.open.remove(path);
                    self.due.paths.insert(path.clone());
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
                    self.due.paths.insert(path.clone());
                }
                self.due.all |= event.paths.is_empty() || event.need_rescan();
                self.since.get_or_insert(now);
            }
        }
    }

    /// Everything is to be looked at.
    pub(super) fn rescan(&mut self, now: Instant) {
        self.due.all = true;
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

    /// What to look at now.
    pub(super) fn take(&mut self, now: Instant) -> Due {
        let silent: Vec<PathBuf> = self
            .open
            .iter()
            .filter(|(_, last)| **last + SILENCE <= now)
            .map(|(path, _)| path.clone())
            .collect();
        for path in silent {
            self.open.remove(&path);
            self.due.paths.insert(path);
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
        assert_eq!(pending.take(later).paths.len(), 1);
        assert_eq!(pending.deadline(), None);
    }

    #[test]
    fn a_writer_that_falls_silent_does_not_hold_the_file_back_for_ever() {
        let start = Instant::now();
        let mut pending = Pending::default();
        pending.record(&event(CREATE), start);
        let early = pending.take(start + Duration::from_millis(499));
        assert_eq!(early, Due::default());
        assert_eq!(pending.take(start + SILENCE).paths.len(), 1);
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
        let due = pending.take(start);
        assert_eq!((due.paths.len(), due.all), (1, false));
    }

    #[test]
    fn lost_events_may_be_about_anything() {
        let start = Instant::now();
        let mut pending = Pending::default();
        let lost = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        pending.record(&lost, start);
        assert!(pending.take(start).all);
        assert_eq!(pending.take(start), Due::default());
    }
}
