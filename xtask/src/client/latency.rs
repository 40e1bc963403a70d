//! Latencies of one run, and their percentiles.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Latencies {
    /// The percentiles of `samples`, which is sorted on the way.
    pub(crate) fn of(samples: &mut [Duration]) -> Self {
        samples.sort_unstable();
        let at = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).saturating_sub(1);
            samples
                .get(rank)
                .map_or(0.0, |sample| sample.as_secs_f64() * 1e6)
        };
        Self {
            p50_us: at(50),
            p99_us: at(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        let latencies = Latencies::of(&mut samples);
        assert!((latencies.p50_us - 50.0).abs() < 0.01 && (latencies.p99_us - 99.0).abs() < 0.01);
        assert_eq!(Latencies::of(&mut []), Latencies::default());
    }
}
