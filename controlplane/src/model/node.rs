//! Nodes: where a proxy and its pods are.

use super::names::ObjectName;

/// A place, by the labels that Kubernetes has for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// The region; empty where unknown.
    pub region: String,
    /// The zone; empty where unknown.
    pub zone: String,
    /// The part of the zone; empty where unknown.
    pub subzone: String,
}

/// A Kubernetes Node, of which only the place is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name, without a namespace.
    pub name: ObjectName,
    /// Where it stands, by its labels.
    pub locality: Locality,
}
