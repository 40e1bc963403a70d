//! Who asks: what a proxy is and what it may see.

use std::net::IpAddr;

use millrace_xds::node::{Node, NodeRole};

use super::ResourceKind;
use super::inbound::{POD_PREFIX, VIRTUAL_INBOUND};
use super::netns::OUTBOUND_PREFIX;
use crate::model::names::{ClusterName, Hostname, ObjectName};
use crate::model::near::Place;
use crate::model::node::{Feature, Features};
use crate::model::workload::Labels;

/// How a proxy sees the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyView {
    /// A proxy for all pods of a node, Millrace's or stock Envoy. Listeners and routes are named by namespace or pod,
    /// clusters and endpoints are shared by all its pods.
    Node {
        /// The node's name.
        name: String,
        /// The zone that it says it is in; empty where it says none.
        zone: String,
        /// The directory in which the node has its pods' network namespaces by name: of stock Envoy, which listens in
        /// them itself. Millrace's proxy has sockets handed to it.
        netns: Option<String>,
        /// What it executes.
        features: Features,
    },
    /// A proxy for one pod, ours or stock Envoy, with Istio's resource names.
    Sidecar {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The pod's addresses.
        addresses: Vec<IpAddr>,
        /// Where it says it is.
        place: Place,
        /// Whether it is stock Envoy, not Millrace's proxy.
        is_envoy: bool,
        /// What it executes.
        features: Features,
    },
    /// A pod through which clients from outside come in, with Istio's resource names.
    Router {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The pod's labels, which choose its gateways.
        labels: Labels,
        /// The pod's addresses.
        addresses: Vec<IpAddr>,
        /// Where it says it is.
        place: Place,
    },
    /// An application that is an xDS client itself, by gRPC's library.
    Grpc {
        /// The application's namespace.
        namespace: String,
        /// Where it says it is.
        place: Place,
    },
}

/// Whose program a client is, which decides what of the configuration it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Program {
    /// Millrace's own proxy.
    Millrace,
    /// Stock Envoy.
    Envoy,
    /// gRPC's library, in an application.
    Grpc,
}

/// What stock Envoy and all that is made of it call themselves.
const ENVOY: &str = "envoy";

/// The key of metadata under which stock Envoy for a whole node says where that has its pods' network namespaces.
const NETNS_DIR: &str = "NETNS_DIR";

/// The key of metadata by which a client says that it is no proxy, and what it says there.
const GENERATOR: (&str, &str) = ("GENERATOR", "grpc");

/// Why a client cannot be served.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidView {
    /// Its id does not say what it is.
    #[error(transparent)]
    Id(#[from] millrace_xds::node::InvalidNodeId),
    /// A sidecar without a namespace.
    #[error("node {0} has no namespace: neither its id (pod.namespace) nor NAMESPACE says one")]
    Namespace(String),
    /// Stock Envoy for a node that does not say how it finds the pods.
    #[error(
        "node {0} is stock Envoy for a whole node: its metadata needs {NETNS_DIR}, an absolute path to its pods' network namespaces"
    )]
    Netns(String),
    /// Waypoints.
    #[error("node {id} is a {role}, which this pilot does not serve")]
    Role {
        /// The node's id.
        id: String,
        /// The role in it.
        role: &'static str,
    },
}

impl ProxyView {
    /// Reads what a client says of itself.
    ///
    /// # Errors
    /// When that does not determine a view.
    pub fn of_node(node: &Node) -> Result<Self, InvalidView> {
        let id = node.parsed_id()?;
        let locality = node.locality.as_ref();
        let zone = locality.map_or_else(String::new, |locality| locality.zone.clone());
        let is_envoy = node.user_agent_name == ENVOY;
        let features = if is_envoy {
            Features::all()
        } else {
            Features::of(node.features())
        };
        match id.role {
            NodeRole::Node => Ok(Self::Node {
                name: node.node_name().unwrap_or(&id.id).to_owned(),
                zone,
                netns: netns(node)?,
                features,
            }),
            NodeRole::Sidecar | NodeRole::Router => {
                let namespace = node
                    .namespace()
                    .ok_or_else(|| InvalidView::Namespace(node.id.clone()))?;
                let place = Place {
                    node: node.node_name().unwrap_or_default().to_owned(),
                    zone,
                };
                if node.text(GENERATOR.0) == Some(GENERATOR.1) {
                    return Ok(Self::Grpc { namespace, place });
                }
                let pod = id
                    .id
                    .strip_suffix(&format!(".{namespace}"))
                    .unwrap_or(&id.id)
                    .to_owned();
                if id.role == NodeRole::Router {
                    return Ok(Self::Router {
                        namespace,
                        pod,
                        labels: node.labels(),
                        addresses: node.addresses(),
                        place,
                    });
                }
                Ok(Self::Sidecar {
                    namespace,
                    pod,
                    addresses: node.addresses(),
                    place,
                    is_envoy,
                    features,
                })
            }
            role @ NodeRole::Waypoint => Err(InvalidView::Role {
                id: node.id.clone(),
                role: role.as_str(),
            }),
        }
    }

