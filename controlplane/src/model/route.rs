//! Routes: what `VirtualService` and `RouteRule` come to after validation.

use std::sync::Arc;
use std::time::Duration;

use super::Kind;
use super::names::{Hostname, ObjectName};
use super::place::Place;
use super::workload::Labels;

/// An Istio `VirtualService` as the mesh's own proxies see it.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was created, as RFC 3339 text; sorts before the name where two objects claim a host.
    pub created: Option<String>,
    /// The hosts it routes, fully qualified or wildcards; none for one that others delegate to.
    pub hosts: Vec<Hostname>,
    /// Whether it applies to traffic between workloads, not only to named gateways.
    pub for_mesh: bool,
    /// The Istio gateways whose traffic it routes.
    pub gateways: Vec<ObjectName>,
    /// Who may use it.
    pub export_to: ExportTo,
    /// HTTP routes, first match wins.
    pub http: Vec<HttpRoute>,
    /// TCP routes, first match wins.
    pub tcp: Vec<TcpRoute>,
    /// Routes of TLS by server name, first match wins.
    pub tls: Vec<TcpRoute>,
}

/// A seed-era `RouteRule`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteRule {
    /// Namespace and name.
    pub name: ObjectName,
    /// The host whose traffic it routes.
    pub destination: Hostname,
    /// Higher goes first.
    pub precedence: i32,
    /// The route.
    pub route: HttpRoute,
}

/// The namespaces that may use an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExportTo {
    /// All of them.
    #[default]
    Everyone,
    /// These only.
    Namespaces(Vec<String>),
}

impl ExportTo {
    /// What `exportTo` of an object of `namespace` says: `.` is that namespace, `*` all of them, `~`
    /// none, and nothing at all is all of them.
    pub fn of(names: &[String], namespace: &str) -> Self {
        if names.is_empty() || names.iter().any(|name| name == "*") {
            return Self::Everyone;
        }
        let names = names.iter().filter(|name| *name != "~");
        let names = names.map(|name| match name.as_str() {
            "." => namespace.to_owned(),
            name => name.to_owned(),
        });
        Self::Namespaces(names.collect())
    }

    /// Whether clients of `namespace` may use the object.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespaces(names) => names.iter().any(|name| name == namespace),
        }
    }
}

/// One HTTP route: conditions and what happens when one of them holds.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Its place among the routes of its object, of which some may have been left out.
    pub at: usize,
    /// The route's name, for logs.
    pub name: String,
    /// Any of these; empty means every request.
    pub matches: Vec<HttpMatch>,
    /// What happens.
    pub action: HttpAction,
    /// Time for the whole response; absent means no limit.
    pub timeout: Option<Duration>,
    /// How failures are retried; absent means the mesh's default.
    pub retries: Option<Retries>,
    /// Changes of path and authority.
    pub rewrite: Option<Rewrite>,
    /// Failures that are made on purpose.
    pub fault: Option<Fault>,
    /// Changes of headers.
    pub headers: HeaderOperations,
    /// What requests get where their destination does not exist: 503, by the Gateway API 500.
    pub no_backend: u16,
    /// Where it is written.
    pub place: Option<Arc<Place>>,
}

/// What happens to a matched request.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpAction {
    /// It is sent to one of these, by weight.
    Forward(Vec<Destination>),
    /// The client is told to go elsewhere.
    Redirect(Redirect),
    /// The proxy answers.
    Respond {
        /// The status code.
        status: u16,
        /// The body.
        body: Option<Vec<u8>>,
    },
    /// Another `VirtualService` says; resolved before anything is translated.
    Delegate(ObjectName),
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// The match's name, appended to the route's.
    pub name: String,
    /// The path.
    pub uri: Option<StringMatch>,
    /// Whether the path is compared without case.
    pub ignore_uri_case: bool,
    /// Whether a prefix of the path ends where a segment does.
    pub whole_segments: bool,
    /// The scheme.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The authority.
    pub authority: Option<StringMatch>,
    /// Headers that must match.
    pub headers: Vec<(String, ValueMatch)>,
    /// Headers that must not match.
    pub without_headers: Vec<(String, ValueMatch)>,
    /// Query parameters that must match.
    pub query_params: Vec<(String, ValueMatch)>,
    /// The port the client connected to.
    pub port: Option<u16>,
    /// The client's namespace.
    pub source_namespace: Option<String>,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Matches as a whole (RE2 syntax, checked).
    Regex(String),
}

