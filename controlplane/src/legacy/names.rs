//! The names of Istio 0.7: a service key is `<host>|<port name>|<labels>`, an outbound cluster `out.` and that.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::model::names::Hostname;
use crate::model::service::{Service, ServicePort};
use crate::model::workload::Labels;

/// Clusters of an Envoy that was started with `--max-obj-name-len 189` have no longer names.
pub const MAX_CLUSTER_NAME: usize = 189;
/// As many letters as the hash of a name that is too long has.
const HASH: usize = 32;

/// What SDS is asked for: a service's port, and which of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's host.
    pub host: String,
    /// The port's name; empty for the only port of a service, which needs none.
    pub port: String,
    /// The labels of the endpoints; empty for all.
    pub labels: Labels,
}

impl ServiceKey {
    /// The key of a service's port.
    pub fn of(service: &Service, port: &ServicePort, labels: &Labels) -> Self {
        Self {
            host: service.hostname.to_string(),
            port: port.name.clone(),
            labels: labels.clone(),
        }
    }

    /// The name of the outbound cluster; one that is too long ends in a hash of itself.
    pub fn cluster(&self) -> String {
        let name = format!("out.{self}");
        if name.len() <= MAX_CLUSTER_NAME {
            return name;
        }
        let digest = Sha256::digest(name.as_bytes());
        let bits = digest.iter().take(HASH / 2);
        let bits = bits.fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
        let kept = name.floor_char_boundary(MAX_CLUSTER_NAME - HASH);
        format!("{}{bits:0HASH$x}", &name[..kept])
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if self.port.is_empty() && self.labels.is_empty() {
            return Ok(());
        }
        write!(f, "|{}", self.port)?;
        for (at, (key, value)) in self.labels.iter().enumerate() {
            let before = if at == 0 { '|' } else { ',' };
            write!(f, "{before}{key}={value}")?;
        }
        Ok(())
    }
}

/// Why a text is no service key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key:?} is not a service key, which is <host>|<port name>|<label>=<value>,...: {reason}")]
pub struct InvalidServiceKey {
    key: String,
    reason: String,
}

impl FromStr for ServiceKey {
    type Err = InvalidServiceKey;

    fn from_str(key: &str) -> Result<Self, InvalidServiceKey> {
        let invalid = |reason: String| InvalidServiceKey {
            key: key.to_owned(),
            reason,
        };
        let mut parts = key.split('|');
        let host = parts.next().unwrap_or_default();
        let host = Hostname::literal(host).map_err(|error| invalid(error.to_string()))?;
        let port = parts.next().unwrap_or_default();
        let mut labels = Labels::new();
        let pairs = parts.next().unwrap_or_default();
        for pair in pairs.split(',').filter(|pair| !pair.is_empty()) {
            let Some((label, value)) = pair.split_once('=') else {
                return Err(invalid(format!("label {pair:?} has no value")));
            };
            labels.insert(label.to_owned(), value.to_owned());
        }
        if let Some(more) = parts.next() {
            return Err(invalid(format!(
                "nothing may follow the labels, not {more:?}"
            )));
        }
        Ok(Self {
            host: host.to_string(),
            port: port.to_owned(),
            labels,
        })
    }
}

/// The cluster of a port of the client's own application.
pub(crate) fn inbound(port: u16) -> String {
    format!("in.{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: &str, port: &str, labels: &[(&str, &str)]) -> ServiceKey {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        ServiceKey {
            host: host.to_owned(),
            port: port.to_owned(),
            labels: labels.iter().map(pair).collect(),
        }
    }

    #[test]
    fn keys_are_written_as_the_era_wrote_them_and_read_back() {
        for (key, text) in [
            (key("a.b", "", &[]), "a.b"),
            (key("a.b", "http", &[]), "a.b|http"),
            (
                key(
                    "reviews.default.svc.cluster.local",
                    "http",
                    &[("version", "v1")],
                ),
                "reviews.default.svc.cluster.local|http|version=v1",
            ),
            (
                key("a.b", "", &[("version", "v1"), ("env", "prod")]),
                "a.b||env=prod,version=v1",
            ),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse::<ServiceKey>().unwrap(), key);
            assert_eq!(key.cluster(), format!("out.{text}"));
        }
    }

    #[test]
    fn a_key_that_is_none_says_what_is_wrong() {
        for (text, wrong) in [
            ("", "it is empty"),
            ("a b|http", "only letters"),
            ("a.b|http|version", "label \"version\" has no value"),
            ("a.b|http|version=v1|x", "not \"x\""),
        ] {
            let error = text.parse::<ServiceKey>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_and_stays_unique() {
        let long = |last: &str| key(&format!("{}{last}", "a".repeat(200)), "http", &[]).cluster();
        assert_eq!(long("x").len(), MAX_CLUSTER_NAME);
        assert_ne!(long("x"), long("y"));
        assert_eq!(long("x"), long("x"));
    }
}
