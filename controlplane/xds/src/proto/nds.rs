//! Istio's name table (`istio.networking.nds.v1`), derived by hand from `proto/nds.proto`.
//!
//! In: nothing. Out: [`NameTable`], built by the pilot for a node's DNS and read by the proxy.
//! Maps are ordered, so that equal tables encode to equal bytes.

use std::collections::BTreeMap;

/// Host names of the mesh and their addresses.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameTable {
    /// By fully qualified host name without the trailing dot.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// One host of a [`NameTable`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameInfo {
    /// Addresses, IPv4 and IPv6 mixed.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// Registry the service came from, such as `Kubernetes`.
    #[prost(string, tag = "2")]
    pub registry: String,
    /// First label of a Kubernetes service's host name.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Namespace of a Kubernetes service.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Further names answered with the same addresses.
    #[prost(string, repeated, tag = "5")]
    pub alt_hosts: Vec<String>,
}

impl prost::Name for NameTable {
    const NAME: &'static str = "NameTable";
    const PACKAGE: &'static str = "istio.networking.nds.v1";

    fn type_url() -> String {
        format!("type.googleapis.com/{}", Self::full_name())
    }
}
