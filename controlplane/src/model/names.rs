//! Typed names: hostnames, object names and Istio's cluster names.
//!
//! Parsed once at the edge, compared by value everywhere else. Called by every other module.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// A namespace and a name, as Kubernetes identifies an object of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Joins a namespace and a name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A host as routes and services name it: fully qualified, or a wildcard (`*`, `*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

/// Why a text is no hostname.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{host:?} is not a host name: {reason}")]
pub struct InvalidHostname {
    host: String,
    reason: &'static str,
}

impl Hostname {
    /// Reads a host as Istio's objects write it: a name without a dot is a service of `namespace`,
    /// anything else stands as it is.
    ///
    /// # Errors
    /// When the text cannot be a host: empty, too long, or with characters that DNS does not carry.
    pub fn resolve(host: &str, namespace: &str, domain: &str) -> Result<Self, InvalidHostname> {
        check_host(host)?;
        if host.contains('.') || host == "*" {
            return Ok(Self(host.to_ascii_lowercase().into()));
        }
        Ok(Self::service(host, namespace, domain))
    }

    /// A host that stands for itself, also without a dot.
    ///
    /// # Errors
    /// When the text cannot be a host.
    pub fn literal(host: &str) -> Result<Self, InvalidHostname> {
        check_host(host)?;
        Ok(Self(host.to_ascii_lowercase().into()))
    }

    /// The fully qualified host of a Kubernetes service.
    pub fn service(name: &str, namespace: &str, domain: &str) -> Self {
        Self(
            format!("{name}.{namespace}.svc.{domain}")
                .to_ascii_lowercase()
                .into(),
        )
    }

    /// Name and namespace of the service that a host in the cluster's domain is; none of any other host.
    pub fn within(&self, domain: &str) -> Option<(&str, &str)> {
        let own = self.0.strip_suffix(domain)?.strip_suffix(".svc.")?;
        let (name, namespace) = own.split_once('.')?;
        (!namespace.contains('.') && !name.is_empty() && !self.is_wildcard())
            .then_some((name, namespace))
    }

    /// The text of the host.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `*` or starts with `*.`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// This host, and every wildcard that covers it.
    pub fn and_wildcards(&self) -> Vec<Self> {
        let dots = self.0.match_indices('.').filter(|(at, _)| *at > 0);
        let wildcards = dots.map(|(at, _)| Self(format!("*{}", &self.0[at..]).into()));
        let mut all: Vec<Self> = std::iter::once(self.clone())
            .chain(wildcards)
            .chain([Self("*".into())])
            .collect();
        // A wildcard is its own first one.
        all.dedup();
        all
    }