    /// Whose program the client is.
    pub(crate) fn program(&self) -> Program {
        match self {
            Self::Sidecar { is_envoy: true, .. }
            | Self::Node { netns: Some(_), .. }
            | Self::Router { .. } => Program::Envoy,
            Self::Sidecar { .. } | Self::Node { .. } => Program::Millrace,
            Self::Grpc { .. } => Program::Grpc,
        }
    }

    /// Whether the client executes something that not every version does.
    pub(crate) fn executes(&self, feature: Feature) -> bool {
        match self {
            Self::Node { features, .. } | Self::Sidecar { features, .. } => features.has(feature),
            // Stock Envoy; what gRPC's library reads is said in its own words.
            Self::Router { .. } | Self::Grpc { .. } => true,
        }
    }

    /// Reads a cluster's name: the client namespace that it is for, and what it names. Pods of a node
    /// share a cluster without a namespace before it.
    pub(crate) fn split_cluster<'n>(
        &'n self,
        name: &'n str,
    ) -> Option<(Option<&'n str>, ClusterName)> {
        match self {
            Self::Sidecar { namespace, .. }
            | Self::Router { namespace, .. }
            | Self::Grpc { namespace, .. } => Some((Some(namespace), name.parse().ok()?)),
            Self::Node { .. } => match name.split_once('/') {
                Some((namespace, own)) if !namespace.contains('|') => {
                    Some((Some(namespace), own.parse().ok()?))
                }
                _ => Some((None, name.parse().ok()?)),
            },
        }
    }

    /// Splits a listener's or route's name into the namespace it is for and the rest.
    pub(crate) fn split<'n>(&'n self, name: &'n str) -> Option<(&'n str, &'n str)> {
        match self {
            Self::Node { .. } => name.split_once('/'),
            Self::Sidecar { namespace, .. }
            | Self::Router { namespace, .. }
            | Self::Grpc { namespace, .. } => Some((namespace, name)),
        }
    }

    /// Joins a namespace and a name of that namespace's listener or route.
    pub(crate) fn join(&self, namespace: &str, name: &str) -> String {
        match self {
            Self::Node { .. } => format!("{namespace}/{name}"),
            Self::Sidecar { .. } | Self::Router { .. } | Self::Grpc { .. } => name.to_owned(),
        }
    }

    /// Where the client says it stands, as far as it says so.
    pub(crate) fn stated_place(&self) -> Place {
        match self {
            Self::Node { name, zone, .. } => Place {
                node: name.clone(),
                zone: zone.clone(),
            },
            Self::Sidecar { place, .. } | Self::Router { place, .. } | Self::Grpc { place, .. } => {
                place.clone()
            }
        }
    }

    /// The pod of a sidecar or router.
    pub(crate) fn own_pod(&self) -> Option<ObjectName> {
        match self {
            Self::Node { .. } | Self::Grpc { .. } => None,
            Self::Sidecar { namespace, pod, .. } | Self::Router { namespace, pod, .. } => {
                Some(ObjectName::new(namespace, pod))
            }
        }
    }
}

/// Where a node has its pods' network namespaces, if the proxy enters them itself. The node says it once, and pilot adds
/// the names of pods alone, so neither can make the other open anything else.
fn netns(node: &Node) -> Result<Option<String>, InvalidView> {
    if node.user_agent_name != ENVOY {
        return Ok(None);
    }
    let directory = node.text(NETNS_DIR).filter(|path| path.starts_with('/'));
    let directory = directory.map(|path| path.trim_end_matches('/').to_owned());
    directory
        .map(Some)
        .ok_or_else(|| InvalidView::Netns(node.id.clone()))
}

