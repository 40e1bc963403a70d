//! `networking.istio.io` `Sidecar`.

use serde::Deserialize;

use super::{Metadata, Unexecuted, WorkloadSelector};

/// A `Sidecar`.
#[derive(Clone, Debug, Deserialize)]
pub struct Sidecar {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    #[serde(default)]
    pub spec: SidecarSpec,
    #[serde(default, rename = "status")]
    _status: Option<Unexecuted>,
}

/// What a `Sidecar` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct SidecarSpec {
    pub workload_selector: Option<WorkloadSelector>,
    pub ingress: Vec<SidecarIngress>,
    pub egress: Vec<SidecarEgress>,
    pub inbound_connection_pool: Option<Unexecuted>,
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// A port that pods are reached at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct SidecarIngress {
    pub port: SidecarPort,
    pub bind: Option<String>,
    pub capture_mode: Option<String>,
    pub default_endpoint: Option<String>,
    pub tls: Option<Unexecuted>,
    pub connection_pool: Option<Unexecuted>,
}

/// Hosts that pods may call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct SidecarEgress {
    pub port: Option<SidecarPort>,
    pub bind: Option<String>,
    pub capture_mode: Option<String>,
    pub hosts: Vec<String>,
}

/// A port with its protocol.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct SidecarPort {
    pub number: u32,
    pub protocol: Option<String>,
    pub name: String,
    pub target_port: Option<u32>,
}

/// What happens to traffic that belongs to no service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct OutboundTrafficPolicy {
    pub mode: Option<String>,
    pub egress_proxy: Option<Unexecuted>,
}