    /// Whether this host, which may be a wildcard, covers `other`.
    pub fn covers(&self, other: &Self) -> bool {
        match self.0.strip_prefix('*') {
            None => self == other,
            Some(suffix) => other.0.ends_with(suffix) && other.0.len() > suffix.len(),
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_host(host: &str) -> Result<(), InvalidHostname> {
    let invalid = |reason| {
        Err(InvalidHostname {
            host: host.to_owned(),
            reason,
        })
    };
    if host.is_empty() {
        return invalid("it is empty");
    }
    if host.len() > 253 {
        return invalid("it is longer than 253 characters");
    }
    if host == "*" {
        return Ok(());
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return invalid("a label is empty or longer than 63 characters");
        }
        if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        {
            return invalid(
                "only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
            );
        }
    }
    Ok(())
}

/// The name of a cluster, in Istio's form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterName {
    /// `outbound|<port>|<subset>|<host>`
    Outbound {
        /// The service's port.
        port: u16,
        /// The subset; empty for the whole service.
        subset: String,
        /// The service's host.
        host: Hostname,
    },
    /// `inbound|<port>||`: the pod's own application.
    Inbound {
        /// The port the application listens on.
        port: u16,
    },
    /// `PassthroughCluster`: the address the client asked for.
    Passthrough,
    /// `BlackHoleCluster`: nowhere.
    BlackHole,
    /// `InboundPassthroughCluster`: a port of the pod that no service declares.
    InboundPassthrough,
}

impl ClusterName {
    /// The outbound cluster of a service port, whole or by subset.
    pub fn outbound(port: u16, subset: &str, host: &Hostname) -> Self {
        Self::Outbound {
            port,
            subset: subset.to_owned(),
            host: host.clone(),
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbound { port, subset, host } => write!(f, "outbound|{port}|{subset}|{host}"),
            Self::Inbound { port } => write!(f, "inbound|{port}||"),
            Self::Passthrough => f.write_str("PassthroughCluster"),
            Self::BlackHole => f.write_str("BlackHoleCluster"),
            Self::InboundPassthrough => f.write_str("InboundPassthroughCluster"),
        }
    }
}

/// A cluster name that pilot does not give out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a cluster name of this mesh")]
pub struct InvalidClusterName(String);

impl FromStr for ClusterName {
    type Err = InvalidClusterName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidClusterName(text.to_owned());
        match text {
            "PassthroughCluster" => return Ok(Self::Passthrough),
            "BlackHoleCluster" => return Ok(Self::BlackHole),
            "InboundPassthroughCluster" => return Ok(Self::InboundPassthrough),
            _ => {}
        }
        let parts: Vec<&str> = text.split('|').collect();
        let [direction, port, subset, host] = parts[..] else {
            return Err(invalid());
        };
        let port: u16 = port.parse().map_err(|_| invalid())?;
        match direction {
            "inbound" if subset.is_empty() && host.is_empty() => Ok(Self::Inbound { port }),
            "outbound" if check_host(host).is_ok() => Ok(Self::Outbound {
                port,
                subset: subset.to_owned(),
                host: Hostname(host.into()),
            }),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_dot_belongs_to_the_objects_namespace() {
        let host = Hostname::resolve("reviews", "default", "cluster.local").unwrap();
        assert_eq!(host.as_str(), "reviews.default.svc.cluster.local");
        let literal = Hostname::resolve("Reviews.Default", "default", "cluster.local").unwrap();
        assert_eq!(literal.as_str(), "reviews.default");
    }

    #[test]
    fn a_wildcard_covers_longer_names_only() {
        let all = Hostname::resolve("*.example.com", "default", "cluster.local").unwrap();
        let name = |text| Hostname::resolve(text, "default", "cluster.local").unwrap();
        assert!(all.covers(&name("a.example.com")));
        assert!(all.covers(&name("b.a.example.com")));
        assert!(!all.covers(&name("example.com")));
        assert!(name("*").covers(&name("anything.at.all")));
    }

    #[test]
    fn the_wildcards_of_a_host_are_those_that_cover_it() {
        let all = |text: &str| -> Vec<String> {
            let host = Hostname::literal(text).unwrap();
            let all = host.and_wildcards();
            assert!(all.iter().all(|wildcard| wildcard.covers(&host)), "{all:?}");
            all.iter().map(ToString::to_string).collect()
        };
        assert_eq!(all("a.b.c"), ["a.b.c", "*.b.c", "*.c", "*"]);
        assert_eq!(all("*.b.c"), ["*.b.c", "*.c", "*"]);
        assert_eq!(all("a"), ["a", "*"]);
    }

    #[test]
    fn hosts_that_dns_cannot_carry_are_refused() {
        for bad in ["", "a b", "a|b", "a..b", "a.*.b", "http://a.b"] {
            assert!(
                Hostname::resolve(bad, "default", "cluster.local").is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn cluster_names_survive_a_round_trip() {
        for text in [
            "outbound|9080|v1|reviews.default.svc.cluster.local",
            "outbound|9080||reviews.default.svc.cluster.local",
            "inbound|9080||",
            "PassthroughCluster",
            "BlackHoleCluster",
            "InboundPassthroughCluster",
        ] {
            assert_eq!(text.parse::<ClusterName>().unwrap().to_string(), text);
        }
        for bad in [
            "outbound|x||a",
            "inbound|1|a|",
            "outbound|1|",
            "prometheus_stats",
            "outbound|70000||a",
        ] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }
}