/// What a resource is about, by its name alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'n> {
    /// A host's services, and the rules for them.
    Cluster(Hostname),
    /// Everything that clients of a namespace call; a host that need not be among it, where it is named.
    Routes(&'n str, Option<Hostname>),
    /// The same, and where it is listened for.
    Outbound(&'n str),
    /// The same for one pod.
    OutboundOf(ObjectName),
    /// The way into a pod; without a name, of a proxy's own.
    Inbound {
        namespace: &'n str,
        pod: Option<ObjectName>,
    },
    /// What gateways let in.
    Gateways,
    /// The table of names.
    Names,
    /// Nothing in the mesh.
    Fixed,
}

impl ProxyView {
    /// What a resource of this view is about.
    pub(crate) fn part<'n>(&'n self, kind: ResourceKind, name: &'n str) -> Part<'n> {
        let part = match kind {
            ResourceKind::Listener | ResourceKind::Route if matches!(self, Self::Router { .. }) => {
                Some(Part::Gateways)
            }
            ResourceKind::NameTable => Some(Part::Names),
            ResourceKind::Route => self.split(name).map(|(namespace, own)| {
                let host = own
                    .rsplit_once(':')
                    .map(|(host, _)| Hostname::literal(host));
                Part::Routes(namespace, host.and_then(Result::ok))
            }),
            ResourceKind::Cluster | ResourceKind::Endpoints => match self.split_cluster(name) {
                Some((_, ClusterName::Outbound { host, .. })) => Some(Part::Cluster(host)),
                _ => None,
            },
            ResourceKind::Listener => match (self, name.strip_prefix(POD_PREFIX)) {
                (Self::Node { netns: Some(_), .. }, None) => name
                    .strip_prefix(OUTBOUND_PREFIX)
                    .and_then(|pod| pod.split_once('/'))
                    .map(|(namespace, pod)| Part::OutboundOf(ObjectName::new(namespace, pod))),
                (Self::Node { .. }, Some(pod)) => {
                    pod.split_once('/').map(|(namespace, pod)| Part::Inbound {
                        namespace,
                        // All of a namespace are any of them.
                        pod: (pod != "*").then(|| ObjectName::new(namespace, pod)),
                    })
                }
                (Self::Sidecar { namespace, .. }, _) if name == VIRTUAL_INBOUND => {
                    Some(Part::Inbound {
                        namespace,
                        pod: None,
                    })
                }
                // A target may mean any of several hosts, and nothing else is in its listener.
                (Self::Grpc { .. }, _) => Some(Part::Names),
                _ => self
                    .split(name)
                    .map(|(namespace, _)| Part::Outbound(namespace)),
            },
        };
        part.unwrap_or(Part::Fixed)
    }
}

/// The part of a view that a resource depends on besides its name: what a cache may share it by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Nothing else: every node's proxy of Millrace's gets the same that executes the same.
    Nodes(Features),
    /// The same for every stock Envoy that is a node's proxy.
    NodeEnvoys,
    /// The same for sidecars of one namespace that execute the same.
    Namespace(String, Features),
    /// The same for gRPC's clients of one namespace.
    Grpc(String),
    /// The same, with the same address families (IPv4, IPv6).
    Families(String, Features, [bool; 2]),
    /// For this proxy alone.
    Proxy(ProxyView),
}

impl ProxyView {
    /// What a resource of this view can be shared by.
    pub fn scope(&self, kind: ResourceKind, name: &str) -> Scope {
        let (namespace, addresses, features) = match self {
            Self::Node {
                netns: None,
                features,
                ..
            } => return Scope::Nodes(scoped(kind, *features)),
            Self::Node { .. } if kind == ResourceKind::Listener => {
                return Scope::Proxy(self.clone());
            }
            Self::Node { .. } => return Scope::NodeEnvoys,
            Self::Grpc { namespace, .. } => return Scope::Grpc(namespace.clone()),
            Self::Router { namespace, .. } => {
                let features = scoped(kind, Features::all());
                return match kind {
                    ResourceKind::Cluster | ResourceKind::Endpoints if !is_delivery(name) => {
                        Scope::Namespace(namespace.clone(), features)
                    }
                    _ => Scope::Proxy(self.clone()),
                };
            }
            Self::Sidecar {
                namespace,
                addresses,
                features,
                ..
            } => (namespace.clone(), addresses, scoped(kind, *features)),
        };
        match kind {
            ResourceKind::Listener if name == VIRTUAL_INBOUND => Scope::Proxy(self.clone()),
            ResourceKind::Cluster if !is_delivery(name) => Scope::Namespace(namespace, features),
            ResourceKind::Endpoints | ResourceKind::NameTable | ResourceKind::Route => {
                Scope::Namespace(namespace, features)
            }
            ResourceKind::Listener | ResourceKind::Cluster => {
                let families = [
                    addresses.iter().any(IpAddr::is_ipv4),
                    addresses.iter().any(IpAddr::is_ipv6),
                ];
                Scope::Families(namespace, features, families)
            }
        }
    }
}

/// What a client executes, as far as resources of a kind depend on it.
fn scoped(kind: ResourceKind, features: Features) -> Features {
    match kind {
        ResourceKind::Endpoints | ResourceKind::NameTable => Features::default(),
        ResourceKind::Cluster | ResourceKind::Listener | ResourceKind::Route => features,
    }
}

/// Whether a cluster leads to the pod's own application, from source addresses of the pod's families.
fn is_delivery(cluster: &str) -> bool {
    let name: Option<ClusterName> = cluster.parse().ok();
    matches!(
        name,
        Some(ClusterName::Inbound { .. } | ClusterName::InboundPassthrough)
    )
}
