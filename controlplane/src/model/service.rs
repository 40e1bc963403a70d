//! Services and the protocol of their ports.
//!
//! The protocol rules are Istio's: `appProtocol` first, then the port name's prefix, then a few
//! well-known ports, else detection from the first bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::entry::Entry;
use super::names::{Hostname, ObjectName};
use super::near::Reach;
use super::route::ExportTo;

/// A service that pods of the mesh can call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name; what a `ServiceEntry` makes is named `<entry>/<host>`.
    pub name: ObjectName,
    /// When its object was created, as RFC 3339 text; sorts before the name where two claim a host.
    pub created: Option<String>,
    /// The fully qualified host.
    pub hostname: Hostname,
    /// How clients reach it.
    pub kind: ServiceKind,
    /// The virtual addresses; empty for headless and external services.
    pub addresses: Vec<IpAddr>,
    /// The declared ports, TCP only, in declaration order.
    pub ports: Vec<ServicePort>,
    /// The labels that select its pods; empty selects none.
    pub selector: BTreeMap<String, String>,
    /// Whether pods that are not ready are endpoints too.
    pub publish_not_ready: bool,
    /// Whether each client address is to stay at one endpoint.
    pub client_affinity: bool,
    /// How near to a client its endpoints have to be, or should be.
    pub reach: Reach,
    /// The namespaces whose pods may use it.
    pub export_to: ExportTo,
}

/// How a service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// By a virtual address.
    ClusterIp,
    /// By the addresses of its pods, which DNS returns.
    Headless,
    /// By another name outside the mesh.
    ExternalName(String),
    /// As a `ServiceEntry` says.
    Entry(Arc<Entry>),
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name; may be empty when it is the only one.
    pub name: String,
    /// The port clients connect to.
    pub port: u16,
    /// The port the pods listen on.
    pub target: TargetPort,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// Where a service port leads on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container port, which may differ in number from pod to pod.
    Name(String),
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1 towards the server.
    Http,
    /// HTTP/2 towards the server.
    Http2,
    /// gRPC, that is HTTP/2.
    Grpc,
    /// gRPC-Web, that is HTTP/1.1.
    GrpcWeb,
    /// Bytes.
    Tcp,
    /// TLS that the mesh does not open.
    Tls,
    /// Not declared: seen from the client's first bytes.
    Auto,
}

/// Ports on which the server is known to speak first or not to speak HTTP, as Istio lists them.
const WELL_KNOWN_TCP: [u16; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// The protocol of a port by Kubernetes' `appProtocol`, its name, and its number.
    pub fn of_port(name: &str, app_protocol: Option<&str>, port: u16) -> Self {
        if let Some(declared) = app_protocol {
            let plain = declared.rsplit_once('/').map_or(declared, |(_, last)| last);
            if let Some(protocol) = Self::by_word(plain) {
                return protocol;
            }
        }
        let name = name.to_ascii_lowercase();
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Self::GrpcWeb;
        }
        let word = name.split_once('-').map_or(name.as_str(), |(word, _)| word);
        Self::by_word(word).unwrap_or(if WELL_KNOWN_TCP.contains(&port) {
            Self::Tcp
        } else {
            Self::Auto
        })
    }

    fn by_word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "http" | "http1" | "ws" => Self::Http,
            "http2" | "h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "tcp" | "mongo" | "redis" | "mysql" | "thrift" => Self::Tcp,
            "tls" | "https" | "wss" => Self::Tls,
            _ => return None,
        })
    }

    /// Whether routes apply without looking at the bytes.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether the server is spoken to in HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

impl Service {
    /// What its `ServiceEntry` says, where one made it.
    pub fn entry(&self) -> Option<&Entry> {
        match &self.kind {
            ServiceKind::Entry(entry) => Some(entry),
            _ => None,
        }
    }

    /// The name that people know it by: of a `ServiceEntry` the host.
    pub fn short_name(&self) -> &str {
        match self.kind {
            ServiceKind::Entry(_) => self.hostname.as_str(),
            _ => &self.name.name,
        }
    }

    /// The declared port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }
}

#[cfg(test)]
mod tests {
    use super::Protocol;

    #[test]
    fn protocol_follows_app_protocol_then_name_then_number() {
        let cases = [
            ("", None, 80, Protocol::Auto),
            ("http", None, 9080, Protocol::Http),
            ("http-web", None, 9080, Protocol::Http),
            ("HTTP-web", None, 9080, Protocol::Http),
            ("web", None, 9080, Protocol::Auto),
            ("httpweb", None, 9080, Protocol::Auto),
            ("http2-x", None, 80, Protocol::Http2),
            ("grpc", None, 80, Protocol::Grpc),
            ("grpc-web", None, 80, Protocol::GrpcWeb),
            ("grpc-web-ui", None, 80, Protocol::GrpcWeb),
            ("tcp", None, 80, Protocol::Tcp),
            ("mongo-db", None, 1, Protocol::Tcp),
            ("https", None, 443, Protocol::Tls),
            ("tls-x", None, 443, Protocol::Tls),
            ("", None, 3306, Protocol::Tcp),
            ("db", None, 27017, Protocol::Tcp),
            ("tcp", Some("http"), 80, Protocol::Http),
            ("x", Some("kubernetes.io/h2c"), 80, Protocol::Http2),
            ("x", Some("kubernetes.io/ws"), 80, Protocol::Http),
            ("http", Some("example.com/custom"), 80, Protocol::Http),
            ("", Some("mysql"), 80, Protocol::Tcp),
        ];
        for (name, app, port, want) in cases {
            assert_eq!(
                Protocol::of_port(name, app, port),
                want,
                "{name:?} {app:?} {port}"
            );
        }
    }
}
