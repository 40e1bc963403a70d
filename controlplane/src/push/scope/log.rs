//! The newest changes of one kind, by generation.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_xds::server::Generation;

/// Changes that are remembered one by one.
const KEPT: usize = 1024;

/// The newest changes; of older ones only that there were some.
#[derive(Clone, Debug)]
pub(super) struct Log<T> {
    entries: Arc<VecDeque<(Generation, T)>>,
    /// Up to this generation anything may have changed.
    before: Generation,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
            before: Generation::default(),
        }
    }
}

impl<T: Clone> Log<T> {
    pub(super) fn push(&mut self, generation: Generation, change: T) {
        self.extend(generation, [change]);
    }

    pub(super) fn extend(&mut self, generation: Generation, changes: impl IntoIterator<Item = T>) {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return;
        }
        let entries = Arc::make_mut(&mut self.entries);
        entries.extend(changes.map(|change| (generation, change)));
        while entries.len() > KEPT
            && let Some((forgotten, _)) = entries.pop_front()
        {
            self.before = forgotten;
        }
    }

    /// Everything may have changed in this generation.
    pub(super) fn restart(&mut self, generation: Generation) {
        self.entries = Arc::default();
        self.before = generation;
    }

    /// The changes after `since`; none where some of them may be forgotten.
    pub(super) fn since(&self, since: Generation) -> Option<impl Iterator<Item = &T>> {
        let newer = self.entries.iter().rev();
        let newer = newer.take_while(move |(generation, _)| *generation > since);
        (self.before <= since).then(|| newer.map(|(_, change)| change))
    }

    /// Whether there is such a change after `since`, or may be one that is forgotten.
    pub(super) fn any(&self, since: Generation, concerns: impl Fn(&T) -> bool) -> bool {
        let mut newer = self.since(since);
        newer.as_mut().is_none_or(|newer| newer.any(concerns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_counts_as_changed() {
        let mut log = Log::default();
        for number in 1..=2000 {
            log.push(Generation(number), number);
        }
        assert!(log.any(Generation(1500), |change| *change == 1600));
        assert!(!log.any(Generation(1500), |change| *change == 1400));
        assert!(
            log.any(Generation(900), |_| false),
            "976 changes are forgotten"
        );
        assert!(!log.any(Generation(976), |_| false));
        log.restart(Generation(2001));
        assert!(log.any(Generation(2000), |_| false));
    }
}
