//! `networking.istio.io` `ServiceEntry` and `WorkloadEntry`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Metadata, Unexecuted};

/// A `ServiceEntry`.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceEntry {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: ServiceEntrySpec,
    #[serde(default, rename = "status")]
    _status: Option<Unexecuted>,
}

/// What a `ServiceEntry` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct ServiceEntrySpec {
    pub hosts: Vec<String>,
    pub addresses: Vec<String>,
    pub ports: Vec<EntryPort>,
    pub location: Option<String>,
    pub resolution: Option<String>,
    pub endpoints: Vec<WorkloadEntrySpec>,
    pub workload_selector: Option<WorkloadSelector>,
    pub export_to: Vec<String>,
    pub subject_alt_names: Vec<String>,
}

/// A port of a `ServiceEntry`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct EntryPort {
    pub number: u32,
    pub protocol: Option<String>,
    pub name: String,
    pub target_port: Option<u32>,
}

/// Labels that select workloads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct WorkloadSelector {
    pub labels: BTreeMap<String, String>,
}

/// A `WorkloadEntry`.
#[derive(Clone, Debug, Deserialize)]
pub struct WorkloadEntry {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: WorkloadEntrySpec,
    #[serde(default, rename = "status")]
    _status: Option<Unexecuted>,
}

/// What a `WorkloadEntry`, or an endpoint of a `ServiceEntry`, says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct WorkloadEntrySpec {
    pub address: String,
    pub ports: BTreeMap<String, u32>,
    pub labels: BTreeMap<String, String>,
    pub network: Option<String>,
    pub locality: Option<String>,
    pub weight: Option<u32>,
    pub service_account: Option<String>,
}
