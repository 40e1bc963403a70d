//! How requests were split, and whether that is what the rule says.

use std::collections::BTreeMap;

use serde::Serialize;

/// Deviations from what is expected that are still taken for chance: four standard deviations are
/// exceeded once in about 16,000 measurements.
const SIGMAS: f64 = 4.0;

/// A measured split.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Split {
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) shares: Vec<Share>,
    pub(super) ok: bool,
}

/// One part of a split.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Share {
    /// What answered.
    pub(super) who: String,
    pub(super) expected: f64,
    pub(super) measured: u64,
    /// The distance from what is expected, in standard deviations.
    pub(super) sigmas: f64,
    pub(super) ok: bool,
}

impl Split {
    pub(super) fn judge(
        name: &str,
        expected: &[(String, f64)],
        counts: &BTreeMap<String, u64>,
        errors: BTreeMap<String, u64>,
    ) -> Self {
        let answered: u64 = counts.values().sum();
        let requests = answered + errors.values().sum::<u64>();
        let mut shares: Vec<Share> = expected
            .iter()
            .map(|(who, fraction)| {
                let measured = counts.get(who).copied().unwrap_or(0);
                Share::judge(who, *fraction, measured, answered)
            })
            .collect();
        let strangers = counts
            .iter()
            .filter(|(who, _)| expected.iter().all(|(known, _)| known != *who));
        shares.extend(strangers.map(|(who, count)| Share::judge(who, 0.0, *count, answered)));
        let ok = answered > 0 && errors.is_empty() && shares.iter().all(|share| share.ok);
        Self {
            name: name.to_owned(),
            requests,
            errors,
            shares,
            ok,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Share {
    fn judge(who: &str, expected: f64, measured: u64, total: u64) -> Self {
        let (total, count) = (total as f64, measured as f64);
        let distance = (count - total * expected).abs();
        let deviation = (total * expected * (1.0 - expected)).sqrt();
        let sigmas = if deviation > 0.0 {
            distance / deviation
        } else {
            distance
        };
        // Without chance there is no deviation: all or nothing is exact.
        let ok = if deviation > 0.0 {
            sigmas <= SIGMAS
        } else {
            distance == 0.0
        };
        Self {
            who: who.to_owned(),
            expected,
            measured,
            sigmas,
            ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(expected: &[(&str, f64)], counts: &[(&str, u64)], errors: &[(&str, u64)]) -> bool {
        let owned =
            |list: &[(&str, u64)]| list.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), *v))
            .collect();
        Split::judge("", &expected, &owned(counts), owned(errors)).ok
    }

    #[test]
    fn chance_is_allowed_and_bias_is_not() {
        let half = [("v1", 0.5), ("v3", 0.5)];
        assert!(judge(&half, &[("v1", 3040), ("v3", 2960)], &[]));
        assert!(!judge(&half, &[("v1", 3300), ("v3", 2700)], &[]));
    }

    #[test]
    fn everything_means_everything() {
        assert!(judge(&[("v1", 1.0)], &[("v1", 6000)], &[]));
        assert!(!judge(&[("v1", 1.0)], &[("v1", 5999), ("v2", 1)], &[]));
        assert!(!judge(
            &[("v1", 1.0)],
            &[("v1", 5999)],
            &[("status 503", 1)]
        ));
        assert!(!judge(&[("v1", 1.0)], &[], &[]));
    }
}
