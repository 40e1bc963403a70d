//! Gateways: what is let into the mesh from outside, at which ports of which pods. What Istio's `Gateway`, the Gateway
//! API's and `Ingress` come to.
//!
//! Made by [`super::validate`] and `kube::convert`; [`crate::translate`] asks which of them a pod runs, and which
//! routes are bound to them.

use super::Kind;
use super::names::{Hostname, ObjectName};
use super::place::Place;
use super::route::{HttpMatch, StringMatch};
use super::workload::{Labels, has_all};

/// The label that names the Gateway API's gateway that a pod runs.
pub const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// The pods that run Ingresses, as Istio's `ingressSelector` has it.
pub const INGRESS_LABEL: (&str, &str) = ("istio", "ingressgateway");
/// The classes that are the mesh's own.
pub const CLASSES: [&str; 2] = ["istio", "millrace"];

/// A gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// What kind of object it is.
    pub kind: Kind,
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was created, as RFC 3339 text; the older goes first.
    pub created: Option<String>,
    /// The labels of the pods that run it.
    pub selector: Labels,
    /// Whether only pods of its own namespace run it.
    pub at_home: bool,
    /// Where it listens.
    pub servers: Vec<GatewayServer>,
    /// Routes that it says itself, as an Ingress does.
    pub routes: Vec<IngressRoute>,
}

/// A port of a gateway, for some hosts. Plain HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayServer {
    /// Its name among those of the gateway; may be empty.
    pub name: String,
    /// The port that clients connect to.
    pub port: u16,
    /// The hosts, possibly wildcards.
    pub hosts: Vec<GatewayHost>,
    /// Where it is written.
    pub place: Place,
}

/// A host of a gateway's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayHost {
    /// The only namespace whose routes may have it; none where any may.
    pub namespace: Option<String>,
    /// The host, possibly a wildcard.
    pub host: Hostname,
}

/// A route of an Ingress.
#[derive(Clone, Debug, PartialEq)]
pub struct IngressRoute {
    /// The host, possibly a wildcard.
    pub host: Hostname,
    /// Which requests.
    pub condition: HttpMatch,
    /// The service that they go to.
    pub service: ObjectName,
    /// The service's port.
    pub port: IngressPort,
    /// Where it is written.
    pub place: Place,
}

/// A port of an Ingress's backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressPort {
    /// By its number.
    Number(u16),
    /// By its name.
    Name(String),
}

impl Gateway {
    /// Whether a pod of a namespace with these labels runs it.
    pub fn runs_on(&self, namespace: &str, labels: &Labels) -> bool {
        (!self.at_home || *self.name.namespace == *namespace) && has_all(&self.selector, labels)
    }

    /// The order in which gateways count: older ones first, then by name.
    pub fn order(&self) -> (bool, Option<&str>, Kind, &ObjectName) {
        let age = self.created.as_deref();
        (age.is_none(), age, self.kind, &self.name)
    }
}

impl GatewayHost {
    /// What a route of a namespace for a host has of this one.
    pub fn of_route(&self, namespace: &str, host: &Hostname) -> Option<Hostname> {
        let may = |only: &String| only == namespace;
        if !self.namespace.as_ref().is_none_or(may) {
            return None;
        }
        if self.host == *host || self.host.covers(host) {
            return Some(host.clone());
        }
        host.covers(&self.host).then(|| self.host.clone())
    }
}

/// Which requests a path of an Ingress means; `ImplementationSpecific` as Istio has it.
pub fn path_of(kind: &str, path: &str) -> HttpMatch {
    let whole = |path: &str| match path.trim_end_matches('/') {
        "" => (StringMatch::Prefix("/".to_owned()), false),
        path => (StringMatch::Prefix(path.to_owned()), true),
    };
    let (uri, whole_segments) = match kind {
        "Prefix" => whole(path),
        "Exact" => (StringMatch::Exact(path.to_owned()), false),
        _ => match (path.strip_suffix(".*"), path.strip_suffix('*')) {
            _ if path.is_empty() => whole("/"),
            (Some(prefix), _) => (StringMatch::Prefix(prefix.to_owned()), false),
            (None, Some(prefix)) if prefix.ends_with('/') => {
                (StringMatch::Prefix(prefix.to_owned()), false)
            }
            _ => (StringMatch::Exact(path.to_owned()), false),
        },
    };
    HttpMatch {
        uri: Some(uri),
        whole_segments,
        ..HttpMatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Hostname {
        Hostname::literal(text).unwrap()
    }

    #[test]
    fn of_two_hosts_the_narrower_is_served_if_one_covers_the_other() {
        let served = |gateway: &str, route: &str| {
            let gateway = GatewayHost {
                namespace: Some("shop".to_owned()),
                host: host(gateway),
            };
            gateway
                .of_route("shop", &host(route))
                .map(|host| host.to_string())
        };
        assert_eq!(
            served("*", "a.example.com").as_deref(),
            Some("a.example.com")
        );
        assert_eq!(
            served("*.example.com", "*").as_deref(),
            Some("*.example.com")
        );
        assert_eq!(
            served("a.example.com", "*.example.com").as_deref(),
            Some("a.example.com")
        );
        assert_eq!(served("a.example.com", "b.example.com"), None);
        let only = GatewayHost {
            namespace: Some("shop".to_owned()),
            host: host("*"),
        };
        assert_eq!(only.of_route("other", &host("a.example.com")), None);
    }

    #[test]
    fn paths_of_ingresses_mean_what_kubernetes_and_istio_say() {
        let uri = |kind: &str, path: &str| {
            let condition = path_of(kind, path);
            (condition.uri.unwrap(), condition.whole_segments)
        };
        let prefix = |text: &str| StringMatch::Prefix(text.to_owned());
        let exact = |text: &str| StringMatch::Exact(text.to_owned());
        assert_eq!(uri("Prefix", "/"), (prefix("/"), false));
        assert_eq!(uri("Prefix", "/a/"), (prefix("/a"), true));
        assert_eq!(uri("Exact", "/a/"), (exact("/a/"), false));
        assert_eq!(uri("ImplementationSpecific", ""), (prefix("/"), false));
        assert_eq!(
            uri("ImplementationSpecific", "/a/*"),
            (prefix("/a/"), false)
        );
        assert_eq!(uri("ImplementationSpecific", "/a.*"), (prefix("/a"), false));
        assert_eq!(uri("ImplementationSpecific", "/a"), (exact("/a"), false));
    }
}
