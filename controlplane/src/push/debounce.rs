//! Waits for quiet before a push, but never long.
//!
//! A pure state machine over a clock that the caller owns, so that its timing is tested without time.

use std::time::Duration;

use tokio::time::Instant;

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebounceConfig {
    /// A push follows the last change by this much.
    pub quiet: Duration,
    /// And the first one by no more than this.
    pub max: Duration,
}

impl Default for DebounceConfig {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(10),
            max: Duration::from_millis(100),
        }
    }
}

/// Changes that wait for quiet.
#[derive(Debug)]
pub struct Debounce {
    config: DebounceConfig,
    first: Option<Instant>,
    last: Option<Instant>,
    waiting: u64,
}

impl Debounce {
    /// Nothing waits.
    pub fn new(config: DebounceConfig) -> Self {
        Self {
            config,
            first: None,
            last: None,
            waiting: 0,
        }
    }

    /// A change happened.
    pub fn record(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.waiting += 1;
    }

    /// When to push; none when nothing waits.
    pub fn deadline(&self) -> Option<Instant> {
        Some((self.last? + self.config.quiet).min(self.first? + self.config.max))
    }

    /// How many changes wait.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Takes what waits, as the number of changes and the age of the first.
    pub fn take(&mut self, now: Instant) -> (u64, Duration) {
        self.last = None;
        let age = self
            .first
            .take()
            .map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        (std::mem::take(&mut self.waiting), age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_single_change_waits_for_quiet() {
        let start = Instant::now();
        let mut debounce = Debounce::new(DebounceConfig::default());
        assert_eq!(debounce.deadline(), None);
        debounce.record(start);
        assert_eq!(debounce.deadline(), Some(start + ms(10)));
        assert_eq!(debounce.take(start + ms(10)), (1, ms(10)));
        assert_eq!(debounce.deadline(), None);
    }

    #[test]
    fn steady_changes_are_pushed_at_the_limit() {
        let start = Instant::now();
        let mut debounce = Debounce::new(DebounceConfig::default());
        let mut pushes = Vec::new();
        for step in 0..60 {
            let now = start + ms(step * 5);
            debounce.record(now);
            if debounce.deadline().is_some_and(|deadline| deadline <= now) {
                pushes.push(debounce.take(now));
            }
        }
        assert_eq!(pushes, [(21, ms(100)), (21, ms(100))]);
    }

    #[test]
    fn changes_that_come_in_a_burst_are_one_push() {
        let start = Instant::now();
        let mut debounce = Debounce::new(DebounceConfig::default());
        for step in 0..8 {
            debounce.record(start + ms(step));
        }
        assert_eq!(debounce.deadline(), Some(start + ms(17)));
        assert_eq!(debounce.take(start + ms(17)), (8, ms(17)));
    }
}
