//! How long clients keep what they hear nothing of, by type: what pilot's flag says.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use millrace_runtime::duration;

use crate::translate::ResourceKind;

/// Below this a renewal would hardly reach a client in time.
const SHORTEST: Duration = Duration::from_secs(1);

/// The time of one type, `eds=30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceTtl {
    kind: ResourceKind,
    ttl: Duration,
}

/// Why a text is no such time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not <type>=<duration>, such as eds=30s: {reason}")]
pub struct InvalidResourceTtl {
    text: String,
    reason: String,
}

impl FromStr for ResourceTtl {
    type Err = InvalidResourceTtl;

    fn from_str(text: &str) -> Result<Self, InvalidResourceTtl> {
        let invalid = |reason: String| InvalidResourceTtl {
            text: text.to_owned(),
            reason,
        };
        let (name, ttl) = text.split_once('=').unwrap_or((text, ""));
        let is_named = |kind: &ResourceKind| {
            let url = kind.type_url();
            url.short_name().eq_ignore_ascii_case(name)
        };
        let kind = ResourceKind::ALL.into_iter().find(is_named);
        let kind = kind.ok_or_else(|| invalid("pilot makes cds, eds, lds, rds, nds".to_owned()))?;
        let ttl = duration::parse(ttl).map_err(|error| invalid(error.to_string()))?;
        if ttl < SHORTEST {
            return Err(invalid(format!("it must be {SHORTEST:?} at least")));
        }
        Ok(Self { kind, ttl })
    }
}

/// The times of all types.
#[derive(Debug, Default)]
pub(super) struct Ttls(BTreeMap<ResourceKind, Duration>);

impl Ttls {
    pub(super) fn of(stated: &[ResourceTtl]) -> Self {
        Self(stated.iter().map(|one| (one.kind, one.ttl)).collect())
    }

    /// Of one type; none where clients keep what they have.
    pub(super) fn get(&self, kind: ResourceKind) -> Option<Duration> {
        self.0.get(&kind).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_names_its_type() {
        let read: ResourceTtl = "eds=30s".parse().unwrap();
        let ttls = Ttls::of(&[read]);
        let half_a_minute = Some(Duration::from_secs(30));
        assert_eq!(ttls.get(ResourceKind::Endpoints), half_a_minute);
        assert_eq!(ttls.get(ResourceKind::Cluster), None);
        for (text, wrong) in [
            ("eds", "eds=30s"),
            ("x=1s", "pilot makes"),
            ("eds=0s", "at least"),
            ("eds=soon", "soon"),
        ] {
            let error = text.parse::<ResourceTtl>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
