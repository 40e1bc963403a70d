//! Delays between tries: doubling from a base up to a ceiling, with jitter where many would try
//! at once and a budget where trying for ever is wrong.

use std::time::Duration;

/// A sequence of delays.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    budget: Option<u32>,
    jitter: Option<fastrand::Rng>,
    tries: u32,
}

impl Backoff {
    /// Doubles from `base` up to `max`, without end.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            budget: None,
            jitter: None,
            tries: 0,
        }
    }

    /// Gives up after `tries` delays.
    #[must_use]
    pub fn with_budget(mut self, tries: u32) -> Self {
        self.budget = Some(tries);
        self
    }

    /// Takes each delay from the upper half of its range at random.
    #[must_use]
    pub fn with_jitter(mut self) -> Self {
        self.jitter = Some(fastrand::Rng::new());
        self
    }

    /// The next delay, or `None` when the budget is spent.
    pub fn next_delay(&mut self) -> Option<Duration> {
        if self.budget.is_some_and(|budget| self.tries >= budget) {
            return None;
        }
        let factor = 2_u32.checked_pow(self.tries).unwrap_or(u32::MAX);
        let delay = self.base.saturating_mul(factor).min(self.max);
        self.tries = self.tries.saturating_add(1);
        Some(match &mut self.jitter {
            Some(rng) => delay.mul_f64(0.5 + rng.f64() / 2.0),
            None => delay,
        })
    }

    /// Tries since the start or the last reset.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Begins again at the base with a full budget.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_double_to_the_ceiling_and_end_with_the_budget() {
        let mut backoff = Backoff::new(200 * MS, 1000 * MS).with_budget(5);
        let delays: Vec<_> = std::iter::from_fn(|| backoff.next_delay()).collect();
        assert_eq!(delays, [200 * MS, 400 * MS, 800 * MS, 1000 * MS, 1000 * MS]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Some(200 * MS));
    }

    #[test]
    fn jitter_stays_in_the_upper_half() {
        let mut backoff = Backoff::new(100 * MS, 100 * MS).with_jitter();
        for _ in 0..100 {
            let delay = backoff.next_delay().unwrap();
            assert!((50 * MS..=100 * MS).contains(&delay));
        }
    }

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut backoff = Backoff::new(200 * MS, Duration::from_secs(30));
        for _ in 0..100 {
            backoff.next_delay();
        }
        assert_eq!(backoff.next_delay(), Some(Duration::from_secs(30)));
    }
}
