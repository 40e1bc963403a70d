//! The node that a client says it is: its id (`node~ip~name~domain`, `sidecar~ip~pod.ns~domain`),
//! metadata and locality.
//!
//! In: the `Node` proto of a stream's first request, or what a client knows of itself. Out: a
//! typed [`Node`], read by the pilot to decide what to serve.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::proto;

mod metadata;

/// What kind of proxy a node is; the first part of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeRole {
    /// Millrace's proxy, one per node.
    Node,
    /// A proxy in one pod.
    Sidecar,
    /// A gateway.
    Router,
    /// A waypoint.
    Waypoint,
}

impl NodeRole {
    /// The word used in node ids.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Sidecar => "sidecar",
            Self::Router => "router",
            Self::Waypoint => "waypoint",
        }
    }
}

/// A structured node id: `role~ip~id~domain`, as Istio's proxies write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// Kind of proxy.
    pub role: NodeRole,
    /// First address of the node or pod; none where the part is empty (Istio then reads
    /// `INSTANCE_IPS` of the metadata).
    pub ip: Option<IpAddr>,
    /// Node name, or `pod.namespace`.
    pub id: String,
    /// DNS domain, such as `default.svc.cluster.local`.
    pub domain: String,
}

/// Why a node id has no structure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodeId {
    /// It has not four parts.
    #[error("node id {0} is not of the form role~ip~id~domain")]
    Shape(String),
    /// The role is not one of node, sidecar, router, waypoint.
    #[error("node id {id} has the unknown role {role}")]
    Role {
        /// The whole id.
        id: String,
        /// Its first part.
        role: String,
    },
    /// The second part is not an address.
    #[error("node id {id} has the invalid address {ip}")]
    Ip {
        /// The whole id.
        id: String,
        /// Its second part.
        ip: String,
    },
    /// The third part is empty.
    #[error("node id {0} names nothing")]
    Empty(String),
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let mut parts = text.split('~');
        let (Some(role), Some(ip), Some(id), Some(domain), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(InvalidNodeId::Shape(text.into()));
        };
        let role = match role {
            "node" => NodeRole::Node,
            "sidecar" => NodeRole::Sidecar,
            "router" => NodeRole::Router,
            "waypoint" => NodeRole::Waypoint,
            _ => {
                return Err(InvalidNodeId::Role {
                    id: text.into(),
                    role: role.into(),
                });
            }
        };
        let ip = match ip {
            "" => None,
            _ => Some(ip.parse().map_err(|_| InvalidNodeId::Ip {
                id: text.into(),
                ip: ip.into(),
            })?),
        };
        if id.is_empty() {
            return Err(InvalidNodeId::Empty(text.into()));
        }
        Ok(Self {
            role,
            ip,
            id: id.into(),
            domain: domain.into(),
        })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~", self.role.as_str())?;
        if let Some(ip) = self.ip {
            write!(f, "{ip}")?;
        }
        write!(f, "~{}~{}", self.id, self.domain)
    }
}

/// Region, zone and sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone within it.
    pub zone: String,
    /// Sub-zone within that.
    pub sub_zone: String,
}

/// The key of metadata under which a proxy of Millrace's names what it executes and earlier versions do not.
pub const FEATURES: &str = "MILLRACE_FEATURES";

/// A client of the control plane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Id as sent; [`Node::parsed_id`] gives its parts.
    pub id: String,
    /// Service cluster the client says it belongs to.
    pub cluster: String,
    /// Free metadata, as JSON.
    pub metadata: Map<String, Value>,
    /// Where the client runs.
    pub locality: Option<Locality>,
    /// Program, such as `envoy` or `gRPC Go`.
    pub user_agent_name: String,
    /// Its version.
    pub user_agent_version: String,
    /// Optional protocol features of the client, such as `xds.config.resource-in-sotw`.
    pub client_features: Vec<String>,
}

impl Node {
    /// A node of ours with a structured id.
    pub fn new(id: &NodeId) -> Self {
        Self {
            id: id.to_string(),
            ..Self::default()
        }
    }

    /// Sets a metadata key.
    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Parts of the id.
    ///
    /// # Errors
    /// When the id is free-form, as gRPC clients' often are.
    pub fn parsed_id(&self) -> Result<NodeId, InvalidNodeId> {
        self.id.parse()
    }

    /// A metadata key that holds text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).and_then(Value::as_str)
    }

    /// Says what the client executes.
    #[must_use]
    pub fn with_features(self, names: &[&str]) -> Self {
        self.with_metadata(FEATURES, names.to_vec())
    }

    /// What the client says that it executes; nothing where it says nothing, as a first version would.
    pub fn features(&self) -> impl Iterator<Item = &str> {
        let named = self.metadata.get(FEATURES).and_then(Value::as_array);
        named.into_iter().flatten().filter_map(Value::as_str)
    }

    /// `NODE_NAME`: the Kubernetes node.
    pub fn node_name(&self) -> Option<&str> {
        self.text("NODE_NAME")
    }

    /// `NAMESPACE` of a sidecar, or the namespace in its id (`pod.namespace`).
    pub fn namespace(&self) -> Option<String> {
        self.text("NAMESPACE").map(str::to_owned).or_else(|| {
            let id = self.parsed_id().ok()?;
            (id.role != NodeRole::Node)
                .then(|| id.id.rsplit_once('.').map(|(_, ns)| ns.to_owned()))?
        })
    }

    /// `LABELS` of a sidecar's pod.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.metadata.get("LABELS").and_then(Value::as_object);
        labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }

    /// `INSTANCE_IPS`, comma-separated, or the address in the id.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let listed: Vec<IpAddr> = self
            .text("INSTANCE_IPS")
            .into_iter()
            .flat_map(|ips| ips.split(','))
            .filter_map(|ip| ip.trim().parse().ok())
            .collect();
        if listed.is_empty() {
            self.parsed_id()
                .ok()
                .and_then(|id| id.ip)
                .into_iter()
                .collect()
        } else {
            listed
        }
    }
}

impl From<proto::Node> for Node {
    fn from(node: proto::Node) -> Self {
        Self {
            metadata: node.metadata.map(metadata::to_json).unwrap_or_default(),
            locality: node.locality.map(|locality| Locality {
                region: locality.region,
                zone: locality.zone,
                sub_zone: locality.sub_zone,
            }),
            user_agent_version: node
                .user_agent_version_type
                .map(metadata::user_agent_version)
                .unwrap_or_default(),
            id: node.id,
            cluster: node.cluster,
            user_agent_name: node.user_agent_name,
            client_features: node.client_features,
        }
    }
}

impl From<&Node> for proto::Node {
    fn from(node: &Node) -> Self {
        use proto::envoy::config::core::v3::node::UserAgentVersionType;

        Self {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            metadata: (!node.metadata.is_empty()).then(|| metadata::to_struct(&node.metadata)),
            locality: node.locality.as_ref().map(|locality| proto::Locality {
                region: locality.region.clone(),
                zone: locality.zone.clone(),
                sub_zone: locality.sub_zone.clone(),
            }),
            user_agent_name: node.user_agent_name.clone(),
            user_agent_version_type: (!node.user_agent_version.is_empty())
                .then(|| UserAgentVersionType::UserAgentVersion(node.user_agent_version.clone())),
            client_features: node.client_features.clone(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
