//! Routes of the Gateway API that belong to services: what `HTTPRoute`, `GRPCRoute`, `TCPRoute` and `TLSRoute`
//! come to, and which references between namespaces are allowed.
//!
//! Made by [`super::validate`]; [`crate::snapshot`] asks which of them hold for a client and a port.

use super::Kind;
use super::gateway::GatewayServer;
use super::names::{Hostname, ObjectName};
use super::route::{HttpMatch, HttpRoute, StringMatch, TcpRoute};
use super::service::{Service, ServicePort};

/// A route that belongs to services.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiRoute {
    /// What kind of object it is.
    pub kind: Kind,
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was created, as RFC 3339 text; the older goes first.
    pub created: Option<String>,
    /// What it belongs to.
    pub parents: Vec<Parent>,
    /// The hosts that it is for at gateways; none where it is for all of theirs.
    pub hostnames: Vec<Hostname>,
    /// Its rules, where it routes requests.
    pub http: Vec<HttpRoute>,
    /// Its rule, where it routes connections.
    pub connections: Option<TcpRoute>,
}

/// A service or gateway, or one port of it, that a route belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Service, `ServiceEntry` or Gateway.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: ObjectName,
    /// The port's number.
    pub port: Option<u16>,
    /// The port's name.
    pub section: Option<String>,
}

/// References into a namespace that its owner allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Namespace and name.
    pub name: ObjectName,
    /// Kinds of routes and their namespaces.
    pub from: Vec<(Kind, String)>,
    /// Services; one without a name is all of the namespace.
    pub to: Vec<Option<String>>,
}

impl Parent {
    /// Whether it is this listener of this gateway.
    pub fn is_at(&self, gateway: &ObjectName, listener: &GatewayServer) -> bool {
        self.kind == Kind::Gateway
            && self.name == *gateway
            && self.port.is_none_or(|port| port == listener.port)
            && self
                .section
                .as_ref()
                .is_none_or(|name| *name == listener.name)
    }

    /// Whether it is this port of this service.
    pub fn is(&self, service: &Service, port: &ServicePort) -> bool {
        self.is_service(service)
            && self.port.is_none_or(|number| number == port.port)
            && self
                .section
                .as_deref()
                .is_none_or(|section| section == port.name)
    }

    /// Whether it is this service, or a port of it.
    pub fn is_service(&self, service: &Service) -> bool {
        match service.entry() {
            Some(entry) => entry.object.kind == self.kind && entry.object.name == self.name,
            None => self.kind == Kind::Service && service.name == self.name,
        }
    }
}

impl ApiRoute {
    /// Whether it routes requests rather than connections.
    pub fn is_http(&self) -> bool {
        matches!(self.kind, Kind::HttpRoute | Kind::GrpcRoute)
    }

    /// Whether it holds for clients of a namespace at a port: one of the service's own namespace for
    /// everybody, another for clients of its own namespace.
    pub fn holds_for(&self, client: &str, service: &Service, port: &ServicePort) -> bool {
        let own = self.name.namespace == service.name.namespace;
        (own || &*self.name.namespace == client)
            && self.parents.iter().any(|parent| parent.is(service, port))
    }

    /// The order of routes that say the same: older ones first, then by name.
    pub fn order(&self) -> (bool, Option<&str>, &ObjectName) {
        (self.created.is_none(), self.created.as_deref(), &self.name)
    }
}

/// The rules of routes as single conditions, in the order in which the Gateway API tries them: an exact
/// path, a pattern, the longest prefix, then a method, the most headers, the most query parameters;
/// where all is equal the older route and the earlier rule.
pub fn by_precedence<'a>(routes: impl IntoIterator<Item = &'a ApiRoute>) -> Vec<HttpRoute> {
    let mut routes: Vec<&ApiRoute> = routes.into_iter().collect();
    routes.sort_by_key(|route| route.order());
    let mut rules: Vec<HttpRoute> = Vec::new();
    for rule in routes.into_iter().flat_map(|route| &route.http) {
        let everything = [HttpMatch::default()];
        let conditions = if rule.matches.is_empty() {
            &everything[..]
        } else {
            &rule.matches
        };
        rules.extend(conditions.iter().map(|condition| HttpRoute {
            matches: vec![condition.clone()],
            ..rule.clone()
        }));
    }
    sort_by_precedence(&mut rules);
    rules
}

/// Sorts rules of single conditions into the order in which they are tried; what is equal stays as it was.
pub fn sort_by_precedence(rules: &mut [HttpRoute]) {
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.matches.first().map(weight)));
}

fn weight(condition: &HttpMatch) -> (u8, usize, bool, usize, usize) {
    let (class, length) = match &condition.uri {
        None => (0, 0),
        Some(StringMatch::Prefix(path)) => (0, path.len()),
        Some(StringMatch::Regex(path)) => (1, path.len()),
        Some(StringMatch::Exact(path)) => (2, path.len()),
    };
    (
        class,
        length,
        condition.method.is_some(),
        condition.headers.len(),
        condition.query_params.len(),
    )
}
