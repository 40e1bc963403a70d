//! Times in a few numbers.

use std::time::Duration;

use serde_json::{Value, json};

/// Nearest-rank percentiles of times, in milliseconds.
pub(crate) fn summary(times: &[Duration]) -> Value {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().map(millis)
    };
    json!({
        "count": sorted.len(),
        "p50_ms": at(50),
        "p99_ms": at(99),
        "max_ms": sorted.last().copied().map(millis),
    })
}

pub(crate) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let found = summary(&times);
        assert_eq!(found["p50_ms"], 100.0);
        assert_eq!(found["p99_ms"], 198.0);
        assert_eq!(found["max_ms"], 200.0);
        assert_eq!(summary(&[])["p50_ms"], Value::Null);
    }
}