/// How a header or parameter is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// It is there.
    Present,
    /// Its value compares.
    Value(StringMatch),
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// The host.
    pub host: Hostname,
    /// Which of the host's endpoints.
    pub subset: SubsetRef,
    /// The service port; absent means the only one, or the one the client asked for.
    pub port: Option<u16>,
    /// Its part of the sum of all weights.
    pub weight: u32,
    /// Changes of headers for this destination.
    pub headers: HeaderOperations,
    /// Who refers to it, where the owner of its namespace must allow that.
    pub reference: Option<Reference>,
}

/// A reference from one namespace into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The kind that refers.
    pub kind: Kind,
    /// The namespace that it refers from.
    pub from: String,
    /// What it refers to.
    pub to: ObjectName,
}

/// How a route names a group of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubsetRef {
    /// All of them.
    All,
    /// A `DestinationRule`'s subset.
    Named(String),
    /// By labels, as `RouteRule` does.
    Labels(Labels),
}

impl SubsetRef {
    /// The name under which labels become a subset: the version alone where that says all.
    pub fn name_of_labels(labels: &Labels) -> String {
        match labels.get("version") {
            Some(version) if labels.len() == 1 => version.clone(),
            _ => {
                let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                pairs.join(",")
            }
        }
    }
}

/// How failures are retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first; 0 turns retries off.
    pub attempts: u32,
    /// Time for each try.
    pub per_try_timeout: Option<Duration>,
    /// Envoy's `retry_on` conditions.
    pub retry_on: String,
    /// Status codes named in `retry_on`.
    pub status_codes: Vec<u32>,
}

/// Failures that are made on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How long some requests are held, and of a million how many.
    pub delay: Option<(Duration, u32)>,
    /// What some requests are answered with, and of a million how many.
    pub abort: Option<(AbortStatus, u32)>,
}

/// What an aborted request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortStatus {
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC.
    Grpc(u32),
}

/// Changes of path and authority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The new path, or the new prefix where a prefix matched.
    pub uri: Option<String>,
    /// A pattern and its substitution.
    pub uri_regex: Option<(String, String)>,
    /// The new authority.
    pub authority: Option<String>,
}

/// Where a client is told to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// The new path.
    pub uri: Option<String>,
    /// What comes in the place of the prefix that matched.
    pub prefix: Option<String>,
    /// The new authority.
    pub authority: Option<String>,
    /// The new scheme.
    pub scheme: Option<String>,
    /// The new port.
    pub port: Option<u16>,
    /// The status code: 301, 302, 303, 307 or 308.
    pub code: u16,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// Of the request.
    pub request: HeaderChanges,
    /// Of the response.
    pub response: HeaderChanges,
}

/// Changes of one message's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Headers whose value is replaced.
    pub set: Vec<(String, String)>,
    /// Headers that are appended.
    pub add: Vec<(String, String)>,
    /// Headers that are taken out.
    pub remove: Vec<String>,
}

impl HeaderChanges {
    /// Adds other changes, which come after these.
    pub fn extend(&mut self, more: Self) {
        self.set.extend(more.set);
        self.add.extend(more.add);
        self.remove.extend(more.remove);
    }
}

/// One route of connections.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    /// Its place among the routes of its object, of which some may have been left out.
    pub at: usize,
    /// Any of these; empty means every connection.
    pub matches: Vec<TcpMatch>,
    /// Where connections go, by weight.
    pub destinations: Vec<Destination>,
    /// Where it is written.
    pub place: Option<Arc<Place>>,
}

/// Conditions on a connection that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpMatch {
    /// The server names of a TLS client, possibly wildcards; empty for routes that do not look at them.
    pub sni_hosts: Vec<String>,
    /// The port the client connected to.
    pub port: Option<u16>,
    /// The client's namespace.
    pub source_namespace: Option<String>,
}

impl TcpMatch {
    /// Whether it may hold for a connection of this namespace to this port, as far as that says.
    pub fn fits(&self, port: u16, namespace: &str) -> bool {
        self.port.is_none_or(|wanted| wanted == port)
            && self
                .source_namespace
                .as_deref()
                .is_none_or(|wanted| wanted == namespace)
    }
}

impl TcpRoute {
    /// Whether it routes connections of this namespace to this port, whatever they ask for.
    pub fn fits(&self, port: u16, namespace: &str) -> bool {
        let mut matches = self.matches.iter();
        self.matches.is_empty() || matches.any(|condition| condition.fits(port, namespace))
    }
}
