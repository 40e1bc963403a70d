//! Services that are not the cluster's own: what `ServiceEntry` and `WorkloadEntry` come to after validation.
//!
//! Made by [`super::validate`]; the index turns each host of a [`ServiceEntry`] into a service whose kind
//! is [`ServiceKind::Entry`](super::service::ServiceKind::Entry).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoint::Locality;
use super::names::ObjectName;
use super::service::Service;
use super::workload::Workload;
use super::{Kind, ObjectId};

/// A `ServiceEntry`: a service for each of its hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// What kind of object it is: an `EgressRule` says the same.
    pub kind: Kind,
    /// Namespace and name.
    pub name: ObjectName,
    /// One service per host.
    pub services: Vec<Arc<Service>>,
}

/// What a service that a `ServiceEntry` made has beyond others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object it comes from.
    pub object: ObjectId,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Whether it is outside the mesh.
    pub external: bool,
    /// Networks that belong to it, beside its single addresses.
    pub networks: Vec<IpNet>,
    /// The endpoints that it lists; empty where a selector finds them, or the host itself is meant.
    pub endpoints: Vec<Arc<WorkloadEntry>>,
    /// Whether it may be given an address where it states none.
    pub allocate: bool,
}

/// How the endpoints of a `ServiceEntry` are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Connections go where the client asked.
    None,
    /// By their addresses.
    Static,
    /// By DNS; every address is an endpoint.
    Dns,
    /// By DNS; the first address is used for new connections.
    DnsRoundRobin,
}

/// An endpoint that an object states: a `WorkloadEntry`, or an item of a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Where it is.
    pub address: EntryAddress,
    /// Its ports, by the service port's name, where they differ from the service's.
    pub ports: BTreeMap<String, u16>,
    /// Its share among its locality's endpoints.
    pub weight: u32,
    /// Where it runs.
    pub locality: Locality,
    /// Its name, labels and service account.
    pub workload: Arc<Workload>,
}

/// Where a stated endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryAddress {
    /// At an address.
    Ip(IpAddr),
    /// At whatever DNS says of a name.
    Name(String),
}

impl EntryAddress {
    /// The address, or the name.
    pub fn host(&self) -> String {
        match self {
            Self::Ip(address) => address.to_string(),
            Self::Name(name) => name.clone(),
        }
    }
}
